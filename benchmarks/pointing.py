"""The pointing game: `python -m benchmarks.pointing --pictures ROOT`.

On composites of two named objects that no training has used: the fraction of objects that contain the maximum of their
name's cross-attention map. Chance level is the fraction of the image that an object covers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.measuring import arguments, write_json
from drift.backbones import PromptBackbone, as_prompt_backbone, load_backbone
from drift.checkpoint_files import find_checkpoint, needed_files
from drift.propagation.kernel import attention_logits
from pretraining.pictures import Cutout, load_pictures
from pretraining.scenes import Scene, imagine, render
from pretraining.text import token_places

__all__ = ["Composite", "TextEncoder", "composites", "hits", "main", "name_maps"]

_SEED = 1_000_003  # not used by any training
_MEAN = "mean of all"


@dataclass(frozen=True)
class Composite:
    """An image of two objects.

    Attributes:
        image: `(3, side, side)` RGB in [0, 1].
        caption: names both objects.
        names: names of the objects.
        shown: visible pixels of the objects, `(side, side)` bool.
    """

    image: Tensor
    caption: str
    names: tuple[str, str]
    shown: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizer and text encoder of a checkpoint."""

    tokenizer: CLIPTokenizer
    model: CLIPTextModel

    @classmethod
    def of(cls, checkpoint: str) -> TextEncoder:
        """Loads those of a checkpoint in diffusers' layout."""
        folder = find_checkpoint(checkpoint, partial(needed_files, dtype=torch.float32))
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return cls(tokenizer, CLIPTextModel.from_pretrained(folder / "text_encoder").eval())

    @torch.no_grad()
    def __call__(self, caption: str) -> Tensor:
        """Embeddings of a caption, `(1, tokens, dim)`."""
        tokens = self.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
        embeddings: Tensor = self.model(tokens).last_hidden_state
        return embeddings


def composites(
    cutouts: Sequence[Cutout], grounds: Sequence[np.ndarray], *, count: int, side: int, seed: int = _SEED
) -> list[Composite]:
    """Scenes of two objects with different names, which cover 5 % to 33 % of the image each."""
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
    backbone: PromptBackbone, text: TextEncoder, composite: Composite, layers: Sequence[str]
) -> dict[str, Tensor]:
    """Cross-attention maps of both names by layer, the mean over heads and the name's tokens, `(2, rows, columns)`."""
    noisy = backbone.noised(backbone.encode(composite.image[None]), torch.Generator().manual_seed(0))
    prompt = text(composite.caption)
    places = [token_places(text.tokenizer, composite.caption, name) for name in composite.names]
    queries = backbone.attend(noisy, prompt, cross=layers).prompt_queries
    maps = {}
    for layer in layers:
        keys = backbone.prompt_keys(layer, prompt[0])
        attention = attention_logits(queries[layer][0].flatten(1, 2), keys).softmax(-1).mean(0)
        of_names = torch.stack([attention[:, tokens].mean(-1) for tokens in places])
        maps[layer] = of_names.unflatten(1, queries[layer].shape[2:4])
    return maps


def hits(maps: Tensor, composite: Composite) -> list[bool]:
    """Whether the maximum of each name's map lies on its object."""
    side = composite.shown[0].shape[0]
    fine = F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
    return [bool(shown.flat[int(name.argmax())]) for name, shown in zip(fine, composite.shown, strict=True)]


def _mean_map(maps: Sequence[Tensor]) -> Tensor:
    """Mean of maps of different grids, each divided by its mean, on the finest grid."""
    finest = max((layer.shape[-2:] for layer in maps), key=lambda grid: grid[0] * grid[1])
    scaled = [layer / layer.mean((-2, -1), keepdim=True) for layer in maps]
    return torch.stack([F.interpolate(layer[None], finest, mode="bilinear")[0] for layer in scaled]).mean(0)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--pictures", type=Path, default=Path("/"), help="folder of images, see python -m pretraining"
    )
    parser.add_argument("--checkpoint", default="embedded:tiny")
    parser.add_argument("--count", type=int, default=100, help="number of composites")
    parser.add_argument(
        "--timesteps", type=lambda text: [int(word) for word in text.split(",")], default=[100, 300, 500]
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scenes = composites(*load_pictures(options.pictures), count=options.count, side=224)
    text, found = TextEncoder.of(options.checkpoint), defaultdict[tuple[str, int], list[bool]](list)
    for timestep in options.timesteps:
        backbone = load_backbone(options.checkpoint, precision="float32", timestep=timestep)
        prompted = as_prompt_backbone(backbone, "checkpoint", options.checkpoint)
        layers = list(prompted.attention_layers)
        for composite in track(scenes, description=f"composites, τ = {timestep}", transient=True):
            maps = name_maps(prompted, text, composite, layers)
            for layer, names in (maps | {_MEAN: _mean_map(list(maps.values()))}).items():
                found[layer, timestep] += hits(names, composite)
    chance = float(np.mean([shown.mean() for scene in scenes for shown in scene.shown]))
    figures = {f"{layer} at {timestep}": float(np.mean(hit)) for (layer, timestep), hit in found.items()}
    _print(figures, [*layers, _MEAN], options.timesteps, chance)
    write_json({"composites": len(scenes), "chance": chance, **figures}, options.json)


def _print(figures: dict[str, float], layers: Sequence[str], timesteps: Sequence[int], chance: float) -> None:
    table = Table("cross-attention layer", title=f"Pointing game: fraction of hits (chance: {chance:.3f})")
    for timestep in timesteps:
        table.add_column(f"τ = {timestep}", justify="right")
    for layer in layers:
        table.add_row(layer, *(f"{figures[f'{layer} at {timestep}']:.3f}" for timestep in timesteps))
    Console().print(table)


if __name__ == "__main__":
    main()
