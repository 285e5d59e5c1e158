"""Labels propagated within a frame: `python -m benchmarks.within_image ROOT --json FILE`.

On the first frame of every clip, 5 % of the mask's tokens and 5 % of the other tokens, drawn with a fixed seed, keep
their labels. The kernel propagates these labels to all tokens of the frame by the frame's own self-attention. The table
shows the IoU with the mask, for random and for trained weights, with equal and with learned head weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.measuring import arguments, write_json
from benchmarks.quality import composed, randomised
from datamodules.davis import Davis2016
from drift.adaptation import Adaptation, HeadWeighting, Learned, fit
from drift.backbones import Backbone
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.functional import jaccard
from drift.propagation import PropagationOptions, SoftLabels
from drift.propagation.heads import compare, mean_over_heads, propagate_by_head
from drift.propagation.labels import labels_of_mask, pad_to_stride

__all__ = ["main", "propagated_iou", "seeds"]

_EXCLUDED = -1e4  # logit of a token without a label


def seeds(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draws a fraction of the mask's tokens and of the other tokens, at least one of each.

    Args:
        labels: fraction of each token's pixels inside the mask, `(rows, columns)`.
        fraction: of the tokens.
        seed: of the draw.

    Returns:
        `(rows, columns)` bool.
    """
    generator = torch.Generator().manual_seed(seed)
    inside, drawn = labels.flatten() >= 0.5, torch.zeros(labels.numel(), dtype=torch.bool)
    for region in (inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]):
        count = max(1, round(fraction * len(region)))
        drawn[region[torch.randperm(len(region), generator=generator)[:count]]] = True
    return drawn.view(labels.shape)


@torch.inference_mode()
def propagated_iou(
    backbone: Backbone,
    clip: Clip,
    weights: Mapping[str, Tensor],
    propagation: PropagationOptions,
    *,
    fraction: float = 0.05,
    seed: int = 0,
) -> float:
    """IoU of the first frame's mask, as one object, with the mask that is propagated from its seeds.

    Args:
        backbone: any backbone.
        clip: its first frame is used.
        weights: weight of each head by layer; empty for equal weights.
        propagation: options of the kernel. Layers are fused and the radius is not limited.
        fraction: of the tokens that are seeds.
        seed: of the draw and of the backbone's noise.
    """
    options = replace(propagation, heads="fused", radius=None)
    frame = torch.from_numpy(clip.frames[0]).permute(2, 0, 1)[None].float() / 255
    images = pad_to_stride(frame.to(backbone.device), backbone.stride)
    features = backbone.features(images, torch.Generator().manual_seed(seed))
    (fused,) = compare(features, options, weights)
    truth = torch.from_numpy((clip.given[0] > 0).astype("uint8"))
    covered = labels_of_mask(truth, [1], backbone.stride)[0]
    drawn, mask = seeds(covered, fraction, seed), covered >= 0.5
    # A further component of queries and keys excludes the keys of all other tokens.
    excluded = torch.where(drawn, 0.0, _EXCLUDED)[None, ..., None].to(fused.keys)
    keys = torch.cat([fused.keys, excluded], -1)
    queries = torch.cat([fused.queries, torch.ones_like(excluded)], -1)
    labels = torch.stack([~mask, mask], -1).to(keys)
    compared = [replace(fused, queries=queries, keys=keys)]
    propagated = mean_over_heads(compared, propagate_by_head(compared, [[keys]], [[labels]], options))
    soft = SoftLabels(propagated, (1,), (truth.shape[0], truth.shape[1]), backbone.stride)
    return float(jaccard(soft.mask() > 0, truth > 0))


def learned_weights(
    backbone: Backbone, clip: Clip, propagation: PropagationOptions, scheme: Learned
) -> dict[str, Tensor]:
    """Head weights learned on the first frame of a clip."""
    module = HeadWeighting(backbone, clip.frames[0], clip.given[0], propagation, scheme)
    fit(module)
    return module.weights()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument("--fraction", type=float, default=0.05, help="fraction of tokens that are seeds")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as backbone.timestep=100")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    config = composed("experiment=drift", *options.overrides)
    backbones = {"random": randomised(build(config, "backbone")), "trained": build(config, "backbone")}
    propagation = build(config, "propagation")(backbones["trained"]).options
    adaptation: Adaptation = build(config, "adaptation")
    scheme = adaptation.head_weighting
    assert isinstance(scheme, Learned)
    rows: dict[str, list[float]] = {}
    clips = list(data.predict_dataloader())
    for clip in track(clips, description="clips", transient=True):
        for name, backbone in backbones.items():
            learned = learned_weights(backbone, clip, propagation, scheme)
            for kind, weights in (("equal", {}), ("learned", learned)):
                iou = propagated_iou(backbone, clip, weights, propagation, fraction=options.fraction)
                rows.setdefault(f"{name}_{kind}", []).append(iou)
    table = Table("sequence", title=f"IoU with {options.fraction:.0%} of the tokens as seeds")
    for name in rows:
        table.add_column(name.replace("_", ", "), justify="right")
    for number, clip in enumerate(clips):
        table.add_row(clip.name, *(f"{ious[number]:.3f}" for ious in rows.values()))
    table.add_section()
    means = {f"IoU_{name}": sum(ious) / len(ious) for name, ious in rows.items()}
    table.add_row("mean", *(f"{mean:.3f}" for mean in means.values()), style="bold")
    Console().print(table)
    write_json(means, options.json)


if __name__ == "__main__":
    main()
