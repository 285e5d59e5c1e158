"""Which objects have slots in which prompt, and prompts made of slots.

A prompt keeps its first token. Behind it are slots of equal length: the background's, then one for each object in the
order in which objects appear in the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drift.backbones.interface import PromptBackbone
from drift.propagation.slots import SlotKeys

__all__ = [
    "Appearance",
    "appearances",
    "initial_embeddings",
    "prompts_by_frame",
    "slots_by_frame",
    "tokens_per_slot",
    "with_slots",
]


@dataclass(frozen=True)
class Appearance:
    """Objects of a prompt that appear at the same frame, where their slots are learned.

    Attributes:
        prompt: number of the prompt; there are several only where one is too short for all objects.
        frame: index of the frame in the clip.
        object_ids: objects in the order of their slots.
        first: whether they are the first objects of their prompt, with which its background is learned.
    """

    prompt: int
    frame: int
    object_ids: tuple[int, ...]
    first: bool

    @property
    def slots(self) -> int:
        """Number of slots that are learned."""
        return len(self.object_ids) + self.first


def appearances(given: Mapping[int, tuple[np.ndarray, np.ndarray]], length: int) -> list[Appearance]:
    """When the objects of a clip appear, by prompt and by frame.

    Args:
        given: frame index -> a frame and its mask. An object appears at the first frame whose mask contains it.
        length: length of a prompt in tokens.

    Example:
        >>> given = {0: (None, np.array([[0, 1, 2]])), 5: (None, np.array([[2, 7, 0]]))}
        >>> [(a.frame, a.object_ids, a.first) for a in appearances(given, length=77)]
        [(0, (1, 2), True), (5, (7,), False)]
    """
    order: dict[int, int] = {}
    for frame in sorted(given):
        for object_id in np.unique(given[frame][1]):
            if object_id:
                order.setdefault(int(object_id), frame)
    object_ids = list(order)
    capacity = length - 2  # without the first token and the background
    result: list[Appearance] = []
    for prompt, start in enumerate(range(0, len(object_ids), capacity)):
        members = object_ids[start : start + capacity]
        for frame in dict.fromkeys(order[member] for member in members):
            here = tuple(member for member in members if order[member] == frame)
            result.append(Appearance(prompt, frame, here, first=here[0] == members[0]))
    return result


def tokens_per_slot(objects: int, wanted: int, length: int) -> int:
    """Tokens of a slot: `wanted`, or as many as fit in a prompt of `length` tokens.

    Example:
        >>> tokens_per_slot(objects=3, wanted=36, length=77)
        19
    """
    slots = min(objects, length - 2) + 1
    return max(1, min(wanted, (length - 1) // slots))


def initial_embeddings(
    base: Float[Tensor, "1 length dim"], slots: int, tokens: int, generator: torch.Generator
) -> Float[Tensor, "slots tokens dim"]:
    """Embeddings to start from: a token of the backbone's own prompt plus noise with the prompt's deviation."""
    noise = torch.randn(slots, tokens, base.shape[-1], generator=generator, device=generator.device)
    return base[0, 1] + noise.to(base) * base[0, 1:].std()


def with_slots(
    base: Float[Tensor, "1 length dim"], embeddings: Float[Tensor, "slots tokens dim"]
) -> Float[Tensor, "1 length dim"]:
    """The prompt `base` with slots behind its first token."""
    flat = embeddings.flatten(0, 1).to(base)
    return torch.cat([base[:, :1], flat[None], base[:, 1 + len(flat) :]], dim=1)


def prompts_by_frame(
    base: Float[Tensor, "1 length dim"],
    appeared: Sequence[Appearance],
    embeddings: Sequence[Float[Tensor, "slots tokens dim"]],
) -> dict[int, Float[Tensor, "prompts length dim"]]:
    """For each frame at which objects appear, the prompts of all objects known from then on.

    Args:
        base: the backbone's own prompt.
        appeared: appearances in the order of `embeddings`.
        embeddings: embeddings learned at each appearance.
    """
    result = {}
    for frame in sorted({appearance.frame for appearance in appeared}):
        slots: dict[int, list[Tensor]] = {}
        for appearance, learned in zip(appeared, embeddings, strict=True):
            if appearance.frame <= frame:
                slots.setdefault(appearance.prompt, []).append(learned)
        result[frame] = torch.cat([with_slots(base, torch.cat(parts)) for parts in slots.values()])
    return result


def slots_by_frame(
    backbone: PromptBackbone,
    layers: Sequence[str],
    appeared: Sequence[Appearance],
    embeddings: Sequence[Float[Tensor, "slots tokens dim"]],
) -> dict[int, SlotKeys]:
    """For each frame at which objects appear, the slots of all objects known from then on.

    Args:
        backbone: the model.
        layers: layers whose cross-attention the slots are used in.
        appeared: appearances in the order of `embeddings`.
        embeddings: embeddings learned at each appearance.
    """
    result = {}
    for frame in sorted({appearance.frame for appearance in appeared}):
        known = [pair for pair in zip(appeared, embeddings, strict=True) if pair[0].frame <= frame]
        object_ids = [number for a, _ in known for number in ((0,) if a.first else ()) + a.object_ids]
        tokens = torch.cat([learned.flatten(0, 1) for _, learned in known])
        keys = {layer: backbone.prompt_keys(layer, tokens) for layer in layers}
        result[frame] = SlotKeys(keys, tuple(object_ids))
    return result
