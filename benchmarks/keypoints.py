"""How well points are followed through the sample clip, whose true motion is known from its renderer."""

from __future__ import annotations

import json

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import arguments, write_json
from benchmarks.quality import composed, options_of_tracker
from datamodules.sample import Sample
from drift.clip import Clip, FrameFiles, Keypoint
from drift.command_line import build, keep_freed_memory
from drift.propagation import Tracker

__all__ = ["draw_keypoints", "follow", "places_at", "share_within"]

_NEAR = 8.0  # pixels: one token of the embedded model
_EARLY = 10  # the frame that is looked at beside the last one


def draw_keypoints(clip: Clip, maps: dict[str, np.ndarray], *, each: int, seed: int = 0) -> dict[str, list]:
    """Points of the first frame by layer, `each` on every object and on the background, at least 8 pixels inside it.

    Args:
        clip: the sample clip.
        maps: see `places_at`.
        each: how many of each layer.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    mask = clip.given[0]
    points: dict[str, list] = {}
    for layer in maps:
        inside = mask == (0 if layer == "background" else int(layer))
        rows, columns = np.nonzero(_eroded(inside, int(_NEAR)))
        chosen = random.choice(len(rows), each, replace=False)
        points[layer] = [(float(columns[i]), float(rows[i])) for i in chosen]
    return points


def _eroded(inside: np.ndarray, pixels: int) -> np.ndarray:
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.erode(inside.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def places_at(points: dict[str, list], maps: dict[str, np.ndarray], frame: int) -> np.ndarray:
    """Where points of frame 0 truly are in another frame, x and y, in the order of `points`.

    Args:
        points: by layer.
        maps: of each layer, for every frame the `(2, 3)` map from frame 0's pixels.
        frame: the other frame's index.
    """
    found = [
        maps[layer][frame] @ np.array([x, y, 1.0]) for layer, several in points.items() for x, y in several
    ]
    return np.stack(found)


def share_within(
    found: np.ndarray, true: np.ndarray, layers: list[str], mask: np.ndarray
) -> tuple[float, int]:
    """The share of the visible points that are within 8 pixels of their true places, and how many are visible.

    Args:
        found, true: x and y of each point.
        layers: the layer of each.
        mask: the frame's true mask, `(height, width)`.
    """
    height, width = mask.shape
    near = []
    for place, truth, layer in zip(found, true, layers, strict=True):
        column, row = round(truth[0]), round(truth[1])
        expected = 0 if layer == "background" else int(layer)
        if 0 <= row < height and 0 <= column < width and mask[row, column] == expected:
            near.append(bool(np.hypot(*(place - truth)) <= _NEAR))
    return float(np.mean(near)) if near else float("nan"), len(near)


def follow(clip: Clip, tracker: Tracker, *, each: int) -> dict[str, float]:
    """Follows points of the sample clip, `each` on every object and on the ground, and says how well."""
    assert isinstance(clip.frames, FrameFiles)
    told = json.loads((clip.frames.paths[0].parents[3] / "motion.json").read_text())["affine"]
    maps = {layer: np.array(several) for layer, several in told.items()}
    points = draw_keypoints(clip, maps, each=each)
    layers = [layer for layer, several in points.items() for _ in several]
    places = [place for several in points.values() for place in several]
    keypoints = [Keypoint(str(n), x, y) for n, (x, y) in enumerate(places)]
    flat: dict[str, float] = {"points": len(places)}
    for index, frame in enumerate(clip.frames):
        labels = tracker.step(frame, points=keypoints if index == 0 else ())
        if index in (_EARLY, len(clip) - 1):
            found = np.array([(one.x, one.y) for one in labels.tracked_points()])
            true, mask = places_at(points, maps, index), clip.truth[index]
            at = f"frame {_EARLY}" if index == _EARLY else "last frame"
            flat[f"within 8 px, {at}"], flat[f"visible, {at}"] = share_within(found, true, layers, mask)
            flat[f"unmoved within 8 px, {at}"] = share_within(np.array(places), true, layers, mask)[0]
            flat[f"median error in px, {at}"] = float(np.median(np.hypot(*(found - true).T)))
    return flat


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=40, help="points on every object and on the background")
    parser.add_argument("overrides", nargs="*", help="options of evaluate.py, as propagation.top_k=5")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = composed(*options.overrides)
    (clip,) = Sample().predict_dataloader()
    flat = follow(clip, Tracker(build(config, "backbone"), **options_of_tracker(config)), each=options.each)
    table = Table("figure", "value", title="Points of the sample clip")
    for name, value in flat.items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)
    write_json(flat, options.json)


if __name__ == "__main__":
    main()
