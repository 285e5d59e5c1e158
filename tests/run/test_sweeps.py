"""Sweeps: W&B's definitions, the same grids without W&B, processes that share a cache, and what fails in them."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from examples import few_steps, moving_square, write_davis
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import evaluate
from drift.command_line import run
from drift.module import TrackingModule
from drift.processes import workers

CLIPS = {name: moving_square(frames, name=name) for name, frames in (("ant", 5), ("bee", 4))}
SWEEPS = sorted((evaluate.CONFIGS / "sweep").glob("*.yaml"))
GRIDS = evaluate.CONFIGS / "experiment" / "grid"
LAYER = "up_blocks.2.attentions.0"


def commands(path: Path) -> list[list[str]]:
    """The command of every setting of a grid, as W&B's agent makes it."""
    sweep = yaml.safe_load(path.read_text())
    names = list(sweep["parameters"])
    found = []
    for values in itertools.product(*(sweep["parameters"][name]["values"] for name in names)):
        arguments = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        macros = create_sweep_command_args({"args": arguments})
        macros |= {"env": [], "interpreter": [sys.executable], "program": [sweep["program"]]}
        words: list[str] = []
        for word in create_sweep_command(list(sweep["command"])):
            words += macros.get(word[2:-1], [word])
        found.append(words)
    return found


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = write_davis(tmp_path / "data", CLIPS, binary=True)
    monkeypatch.setenv("DAVIS_ROOT", str(folder))
    return folder


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_wandbs_agent_makes_commands_that_hydra_takes(path, root):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["method"] == "grid"
    assert sweep["metric"] == {"name": "J&F", "goal": "maximize"}
    made = commands(path)
    assert len(made) >= 9
    seen = set()
    for interpreter, program, *words in made:
        assert (interpreter, program) == (sys.executable, "evaluate.py")
        with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
            config = compose("evaluate", overrides=words)
        assert config.data.root == str(root)
        assert config.logger._target_.endswith("wandb_logger")
        seen.add(tuple(str(OmegaConf.select(config, name.replace("/", "."))) for name in sweep["parameters"]))
    assert len(seen) == len(made)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_same_grid_is_there_without_wandb(path, root):
    sweep = yaml.safe_load(path.read_text())
    grid = yaml.safe_load((GRIDS / path.name).read_text())
    values = {
        name: ",".join(str(value) for value in told["values"]) for name, told in sweep["parameters"].items()
    }
    assert grid["hydra"]["sweeper"]["params"] == values
    words = commands(path)[0][2 : -len(values)]
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        wandbs = compose("evaluate", overrides=words)
        ours = compose("evaluate", overrides=[*words[:2], f"experiment=grid/{path.stem}"])
    for config in (wandbs, ours):
        del config.output.dir  # W&B's agents may begin in the same second
    assert OmegaConf.to_container(wandbs) == OmegaConf.to_container(ours)


@pytest.fixture
def command(checkpoint, root, tmp_path, monkeypatch, capsys):
    """Runs `evaluate.py` on the clips with a cache; gives the exit status and what was printed."""

    def call(*words: str) -> tuple[int, str, str]:
        flags, overrides = [w for w in words if w == "-m"], [w for w in words if w != "-m"]
        arguments = few_steps([*flags, *small(checkpoint, root, tmp_path), *overrides])
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def small(checkpoint: Path, root: Path, folder: Path) -> list[str]:
    return [
        *(
            "data=davis2016",
            f"data.root={root}",
            f"backbone.checkpoint={checkpoint}",
            f"backbone.layers=[{LAYER}]",
        ),
        *("refinement=none", f"output.dir={folder / 'out'}", f"backbone.cache={folder / 'cache'}"),
    ]


def scores(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "results.csv").open() as file:
        return [(row["sequence"], row["J"], row["F"]) for row in csv.DictReader(file)]


def entries(folder: Path) -> int:
    return len(list((folder / "cache").glob("??/*.safetensors")))


def test_a_wandb_sweeps_command_runs(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [
        word
        for word in commands(evaluate.CONFIGS / "sweep" / "propagation.yaml")[5][2:]
        if not word.startswith(("backbone.cache", "output.dir"))
    ]
    status, _, errors = command(*words)
    assert status == 0, errors
    config = json.loads((tmp_path / "out" / "results.json").read_text())["config"]["propagation"]
    assert (config["top_k"], config["radius"], config["memory_frames"]) == (3, 5, 14)
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))


