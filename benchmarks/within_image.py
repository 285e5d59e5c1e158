"""The within-image kernel: `python -m benchmarks.within_image ROOT --json FILE`.

From 5 % of the mask's tokens and 5 % of the background's, drawn with a fixed seed on the first frame of every clip,
the frame's own self-attention spreads the label to all others: each token takes the mean label of the seeds that it
attends to. The table shows the IoU with the mask, for random and for trained weights, with equal head weights and
with those that are learned on the frame. (Of the pixels, 5 % would leave hardly a token of 8 x 8 without a seed.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.measuring import arguments, write_json
from benchmarks.quality import composed, randomised
from datamodules.davis import Davis2016
from drift.adaptation import AdaptationSettings, adapt
from drift.adaptation.head_weighting import Propagation
from drift.backbone import LatentDiffusion
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.functional import jaccard
from drift.propagation.affinity import comparisons
from drift.propagation.labels import SoftLabels, labels_of_mask, pad_to_stride

__all__ = ["main", "spread_overlap"]


def seeds(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of seeded tokens, and their labels: `share` of the mask's tokens and of the others, one at least."""
    generator = torch.Generator().manual_seed(seed)
    inside = labels.flatten() >= 0.5
    chosen = []
    for region in (inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]):
        count = max(1, round(share * len(region)))
        chosen.append(region[torch.randperm(len(region), generator=generator)[:count]])
    places = torch.cat(chosen)
    return places, inside[places].float()


@torch.inference_mode()
def spread_overlap(
    backbone: LatentDiffusion,
    clip: Clip,
    weights: Mapping[str, Tensor],
    propagation: Propagation,
    *,
    share: float = 0.05,
    seed: int = 0,
) -> float:
    """IoU of the label spread from seeds with the first frame's mask, as one object."""
    frame = torch.from_numpy(clip.frames[0])
    images = pad_to_stride(frame.permute(2, 0, 1)[None].float() / 255, backbone.stride)
    readings = backbone.read(backbone.encode(images), torch.Generator().manual_seed(seed))
    (one,) = comparisons(readings, affinity=propagation.affinity, heads="fused", weights=weights)
    truth = torch.from_numpy((clip.given[0] > 0).astype("uint8"))
    grid = one.keys.shape[1:3]
    places, labels = seeds(labels_of_mask(truth, [1], backbone.stride)[0], share, seed)
    logits = one.queries.flatten(1, 2)[0] @ one.keys.flatten(1, 2)[0, places].T / propagation.temperature
    values, kept = logits.topk(min(propagation.top_k or len(places), len(places)), dim=-1)
    spread = (values.softmax(-1) * labels[kept]).sum(-1).unflatten(0, grid)
    size = (truth.shape[0], truth.shape[1])
    soft = SoftLabels(torch.stack([1 - spread, spread]), (1,), size, backbone.stride)
    return float(jaccard(soft.mask() > 0, truth > 0))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these")
    parser.add_argument("--share", type=float, default=0.05, help="of tokens that are seeds")
    parser.add_argument("overrides", nargs="*", help="of the configuration, backbone.timestep=100")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    config = composed("adaptation=drift", *options.overrides)
    trained, random = build(config, "backbone"), randomised(build(config, "backbone"))
    tracker = build(config, "propagation")(trained)
    propagation = Propagation.of(tracker)
    usual = AdaptationSettings(head_weighting="learned", weights=config.adaptation.weights, caution=0.1)
    rows: dict[str, list[float]] = {}
    clips = list(data.predict_dataloader())
    for clip in track(clips, description="clips", transient=True):
        for name, backbone in (("random", random), ("trained", trained)):
            learned = adapt(clip, backbone, usual, propagation).head_weights
            for way, weights in (("uniform", {}), ("learned", learned)):
                iou = spread_overlap(backbone, clip, weights, propagation, share=options.share)
                rows.setdefault(f"{name}_{way}", []).append(iou)
    table = Table("sequence", title=f"IoU from {options.share:.0%} of the tokens as seeds")
    for name in rows:
        table.add_column(name.replace("_", ", "), justify="right")
    for place, clip in enumerate(clips):
        table.add_row(clip.name, *(f"{values[place]:.3f}" for values in rows.values()))
    table.add_section()
    means = {f"IoU_{name}": sum(values) / len(values) for name, values in rows.items()}
    table.add_row("mean", *(f"{value:.3f}" for value in means.values()), style="bold")
    Console().print(table)
    write_json(means, options.json)


if __name__ == "__main__":
    main()
