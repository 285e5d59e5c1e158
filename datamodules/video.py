"""One clip of one's own: a video file or a folder of frames, and what is to be followed in it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.base import ClipDataModule, frames_in
from drift.clip import Clip, FrameFiles, Keypoint, MaskFiles, ObjectPrompt
from drift.errors import InputError, OptionError
from drift.image_files import read_frame
from drift.options import positive, whole_number
from drift.video_files import VideoFrames, index_video

__all__ = ["Video", "object_prompts", "read_keypoints"]


_MOST = 254  # objects: 255 is void


class Video(ClipDataModule):
    """A clip, and masks, a box, clicks or keypoints that say what is to be followed.

    Args:
        path: an mp4, mov, webm, mkv or gif, or a folder of pictures.
        mask: a PNG of the objects on frame `frame`: of object ids, or black and white for one object.
        masks: likewise by frame, {0: a.png, 40: b.png}: later ones bring objects or correct known ones.
        box: left, top, right, bottom of an object in pixels of frame `frame`; a list of boxes for several objects. They
            are numbered from 1 on, or, where there are masks, from the highest object in those on.
        points: [[x, y], ...] clicks in pixels of frame `frame`.
        labels: what each click is on: the number of an object, or 0 for the ground; None for all on object 1.
        keypoints: a CSV with the columns x, y and, if wanted, point (its name) and frame: points to be followed.
        frame: the frame that mask, box and points are of.
        frames_per_second: of a folder's frames; a video says its own.
        max_side: to which longer side frames are reduced for the model, in pixels; masks come out at the frames' size.

    Raises:
        OptionError: an option is not allowed, or nothing says what is to be followed.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        mask: str | Path | None = None,
        masks: Mapping[int, str] | None = None,
        box: Sequence[Any] | None = None,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        keypoints: str | Path | None = None,
        frame: int = 0,
        frames_per_second: float = 24.0,
        max_side: int | None = None,
    ) -> None:
        if path is None:
            raise OptionError("path", "null", "a video file or a folder of frames: data.path=clip.mp4")
        whole_number("frame", frame, minimum=0)
        positive("frames_per_second", frames_per_second)
        if mask is not None and masks and frame in masks:
            raise OptionError("mask", mask, f"null where data.masks has one for frame {frame}")
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise OptionError("path", path, "a video file or a folder of frames that exists")
        super().__init__(self.path.parent, max_side=max_side)
        self.frame, self.frames_per_second = frame, frames_per_second
        self._masks = _masks_by_frame(mask, masks, frame)
        self._prompts = object_prompts(box, points, labels)
        self._keypoints = None if keypoints is None else Path(keypoints).expanduser()
        if not (self._masks or self._prompts or self._keypoints):
            raise OptionError(
                "mask",
                "null",
                "a PNG of what is to be followed; or give data.box=[x0,y0,x1,y1], data.points=[[x,y]] or "
                "data.keypoints=FILE.csv",
            )

    def split(self) -> list[str]:
        """The one clip, by its file's name."""
        path = self.path.resolve()
        return [path.name if path.is_dir() else path.stem]

    def clip(self, name: str) -> Clip:
        """The clip; a video has been gone through once, so that what is wrong with it is known.

        Raises:
            InputError: the video, a mask, a box or a point cannot be used; names it.
        """
        given = MaskFiles(self._masks, binary=None)
        keypoints = read_keypoints(self._keypoints) if self._keypoints else {}
        known, size = self._of_folder(name) if self.path.is_dir() else self._of_file(name)
        prompts = {self.frame: self._numbered(given)} if self._prompts else {}
        clip = Clip(**known, given=given, prompts=prompts, keypoints=keypoints, max_side=self.max_side)
        for index in given:
            clip.given_mask(index, size)
        _check_places(prompts, keypoints, size)
        return clip

    def _numbered(self, given: MaskFiles) -> list[ObjectPrompt]:
        """The objects that are shown, behind those that have masks."""
        highest = max((int(given[index].max()) for index in given), default=0)
        numbered = [replace(one, object_id=highest + one.object_id) for one in self._prompts]
        if numbered[-1].object_id > _MOST:
            raise InputError(f"{self.path}: {numbered[-1].object_id} objects; at most {_MOST} fit a mask")
        return numbered

    def _of_file(self, name: str) -> tuple[dict[str, Any], tuple[int, int]]:
        index = index_video(self.path)
        frames = VideoFrames(index)
        known = {
            "name": name,
            "frames": frames,
            "frame_names": [f"{place:05d}" for place in range(len(frames))],
            "frames_per_second": index.frames_per_second,
            "times": index.times,
            "audio": self.path if index.has_audio else None,
            "defect": index.defect,
        }
        return known, index.size

    def _of_folder(self, name: str) -> tuple[dict[str, Any], tuple[int, int]]:
        files = frames_in(self.path)
        known = {
            "name": name,
            "frames": FrameFiles(files),
            "frame_names": [path.stem for path in files],
            "frames_per_second": self.frames_per_second,
        }
        return known, read_frame(files[0]).shape[:2]


