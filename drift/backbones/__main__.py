"""`python -m drift.backbones CHECKPOINT [key=value ...]`: lists the layers of a checkpoint, without its weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drift.backbones.summary import Summary, describe
from drift.checkpoint_files import embedded_checkpoints
from drift.errors import DriftError, OptionError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the summary of a checkpoint. Returns the exit status: 0, or 2 after an error, which is one line."""
    parser = argparse.ArgumentParser(prog="python -m drift.backbones", description=__doc__.partition(": ")[2])
    parser.add_argument("checkpoint", help="embedded:NAME or NAME, a folder, or a Hub id (owner/name)")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of backbone, as timestep=20")
    parser.add_argument("--size", default="480x854", help="height and width of a frame (default: 480x854)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    embedded = f"embedded:{given.checkpoint}"
    known = embedded in embedded_checkpoints() and not Path(given.checkpoint).exists()
    try:
        options = dict(map(_option, given.options))
        summary = describe(embedded if known else given.checkpoint, size=_size(given.size), **options)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary.as_dict(), indent=1)) if given.json else _print(summary)
    return 0


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(length) for length in text.lower().split("x"))
    except ValueError:
        raise OptionError("--size", text, "HEIGHTxWIDTH in pixels, as 480x854") from None
    return height, width


def _option(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals:
        raise OptionError("option", word, "key=value")
    try:
        return name.removeprefix("backbone."), json.loads(value)
    except ValueError:  # a text without quotation marks
        return name.removeprefix("backbone."), value


def _print(summary: Summary) -> None:
    height, width = summary.size
    print(
        f"{summary.checkpoint}: {summary.model}, backbone={summary.choice}\n"
        f"prompt: {summary.prompt}; noise: {', '.join(summary.noises)}; "
        f"{summary.parameters / 1e6:.1f} million parameters ({summary.gigabytes:.2f} GB in float32)\n"
        f"layers for frames of {height} x {width} pixels, padded to multiples of {summary.stride}:\n"
    )
    rows: list[tuple[str, ...]] = [("layer", "grid", "heads", "width", "token width", "cross-attention")]
    for layer in summary.layers:
        numbers = (layer.heads, layer.width, layer.tokens)
        grid, cross = " x ".join(map(str, layer.grid)), "yes" if layer.cross else ""
        rows.append((layer.name, grid, *map(str, numbers), cross))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join((name.ljust(widths[0]), *cells)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
