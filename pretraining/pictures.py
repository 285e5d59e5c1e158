"""Openly licensed training pictures: named cut-outs with alpha, and background photographs.

They come from Debian packages (see `SOURCES`), found below any folder: the root of a system
where the packages are installed, or one into which they were unpacked with `dpkg -x`. A few more
photographs come with scikit-image.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from drift.errors import InputError
from pretraining.archives import Entry, entries

__all__ = [
    "HELD_OUT",
    "PACKAGES",
    "SOURCES",
    "Cutout",
    "Source",
    "find_backgrounds",
    "find_cutouts",
    "find_photographs",
    "load_pictures",
]


Kind = Literal["cut-out", "background"]


@dataclass(frozen=True)
class Source:
    """Pictures of one kind in a Debian package.

    Attributes:
        package: the package's name.
        kind: whether they are objects on a transparent background, or whole scenes.
        folder: where they lie below the root.
        keep: pattern that their paths below the folder match somewhere.
        drop: pattern that their paths do not match: drawings, text, screenshots.
    """

    package: str
    kind: Kind
    folder: str
    keep: str = ""
    drop: str = "$^"


SOURCES = (
    Source(
        "tuxpaint-stamps-default",
        "cut-out",
        "usr/share/tuxpaint/stamps",
        drop="cartoon|symbols|flags|roadsigns|hanukkah|body_parts|mirror",
    ),
    Source(
        "sweethome3d-furniture",
        "cut-out",
        "usr/share/sweethome3d/furniture",
        drop=r"window|door|plug|switch|antenna|dimmer|socket|RJ-45|RJ45|billet|fleche|stationnement"
        r"|passage|emergencySign|towel-rack|housePuzzle|cardGame|frame\d|woodToy|motorbike|caballito|casque\.|[pP]ineSnow",
    ),
    Source(
        "scratch",
        "cut-out",
        "usr/share/scratch/Media/Costumes",
        keep=r"Animals/(bird-flying|buffalo1|cow1|elephant|grasshopper2|insect|squirrel1)"
        r"|People/(amon|anjuli|anna|breakdancer\d\.|calvrett|cassy|chamak|dan\d|ed\.|football|jay|jodi"
        r"|lee-fan|mako|marissa|nathan|nina|paul|referee|ribbon|sam\.|thai)"
        r"|Things/(cheesy|fire-hydrant|flower-vase|fortune|fruit_platter|hair|lamp|lego|manhole|marble"
        r"|palmtree|rock|tennisball|trampoline|umbrella)"
        r"|Transportation/(airplane|bike|bus|car-|sail-boat|street-cleaner|tug-boat|yacht)",
    ),
    Source(
        "gcompris-qt-data",
        "cut-out",
        "usr/share/gcompris-qt/rcc",
        keep="solar_system/resource/(earth|jupiter|mars|neptune|saturn|uranus|venus)",
    ),
    Source("gnome-backgrounds", "background", "usr/share/backgrounds/gnome"),
    Source("mate-backgrounds", "background", "usr/share/backgrounds/mate", drop=r"^desktop/|_\d+x\d+\."),
    Source("plasma-workspace-wallpapers", "background", "usr/share/wallpapers", drop="screenshot"),
    Source("ukui-wallpapers", "background", "usr/share/backgrounds", keep="^[^/]+$"),
    Source("lxqt-themes", "background", "usr/share/lxqt/wallpapers", drop="logo"),
    Source("lomiri-wallpapers-20.04", "background", "usr/share/backgrounds", keep="^[^/]+$"),
    Source("lomiri-wallpapers-16.04", "background", "usr/share/backgrounds", keep="^[^/]+$"),
    Source(
        "endless-sky-data",
        "background",
        "usr/share/games/endless-sky/images",
        keep="^land/|^scene/loc",
        drop="earthrise|nasa[89]",
    ),
    Source(
        "gcompris-qt-data",
        "background",
        "usr/share/gcompris-qt/rcc",
        keep=r"clickgame/resource/sea|explore_farm_animals/resource/animals/"
        r"|explore_monuments/resource/(france|india|wonders)/"
        r"|explore_world_animals/resource/animals/(chameleon|crocodile|dragon|koala|lemur|moose|panda"
        r"|polar_bear|scarlet_macaw)\.",
    ),
    Source(
        "scratch",
        "background",
        "usr/share/scratch/Media/Backgrounds",
        drop=r"bedroom|party-room|/room|spotlight|/desert|underwater|/woods|night-city|/school|tracks3"
        r"|basketball-court2|graffiti|mural-faro|fireproof|/moon|stars|brick-wall1|xy-grid",
    ),
    Source("tuxpaint-data", "background", "usr/share/tuxpaint/templates", keep=r"\.jpg$"),
    Source("plasma-workspace-data", "background", "usr/share/plasma/avatars/photos"),
    Source(
        "kphotoalbum",
        "background",
        "usr/share/kphotoalbum/demo",
        drop="qt-logo|wayne|grand_canyon_1",
    ),
)
"""Where the pictures are. `.rcc` and `.sh3f` archives count as folders (see `pretraining.archives`)."""

PACKAGES = tuple(dict.fromkeys(source.package for source in SOURCES))
"""The Debian packages of `SOURCES`."""

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "rocket.jpg",
)
"""Backgrounds that scikit-image installs, in the public domain or under CC0."""

HELD_OUT = frozenset({"fox", "rooster", "zebra", "beetle", "GreenMeadow", "Garden"})
"""File stems of pictures excluded from training; the sample clip is rendered from them."""

_NAMES = {
    "amon": "man",
    "anjuli": "woman",
    "anna": "girl",
    "apple imac": "computer",
    "apple iphone": "phone",
    "armchair ottoman": "armchair",
    "bended": "",
    "bird flying": "flying bird",
    "boiler": "kettle",
    "bullet": "",
    "calvrett": "man",
    "captain s bed": "bed",
    "car blue": "car",
    "car bug": "car",
    "car cow": "car",
    "car model": "toy car",
    "cassy": "woman",
    "cassy phone": "woman",
    "chamak": "dancer",
    "cheesy puffs": "bowl of snacks",
    "chevrolet": "car",
    "child hut": "playground",
    "children game": "playground",
    "chillin": "",
    "class seat": "school chair",
    "clear sofa": "sofa",
    "clothes washing machine": "washing machine",
    "concept sedan": "car",
    "contemporary living room": "cabinet",
    "convertible sofa bz": "sofa",
    "cooker": "rice cooker",
    "cup cake": "cupcake",
    "dan": "man",
    "dart game": "dartboard",
    "drawers cabinet": "cabinet",
    "ed": "man",
    "external unity air conditioning": "air conditioner",
    "extinguisher": "fire extinguisher",
    "female": "woman",
    "fitness tower": "fitness machine",
    "flipper": "pinball machine",
    "football run": "football player",
    "football stand": "football player",
    "football table": "table football",
    "ford focus": "car",
    "fork lift": "forklift",
    "furnace": "stove",
    "garden hut": "shed",
    "hair": "wig",
    "high hedge": "hedge",
    "holding": "",
    "insect": "ant",
    "insect a": "ant",
    "insect b": "ant",
    "intercom with screen": "intercom",
    "island extension": "kitchen counter",
    "jay": "man",
    "jodi": "woman",
    "lee fan": "dancer",
    "lego": "toy brick",
    "locked locker": "locker",
    "mako": "man",
    "mako stop": "man",
    "male": "man",
    "marissa": "woman",
    "mezzanine bed": "loft bed",
    "mit": "",
    "mocassin": "shoes",
    "mp station": "loudspeaker",
    "nathan": "man",
    "nina": "woman",
    "oil servers": "glass bottles",
    "palmtree": "palm tree",
    "paul": "man",
    "penbox": "pencil holder",
    "peugeot cc": "car",
    "rectangle": "",
    "renault scenic": "car",
    "rigged": "",
    "rubik s cube": "puzzle cube",
    "ryokan chair": "chair",
    "sam": "boy",
    "seat leon": "car",
    "socket": "sock",
    "sport": "",
    "sugar": "sugar bowl",
    "table on trestles": "table",
    "technical table": "table",
    "teck": "teak",
    "tennisball": "tennis ball",
    "text marker": "marker",
    "tug boat": "tugboat",
    "vw new beetle": "car",
    "winchester": "",
    "wood bank": "bench",
    "yamaha yzr r": "motorcycle",
}
"""Plain nouns for first names, brands, and what the packages spell or translate wrongly."""

_KNOWN = re.compile("|".join(rf"\b{words}\b" for words in sorted(_NAMES, key=len, reverse=True)))
_MIN_COLOURS = 150
_MIN_SIDE = 48


@dataclass(frozen=True)
class Cutout:
    """An object on a transparent background.

    Attributes:
        rgba: `(height, width, 4)` uint8, RGB and alpha, cropped to the object.
        name: what it shows, in lower-case English without an article ("emperor tamarin").
    """

    rgba: np.ndarray
    name: str


def _entries(root: Path, kind: Kind) -> Iterator[tuple[Source, Entry]]:
    for source in SOURCES:
        inside = source.folder
        folders = (root / inside, root / source.package / inside, root / inside.removeprefix("usr/"))
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if source.kind != kind or folder is None:
            continue
        for entry in entries(folder):
            path = str(entry.path)
            if re.search(source.keep, path) and not re.search(source.drop, path):
                yield source, entry


def _open(data: bytes, mode: str) -> Image.Image | None:
    """Picture in `mode`, or None if the bytes cannot be decoded."""
    try:
        return Image.open(io.BytesIO(data)).convert(mode)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _name(entry: Entry) -> str:
    """Name of the object, from the package's text if it is short, else from the file name."""
    stem = _words(entry.path.stem)
    clause = re.split(r"[.,;:!?(]", entry.text.strip().partition("\n")[0])[0]
    words = _words(re.sub(r"^\s*(a|an|the|some|two|one)\s+", "", clause.lower()))
    return words if 0 < len(words.split()) <= 3 else stem or "object"


