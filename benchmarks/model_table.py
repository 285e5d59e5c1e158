"""The table of models in `docs/models.md`: `python -m benchmarks.model_table --write docs/models.md`.

Each model is built without weights from the configuration of its published checkpoint (`tests/published_models.py`)
and described by `drift.backbones.describe`. Seconds and memory come from `benchmarks.model_cost`, licences from the
pages of the checkpoints. `--write` replaces the text between the two marks in the file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml
from transformers import (
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PretrainedConfig,
    Siglip2Config,
)

from drift.backbones import Summary, describe
from drift.checkpoint_files import read_json
from drift.propagation.labels import downsampling

__all__ = ["COSTS", "LICENCES", "main", "summaries", "table", "write_configurations"]

ROOT = Path(__file__).parents[1]
COSTS = ROOT / "benchmarks" / "model_costs.json"
START, END = "<!-- made by benchmarks.model_table -->", "<!-- end of the table -->"

LICENCES = {
    "tiny": "Apache 2.0",
    "sd15": "CreativeML Open RAIL-M",
    "sd21": "CreativeML Open RAIL++-M",
    "sdxl": "CreativeML Open RAIL++-M",
    "adm": "MIT",
    "dit": "CC BY-NC 4.0",
    "pixart": "CreativeML Open RAIL++-M",
    "sd35": "Stability AI Community, gated",
    "flux": "FLUX.1 [dev] Non-Commercial, gated",
    "rae": "see its page",
    "dinov2": "Apache 2.0",
    "dinov2_with_registers": "Apache 2.0",
    "dinov3": "DINOv3 License, gated",
    "siglip2": "Apache 2.0",
}
"""By the choice of `backbone=`, in the order of the table."""

_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
_ENCODERS: Mapping[str, PretrainedConfig] = {
    "dinov2": Dinov2Config(**_SMALL, patch_size=14, image_size=518, architectures=["Dinov2Model"]),
    "dinov2_with_registers": Dinov2WithRegistersConfig(
        **_SMALL, patch_size=14, image_size=518, architectures=["Dinov2WithRegistersModel"]
    ),
    "dinov3": DINOv3ViTConfig(
        **_SMALL, intermediate_size=1536, num_register_tokens=4, architectures=["DINOv3ViTModel"]
    ),
    "siglip2": Siglip2Config(
        vision_config={"hidden_size": 768, "num_hidden_layers": 12},
        text_config={"vocab_size": 256000},
        architectures=["Siglip2Model"],
    ),
}
"""Configurations of the published image encoders."""


def write_configurations(name: str, folder: Path) -> None:
    """Writes the configurations of the published checkpoint of `backbone=name`, which is not `tiny`, to `folder`.

    Text encoders are written with weights, but with few layers.
    """
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    from published_models import PUBLISHED

    if name in _ENCODERS:
        _ENCODERS[name].save_pretrained(folder)
    else:
        PUBLISHED[name][0](folder)


def summaries(names: tuple[str, ...] = tuple(LICENCES)) -> dict[str, Summary]:
    """Summaries of the published checkpoints by the choice of `backbone=`, for frames of 480 x 854 pixels."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            if name != "tiny":
                write_configurations(name, Path(scratch))
            found[name] = describe("embedded:tiny" if name == "tiny" else scratch)
    return found


def table(described: Mapping[str, Summary]) -> str:
    """The table in Markdown, followed by the reasons for missing measurements."""
    costs = read_json(COSTS)
    lines = [
        "| `backbone=` | checkpoint | layers at stride | heads x width | prompt | noise | parameters | seconds | GB "
        "| licence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, summary in described.items():
        checkpoint = yaml.safe_load((ROOT / "configs" / "backbone" / f"{name}.yaml").read_text())["backbone"][
            "checkpoint"
        ]
        cells = (
            f"`{name}`",
            f"`{checkpoint}`",
            _strides(summary),
            ", ".join(dict.fromkeys(f"{layer.heads} x {layer.width}" for layer in _attention(summary))),
            summary.prompt,
            ", ".join(summary.noises) if summary.noises != ("none",) else "none",
            _millions(summary.parameters),
            *(f"{costs.get(name, {}).get(figure, '-')}" for figure in ("seconds", "gigabytes")),
            LICENCES[name],
        )
        lines.append("| " + " | ".join(cells) + " |")
    refused = [
        f"`{name}` was not measured: {costs[name]['refused']}."
        for name in described
        if "refused" in costs.get(name, {})
    ]
    return "\n".join([*lines, "", *refused]).rstrip()


def _attention(summary: Summary) -> list:
    """The layers with self-attention; blocks, whose outputs serve as features too, have a single head."""
    several = [layer for layer in summary.layers if layer.heads > 1]
    return several or list(summary.layers)


def _strides(summary: Summary) -> str:
    """Number of layers by stride, finest first: "6 at 8, 6 at 16"."""
    rows = -(-summary.size[0] // summary.stride)
    counts = Counter(summary.stride * downsampling(rows, layer.grid[0]) for layer in _attention(summary))
    return ", ".join(f"{counts[stride]} at {stride}" for stride in sorted(counts))


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.0f} M" if parameters < 1e9 else f"{parameters / 1e9:.1f} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", type=Path, help="a Markdown file whose table is replaced; printed without it"
    )
    options = parser.parse_args()
    made = table(summaries())
    if options.write is None:
        print(made)
        return
    before, start, rest = options.write.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{options.write}: lacks the lines {START} and {END}")
    options.write.write_text(f"{before}{START}\n\n{made}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
