"""Accuracy of point tracking on the sample clip, whose true motion is known: `python -m benchmarks.keypoints`."""

from __future__ import annotations

import json
from collections.abc import Iterable

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

__all__ = ["draw_points", "follow", "fraction_within", "true_positions"]

_NEAR = 8.0  # pixels: one token of the embedded model
_EARLY = 10  # frame that is evaluated beside the last one


def draw_points(clip: Clip, layers: Iterable[str], *, count: int, seed: int = 0) -> dict[str, list]:
    """Draws points on the first frame, at least 8 pixels inside their layer.

    Args:
        clip: the sample clip.
        layers: ids of objects as strings, and "background".
        count: number of points per layer.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    mask = clip.given[0]
    points: dict[str, list] = {}
    for layer in layers:
        inside = mask == (0 if layer == "background" else int(layer))
        rows, columns = np.nonzero(_eroded(inside, int(_NEAR)))
        chosen = random.choice(len(rows), count, replace=False)
        points[layer] = [(float(columns[i]), float(rows[i])) for i in chosen]
    return points


def _eroded(inside: np.ndarray, pixels: int) -> np.ndarray:
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.erode(inside.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def true_positions(points: dict[str, list], maps: dict[str, np.ndarray], frame: int) -> np.ndarray:
    """True positions of the points of frame 0 in another frame, `(points, 2)` x and y in pixels.

    Args:
        points: x and y in frame 0, by layer.
        maps: affine maps of the layers from frame 0 to all frames, `(frames, 2, 3)`.
        frame: index of the other frame.
    """
    positions = [
        maps[layer][frame] @ np.array([x, y, 1.0]) for layer, members in points.items() for x, y in members
    ]
    return np.stack(positions)


def fraction_within(
    found: np.ndarray, true: np.ndarray, layers: list[str], mask: np.ndarray
) -> tuple[float, int]:
    """Fraction of the visible points within 8 pixels of their true positions, and the number of visible points.

    Args:
        found, true: tracked and true positions, `(points, 2)`.
        layers: layer of each point.
        mask: true mask of the frame.
    """
    height, width = mask.shape
    near = []
    for position, truth, layer in zip(found, true, layers, strict=True):
        column, row = round(truth[0]), round(truth[1])
        expected = 0 if layer == "background" else int(layer)
        if 0 <= row < height and 0 <= column < width and mask[row, column] == expected:
            near.append(bool(np.hypot(*(position - truth)) <= _NEAR))
    return float(np.mean(near)) if near else float("nan"), len(near)


def follow(clip: Clip, tracker: Tracker, *, count: int) -> dict[str, float]:
    """Tracks points of the sample clip, `count` per object and on the background; returns the figures."""
    assert isinstance(clip.frames, FrameFiles)
    motion = json.loads((clip.frames.paths[0].parents[3] / "motion.json").read_text())["affine"]
    maps = {layer: np.array(by_frame) for layer, by_frame in motion.items()}
    points = draw_points(clip, maps, count=count)
    layers = [layer for layer, members in points.items() for _ in members]
    positions = [position for members in points.values() for position in members]
    keypoints = [Keypoint(str(n), x, y) for n, (x, y) in enumerate(positions)]
    flat: dict[str, float] = {"points": len(positions)}
    for index, frame in enumerate(clip.frames):
        labels = tracker.step(frame, points=keypoints if index == 0 else ())
        if index in (_EARLY, len(clip) - 1):
            found = np.array([(point.x, point.y) for point in labels.tracked_points()])
            true, mask = true_positions(points, maps, index), clip.truth[index]
            at = f"frame {_EARLY}" if index == _EARLY else "last frame"
            flat[f"within 8 px, {at}"], flat[f"visible, {at}"] = fraction_within(found, true, layers, mask)
            flat[f"unmoved within 8 px, {at}"] = fraction_within(np.array(positions), true, layers, mask)[0]
            flat[f"median error in px, {at}"] = float(np.median(np.hypot(*(found - true).T)))
    return flat


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="points per object and on the background")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as propagation.top_k=5")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = composed(*options.overrides)
    (clip,) = Sample().predict_dataloader()
    flat = follow(clip, Tracker(build(config, "backbone"), **options_of_tracker(config)), count=options.count)
    table = Table("figure", "value", title="Points of the sample clip")
    for name, value in flat.items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)
    write_json(flat, options.json)


if __name__ == "__main__":
    main()
