"""YouTube-VOS 2018 and 2019, validation: objects appear on any frame; scored by a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.base import FolderOfSplits, clip_of_files, folder_names, frames_in
from drift.clip import Clip
from drift.errors import InputError
from drift.submission import Submission

__all__ = ["YouTubeVos"]

_FRAMES_PER_SECOND, _ALL_FRAMES_PER_SECOND = 6.0, 30.0


class YouTubeVos(FolderOfSplits):
    """YouTube-VOS: the mask of an object is given on the first frame that `meta.json` lists for it.

    Expected layout: `ROOT/SPLIT/JPEGImages/VIDEO/*.jpg`, `ROOT/SPLIT/Annotations/VIDEO/*.png` and
    `ROOT/SPLIT/meta.json`. The submission always contains the frames listed in `meta.json`.

    Args:
        root: see `FolderOfSplits`.
        all_frames: whether to track all frames, at 30 frames per second, from `ROOT/SPLIT_all_frames` instead of
            every fifth frame.
        **options: split, sequences, max_side, download: see `FolderOfSplits`.
    """

    download_hint = "register at youtube-vos.org and unpack valid.zip in data.root"

    def __init__(self, root: str | Path, *, all_frames: bool = False, **options: Any) -> None:
        self.all_frames = all_frames
        super().__init__(root, **options)
        self._videos: Mapping[str, Any] | None = None

    def split(self) -> list[str]:
        """Names of the videos in `meta.json`."""
        return list(self._meta())

    def clip(self, name: str) -> Clip:
        """The clip of a video.

        Raises:
            InputError: a frame or mask required by `meta.json` is missing.
        """
        frames = frames_in(self._frames_folder() / name)
        indices = {path.stem: index for index, path in enumerate(frames)}
        for frame in self._listed_frames(name):
            if frame not in indices:
                raise InputError(
                    f"{self._meta_path()}: lists frame {frame} of {name}, which is not in {frames[0].parent}"
                )
        new_objects: dict[int, set[int]] = {}  # by the frame on which they appear
        for object_id, listed in self._objects(name).items():
            new_objects.setdefault(indices[listed[0]], set()).add(object_id)
        masks = self.folder / "Annotations" / name
        given = {index: masks / f"{frames[index].stem}.png" for index in sorted(new_objects)}
        for path in given.values():
            if not path.is_file():
                raise InputError(f"{path}: no such file; an object of meta.json appears on this frame")
        return clip_of_files(
            name,
            frames,
            given,
            {},
            objects=new_objects,
            max_side=self.max_side,
            frames_per_second=_ALL_FRAMES_PER_SECOND if self.all_frames else _FRAMES_PER_SECOND,
        )

    def submission(self) -> Submission:
        """`Annotations/VIDEO/FRAME.png` for the frames listed in `meta.json`."""
        return Submission({name: self._listed_frames(name) for name in self.sequences}, prefix="Annotations")

    def _frames_folder(self) -> Path:
        if not self.all_frames:
            return self.folder / "JPEGImages"
        return self.folder.parent / f"{self.folder.name}_all_frames" / "JPEGImages"

    def _meta_path(self) -> Path:
        return self.folder / "meta.json"

    def _meta(self) -> Mapping[str, Any]:
        if self._videos is None:
            path = self._meta_path()
            try:
                videos = dict(json.loads(path.read_text(encoding="utf-8"))["videos"])
            except FileNotFoundError:
                raise InputError(
                    f"{path}: no such file; set data.root to the folder that contains {self.split_name}/"
                ) from None
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"{path}: not a meta.json of YouTube-VOS ({error})") from None
            self._videos = {name: videos[name] for name in folder_names(path, videos)}
        return self._videos

    def _objects(self, name: str) -> dict[int, list[str]]:
        """Names of the frames listed for each object of a video, by object id."""
        try:
            objects = self._meta()[name]["objects"]
            frames = {
                int(object_id): [str(frame) for frame in entry["frames"]]
                for object_id, entry in objects.items()
            }
            if not all(frames.values()):
                raise ValueError("an object without frames")
            return frames
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self._meta_path()}: entry of video {name} is invalid ({error!r})") from None

    def _listed_frames(self, name: str) -> list[str]:
        return sorted({frame for frames in self._objects(name).values() for frame in frames})
