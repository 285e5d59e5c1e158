"""Every choice of every configuration group is composed and built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples import moving_square, write_davis
from hydra import compose, initialize_config_dir

import evaluate
from drift.command_line import build
from drift.errors import DriftError, InputError
from drift.propagation import Tracker

CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted(evaluate.CONFIGS.glob("*/*.yaml"))
    if path.parent.name not in ("hydra", "experiment", "sweep", "tuned")
]


def composed(*overrides: str):
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_is_composed_and_built(group, name, checkpoint, tmp_path):
    root = write_davis(tmp_path, {"ant": moving_square(2, name="ant")}, binary=name == "davis2016")
    config = composed(f"{group}={name}", f"output.dir={tmp_path}", "backbone.checkpoint=" + str(checkpoint))
    if group == "refinement":
        if name == "sam":
            with pytest.raises(InputError, match=r"sam_vit_h_4b8939\.pth: no such file"):
                build(config, group)
        else:
            assert (build(config, group) is None) == (name == "none")
    elif group == "adaptation":
        assert build(config, group).learns == (name == "drift")
    elif group == "backbone":
        if name == "tiny":
            config.backbone.layers = ["up_blocks.2.attentions.0"]  # the embedded model's are not this one's
        assert build(config, group).layers == tuple(config.backbone.layers)
    elif group == "data":
        if name == "video":
            config.data.path, config.data.box = str(root / "JPEGImages" / "480p" / "ant"), [0, 0, 9, 9]
        elif name != "sample":
            config.data.root = str(root)
        data = build(config, group)
        if name in ("sample", "davis", "davis2016", "video"):
            data.setup()
            assert data.sequences
        else:  # their own layouts are in tests/datamodules
            with pytest.raises(InputError, match=str(root)):
                data.setup()
    elif group == "propagation":
        backbone = build(composed(f"backbone.checkpoint={checkpoint}", "backbone=sd21"), "backbone")
        assert isinstance(build(config, group)(backbone), Tracker)
    elif group == "trainer":
        if name == "gpu" and not torch.cuda.is_available():
            with pytest.raises(DriftError, match=r"trainer.accelerator=gpu"):
                build(config, group)
        else:
            assert build(config, group).num_devices >= 1
    elif group == "logger" and name != "wandb":  # a W&B run is made in tests/run
        build(config, group)


@pytest.mark.parametrize(
    "path", sorted((evaluate.CONFIGS / "experiment").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_every_experiment_is_composed_and_its_adaptation_built(path):
    name = path.relative_to(evaluate.CONFIGS / "experiment").with_suffix("").as_posix()
    config = composed(f"experiment={name}")
    settings = build(config, "adaptation")
    if "ablation" in name:
        assert settings.textual_inversion == ("text" in name or "all" in name)
        assert (settings.head_weighting == "learned") == ("heads" in name or "all" in name)
        noise = {"gaussian": "gaussian", "inversion": "ddim_inversion", "all": "ddim_inversion"}
        assert config.backbone.noise == noise.get(name.split("/")[1].split("_")[-1], "none")
        assert len(config.backbone.layers) == 2


def test_what_is_tuned_for_a_pair_of_choices_holds_for_no_other():
    assert len(composed("adaptation=drift").backbone.layers) == 2
    assert len(composed("adaptation=none").backbone.layers) == 1
    assert composed("adaptation=drift", "backbone=sd21").adaptation["weights"] is None
    assert composed("adaptation=drift", "propagation.heads=joint").propagation.heads == "joint"


def test_train_and_evaluate_agree_on_all_that_an_adapter_depends_on():
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        for words in ([], ["backbone=sd21"], ["propagation=cosine"]):
            one, other = (compose(n, overrides=[*words, "adaptation=drift"]) for n in ("train", "evaluate"))
            for group in ("data", "backbone", "propagation", "adaptation", "seed"):
                assert one[group] == other[group]


def test_the_packages_that_are_installed_are_all_there():
    text = (Path(evaluate.__file__).parent / "pyproject.toml").read_text()
    root = Path(evaluate.__file__).parent
    for folder in ("drift", "datamodules"):
        for init in (root / folder).rglob("__init__.py"):
            package = ".".join(init.parent.relative_to(root).parts)
            assert f'"{package}"' in text
