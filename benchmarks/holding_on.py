"""Which hard clips are held, by setting: `python -m benchmarks.holding_on --setting NAME=OVERRIDE,OVERRIDE ...`.

Tracks the clips of `benchmarks.hard_clips` by `evaluate.py` with each setting, and prints J&F and whether the object is
held. With `--davis ROOT` the clips are those of DAVIS-2016 in ROOT and their variants, of which only J&F is known.
Without settings, `propagation.follow=false` is compared with the default.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from omegaconf import OmegaConf

from benchmarks.hard_clips import CASES, write_cases, write_variants
from benchmarks.measuring import arguments, report
from benchmarks.quality import composed
from drift.commands.evaluate import evaluate
from drift.image_files import read_mask

__all__ = ["held", "main", "run_setting"]

Masks = Sequence[UInt8[np.ndarray, "height width"]]
_ENOUGH = 0.5  # IoU
_STRAY = 0.001  # of the frame's pixels
_FRAMES_TO_FIND = 5


def held(name: str, masks: Masks, truth: Masks) -> bool:
    """Whether a clip of `benchmarks.hard_clips` is held.

    fast_pan, growth: mean IoU over the last five frames above 0.5. occlusion, return: hardly a pixel in the middle of
    the frames without the object, and an IoU above 0.5 in the fifth frame with at least half of its area. twins: in the
    last frame each has an IoU above 0.5 with its own true mask, so that they are not swapped.
    """
    if name == "twins":
        return all(_iou(masks[-1] == i, truth[-1] == i) > _ENOUGH for i in (1, 2))
    areas = np.array([np.count_nonzero(mask) for mask in truth])
    hidden = np.flatnonzero(areas == 0)
    if not len(hidden):
        ious = [_iou(m > 0, t > 0) for m, t in zip(masks[-5:], truth[-5:], strict=True)]
        return float(np.mean(ious)) > _ENOUGH
    stray = np.count_nonzero(masks[hidden[len(hidden) // 2]])
    back = int(np.flatnonzero(areas[hidden[-1] :] > areas.max() / 2)[0]) + int(hidden[-1]) + _FRAMES_TO_FIND
    return bool(stray < _STRAY * masks[0].size and _iou(masks[back] > 0, truth[back] > 0) > _ENOUGH)


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / max((mask | truth).sum(), 1))


def run_setting(root: Path, data: str, overrides: Sequence[str], folder: Path) -> Mapping[str, float]:
    """J&F of each clip in `root`; masks are written to `folder`/masks."""
    config = composed(
        f"data={data}", f"data.root={root}", f"output.dir={folder}", "output.report=false", *overrides
    )
    OmegaConf.resolve(config)
    scores = evaluate(config)
    assert scores is not None
    return {score.sequence: score.j_and_f for score in scores.sequences}


def _masks(folder: Path) -> Masks:
    return [read_mask(path) for path in sorted(folder.glob("*.png"))]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--setting", action="append", metavar="NAME=OVERRIDES", help="separated by commas")
    parser.add_argument("--davis", type=Path, metavar="ROOT", help="clips of DAVIS-2016 and their variants")
    parser.add_argument("--clips", type=lambda text: text.split(","), help="a,b: only these clips")
    options = parser.parse_args()
    settings = dict(
        text.split("=", 1) for text in options.setting or ("fixed=propagation.follow=false", "default=")
    )
    table: dict[str, float | int | str] = {}
    with tempfile.TemporaryDirectory(prefix="drift-") as scratch:
        root, data = Path(scratch) / "clips", "davis2016" if options.davis else "davis"
        if options.davis:
            write_variants(options.davis, root)
        else:
            write_cases(root)
        chosen = [f"data.sequences=[{','.join(options.clips)}]"] if options.clips else []
        for name, overrides in settings.items():
            folder = Path(scratch) / name
            words = [word for word in overrides.split(",") if word]
            scores = run_setting(root, data, [*chosen, *words], folder)
            for clip, score in scores.items():
                text = f"{score:.3f}"
                if clip in CASES:
                    truth = _masks(root / "Annotations" / "480p" / clip)
                    text += " held" if held(clip, _masks(folder / "masks" / clip), truth) else " lost"
                table[f"{clip}, {name}"] = text
            table[f"mean, {name}"] = float(np.mean(list(scores.values())))
    report("J&F by clip and setting", table, options.json)


if __name__ == "__main__":
    main()
