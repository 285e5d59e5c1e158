"""The animation of the README, from an overlay video: `python -m benchmarks.animation OVERLAY FILE`.

python evaluate.py output.dir=FOLDER
python -m benchmarks.animation FOLDER/overlays/meadow.mp4 docs/sample.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av

__all__ = ["main", "write_animation"]


def write_animation(video: Path, path: Path, *, width: int = 480, every: int = 2) -> None:
    """Writes every `every`-th frame of a video, `width` pixels wide, as an animated WebP that repeats."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        height = round(width * stream.height / stream.width)
        rate = float(stream.average_rate or 24) / every
        frames = [
            frame.to_image(width=width, height=height)
            for index, frame in enumerate(container.decode(stream))
            if index % every == 0
        ]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / rate),
        loop=0,
        quality=70,
        method=6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path, help="overlay of a run")
    parser.add_argument("file", type=Path, help="animated WebP")
    parser.add_argument("--width", type=int, default=480, help="in pixels")
    options = parser.parse_args()
    write_animation(options.video, options.file, width=options.width)


if __name__ == "__main__":
    main()
