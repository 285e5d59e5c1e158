"""Options that contradict each other: each function raises OptionError for settings whose types have been checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from drift.configuration.groups import GROUPS
from drift.errors import DriftError, OptionError

__all__ = ["CONTRADICTIONS", "group_at"]

Settings = Mapping[str, Any]


def group_at(settings: Settings, path: str, target: str = "") -> Settings:
    """The group at a dotted path; empty if there is none, or if its `_target_` does not end with `target`."""
    node: Any = settings
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) and str(node.get("_target_")).endswith(target) else {}


def _an_experiment_sets_options(settings: Settings) -> None:
    if settings.get("experiment") is not None:
        raise DriftError("experiment: the file has no effect without `# @package _global_` as its first line")


def _no_group_is_misspelt(settings: Settings) -> None:
    groups = {name.partition(".")[0] for name in GROUPS} | {"output", "page"}
    for name, node in settings.items():
        if (
            name not in groups
            and isinstance(node, Mapping)
            and (near := get_close_matches(name, groups, 1, 0.8))
        ):
            raise DriftError(f"{name}: no such group; did you mean {near[0]}?")


def _clicks_on_one_pixel_agree(settings: Settings) -> None:
    video = group_at(settings, "data", ".Video")
    labels: dict[tuple[float, ...], int] = {}
    for point, label in zip(video.get("points") or (), video.get("labels") or (), strict=False):
        if labels.setdefault(tuple(point), label) != label:
            raise OptionError(
                "data.labels", video["labels"], f"one label for the two clicks on {list(point)}"
            )


def _inversion_takes_steps_up_to_the_timestep(settings: Settings) -> None:
    noise = group_at(settings, "backbone.noise", ".LatentInversion")
    timestep = settings.get("backbone", {}).get("timestep")
    if not noise or not isinstance(timestep, int):
        return
    if timestep < 1:
        raise OptionError("backbone.timestep", timestep, "1 or more with noise=inversion")
    if noise.get("steps", 1) > timestep:
        raise OptionError(
            "noise.steps", noise["steps"], f"a whole number from 1 to backbone.timestep={timestep}"
        )


def _diffusion_loss_needs_noise(settings: Settings) -> None:
    prompt = group_at(settings, "adaptation.textual_inversion", ".PromptOptions")
    if prompt.get("diffusion_weight") and group_at(settings, "backbone.noise", ".NoNoise"):
        weight = prompt["diffusion_weight"]
        raise OptionError("adaptation.textual_inversion.diffusion_weight", weight, "0 with noise=none")


def _adapters_are_read_where_something_is_learned(settings: Settings) -> None:
    adaptation = group_at(settings, "adaptation", ".Adaptation")
    if (
        adaptation.get("checkpoints") is not None
        and group_at(adaptation, "textual_inversion", ".no_textual_inversion")
        and any(group_at(adaptation, "head_weighting", f".{name}") for name in ("Uniform", "Single", "Fixed"))
    ):
        allowed = "null where nothing is learned; give the adaptation or experiment of train.py"
        raise OptionError("adaptation.checkpoints", adaptation["checkpoints"], allowed)


def _some_prompt_locates_the_object(settings: Settings) -> None:
    refinement = group_at(settings, "refinement", ".load_refiner")
    if not any(refinement.get(name, True) for name in ("box", "mask", "positive_points")):
        allowed = "true where mask=false and positive_points=0, as some prompt must locate the object"
        raise OptionError("refinement.box", "false", allowed)


def _resuming_needs_masks(settings: Settings) -> None:
    output = settings.get("output", {})
    if output.get("resume") and "masks" not in output.get("formats", ["masks"]):
        allowed = "with output.resume=true a list that includes masks"
        raise OptionError("output.formats", output["formats"], allowed)


def _a_video_has_something_to_track(settings: Settings) -> None:
    video = group_at(settings, "data", ".Video")
    if video and not any(video.get(key) for key in ("mask", "masks", "box", "points", "keypoints")):
        allowed = (
            "a PNG with the objects to track; or set data.box=[x0,y0,x1,y1], data.points=[[x,y]] or "
            "data.keypoints=FILE.csv"
        )
        raise OptionError("data.mask", "null", allowed)


def _a_frame_has_one_mask(settings: Settings) -> None:
    video = group_at(settings, "data", ".Video")
    frame, mask = video.get("frame", 0), video.get("mask")
    if mask is not None and frame in (video.get("masks") or {}):
        raise OptionError("data.mask", mask, f"null, because data.masks has a mask for frame {frame}")


def _only_masks_are_tracked_backwards(settings: Settings) -> None:
    direction = group_at(settings, "data", ".Video").get("direction", "forward")
    if direction == "forward":
        return
    if group_at(settings, "data").get("keypoints"):
        raise OptionError("data.direction", direction, "forward with data.keypoints")
    if group_at(settings, "adaptation").get("checkpoints"):
        raise OptionError("data.direction", direction, "forward with adaptation.checkpoints")


def _every_click_has_a_label(settings: Settings) -> None:
    video = group_at(settings, "data", ".Video")
    labels: Sequence[int] | None = video.get("labels")
    if labels is None:
        return
    if len(labels) != len(video.get("points") or ()):
        allowed = f"one label for each of the {len(video.get('points') or ())} points"
        raise OptionError("data.labels", labels, allowed)
    if labels and not any(labels):
        raise OptionError("data.labels", labels, "an object id, 1 or more, for at least one point")


CONTRADICTIONS: Sequence[Callable[[Settings], None]] = (
    _an_experiment_sets_options,
    _no_group_is_misspelt,
    _inversion_takes_steps_up_to_the_timestep,
    _diffusion_loss_needs_noise,
    _adapters_are_read_where_something_is_learned,
    _some_prompt_locates_the_object,
    _resuming_needs_masks,
    _a_video_has_something_to_track,
    _a_frame_has_one_mask,
    _only_masks_are_tracked_backwards,
    _every_click_has_a_label,
    _clicks_on_one_pixel_agree,
)
