"""Adapts one clip: from its given frames to its adapter."""

from __future__ import annotations

import time
from dataclasses import replace

from drift.adaptation.clip_task import ClipTask
from drift.adaptation.head_weighting import Propagation
from drift.adaptation.module import AdaptationModule, Diverged, fit
from drift.adaptation.settings import AdaptationSettings
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.clip import Clip
from drift.propagation.adapter import Adapter

__all__ = ["adapt"]


def adapt(
    clip: Clip, backbone: LatentDiffusion, settings: AdaptationSettings, propagation: Propagation
) -> Adapter:
    """Learns a clip's adapter on the frames whose masks are given.

    The same clip, settings and backbone give the same adapter, whatever ran before. Where a loss is no longer
    a number, the adapter is the unadapted one, and says so in its `warning`.

    Args:
        clip: its frames with a given mask are decoded; no other.
        backbone: the frozen model.
        settings: what is learned, and how.
        propagation: how labels are going to be carried.

    Raises:
        OptionError: a setting names a layer or a head that there is not.
        InputError: a given frame or mask cannot be read, or they differ in size.
    """
    weights = settings.given_weights(backbone.heads)
    if not settings.learns:
        return Adapter(head_weights=weights)
    start = time.perf_counter()
    task = ClipTask(clip, backbone, settings, propagation)
    module = AdaptationModule(task.objectives())
    try:
        fit(module, backbone.device)
    except Diverged as error:
        losses = _losses(module)
        return Adapter(warning=f"not adapted: {error}", figures=_figures(module, start), losses=losses)
    learned = task.learned(module)
    if settings.head_weighting != "learned":
        learned = replace(learned, head_weights=weights)
    figures = _figures(module, start) | dict(learned.figures)
    return replace(learned, figures=figures, losses=_losses(module))


def _losses(module: AdaptationModule) -> dict[str, list[float]]:
    return {name: course.losses for name, course in module.courses.items() if course.losses}


def _figures(module: AdaptationModule, start: float) -> dict[str, float]:
    """Seconds in all, and of every objective its steps, first and lowest loss."""
    figures = {"seconds": time.perf_counter() - start}
    for name, course in module.courses.items():
        if course.losses:
            figures[f"{name}_steps"] = len(course.losses)
            figures[f"{name}_first_loss"] = course.losses[0]
            figures[f"{name}_loss"] = course.lowest
    return figures