def _masks_by_frame(mask: str | Path | None, masks: Mapping[int, str] | None, frame: int) -> dict[int, Path]:
    found = {} if mask is None else {frame: Path(mask).expanduser()}
    for index, named in (masks or {}).items():
        whole_number("masks", index, minimum=0)
        found[int(index)] = Path(named).expanduser()
    for path in found.values():
        if not path.is_file():
            raise InputError(f"{path}: no such mask")
    return found


def object_prompts(
    box: Sequence[Any] | None, points: Sequence[Sequence[float]] | None, labels: Sequence[int] | None
) -> list[ObjectPrompt]:
    """The objects that boxes and clicks show; box n and the clicks labelled n are of object n.

    Raises:
        OptionError: a box has no four numbers or no area, a click no two, or labels are not one for each click.
    """
    boxes = _boxes(box)
    clicks = [] if points is None else [_numbers("points", one, 2) for one in points]
    of = [1] * len(clicks) if labels is None else list(labels)
    if len(of) != len(clicks):
        raise OptionError("labels", of, f"one for each of the {len(clicks)} points")
    for one in of:
        whole_number("labels", one, minimum=0, maximum=_MOST)
    objects = sorted({*range(1, len(boxes) + 1), *of} - {0})
    if clicks and not objects:
        raise OptionError("labels", of, "the number of an object, 1 or more, for at least one point")
    prompts = []
    for object_id in objects:
        prompts.append(
            ObjectPrompt(
                object_id,
                box=boxes[object_id - 1] if object_id <= len(boxes) else None,
                points=tuple((x, y) for x, y in clicks),
                # A click on another object is off this one, as one on the ground is.
                inside=tuple(one == object_id for one in of),
            )
        )
    return prompts


def _boxes(box: Sequence[Any] | None) -> list[tuple[float, float, float, float]]:
    if not box:
        return []
    several = [box] if not isinstance(box[0], Sequence) else box
    found = []
    for one in several:
        left, top, right, bottom = _numbers("box", one, 4)
        if left >= right or top >= bottom:
            raise OptionError("box", list(one), "[x0,y0,x1,y1] with x0 < x1 and y0 < y1")
        found.append((left, top, right, bottom))
    return found


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or len(values) != count
        or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    ):
        what = {2: "[[x,y],...]", 4: "[x0,y0,x1,y1]"}[count]
        raise OptionError(name, values, f"{what}, in pixels")
    return tuple(float(value) for value in values)


def read_keypoints(path: Path) -> dict[int, list[Keypoint]]:
    """The points of a CSV by the frame from which they are followed.

    Raises:
        InputError: the file is missing, has no columns x and y, or a line that is none; names the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of keypoints")
    found: dict[int, list[Keypoint]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        if not {"x", "y"} <= set(rows.fieldnames or ()):
            raise InputError(
                f"{path}: the first line must name the columns: x,y or point,x,y or point,x,y,frame"
            )
        for number, row in enumerate(rows, start=1):
            try:
                frame, x, y = int(row.get("frame") or 0), float(row["x"]), float(row["y"])
            except (TypeError, ValueError):
                raise InputError(
                    f"{path}, line {rows.line_num}: is no point: {','.join(map(str, row.values()))}"
                ) from None
            found.setdefault(frame, []).append(Keypoint(row.get("point") or str(number), x, y))
    for frame, points in found.items():
        names = [one.name for one in points]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two points of one name on frame {frame}; names must differ")
    if not found:
        raise InputError(f"{path}: holds no point")
    return found


def _check_places(
    prompts: Mapping[int, Sequence[ObjectPrompt]],
    keypoints: Mapping[int, Sequence[Keypoint]],
    size: tuple[int, int],
) -> None:
    height, width = size
    frame = f"inside the frame of {width} x {height} pixels"
    for one in (prompt for several in prompts.values() for prompt in several):
        if one.box is not None:
            left, top, right, bottom = one.box
            if left < 0 or top < 0 or right > width or bottom > height:
                raise OptionError("box", [f"{v:g}" for v in one.box], frame)
        for x, y in one.points:
            if not (0 <= x < width and 0 <= y < height):
                raise OptionError("points", f"[{x:g},{y:g}]", frame)
    for point in (point for several in keypoints.values() for point in several):
        if not (0 <= point.x < width and 0 <= point.y < height):
            raise OptionError("keypoints", f"{point.name} at [{point.x:g},{point.y:g}]", frame)
