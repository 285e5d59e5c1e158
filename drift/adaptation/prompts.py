"""Which objects have slots in which prompt, and prompts made of slots (design 2.5).

A prompt keeps its first token; behind it lie slots of equally many tokens: the background's, then one for each
object in the order in which they appear in the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor

from drift.propagation.slot_maps import SlotKeys

__all__ = [
    "Appearance",
    "appearances",
    "conditions",
    "first_embeddings",
    "slot_keys",
    "tokens_per_slot",
    "with_slots",
]


@dataclass(frozen=True)
class Appearance:
    """Objects of one prompt that appear on one frame, which is where their slots are learned.

    Attributes:
        prompt: its number; more than one are only needed where a prompt's length does not hold all objects.
        frame: the index of the frame in the clip.
        object_ids: in the order of their slots.
        first: whether they are the first of their prompt; then its background is learned with them.
    """

    prompt: int
    frame: int
    object_ids: tuple[int, ...]
    first: bool


def appearances(given: Mapping[int, Sequence[int]], length: int) -> list[Appearance]:
    """When the objects of a clip appear, by prompt and by frame.

    Args:
        given: frame index -> the ids in its mask; an object appears on the first frame that has it.
        length: of a prompt, in tokens.
    """
    order: dict[int, int] = {}
    for frame in sorted(given):
        for one in given[frame]:
            order.setdefault(int(one), frame)
    ids = list(order)
    room = length - 2  # its first token, and the background
    found: list[Appearance] = []
    for prompt, start in enumerate(range(0, len(ids), room)):
        members = ids[start : start + room]
        for frame in dict.fromkeys(order[one] for one in members):
            here = tuple(one for one in members if order[one] == frame)
            found.append(Appearance(prompt, frame, here, first=here[0] == members[0]))
    return found


def tokens_per_slot(objects: int, wanted: int, length: int) -> int:
    """How many tokens a slot gets: as many as wanted, or as there is room for in a prompt of `length` tokens."""
    slots = min(objects, length - 2) + 1
    return max(1, min(wanted, (length - 1) // slots))


def first_embeddings(
    base: Float[Tensor, "1 length dim"], slots: int, tokens: int, generator: torch.Generator
) -> Float[Tensor, "slots tokens dim"]:
    """Embeddings to start from: a token of the backbone's own prompt, told apart by noise of the prompt's spread."""
    noise = torch.randn(slots, tokens, base.shape[-1], generator=generator, device=generator.device)
    return base[0, 1] + noise.to(base) * base[0, 1:].std()


def with_slots(
    base: Float[Tensor, "1 length dim"], embeddings: Float[Tensor, "slots tokens dim"]
) -> Float[Tensor, "1 length dim"]:
    """The prompt `base` with slots in the places behind its first token."""
    flat = embeddings.flatten(0, 1).to(base)
    return torch.cat([base[:, :1], flat[None], base[:, 1 + len(flat) :]], dim=1)


def conditions(
    base: Float[Tensor, "1 length dim"],
    when: Sequence[Appearance],
    embeddings: Sequence[Float[Tensor, "learned tokens dim"]],
) -> dict[int, Float[Tensor, "groups length dim"]]:
    """From each frame on which objects appear, the prompts of all objects known by then.

    Args:
        base: the backbone's own prompt.
        when: in the order of `embeddings`.
        embeddings: what was learned at each appearance.
    """
    found = {}
    for frame in sorted({one.frame for one in when}):
        known: dict[int, list[Tensor]] = {}
        for one, learned in zip(when, embeddings, strict=True):
            if one.frame <= frame:
                known.setdefault(one.prompt, []).append(learned)
        found[frame] = torch.cat([with_slots(base, torch.cat(slots)) for slots in known.values()])
    return found


def slot_keys(
    attentions: Mapping[str, Attention],
    when: Sequence[Appearance],
    embeddings: Sequence[Float[Tensor, "learned tokens dim"]],
) -> dict[int, SlotKeys]:
    """From each frame on which objects appear, the slots of all objects known by then.

    Args:
        attentions: cross-attention by the name of its layer.
        when: in the order of `embeddings`.
        embeddings: what was learned at each appearance.
    """
    found = {}
    for frame in sorted({one.frame for one in when}):
        known = [(one, learned) for one, learned in zip(when, embeddings, strict=True) if one.frame <= frame]
        ids = [number for one, _ in known for number in ((0,) if one.first else ()) + one.object_ids]
        tokens = torch.cat([learned.flatten(0, 1) for _, learned in known])
        keys = {
            name: layer.to_k(tokens.to(layer.to_k.weight)).unflatten(1, (layer.heads, -1)).transpose(0, 1)
            for name, layer in attentions.items()
        }
        found[frame] = SlotKeys(keys, tuple(ids))
    return found
