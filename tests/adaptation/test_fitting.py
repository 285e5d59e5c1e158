"""`fit`: stops early, keeps the best parameters, and works within another Trainer."""

from __future__ import annotations

import logging
import math

import lightning as L
import pytest
import torch
from examples import ColourBackbone, moving_square
from torch.nn import functional as F
from torch.utils.data import DataLoader

from drift.adaptation import (
    Adaptation,
    Diverged,
    HeadWeighting,
    Learned,
    PromptOptions,
    TextualInversion,
    fit,
)
from drift.adaptation.fitting import ClipModule, FitOptions
from drift.backbones import load_backbone
from drift.errors import OptionError
from drift.propagation import PropagationOptions

CLIP = moving_square(1, (64, 96))
FRAME, MASK = CLIP.frames[0], CLIP.given[0]
LAYERS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]


class Distance(ClipModule):
    """Moves a point towards 0: the loss is its distance, or a scripted value."""

    def __init__(self, *, batches=1, script=None, learning_rate=0.1):
        super().__init__(ColourBackbone(), FitOptions(learning_rate=learning_rate))
        self.point = torch.nn.Parameter(torch.tensor(1.0))
        self.batches, self.script, self.points = batches, script, []

    def train_dataloader(self):
        return DataLoader(list(range(self.batches)), batch_size=None)

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.points.append(self.point.item())
        loss = self.point.abs() * (1 + batch)
        if self.script is not None:
            loss = loss * 0 + self.script[len(self.losses)]
        return self.logged(loss)


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(checkpoint, layers=LAYERS, timestep=51, precision="float32")


def modules(backbone):
    """A module of each kind."""
    return [
        TextualInversion(backbone, FRAME, MASK, PromptOptions(tokens=3)),
        HeadWeighting(backbone, FRAME, MASK, PropagationOptions(radius=4), Learned(views=2)),
    ]


