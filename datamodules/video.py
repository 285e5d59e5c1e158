"""Your own clip: a video file or a folder of frames, with masks, boxes, clicks or keypoints."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.base import ClipDataModule
from drift.clip import DIRECTIONS, Clip, Keypoint, MaskFiles, ObjectPrompt
from drift.errors import InputError, OptionError
from drift.frame_sources import open_frames
from drift.options import choice

__all__ = ["Video", "object_prompts", "read_keypoints"]


_MAX_OBJECTS = 254  # 255 means void


class Video(ClipDataModule):
    """One clip with the objects and points to track.

    Coordinates of points refer to pixel centres (the top left pixel is (0, 0)), those of boxes to pixel edges.

    Args:
        path: video file (mp4, mov, webm, mkv, gif) or folder of images.
        mask: image file with the objects on frame `frame`: object ids, or one object in black and white.
        masks: mask files by frame index, {0: a.png, 40: b.png}; a later mask adds objects or corrects known ones.
        box: (x0, y0, x1, y1) in pixels around an object on frame `frame`, or a list of boxes, one per object. Box
            number n is object n, or object n + m if the highest object id in the masks is m.
        points: (x, y) of each click in pixels of frame `frame`.
        labels: object id of each click, 0 for the background; None if all clicks are on object 1.
        keypoints: CSV file of points to track, with columns x, y and, optionally, point (the name) and frame.
        frame: index of the frame that `mask`, `box` and `points` refer to.
        direction: where objects are tracked to, see `Clip`.
        frames_per_second: frame rate of a folder of images; a video file has its own.
        max_side: see `ClipDataModule`.

    Raises:
        OptionError: `path` does not exist.
        InputError: a mask file is missing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mask: str | Path | None = None,
        masks: Mapping[int, str] | None = None,
        box: Sequence[Any] | None = None,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        keypoints: str | Path | None = None,
        frame: int = 0,
        direction: str = "forward",
        frames_per_second: float = 24.0,
        max_side: int | None = None,
    ) -> None:
        choice("direction", direction, DIRECTIONS)
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise OptionError("path", path, "a video file or a folder of frames that exists")
        super().__init__(self.path.parent, max_side=max_side)
        self.frame, self.direction, self.frames_per_second = frame, direction, frames_per_second
        self._masks = _masks_by_frame(mask, masks, frame)
        self._prompts = object_prompts(box, points, labels)
        self._keypoints = None if keypoints is None else Path(keypoints).expanduser()

    def split(self) -> list[str]:
        """The name of the clip: that of the file without suffix, or of the folder."""
        path = self.path.resolve()
        return [path.name if path.is_dir() else path.stem]

    def clip(self, name: str) -> Clip:
        """The clip. A video file is decoded once to check it.

        Raises:
            InputError: the video, a mask or the keypoint file cannot be used.
            OptionError: a box or a point is outside the frame, or `frame` is not in the clip.
        """
        given = MaskFiles(self._masks, binary=None)
        keypoints = read_keypoints(self._keypoints) if self._keypoints else {}
        source = open_frames(self.path, frames_per_second=self.frames_per_second)
        prompts = {self.frame: self._numbered_prompts(given)} if self._prompts else {}
        self._check_frames(prompts, keypoints, len(source.frames))
        clip = source.clip(
            name,
            given=given,
            prompts=prompts,
            keypoints=keypoints,
            max_side=self.max_side,
            direction=self.direction,
        )
        masks = [clip.given_mask(index, source.size) for index in given]
        if masks and not prompts and not any(mask is not None and mask.any() for mask in masks):
            files = ", ".join(map(str, given.paths.values()))
            raise InputError(f"{files}: contains no object; every pixel is 0, or 255, which is void")
        _check_boxes_and_clicks(prompts, source.size)
        self._check_keypoints(keypoints, source.size)
        return clip

    def _check_frames(self, prompts: Mapping[int, Any], keypoints: Mapping[int, Any], frames: int) -> None:
        if prompts and self.frame >= frames:
            raise OptionError("frame", self.frame, f"0 to {frames - 1}, the frames of {self.path.name}")
        for frame, points in keypoints.items():
            if not 0 <= frame < frames:
                raise InputError(
                    f"{self._keypoints}: point {points[0].name} is on frame {frame}, but {self.path.name} has frames "
                    f"0 to {frames - 1}"
                )

    def _check_keypoints(self, keypoints: Mapping[int, Sequence[Keypoint]], size: tuple[int, int]) -> None:
        height, width = size
        for point in (point for on_frame in keypoints.values() for point in on_frame):
            if not (0 <= point.x < width and 0 <= point.y < height):
                raise InputError(
                    f"{self._keypoints}: point {point.name} at [{point.x:g},{point.y:g}] is outside the frame of "
                    f"{width} x {height} pixels"
                )

    def _numbered_prompts(self, given: MaskFiles) -> list[ObjectPrompt]:
        """Prompts whose object ids follow those of the given masks."""
        offset = max((int(given[index].max()) for index in given), default=0)
        prompts = [replace(prompt, object_id=offset + prompt.object_id) for prompt in self._prompts]
        if prompts[-1].object_id > _MAX_OBJECTS:
            raise InputError(
                f"{self.path}: {prompts[-1].object_id} objects; a clip can have at most {_MAX_OBJECTS}"
            )
        return prompts


