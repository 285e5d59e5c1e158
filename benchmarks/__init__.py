"""Scripts behind the claims about quality, speed and memory: `python -m benchmarks.NAME`."""
