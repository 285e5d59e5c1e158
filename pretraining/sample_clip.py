"""The sample clip that ships with the project: three animals in a meadow, with exact masks and motion.

It is rendered from pictures that the embedded model never saw (`pretraining.pictures.HELD_OUT`):

    python -m pretraining.sample_clip --pictures ROOT --output drift/assets/sample

This writes every file there but `COPYING`, the licence's text, which is kept beside them. What the clip
shows is in `pretraining.meadow`; every layer moves by one affine map per frame, which is written
down: the clip has true masks, and its points can be followed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from drift.errors import DriftError, InputError
from drift.image_files import write_mask
from pretraining.meadow import ACTORS, SIZE
from pretraining.rendering import Frame, render

__all__ = ["FRAMES_PER_SECOND", "SEQUENCE", "main", "write_clip"]

SEQUENCE = "meadow"
FRAMES_PER_SECOND = 24

_JPEG_QUALITY = 89

_CHILDSPLAY = (
    "Stas Zytkiewicz (Childsplay, 2002-2005), adapted for Tux Paint by Pere Pujal i Carabantes; "
    "collection (c) 2002-2022 Bill Kendrick"
)
_ROOSTER = "John O'Sullivan (2002) or Childsplay, as below: the changelog names both for this file"
_STAMPS = "usr/share/tuxpaint/stamps/animals"
_NATURE = "usr/share/backgrounds/mate/nature"

_CREDITS = (
    ("rooster", "tuxpaint-stamps-default", f"{_STAMPS}/birds/rooster.png", _ROOSTER, "GPL-2"),
    ("fox", "tuxpaint-stamps-default", f"{_STAMPS}/mammals/dogs/fox.png", _CHILDSPLAY, "GPL-2"),
    ("zebra", "tuxpaint-stamps-default", f"{_STAMPS}/mammals/equines/zebra.png", _CHILDSPLAY, "GPL-2"),
    (
        "grass",
        "mate-backgrounds",
        f"{_NATURE}/GreenMeadow.jpg",
        "(c) 2005 Timothy Schellhase, 2008 Lapo Calamandrei",
        "GPL-2 or later",
    ),
    ("backdrop", "mate-backgrounds", f"{_NATURE}/Garden.jpg", "(c) 2008 Charles Barbin", "GPL-2 or later"),
)
"""What a picture shows, its Debian package, its path there, its authors, its licence."""


def _attribution() -> str:
    rows = "\n".join(
        f"| {what} | `/{path}` | `{package}` | {authors} | {licence} |"
        for what, package, path, authors, licence in _CREDITS
    )
    return _ATTRIBUTION.format(rows=rows)


_ATTRIBUTION = """# Where the sample clip's pictures come from

The frames are composed from the pictures below by `pretraining/sample_clip.py`, which scales, turns,
relights, blurs and layers them. None of them was used to train the models that ship with `drift`.

| shows | file | Debian package | authors | licence |
| --- | --- | --- | --- | --- |
{rows}

Authors and licences are those that the packages name: `/usr/share/doc/*/copyright`, and for the stamps
(version 2022.06.04) also their changelog, entries of 2002-11-12, 2007-07-01 and 2008-06-27.

This folder (frames, masks and motion) is therefore distributed under the GNU General Public License,
version 2; its text is in `COPYING` beside this file and at
<https://www.gnu.org/licenses/old-licenses/gpl-2.0.html>. It comes without any warranty. Its source is the
script named above together with the two Debian packages: `apt-get download tuxpaint-stamps-default
mate-backgrounds`, unpack both with `dpkg -x` and run
`python -m pretraining.sample_clip --pictures ROOT --output FOLDER`. The licence of the program `drift`
is not affected: the clip is data beside it.
"""


def _fresh_folder(folder: Path) -> Path:
    """Makes a folder and empties it of an earlier clip's numbered files, which may be more than ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9][0-9][0-9].*"):
        old.unlink()
    return folder


def _motion_file(motion: Sequence[dict[str, np.ndarray]]) -> str:
    """The maps as JSON, a line per frame and layer, so that differences can be read."""
    names = {"background": "meadow"} | {str(i + 1): actor.name for i, actor in enumerate(ACTORS)}
    lines = ",\n".join(
        f'  "{layer}": [\n'
        + ",\n".join(f"   {json.dumps(maps[layer].round(7).tolist())}" for maps in motion)
        + "\n  ]"
        for layer in names
    )
    head = {
        "description": "2 x 3 maps of frame 0's pixels (x, y, 1) to each frame's; centres are integers",
        "size": {"height": SIZE[0], "width": SIZE[1]},
        "frames_per_second": FRAMES_PER_SECOND,
        "layers": names,
    }
    return json.dumps(head, indent=1)[:-2] + ',\n "affine": {\n' + lines + "\n }\n}\n"


def write_clip(frames: Iterator[Frame], output: Path) -> int:
    """Writes frames, masks, the sequence list, the motion and the credits in DAVIS's layout.

    Returns:
        How many frames were written.

    Raises:
        InputError: the folder cannot be written.
    """
    motion = []
    try:
        images = _fresh_folder(output / "JPEGImages" / "480p" / SEQUENCE)
        masks = _fresh_folder(output / "Annotations" / "480p" / SEQUENCE)
        for index, frame in enumerate(frames):
            Image.fromarray(frame.image).save(
                images / f"{index:05d}.jpg", quality=_JPEG_QUALITY, optimize=True
            )
            write_mask(masks / f"{index:05d}.png", frame.mask)
            motion.append(frame.motion)
        (output / "ImageSets" / "2017").mkdir(parents=True, exist_ok=True)
        (output / "ImageSets" / "2017" / "val.txt").write_text(f"{SEQUENCE}\n", encoding="utf-8")
        (output / "motion.json").write_text(_motion_file(motion), encoding="utf-8")
        (output / "ATTRIBUTION.md").write_text(_attribution(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from None
    return len(motion)


def _whole_number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: allowed is a whole number of at least {least}")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.sample_clip",
        description="Render the sample clip: three animals in a meadow, with exact masks and motion.",
        epilog="The pictures come from the Debian packages tuxpaint-stamps-default and mate-backgrounds; "
        "unpack them with dpkg -x into ROOT or into ROOT/<package>.",
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, metavar="ROOT", help="folder with the unpacked packages, or /"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where the clip goes, in DAVIS's layout"
    )
    parser.add_argument(
        "--frames", type=_whole_number(2), default=30, metavar="N", help="frames in the clip (default: 30)"
    )
    parser.add_argument(
        "--seed",
        type=_whole_number(0),
        default=0,
        metavar="N",
        help="of the grass's places and the noise (default: 0)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 with one line on the error."""
    options = _parser().parse_args(arguments)
    try:
        count = write_clip(render(options.pictures, frames=options.frames, seed=options.seed), options.output)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {count} frames of {SEQUENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