def _words(text: str) -> str:
    letters = re.sub(r"[^a-z]+", " ", text.lower()).strip()
    return " ".join(_KNOWN.sub(lambda found: _NAMES[found[0]], letters).split())


def _is_photographic(rgba: np.ndarray) -> bool:
    """Whether the object has as many distinct colours as a photograph; drawings have fewer."""
    solid = rgba[rgba[..., 3] > 128][:, :3] >> 3
    return len(np.unique(solid.astype(np.int32) @ (1024, 32, 1))) >= _MIN_COLOURS


def find_cutouts(root: Path, *, max_side: int = 320, held_out: bool = False) -> list[Cutout]:
    """Photographic cut-outs below `root`.

    Args:
        root: a system's root, or a folder of unpacked Debian packages.
        max_side: longest side in pixels; larger ones are reduced.
        held_out: give those in `HELD_OUT` only, instead of all but those.
    """
    cutouts = []
    for _, entry in _entries(root, "cut-out"):
        if (entry.path.stem in HELD_OUT) is not held_out:
            continue
        picture = _open(entry.read(), "RGBA")
        box = picture.getchannel("A").getbbox() if picture else None
        if picture is None or box is None:
            continue
        picture = picture.crop(box)
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        rgba = np.asarray(picture)
        if min(rgba.shape[:2]) >= _MIN_SIDE and _is_photographic(rgba):
            cutouts.append(Cutout(rgba, _name(entry)))
    return cutouts


