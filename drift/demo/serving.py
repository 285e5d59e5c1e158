"""Loads the models and serves the page."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lightning.fabric import Fabric

from drift.adaptation.adapter_files import AdapterFolder
from drift.command_line import load_models, options_of
from drift.demo.sessions import Sessions, is_local
from drift.demo.tracking import TrackingModels
from drift.errors import DriftError, OptionError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["load_tracking_models", "serve"]

_OF_THE_PAGE = ("page.", "output.", "hydra.", "hydra/")


def load_tracking_models(config: DictConfig) -> TrackingModels:
    """Loads the models of a configuration, as `evaluate.py` does.

    Raises:
        DriftError: an option is not allowed, or a checkpoint cannot be loaded.
    """
    device = Fabric(accelerator=config.trainer.accelerator, devices=1).device
    models = load_models(config, device)
    adapters = partial(AdapterFolder.to_read, models.adaptation, models.propagation)
    with options_of("adaptation"):
        adapters(Path())  # to check the options
    return TrackingModels(
        models.backbone,
        models.make_tracker,
        models.refiner,
        adapters=adapters,
        learns=models.adaptation.learns,
        lock=threading.Lock(),
    )


def serve(models: TrackingModels, options: DictConfig, words: Sequence[str]) -> None:
    """Serves the page until it is interrupted, then deletes the files of all sessions.

    Args:
        models: the models.
        options: `page` of the configuration.
        words: overrides of the command line; those that choose models are repeated in the command on the page.

    Raises:
        DriftError: Gradio is not installed.
        OptionError: the port is in use.
    """
    with TemporaryDirectory(prefix="drift-page-") as folder:
        # Gradio reads these at import and when components are created.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            from drift.demo.page import build_page, launch
        except ImportError as error:
            raise DriftError(f"page: needs Gradio: pip install -e '.[demo]' ({error})") from None
        sessions = Sessions(
            Path(folder) / "sessions",
            models,
            max_side=options.max_side,
            max_frames=options.max_frames,
            keep_seconds=60 * options.keep_minutes,
        )
        kept = [word for word in words if not word.lstrip("+~").startswith(_OF_THE_PAGE)]
        page = build_page(sessions, kept, takes_paths=is_local(options.host) and not options.share)
        try:
            address = launch(
                page, options.host, options.port, share=options.share, max_megabytes=options.max_megabytes
            )
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            page.block_thread()
        except OSError:
            raise OptionError("page.port", options.port, f"a free port of {options.host}") from None
        finally:
            sessions.close()
