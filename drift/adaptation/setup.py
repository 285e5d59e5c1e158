"""From the configuration to a folder of adapters: where it is, and what its adapters are for."""

from __future__ import annotations

from pathlib import Path

from drift.adaptation.checkpoints import AdapterFolder
from drift.adaptation.head_weighting import Propagation
from drift.adaptation.settings import AdaptationSettings
from drift.adaptation.textual_inversion import chosen_cross_layers
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.errors import OptionError
from drift.propagation.tracker import Tracker

__all__ = ["folder_to_fill", "folder_to_use"]


def folder_to_use(
    settings: AdaptationSettings, backbone: LatentDiffusion, tracker: Tracker, root: Path
) -> AdapterFolder:
    """What `evaluate.py` takes adapters from: `settings.checkpoints`, or `root`, where it learns what is missing.

    Raises:
        OptionError: a setting is not allowed with this backbone, or there is no such folder.
    """
    propagation = _checked(settings, backbone, tracker)
    if settings.checkpoints is None or not settings.learns:
        return AdapterFolder(settings, propagation, root, replaces=True)
    given = Path(settings.checkpoints).expanduser()
    if not given.is_dir():
        raise OptionError("checkpoints", settings.checkpoints, "a folder that train.py wrote, or null")
    inner = given / "adapters"  # a folder that evaluate.py wrote has them there
    return AdapterFolder(settings, propagation, inner if inner.is_dir() else given, learns=False)


def folder_to_fill(
    settings: AdaptationSettings, backbone: LatentDiffusion, tracker: Tracker, root: Path
) -> AdapterFolder:
    """Where `train.py` writes: adapters that are there stay, where they are of the same origin.

    Raises:
        OptionError: a setting is not allowed with this backbone, or nothing is to be learned.
    """
    if not settings.learns:
        raise OptionError(
            "head_weighting",
            settings.head_weighting,
            "learned, or adaptation.textual_inversion=true: with adaptation=none there is nothing to learn",
        )
    return AdapterFolder(settings, _checked(settings, backbone, tracker), root)


def _checked(settings: AdaptationSettings, backbone: LatentDiffusion, tracker: Tracker) -> Propagation:
    settings.prior_weights(backbone.heads)
    settings.given_weights(backbone.heads)
    if settings.textual_inversion:
        cross, _ = chosen_cross_layers(backbone, settings.cross_layers, settings.self_layer)
        if settings.slot_weight and (unread := [name for name in cross if name not in backbone.layers]):
            raise OptionError("cross_layers", unread[0], "with a slot_weight, among backbone.layers")
        if settings.diffusion_weight and (backbone.noise == "none" or not backbone.timestep):
            raise OptionError("diffusion_weight", settings.diffusion_weight, "0 where there is no noise")
    return Propagation.of(tracker)
