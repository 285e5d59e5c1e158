"""Grounds names: once the model is trained, its cross-attention learns to find what a caption names.

Denoising alone needs far more steps than two CPU cores give before captions matter to it. So what the
cross-attention compares, and nothing else, is trained further by the naming loss: the text encoder and
the projections to its queries and keys. What they see is read once from the finished model and kept, so
that a step costs next to nothing. Captions are the only supervision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from rich.progress import track
from torch import Tensor, nn

from drift.pretrain.diffusion import DiffusionTraining, set_self_attention
from drift.pretrain.naming import cross_attending, named_words, naming_loss
from drift.pretrain.pictures import Cutout
from drift.pretrain.scenes import SceneDataset
from drift.pretrain.schedule import warmup_cosine

__all__ = ["ReadScenes", "ground_names", "read_scenes"]


@dataclass(frozen=True)
class ReadScenes:
    """What the cross-attentions of a model see of many views.

    Attributes:
        inputs: per block `(views, tokens, channels)`, half precision.
        captions: of each view.
        names: of each view's objects.
        weights: of each view: less where there is more noise.
    """

    inputs: list[Tensor]
    captions: list[str]
    names: list[list[str]]
    weights: Tensor


@torch.no_grad()
def read_scenes(module: DiffusionTraining, scenes: SceneDataset, *, most_noise: float = 0.7) -> ReadScenes:
    """Reads the views of `scenes`, each at a timestep drawn up to `most_noise` of all, under its caption."""
    set_self_attention(module.unet, AttnProcessor2_0())
    steps = module.scheduler.config["num_train_timesteps"]
    kept: list[list[Tensor]] = [[] for _ in cross_attending(module.unet)]
    captions, names, weights = [], [], []
    for index in track(range(len(scenes)), description="reading scenes", transient=True):
        batch = scenes[index]
        latents = module.latents(batch.views.flatten(0, 1))
        timesteps = torch.randint(int(most_noise * steps), (len(latents),))
        noisy = module.scheduler.add_noise(latents, torch.randn_like(latents), timesteps)
        condition = module.encoded(batch.captions).repeat_interleave(2, dim=0)
        for place, tokens in enumerate(_inputs(module, noisy, timesteps, condition)):
            kept[place].append(tokens.half())
        captions += [text for text in batch.captions for _ in range(2)]
        names += [own for own in batch.names for _ in range(2)]
        weights.append(1 - timesteps / steps)
    return ReadScenes([torch.cat(tokens) for tokens in kept], captions, names, torch.cat(weights))


def _inputs(module: DiffusionTraining, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> list[Tensor]:
    """What each cross-attention projects to queries, in the order of `cross_attending`."""
    seen: dict[nn.Module, Tensor] = {}
    projections = [block.attn2.to_q for block in cross_attending(module.unet)]
    handles = [
        projection.register_forward_pre_hook(lambda layer, arguments: seen.update({layer: arguments[0]}))
        for projection in projections
    ]
    module.unet(noisy, timesteps, condition)
    for handle in handles:
        handle.remove()
    return [seen[projection] for projection in projections]


def ground_names(
    module: DiffusionTraining,
    pictures: tuple[Sequence[Cutout], Sequence[np.ndarray]],
    *,
    scenes: int = 1000,
    steps: int = 250,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    side: int = 224,
    seed: int = 0,
) -> list[float]:
    """Trains the module's text encoder and the cross-attentions' queries and keys, in place.

    Args:
        module: trained.
        pictures: cut-outs and grounds.
        scenes: how many are read, two views of each.
        steps: of `batch_size` views each.
        learning_rate: its peak.
        side: of the scenes, in pixels.
        seed: of scenes, noise and order.

    Returns:
        The naming loss of every step.
    """
    torch.manual_seed(seed)
    data = SceneDataset(*pictures, side=side, length=scenes // 4, batch_size=4, seed=seed)
    read = read_scenes(module, data)
    blocks = cross_attending(module.unet)
    trained = [
        p for block in blocks for part in (block.attn2.to_q, block.attn2.to_k) for p in part.parameters()
    ]
    trained += list(module.text_encoder.parameters())
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    schedule = warmup_cosine(optimizer, max_steps=steps, warmup=min(20, steps))["lr_scheduler"]["scheduler"]
    losses = []
    for _ in track(range(steps), description="grounding names", transient=True):
        chosen = torch.randint(len(read.captions), (batch_size,))
        captions = [read.captions[i] for i in chosen]
        names = [read.names[i] for i in chosen]
        words = named_words(module.tokenizer, captions, names, module.encoded(captions))
        queries = [
            (block, block.attn2.to_q(tokens[chosen].float()))
            for block, tokens in zip(blocks, read.inputs, strict=True)
        ]
        loss = naming_loss(queries, words, [set(own) for own in names], read.weights[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
