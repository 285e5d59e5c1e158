"""How far a clip has come, kept beside its output, so that a run that was killed goes on where it was."""

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
    """How far a clip has come.

    Attributes:
        done: frames whose output is written.
        seconds: wall time that they took.
        stages: seconds by stage.
        refinements: how often what became of an object that was to be refined.
        adaptation: how the clip's adapter was learned.
        losses: of each step in which it was learned.
        head_weights: that it came to, by layer; empty for equal ones.
        warning: why that was given up, or None.
        peak_memory: in bytes, see `drift.peak_memory`.
        formats: what was written of them.
        tracker: what it knew then; None where it had not begun, or where the clip is done.
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
    """What of a configuration decides which masks come out, by key: all but where files lie and how a run is shown."""
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
    """The progress of a run's clips: `progress/SEQUENCE.safetensors` below its folder.

    Attributes:
        root: of the run.
        settings: see `settings_that_count`.
        resume: whether what is there is gone on from; else it is forgotten.
    """

    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False

    def of(self, clip: Clip) -> ProgressFile:
        """A clip's."""
        path = self.root / "progress" / f"{clip.name}.safetensors"
        settings = {**self.settings, "the clip": clip.identity()[:12]}
        return ProgressFile(path, settings, self.resume)

    def check(self) -> None:
        """Raises where something is to be gone on from that other settings have left, before anything is touched.

        Raises:
            InputError: says what differs.
        """
        if not self.resume:
            return
        for path in sorted((self.root / "progress").glob("*.safetensors")):
            found = _read(path)
            if found is not None:
                _, settings = found
                _refuse(path, {**self.settings, "the clip": settings["the clip"]}, settings)


@dataclass(frozen=True)
class ProgressFile:
    """One clip's progress.

    Attributes:
        path: of the file.
        settings: what it must have been made with.
        resume: see `ProgressFolder`.
    """

    path: Path
    settings: Mapping[str, str]
    resume: bool

    def earlier(self) -> ClipProgress:
        """How far the clip came in an earlier run of the same settings.

        Raises:
            InputError: what is there comes from other settings or another clip; says what differs.
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
        """Keeps how far the clip has come, whole or not at all."""
        tensors, told = _packed(progress)
        both = {"progress": json.dumps(told), "settings": json.dumps(dict(self.settings))}
        save_tensors(self.path, tensors, both)


def _refuse(path: Path, now: Mapping[str, str], then: Mapping[str, str]) -> None:
    differing = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if differing:
        told = "; ".join(
            f"{key} was {then.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in differing[:3]
        )
        raise InputError(
            f"output.dir={path.parents[1]}: what is there of {path.stem} comes from another configuration "
            f"({told}); give that one, another output.dir, or output.resume=false to do it again"
        )


def _packed(progress: ClipProgress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    told = asdict(replace(progress, tracker=None))
    state = progress.tracker
    if state is None:
        return {"nothing": torch.zeros(1)}, told
    tensors = {"noise": state.noise}
    for place, frame in enumerate(state.remembered):
        for kind, several in (("labels", frame.labels), ("points", frame.points)):
            tensors |= {f"{place:05d}.{kind}.{n}": one for n, one in enumerate(several)}
        tensors[f"{place:05d}.noise"] = frame.noise
    told["tracker"] = {
        "next_index": state.next_index,
        "object_ids": state.object_ids,
        "point_names": state.point_names,
        "frame_size": state.frame_size,
        "remembered": [(frame.index, frame.given, len(frame.labels)) for frame in state.remembered],
    }
    return tensors, told


def _read(path: Path) -> tuple[ClipProgress, dict[str, str]] | None:
    """Progress and settings; None where the file is missing or of no use, so that the clip is done again."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = json.loads(metadata["progress"])
        state = told.pop("tracker")
        tracker = None if state is None else _tracker_state(state, tensors)
        return ClipProgress(**told, tracker=tracker), json.loads(metadata["settings"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _tracker_state(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrackerState:
    remembered = [
        RememberedFrame(
            index,
            given,
            keys=(),
            labels=tuple(tensors[f"{place:05d}.labels.{n}"] for n in range(layers)),
            points=tuple(tensors[f"{place:05d}.points.{n}"] for n in range(layers)),
            noise=tensors[f"{place:05d}.noise"],
        )
        for place, (index, given, layers) in enumerate(told["remembered"])
    ]
    return TrackerState(
        told["next_index"],
        tuple(told["object_ids"]),
        tuple(told["point_names"]),
        None if told["frame_size"] is None else tuple(told["frame_size"]),
        tensors["noise"],
        remembered,
    )
