"""The installed package: command line and configurations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import drift
from drift.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder in which the built wheel is installed without dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):  # a build leaves files beside the sources
        if name.split("/")[0] in (
            "drift",
            "datamodules",
            "configs",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    target = folder / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, source],
        check=True,
    )
    return target


def drift_of(installed, folder, *words):
    """Result of the installed command `drift` with `folder` as the working directory."""
    command = "import sys; from drift.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", command, *words],
        cwd=folder,
        env={"PYTHONPATH": str(installed), "PATH": "", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_installed_package_tracks_the_sample_clip(installed, tmp_path):
    result = drift_of(
        installed, tmp_path, "evaluate", "output.dir=out", "data.max_side=96", "adaptation=none",
        "refinement=none", "output.formats=[masks]", "output.report=false", "output.attention=false",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "J&F" in result.stdout
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 30


def test_the_wheel_contains_all_configurations(installed):
    packaged = {
        path.relative_to(installed / "drift" / "configs")
        for path in (installed / "drift" / "configs").rglob("*.yaml")
    }
    assert packaged == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert not (installed / "tests").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(installed, tmp_path, command):
    result = drift_of(installed, tmp_path, command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"{command}.py" in result.stdout


def test_commands_are_listed_and_others_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["drift"])
    assert main() == 0
    listed = capsys.readouterr().out
    assert all(f"drift {command}" in listed for command in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["drift", "track"])
    assert main() == 2
    assert capsys.readouterr().err == "error: track: no such command; allowed are evaluate, demo, train\n"


def test_the_version_is_stated_once_in_each_place():
    assert f'version = "{drift.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {drift.__version__}" in (ROOT / "CHANGELOG.md").read_text()
