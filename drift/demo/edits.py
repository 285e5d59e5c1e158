"""What a user has shown of a clip: objects, clicks and boxes, and the masks that result; with undo."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from drift.clip import MaskFiles, ObjectPrompt
from drift.errors import InputError
from drift.image_files import write_mask

__all__ = ["MAX_OBJECTS", "Edits", "History", "prompt_of_mask", "with_box", "with_click", "with_object"]

MAX_OBJECTS = 254  # 255 means void
_UNDOS = 100


@dataclass(frozen=True)
class Edits:
    """Objects and their masks on the frames where they are shown. Mask files never change, so a copy is a snapshot.

    Attributes:
        names: name of each object by its id.
        masks: file of the mask of each frame on which objects are shown, object ids.
        prompts: clicks and box by frame index and object id, which the object's mask on that frame was made from.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    masks: Mapping[int, Path] = field(default_factory=dict)
    prompts: Mapping[tuple[int, int], ObjectPrompt] = field(default_factory=dict)

    @property
    def given(self) -> MaskFiles:
        """The masks as a clip takes them."""
        return MaskFiles(self.masks)

    def with_new_object(self, name: str | None = None) -> tuple[Edits, int]:
        """The edits with one object more, and its id.

        Raises:
            InputError: there are 254 objects.
        """
        object_id = next((i for i in range(1, MAX_OBJECTS + 1) if i not in self.names), None)
        if object_id is None:
            raise InputError(f"a clip can have at most {MAX_OBJECTS} objects; remove one first")
        names = {**self.names, object_id: name or f"object {object_id}"}
        return replace(self, names=names), object_id

    def with_mask(self, frame: int, mask: UInt8[np.ndarray, "height width"] | None, folder: Path) -> Edits:
        """The edits with another mask on a frame; None or an empty mask: none. Its file is written to `folder`."""
        masks = {index: path for index, path in self.masks.items() if index != frame}
        if mask is not None and mask.any():
            path = folder / f"{hashlib.sha256(mask.tobytes()).hexdigest()[:20]}.png"
            if not path.exists():
                write_mask(path, mask)
            masks[frame] = path
        return replace(self, masks=dict(sorted(masks.items())))

    def with_prompt(self, frame: int, prompt: ObjectPrompt) -> Edits:
        """The edits with the prompt of an object on a frame."""
        return replace(self, prompts={**self.prompts, (frame, prompt.object_id): prompt})

    def without_prompts(self, frame: int, objects: Collection[int]) -> Edits:
        """The edits without the prompts of some objects on a frame."""
        kept = {k: v for k, v in self.prompts.items() if k[0] != frame or k[1] not in objects}
        return replace(self, prompts=kept)

    def without_object(self, object_id: int, folder: Path) -> Edits:
        """The edits without an object on any frame."""
        edits = replace(
            self,
            names={i: name for i, name in self.names.items() if i != object_id},
            prompts={key: prompt for key, prompt in self.prompts.items() if key[1] != object_id},
        )
        for index, mask in self.given.items():
            if (mask == object_id).any():
                edits = edits.with_mask(index, np.where(mask == object_id, np.uint8(0), mask), folder)
        return edits


class History:
    """Edits with undo.

    Attributes:
        now: the current edits.
    """

    def __init__(self) -> None:
        self.now = Edits()
        self._before: list[Edits] = []

    def change(self, edits: Edits) -> None:
        """Makes `edits` the current ones."""
        self._before = [*self._before, self.now][-_UNDOS:]
        self.now = edits

    def undo(self) -> bool:
        """Goes back to the edits before the last change; returns whether there were any."""
        if not self._before:
            return False
        self.now = self._before.pop()
        return True


def prompt_of_mask(object_id: int, mask: Bool[np.ndarray, "height width"]) -> ObjectPrompt:
    """Box and innermost point of a mask, from which clicks go on to correct it; no box for an empty mask."""
    if not mask.any():
        return ObjectPrompt(object_id)
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    box = (float(left), float(top), float(left + width), float(top + height))
    return ObjectPrompt(object_id, box, ((float(column), float(row)),), (True,))


def with_click(prompt: ObjectPrompt, x: float, y: float, *, inside: bool) -> ObjectPrompt:
    """The prompt with one click more; a click on the object widens its box.

    Raises:
        InputError: the first click takes away.
    """
    if not inside and prompt.box is None and not any(prompt.inside):
        raise InputError("nothing to take away from here; click on the object first")
    box = prompt.box
    if box is not None and inside:
        box = (min(box[0], x), min(box[1], y), max(box[2], x + 1), max(box[3], y + 1))
    return replace(prompt, box=box, points=(*prompt.points, (x, y)), inside=(*prompt.inside, inside))


def with_box(prompt: ObjectPrompt, corners: tuple[float, float, float, float]) -> ObjectPrompt:
    """The prompt with a box between two corners.

    Raises:
        InputError: the box is empty.
    """
    x0, x1 = sorted((corners[0], corners[2]))
    y0, y1 = sorted((corners[1], corners[3]))
    if x1 - x0 < 2 or y1 - y0 < 2:
        raise InputError("the box is too small; drag from one corner of the object to the opposite one")
    return replace(prompt, box=(x0, y0, x1, y1))


def with_object(
    mask: UInt8[np.ndarray, "height width"], object_id: int, pixels: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width"]:
    """`mask` in which an object has these pixels and no others."""
    return np.where(pixels, np.uint8(object_id), np.where(mask == object_id, np.uint8(0), mask))