def find_backgrounds(root: Path, *, max_side: int = 1024, held_out: bool = False) -> list[np.ndarray]:
    """Photographs and wallpapers below `root` as RGB uint8 `(height, width, 3)`, one per motif of a folder."""
    backgrounds: dict[tuple[str, str], np.ndarray] = {}
    for source, entry in _entries(root, "background"):
        # A wallpaper of Plasma is a folder with one file for each screen size.
        wallpaper = source.folder == "usr/share/wallpapers"
        motif = source.folder, entry.path.parts[0] if wallpaper else entry.path.stem
        if (entry.path.stem in HELD_OUT) is not held_out or motif in backgrounds:
            continue
        picture = _open(entry.read(), "RGB")
        if picture is None or min(picture.size) < 256:
            continue
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        backgrounds[motif] = np.asarray(picture)
    return list(backgrounds.values())


def find_photographs(*, max_side: int = 1024) -> list[np.ndarray]:
    """`PHOTOGRAPHS` as RGB uint8 `(height, width, 3)`; empty if scikit-image is not installed."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        return []
    folder = Path(package.origin).parent / "data"
    pictures = [_open((folder / name).read_bytes(), "RGB") for name in PHOTOGRAPHS]
    for picture in pictures:
        if picture is not None:
            picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return [np.asarray(picture) for picture in pictures if picture is not None]


def load_pictures(root: Path, *, max_side: int = 320) -> tuple[list[Cutout], list[np.ndarray]]:
    """Cut-outs and backgrounds for training, found below `root`.

    Args:
        root: see `find_cutouts`.
        max_side: longest side of cut-outs in pixels.

    Raises:
        InputError: there are too few; the message names the packages to install.
    """
    cutouts, backgrounds = find_cutouts(root, max_side=max_side), find_backgrounds(root)
    if len(cutouts) < 10 or len(backgrounds) < 10:
        raise InputError(
            f"{root}: only {len(cutouts)} cut-outs and {len(backgrounds)} backgrounds found; "
            f"install or unpack the Debian packages {', '.join(PACKAGES)} there"
        )
    return cutouts, backgrounds + find_photographs()
