"""YouTube-VOS 2018 and 2019, validation: objects appear in any frame, and a server keeps the masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.base import FolderOfSplits, clip_of_files, frames_in
from drift.clip import Clip
from drift.errors import InputError
from drift.options import choice
from drift.submission import Submission

__all__ = ["YouTubeVos"]

_SIX, _THIRTY = 6.0, 30.0  # frames a second


class YouTubeVos(FolderOfSplits):
    """Each object's mask is given on the frame in which `meta.json` has it first.

    Layout below `root/SPLIT`: `JPEGImages/VIDEO/*.jpg`, `Annotations/VIDEO/*.png`, `meta.json`. The server wants the
    frames that `meta.json` names, whichever rate is tracked.

    Args:
        root: see `FolderOfSplits`.
        all_frames: whether the frames at 30 a second are tracked, from the folder SPLIT_all_frames beside SPLIT, in
            place of those at 6.
        **options: split, sequences, max_side, download: see `FolderOfSplits`.
    """

    by_hand = "register at youtube-vos.org, and put valid.zip's content below data.root"

    def __init__(self, root: str | Path | None, *, all_frames: bool = False, **options: Any) -> None:
        choice("all_frames", all_frames, (True, False))
        self.all_frames = all_frames
        super().__init__(root, **options)
        self._videos: Mapping[str, Any] | None = None

    def split(self) -> list[str]:
        """The videos of `meta.json`."""
        return list(self._meta())

    def clip(self, name: str) -> Clip:
        """A video.

        Raises:
            InputError: frames or masks that `meta.json` names are missing; names them.
        """
        frames = frames_in(self._pictures() / name)
        places = {path.stem: index for index, path in enumerate(frames)}
        for wanted in self._wanted(name):
            if wanted not in places:
                raise InputError(
                    f"{self._meta_path()}: names frame {wanted} of {name}, which is not in {frames[0].parent}"
                )
        appear: dict[int, set[int]] = {}
        for object_id, shown in self._objects(name).items():
            appear.setdefault(places[shown[0]], set()).add(object_id)
        given = {i: self.folder / "Annotations" / name / f"{frames[i].stem}.png" for i in sorted(appear)}
        for path in given.values():
            if not path.is_file():
                raise InputError(f"{path}: no such file; {self._meta_path().name} has an object appear there")
        return clip_of_files(
            name,
            frames,
            given,
            {},
            objects=appear,
            max_side=self.max_side,
            frames_per_second=_THIRTY if self.all_frames else _SIX,
        )

    def submission(self) -> Submission:
        """`Annotations/VIDEO/FRAME.png`, of the frames that `meta.json` names."""
        return Submission({name: self._wanted(name) for name in self.sequences}, below="Annotations")

    def _pictures(self) -> Path:
        if not self.all_frames:
            return self.folder / "JPEGImages"
        return self.folder.parent / f"{self.folder.name}_all_frames" / "JPEGImages"

    def _meta_path(self) -> Path:
        return self.folder / "meta.json"

    def _meta(self) -> Mapping[str, Any]:
        if self._videos is None:
            path = self._meta_path()
            try:
                self._videos = dict(json.loads(path.read_text(encoding="utf-8"))["videos"])
            except FileNotFoundError:
                raise InputError(f"{path}: no such file; is data.root the folder of valid/?") from None
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}: is not YouTube-VOS' list of videos ({error})") from None
        return self._videos

    def _objects(self, name: str) -> dict[int, list[str]]:
        """The frames in which each object of a video is shown."""
        try:
            return {int(one): list(told["frames"]) for one, told in self._meta()[name]["objects"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self._meta_path()}: cannot be read for {name} ({error!r})") from None

    def _wanted(self, name: str) -> list[str]:
        return sorted({frame for shown in self._objects(name).values() for frame in shown})
