"""One script per claim about speed or memory; each runs the alternative beside ours: `python -m benchmarks.NAME`."""