def _masks_by_frame(mask: str | Path | None, masks: Mapping[int, str] | None, frame: int) -> dict[int, Path]:
    paths = {} if mask is None else {frame: Path(mask).expanduser()}
    for index, file in (masks or {}).items():
        paths[int(index)] = Path(file).expanduser()
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: no such mask")
    return paths


def object_prompts(
    box: Sequence[Any] | None, points: Sequence[Sequence[float]] | None, labels: Sequence[int] | None
) -> list[ObjectPrompt]:
    """Prompts of all objects that have a box or a click, sorted by object id.

    A click on one object is a negative click for all others, as is a click on the background.

    Args:
        box: (x0, y0, x1, y1) in pixels, or a list of boxes; box number n, from 1, belongs to object n.
        points: (x, y) of each click in pixels.
        labels: object id of each click, 0 for the background; None if all clicks are on object 1.
    """
    boxes = _boxes(box)
    clicks = points or []
    labels = [1] * len(clicks) if labels is None else list(labels)
    object_ids = sorted({*range(1, len(boxes) + 1), *labels} - {0})
    return [
        ObjectPrompt(
            object_id,
            box=boxes[object_id - 1] if object_id <= len(boxes) else None,
            points=tuple((float(x), float(y)) for x, y in clicks),
            inside=tuple(label == object_id for label in labels),
        )
        for object_id in object_ids
    ]


def _boxes(box: Sequence[Any] | None) -> list[tuple[float, float, float, float]]:
    if not box:
        return []
    boxes = box if isinstance(box[0], Sequence) else [box]
    return [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]


def read_keypoints(path: Path) -> dict[int, list[Keypoint]]:
    """Reads points to track from a CSV file with a header line, in UTF-8.

    Args:
        path: file with columns x, y (pixels) and, optionally, point (name; by default the row number) and frame (index
            of the first frame, by default 0).

    Returns:
        The points by their first frame.

    Raises:
        InputError: the file is missing, is not a CSV file in UTF-8, has no columns x and y, has a row without numbers,
            or uses a name twice on the same frame.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of keypoints")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            points = _parsed_keypoints(path, csv.DictReader(file, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: not a CSV file in UTF-8 ({error}); export it again as CSV in UTF-8"
        ) from None
    if not points:
        raise InputError(f"{path}: contains no point")
    for frame, on_frame in points.items():
        if len({point.name for point in on_frame}) < len(on_frame):
            raise InputError(f"{path}: two points with the same name on frame {frame}; names must differ")
    return points


def _parsed_keypoints(path: Path, rows: csv.DictReader) -> dict[int, list[Keypoint]]:
    if not {"x", "y"} <= set(rows.fieldnames or ()):
        raise InputError(f"{path}: the first line must name the columns: x,y or point,x,y or point,x,y,frame")
    points: dict[int, list[Keypoint]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            frame, x, y = int(row.get("frame") or 0), float(row["x"]), float(row["y"])
        except (TypeError, ValueError):
            values = " ".join(",".join(map(str, row.values())).split())
            raise InputError(f"{path}, line {rows.line_num}: not a point: {values[:80]}") from None
        points.setdefault(frame, []).append(Keypoint(row.get("point") or str(number), x, y))
    return points


def _check_boxes_and_clicks(prompts: Mapping[int, Sequence[ObjectPrompt]], size: tuple[int, int]) -> None:
    height, width = size
    allowed = f"inside the frame of {width} x {height} pixels"
    for prompt in (prompt for on_frame in prompts.values() for prompt in on_frame):
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
                raise OptionError("box", "[" + ",".join(f"{v:g}" for v in prompt.box) + "]", allowed)
        for x, y in prompt.points:
            if not (0 <= x < width and 0 <= y < height):
                raise OptionError("points", f"[{x:g},{y:g}]", allowed)
