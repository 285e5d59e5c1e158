"""The pointing game: `python -m benchmarks.pointing --pictures ROOT`.

On composites of two named objects that no training saw, does the cross-attention map of an object's name
have its maximum on that object? Chance is the share of the picture that the objects cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import arguments, write_json
from drift.backbone import LatentDiffusion, load_latent_diffusion
from drift.backbone.attention import recorded, self_attention_layers
from drift.pretrain.pictures import Cutout, load_pictures
from drift.pretrain.scenes import Scene, imagine, render
from drift.pretrain.text import token_places

__all__ = ["Composite", "composites", "main", "name_maps"]

_SEED = 1_000_003  # far from any seed that a training uses


@dataclass(frozen=True)
class Composite:
    """A picture `(3, side, side)` in [0, 1], its caption, and of each object the name and where it shows."""

    image: Tensor
    caption: str
    names: tuple[str, str]
    shown: tuple[np.ndarray, np.ndarray]


def composites(
    cutouts: Sequence[Cutout], grounds: Sequence[np.ndarray], *, count: int, side: int, seed: int = _SEED
) -> list[Composite]:
    """Scenes of two objects of different names, each between a twentieth and a third of the picture."""
    random, found = np.random.default_rng(seed), list[Composite]()
    while len(found) < count:
        scene = imagine(cutouts, grounds, random, kinds=2)
        first, last = scene.objects[0], scene.objects[-1]
        if first.cutout.name == last.cutout.name:
            continue
        scene = replace(scene, objects=(first, last))
        image, covers = render(scene, side, random)
        shown = [cover > 0.5 for cover in covers]
        if all(0.05 <= part.mean() <= 0.33 for part in shown):
            found.append(_composite(scene, image, shown))
    return found


def _composite(scene: Scene, image: np.ndarray, shown: Sequence[np.ndarray]) -> Composite:
    names = (scene.objects[0].cutout.name, scene.objects[1].cutout.name)
    return Composite(torch.from_numpy(image).permute(2, 0, 1), scene.caption, names, (shown[0], shown[1]))


@torch.no_grad()
def name_maps(
    backbone: LatentDiffusion, composite: Composite, layers: Sequence[str], timestep: int
) -> dict[str, Tensor]:
    """Per layer the mean over heads and tokens of each name's map, `(2, rows, columns)`."""
    latents = backbone.encode(composite.image[None])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = backbone.scheduler.add_noise(latents, noise, torch.tensor([timestep]))
    tokens = backbone.tokenizer(composite.caption, padding="max_length", return_tensors="pt").input_ids
    condition = backbone.text_encoder(tokens).last_hidden_state
    places = [token_places(backbone.tokenizer, composite.caption, name) for name in composite.names]
    with recorded(backbone.unet, [], cross=layers) as recording:
        backbone.unet(noisy, timestep, encoder_hidden_states=condition)
    return {
        layer: torch.stack([reading.logits().softmax(-1)[0, ..., where].mean((0, -1)) for where in places])
        for layer, reading in recording.cross_attention.items()
    }


def hits(maps: Tensor, composite: Composite) -> list[bool]:
    """Whether each name's maximum lies on its object."""
    side = composite.shown[0].shape[0]
    fine = F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
    return [bool(part.flat[int(one.argmax())]) for one, part in zip(fine, composite.shown, strict=True)]


def _mean_map(maps: Sequence[Tensor]) -> Tensor:
    """Layers of different grids, each divided by its mean, on the finest grid."""
    finest = max((one.shape[-2:] for one in maps), key=lambda grid: grid[0] * grid[1])
    scaled = [one / one.mean((-2, -1), keepdim=True) for one in maps]
    return torch.stack([F.interpolate(one[None], finest, mode="bilinear")[0] for one in scaled]).mean(0)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path("/"), help="as for python -m drift.pretrain")
    parser.add_argument("--checkpoint", default="embedded:tiny")
    parser.add_argument("--count", type=int, default=100, help="composites, two objects each")
    parser.add_argument("--timesteps", type=lambda text: [int(one) for one in text.split(",")])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    timesteps = options.timesteps or [100, 300, 500]
    backbone = load_latent_diffusion(options.checkpoint, layers=["up_blocks.1.attentions.0"], timestep=0)
    layers = list(self_attention_layers(backbone.unet))
    scenes = composites(*load_pictures(options.pictures), count=options.count, side=224)
    found: dict[tuple[str, int], list[bool]] = {}
    for composite in track(scenes, description="composites", transient=True):
        for timestep in timesteps:
            maps = name_maps(backbone, composite, layers, timestep)
            for layer, one in maps.items():
                found.setdefault((layer, timestep), []).extend(hits(one, composite))
            found.setdefault(("mean of all", timestep), []).extend(
                hits(_mean_map(list(maps.values())), composite)
            )
    chance = float(np.mean([part.mean() for scene in scenes for part in scene.shown]))
    _print(found, [*layers, "mean of all"], timesteps, chance)
    figures = {f"{layer} at {timestep}": float(np.mean(one)) for (layer, timestep), one in found.items()}
    write_json({"composites": len(scenes), "chance": chance, **figures}, options.json)


def _print(
    found: dict[tuple[str, int], list[bool]], layers: Sequence[str], timesteps: Sequence[int], chance: float
) -> None:
    table = Table("cross-attention layer", title=f"pointing game: share of hits (chance: {chance:.3f})")
    for timestep in timesteps:
        table.add_column(f"τ = {timestep}", justify="right")
    for layer in layers:
        table.add_row(layer, *(f"{np.mean(found[layer, timestep]):.3f}" for timestep in timesteps))
    Console().print(table)


if __name__ == "__main__":
    main()
