"""DiT (arXiv 2212.09748): a latent diffusion transformer that is conditioned on classes of ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from drift.backbones.diffusion import LatentDiffusionModel, no_prompt
from drift.backbones.folders import CheckpointFolder
from drift.noising import Noise
from drift.options import whole_number

__all__ = ["DiT", "from_checkpoint"]

CHECKPOINTS = {"DiTPipeline": "dit", "DiTTransformer2DModel": "dit"}


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("transformer_blocks.12",),
    timestep: int = 51,
    noise: Noise | None = None,
    label: int | None = None,
) -> DiT:
    """A DiT model in diffusers' layout.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it.
        dtype: data type of weights and activations.
        layers: names of the layers whose features are computed, "transformer_blocks.N".
        timestep, noise: see `DiffusionModel`.
        label: see `DiT`.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: an option is out of range.
    """
    folder = CheckpointFolder(path, source, dtype, ("vae", "transformer", "scheduler"))
    return DiT(
        vae=folder.autoencoder(),
        denoiser=folder.model("transformer", DiTTransformer2DModel),
        scheduler=folder.scheduler(),
        label=label,
        layers=layers,
        timestep=timestep,
        noise=noise,
        source=source,
    )


class DiT(LatentDiffusionModel):
    """DiT.

    Args:
        label: number of the class on which the model is conditioned; None for no class (the null class).
        options: `vae`, `denoiser` (a `DiTTransformer2DModel`), `scheduler`, `layers`, `timestep`, `noise`, `source`;
            see `LatentDiffusionModel`.
    """

    def __init__(self, *, label: int | None = None, **options: Any) -> None:
        super().__init__(prompt=no_prompt(), **options)
        classes = self.denoiser.config["num_embeds_ada_norm"]
        whole_number("label", label, minimum=0, maximum=classes - 1, none_allowed=True)
        self.label = classes if label is None else label

    @property
    def description(self) -> dict[str, object]:
        """See `DiffusionModel`."""
        return {**super().description, "label": self.label}

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        patches: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            """Leaves one patch for diffusers, which assumes that images are square."""
            patches.append(output)
            return output[:, :1]

        numbers = torch.tensor([[timestep], [self.label]], device=latents.device).expand(2, len(latents))
        hook = self.denoiser.proj_out_2.register_forward_hook(keep)
        try:
            self.denoiser(latents, timestep=numbers[0], class_labels=numbers[1])
        finally:
            hook.remove()
        size = self.patch_size
        grid = self._on_grid(patches[0], *latents.shape[-2:]).unflatten(-1, (size, size, -1))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