def test_runs_of_a_sweep_share_a_cache_and_begin_with_different_clips(command, tmp_path):
    status, printed, errors = command("-m", "logger=none", "propagation.top_k=3,5")
    assert status == 0, errors
    lines = [line.split()[0] for line in printed.splitlines() if "frames/s" in line]
    assert lines == ["ant", "bee", "bee", "ant"]
    frames = {frame.tobytes() for clip in CLIPS.values() for frame in clip.frames}
    assert entries(tmp_path) == len(frames)
    assert len(list((tmp_path / "cache" / "adapters").iterdir())) == len(CLIPS)
    adapted = set()
    for number, top_k in enumerate((3, 5)):
        folder = tmp_path / "out" / str(number)
        results = json.loads((folder / "results.json").read_text())
        assert list(results["sequences"]) == ["ant", "bee"]
        adapted.add(tuple(told["adaptation"]["seconds"] for told in results["sequences"].values()))
        alone = tmp_path / f"alone{number}"
        words = [f"propagation.top_k={top_k}", "backbone.cache=null", f"output.dir={alone}"]
        assert command("logger=none", *words)[0] == 0
        assert scores(alone) == scores(folder)
    assert len(adapted) == 1, "prompts are learned once for all runs"


def test_processes_share_a_sweep_and_one_runs_failure_is_told(checkpoint, root, tmp_path):
    launcher = ["hydra/launcher=processes", "hydra.launcher.n_jobs=2", "logger=none"]
    done = subprocess.run(
        [
            *(sys.executable, evaluate.__file__, "-m", *launcher),
            *small(checkpoint, root, tmp_path),
            "propagation.radius=0,-1",
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 2
    assert done.stderr.count("propagation.radius=-1") == 1
    assert done.stdout.count("(failed)") == 1
    assert "propagation.radius" in (tmp_path / "out" / "1" / "error.txt").read_text()
    assert [row[0] for row in scores(tmp_path / "out" / "0")] == ["ant", "bee"]
    assert not (tmp_path / "out" / "0" / "error.txt").exists()


def test_what_breaks_in_a_run_ends_that_run_only(command, tmp_path, monkeypatch):
    step = TrackingModule.predict_step

    def breaking(self, clip, batch_idx=0):
        if self.make_tracker.keywords["top_k"] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, clip, batch_idx)

    monkeypatch.setattr(TrackingModule, "predict_step", breaking)
    status, printed, errors = command("-m", "logger=none", "propagation.top_k=3,5", "data.sequences=[bee]")
    assert status == 2
    assert "error: OutOfMemoryError: CUDA out of memory" in errors
    assert "(failed)" in printed
    assert (tmp_path / "out" / "1" / "results.json").is_file()
    monkeypatch.undo()


def test_an_earlier_sweep_in_the_same_folder_is_forgotten(command, tmp_path):
    words = ["logger=none", "data.sequences=[bee]"]
    assert command("-m", *words, "propagation.radius=4,3,-1")[0] == 2
    status, printed, _ = command("-m", *words, "propagation.radius=4,3")
    assert status == 0
    assert "(failed)" not in printed
    with (tmp_path / "out" / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_grid_of_ours_runs(command, tmp_path):
    words = ["logger=none", "data.sequences=[bee]", "propagation.memory_frames=4", "output.report=false"]
    assert command("-m", "experiment=grid/propagation", *words)[0] == 0
    with (tmp_path / "out" / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("propagation.topk=3,5", "did you mean propagation.top_k?"),
        ("hydra/launcher=cluster", "pip install -e '.[sweep]'"),
        ("experiment=grid/head", "grid/heads"),
    ],
)
def test_a_sweep_with_an_unknown_key_is_refused_before_anything_runs(command, tmp_path, wrong, told):
    status, _, errors = command("-m", wrong)
    assert status == 2
    assert told in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("out/*/results.json"))


CLAIM = """
import os, pathlib, sys
from drift.processes import claim_gpu
claim_gpu(pathlib.Path(sys.argv[1]))
claim_gpu(pathlib.Path(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


def test_each_process_has_a_gpu_of_its_own_until_it_ends(tmp_path):
    def claiming() -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "3,5"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, process.stdout.readline().strip()

    def end(process: subprocess.Popen) -> None:
        process.communicate("", timeout=60)

    (first, one), (second, other) = claiming(), claiming()
    assert (one, other) == ("3", "5")
    end(first)
    third, again = claiming()
    assert again == "3"
    for process in (second, third):
        end(process)


def test_on_a_cpu_there_are_some_workers():
    assert 1 <= workers() <= 64
