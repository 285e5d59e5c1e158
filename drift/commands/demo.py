"""Serves a page for interactive tracking: `drift demo --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from drift.commands import CONFIGS
from drift.interrupts import interruptible

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FLAGS = {"--host": "page.host", "--port": "page.port"}


def demo(config: DictConfig) -> None:
    """Serves the page for one configuration until it is interrupted."""
    # Imported here, as a configuration is composed and checked without them.
    from hydra.core.hydra_config import HydraConfig

    from drift.demo.serving import load_tracking_models, serve

    serve(load_tracking_models(config), config.page, HydraConfig.get().overrides.task)


def main() -> int:
    """Runs the command line; returns the exit status."""
    from drift.command_line import run

    sys.argv[1:] = options(sys.argv[1:])
    return run(demo, config_dir=CONFIGS, config_name="demo")


def options(words: Sequence[str]) -> list[str]:
    """Translates `--host NAME`, `--port N` and `--share` into overrides, and adds `adaptation=none` by default.

    With adaptation, every correction would start learning and tracking again.
    """
    found, left = [], list(words)
    while left:
        name, equals, value = (word := left.pop(0)).partition("=")
        if name in _FLAGS and (equals or left):
            found.append(f"{_FLAGS[name]}={value if equals else left.pop(0)}")
        else:
            found.append("page.share=true" if word == "--share" else word)
    chosen = any(word.startswith(("adaptation=", "experiment=")) for word in found)
    return found if chosen else [*found, "adaptation=none"]


if __name__ == "__main__":
    sys.exit(interruptible(main))