def parameters(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_losses_are_the_means_over_batches():
    module = Distance(batches=3)
    fit(module, steps=4)
    assert len(module.losses) == 4
    assert module.losses == pytest.approx([2 * abs(point) for point in module.points], rel=1e-5)


def test_an_epoch_is_one_step():
    module = Distance(batches=3)
    fit(module, steps=3)
    assert module.points == pytest.approx([1.0, 0.9, 0.8], rel=1e-4)


def test_the_best_parameters_are_kept():
    """Adam overshoots 0 and comes back."""
    module = Distance(learning_rate=0.45)
    fit(module, steps=6, tolerance=0.0)
    best = min(module.points, key=abs)
    assert module.points[-1] != best
    assert module.point.item() == best
    assert module.losses.index(min(module.losses)) == module.points.index(best)


def test_the_state_dict_holds_the_parameters_alone():
    module = Distance()
    fit(module, steps=2)
    assert list(module.state_dict()) == ["point"]
    assert not module.point.requires_grad


@pytest.mark.parametrize("patience", [1, 4])
def test_it_stops_once_the_loss_has_settled(patience):
    module = Distance(script=[1.0, 0.5] + [0.4995] * 50)
    fit(module, steps=50, patience=patience, tolerance=0.001)
    assert len(module.losses) == 2 + patience


def test_the_tolerance_is_what_the_loss_has_to_fall_by():
    script = [1 - 0.01 * step for step in range(20)]
    settled, falling = Distance(script=script), Distance(script=script)
    fit(settled, steps=20, patience=2, tolerance=0.05)
    fit(falling, steps=20, patience=2, tolerance=0.005)
    assert len(settled.losses) < 20
    assert len(falling.losses) == 20


def test_steps_are_an_upper_bound():
    module = Distance(learning_rate=0.01)
    fit(module, steps=5, tolerance=0.0)
    assert len(module.losses) == 5


def test_options_replace_those_of_the_module():
    module = Distance(learning_rate=0.01)
    fit(module, steps=3, learning_rate=0.1)
    assert module.points == pytest.approx([1.0, 0.9, 0.8], rel=1e-4)
    scheme = Learned(views=1, steps=2, tolerance=0.0)
    for options, steps in (({}, 2), ({"steps": 4}, 4)):
        heads = HeadWeighting(ColourBackbone(), FRAME, MASK, PropagationOptions(radius=4), scheme)
        fit(heads, **options)
        assert len(heads.losses) == steps


@pytest.mark.parametrize(
    ("option", "value"), [("steps", 0), ("patience", 0.5), ("tolerance", -1), ("learning_rate", 0)]
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(OptionError, match=f"{option}={value}"):
        fit(Distance(), **{option: value})


def test_both_modules_stop_early(backbone):
    for module in modules(backbone):
        fit(module, steps=50, patience=2, tolerance=10.0)
        assert len(module.losses) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_diverges(value):
    module = Distance(script=[1.0, value, 1.0, 1.0])
    with pytest.raises(Diverged, match="the loss of Distance diverged at step 2") as error:
        fit(module, steps=4)
    assert "\n" not in str(error.value)


class Outer(L.LightningModule):
    """Calls a function in its `predict_step`, as `TrackingModule` adapts to a clip."""

    def __init__(self, function):
        super().__init__()
        self.function, self.result, self.inference = function, None, None

    def predict_step(self, batch, batch_idx):
        self.inference = torch.is_inference_mode_enabled()
        with torch.no_grad():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        self.product_dtype, self.result = product.dtype, self.function()


def predicted(function, *, inference_mode=True, precision="32-true"):
    """Result of a function in the predict step of a Trainer."""
    outer = Outer(function)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        inference_mode=inference_mode,
        precision=precision,
    )
    trainer.predict(outer, DataLoader([0], batch_size=None), return_predictions=False)
    assert outer.inference == inference_mode
    assert outer.product_dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    return outer.result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("inference_mode", "precision"), [(True, "32-true"), (False, "bf16-mixed"), (True, "bf16-mixed")]
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_fit_within_another_trainer_gives_the_same_parameters(backbone, number, inference_mode, precision):
    alone, inside = modules(backbone)[number], modules(backbone)[number]
    fit(alone, steps=4, tolerance=0.0)
    predicted(lambda: fit(inside, steps=4, tolerance=0.0), inference_mode=inference_mode, precision=precision)
    assert inside.losses == alone.losses
    assert torch.equal(parameters(inside), parameters(alone))
    assert not torch.equal(parameters(inside), parameters(modules(backbone)[number]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("inference_mode", "precision"), [(True, "32-true"), (False, "bf16-mixed"), (True, "bf16-mixed")]
)
def test_an_adapter_learned_within_another_trainer_is_the_same(backbone, inference_mode, precision):
    """With two appearances, so that embeddings of the first are used at the second."""
    later = MASK * 0
    later[40:64, 48:96] = 7
    given = {0: (FRAME, MASK), 2: (FRAME, later)}
    adaptation = Adaptation(
        Learned(views=1, steps=3, tolerance=0.0),
        PromptOptions(tokens=3, steps=3, tolerance=0.0, slot_weight=0.1, diffusion_weight=0.01),
    )

    def adapter():
        return adaptation.adapt(given, backbone, PropagationOptions(radius=4))

    alone, inside = adapter(), predicted(adapter, inference_mode=inference_mode, precision=precision)
    assert alone.warning is inside.warning is None
    assert inside.losses == alone.losses
    pairs = list(zip(inside.embeddings, alone.embeddings, strict=True))
    pairs += [(inside.head_weights[layer], alone.head_weights[layer]) for layer in LAYERS]
    pairs += [(inside.prompts[frame], alone.prompts[frame]) for frame in (0, 2)]
    assert all(torch.equal(one, other) for one, other in pairs)


class LargeActivations(ColourBackbone):
    """Twelve heads of queries and keys up to 40 with 64 channels: inner products overflow in float16."""

    def __init__(self):
        super().__init__()
        self.layers = {"0": 12}

    def features(self, frames, generator, *, prompt=None, cross=()):
        (plain,) = super().features(frames, generator)
        tokens = F.normalize(plain.tokens, dim=-1).repeat(1, 1, 1, 22)[..., :64] * 40
        heads = tokens[:, None].repeat(1, 12, 1, 1, 1)
        return [type(plain)("0", heads, heads, plain.tokens)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["separate", "joint", "fused"])
def test_large_activations_under_half_precision_autocast_stay_finite(mode, dtype):
    def learned():
        module = HeadWeighting(
            LargeActivations(), FRAME, MASK, PropagationOptions(heads=mode, radius=4), Learned(views=2)
        )
        fit(module, steps=3, tolerance=0.0)
        return module

    alone = learned()
    with torch.autocast("cpu", dtype=dtype):
        module = learned()
    assert all(math.isfinite(loss) for loss in module.losses)
    assert torch.isfinite(module.theta).all()
    assert module.losses == alone.losses
    assert torch.equal(module.theta, alone.theta)


def test_the_levels_of_lightnings_loggers_are_restored():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        fit(Distance(), steps=1)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_nothing_is_printed_or_written(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    fit(Distance(), steps=2)
    printed = capsys.readouterr()
    assert printed.out + printed.err + caplog.text == ""
    assert list(tmp_path.iterdir()) == []
