"""Progress of clips, kept beside their output, so that a run that was killed can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drift.clip import Clip
from drift.errors import InputError
from drift.propagation.memory import RememberedFrame
from drift.propagation.tracker import TrackerState
from drift.tensor_files import save_tensors

__all__ = ["ClipProgress", "ProgressFile", "ProgressFolder", "settings_that_count"]

_WITHOUT_EFFECT = (
    *("output", "logger", "trainer"),
    *("data.sequences", "data.download", "data.root", "data.path"),
    *("backbone.cache", "backbone.cache_gigabytes"),
)
_PRECISION = "trainer.precision"


@dataclass(frozen=True)
class ClipProgress:
    """Progress of a clip.

    Attributes:
        done: number of frames whose output is written.
        seconds: wall time of these frames.
        stages: seconds by stage.
        refinements: outcome counts of refinement.
        adaptation: statistics of the optimisation of the adapter.
        losses: losses of its steps.
        head_weights: learned weights by layer; empty for equal weights.
        warning: why the optimisation was abandoned, or None.
        peak_memory: in bytes, see `drift.peak_memory`.
        formats: output formats that were written.
        tracker: state of the tracker; None before the first frame and after the last.
    """

    done: int = 0
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    refinements: Mapping[str, int] = field(default_factory=dict)
    adaptation: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    head_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    warning: str | None = None
    peak_memory: int = 0
    formats: Sequence[str] = ()
    tracker: TrackerState | None = None


def settings_that_count(config: Mapping[str, Any]) -> dict[str, str]:
    """The options that the masks depend on, by key: all but paths, logging and output."""
    flat = _flattened(config)
    counted = {
        key: value
        for key, value in flat.items()
        if key == _PRECISION or not any(key == one or key.startswith(f"{one}.") for one in _WITHOUT_EFFECT)
    }
    return {key: json.dumps(value, default=str) for key, value in counted.items()}


def _flattened(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= (
            _flattened(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
        )
    return flat


@dataclass(frozen=True)
class ProgressFolder:
    """Progress files of a run: `progress/SEQUENCE.safetensors` in its folder.

    Attributes:
        root: folder of the run.
        settings: see `settings_that_count`.
        resume: whether existing progress is resumed; otherwise it is deleted.
    """

    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False

    def of(self, clip: Clip) -> ProgressFile:
        """The progress file of a clip."""
        path = self.root / "progress" / f"{clip.name}.safetensors"
        settings = {**self.settings, "the clip": clip.identity()[:12]}
        return ProgressFile(path, settings, self.resume)

    def check(self) -> None:
        """Checks that existing progress can be resumed with these settings, before anything is written.

        Raises:
            InputError: it was made with other settings; says what differs.
        """
        if not self.resume:
            return
        for path in sorted((self.root / "progress").glob("*.safetensors")):
            found = _read(path)
            if found is not None:
                _, settings = found
                _refuse(path, {**self.settings, "the clip": settings.get("the clip", "unknown")}, settings)


@dataclass(frozen=True)
class ProgressFile:
    """Progress file of a clip.

    Attributes:
        path: the file.
        settings: settings that it must have been made with.
        resume: see `ProgressFolder`.
    """

    path: Path
    settings: Mapping[str, str]
    resume: bool

    def earlier(self) -> ClipProgress:
        """Progress of the clip in an earlier run with the same settings.

        Raises:
            InputError: the file was made with other settings or for another clip; says what differs.
        """
        if not self.resume:
            self.path.unlink(missing_ok=True)
            return ClipProgress()
        found = _read(self.path)
        if found is None:
            return ClipProgress()
        progress, settings = found
        _refuse(self.path, self.settings, settings)
        return progress

    def save(self, progress: ClipProgress) -> None:
        """Saves the progress atomically."""
        tensors, fields = _packed(progress)
        metadata = {"progress": json.dumps(fields), "settings": json.dumps(dict(self.settings))}
        save_tensors(self.path, tensors, metadata)


def _refuse(path: Path, now: Mapping[str, str], then: Mapping[str, str]) -> None:
    differing = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if differing:
        differences = "; ".join(
            f"{key} was {then.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in differing[:3]
        )
        raise InputError(
            f"output.dir={path.parents[1]}: {path.stem} was processed with another configuration ({differences}); "
            "pass that configuration, another output.dir, or output.resume=false to start again"
        )


def _packed(progress: ClipProgress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    fields = asdict(replace(progress, tracker=None))
    state = progress.tracker
    if state is None:
        return {"nothing": torch.zeros(1)}, fields
    tensors: dict[str, Tensor] = {"objects": torch.tensor(state.object_ids)}
    for place, frame in enumerate(state.remembered):
        for kind, several in (("labels", frame.labels), ("points", frame.points)):
            tensors |= {f"{place:05d}.{kind}.{n}": one for n, one in enumerate(several)}
    fields["tracker"] = {
        "next_index": state.next_index,
        "object_ids": state.object_ids,
        "point_names": state.point_names,
        "frame_size": state.frame_size,
        "remembered": [(frame.index, frame.given, len(frame.labels)) for frame in state.remembered],
    }
    return tensors, fields


def _read(path: Path) -> tuple[ClipProgress, dict[str, str]] | None:
    """Progress and settings; None if the file is missing or corrupt, so that the clip is processed again."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields = json.loads(metadata["progress"])
        state = fields.pop("tracker")
        tracker = None if state is None else _tracker_state(state, tensors)
        return ClipProgress(**fields, tracker=tracker), json.loads(metadata["settings"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _tracker_state(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrackerState:
    remembered = [
        RememberedFrame(
            index,
            given,
            keys=(),
            labels=tuple(tensors[f"{place:05d}.labels.{n}"] for n in range(layers)),
            points=tuple(tensors[f"{place:05d}.points.{n}"] for n in range(layers)),
        )
        for place, (index, given, layers) in enumerate(fields["remembered"])
    ]
    return TrackerState(
        fields["next_index"],
        tuple(fields["object_ids"]),
        tuple(fields["point_names"]),
        None if fields["frame_size"] is None else tuple(fields["frame_size"]),
        remembered,
    )
