"""The whole method on an accelerator gives what it gives on the CPU, and mixes no tensors of the two.

The fixture `accelerator` is a pretended device, and a GPU where there is one.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from examples import moving_square, write_checkpoint, write_davis
from small_sam import small_sam
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from drift import (
    Adaptation,
    Gaussian,
    HeadWeighting,
    LatentInversion,
    Learned,
    NoNoise,
    PromptOptions,
    PropagationOptions,
    TextualInversion,
    Tracker,
    fit,
    load_backbone,
)
from drift.adaptation.adapter_files import AdapterFolder
from drift.adaptation.losses import mean_attention
from drift.backbones import Features
from drift.backbones.dinov2 import DINOv2
from drift.backbones.interface import AttentionPass
from drift.clip import Keypoint, ObjectPrompt
from drift.command_line import run
from drift.propagation import Adapter
from drift.propagation.slots import slot_maps
from drift.refinement import grabcut_refiner, load_refiner
from drift.refinement.sam import SamProposer
from drift.refinement.sam_prompts import PromptSettings
from drift.resuming import ClipProgress, ProgressFile
from drift.stopwatch import Stopwatch
from evaluate import CONFIGS, evaluate

COARSE, FINE = "up_blocks.1.attentions.0", "up_blocks.2.attentions.0"
CPU = torch.device("cpu")
CLIP = moving_square(3)
LATER = np.where(np.arange(64) >= 48, np.uint8(7), np.uint8(0)) * np.ones((48, 1), np.uint8)
SLOTS = PromptOptions(tokens=3, steps=3, cross_layers=[COARSE, FINE])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with half as many blocks, because operations on the pretended device are slow."""
    return write_checkpoint(tmp_path_factory.mktemp("shallow"), layers_per_block=1)


@pytest.fixture(scope="module")
def load(checkpoint):
    """Loads the small model onto a device, in float32; once for equal options."""

    @cache
    def load(device, *, layers=(COARSE, FINE), **options):
        options = {"device": device, "layers": layers, "timestep": 51, "precision": "float32"} | options
        return load_backbone(checkpoint, **options)

    return load


def track(backbone, *, points=(), later=None, **options):
    """The labels of the frames of a clip, on the CPU, and the tracker."""
    tracker = Tracker(backbone, **{"radius": 2, "top_k": 3, "memory_frames": 1} | options)
    labels = [tracker.step(CLIP.frames[0], CLIP.given[0], points)]
    for index, frame in enumerate(CLIP.frames[1:], start=1):
        labels.append(tracker.step(frame, later if index == 1 else None))
    assert {one.probabilities.device for one in labels} == {backbone.device}
    return labels, tracker


def close(tensor, expected):
    return torch.allclose(tensor.cpu(), expected.cpu(), atol=2e-3)


def assert_equal(labels, expected):
    for one, other in zip(labels, expected, strict=True):
        assert close(one.probabilities, other.probabilities)
        assert (one.mask() != other.mask()).float().mean() < 0.02  # ties of random features
        if other.refined is not None:
            assert close(one.refined, other.refined)
        for place, right in zip(one.tracked_points(), other.tracked_points(), strict=True):
            assert place[1:] == pytest.approx(right[1:], abs=0.1)


def assert_tracks_alike(load, device, **options):
    adapter = options.pop("adapter", None)
    assert_equal(
        track(load(device), adapter=adapter, **options)[0], track(load(CPU), adapter=adapter, **options)[0]
    )


MODES = {
    "separate": {},
    "joint": {"heads": "joint"},
    "fused": {"heads": "fused"},
    "cosine": {"affinity": "cosine", "temperature": 0.1},
    "whole frame": {"radius": None, "top_k": None},
    "top-k of the whole frame": {"radius": None},
    "all keys within the radius": {"top_k": None},
    "min_confidence": {"min_confidence": 0.9},
    "points": {"points": [Keypoint("a", 20, 20), Keypoint("b", 3, 40)]},
    "an object later": {"later": LATER},
    "fixed head weights": {"adapter": Adapter(head_weights={COARSE: torch.eye(4)[1], FINE: torch.zeros(4)})},
}


@pytest.mark.parametrize("mode", MODES)
def test_tracking(load, accelerator, mode):
    assert_tracks_alike(load, accelerator, **MODES[mode])


def test_points_without_objects(load, accelerator):
    found = []
    for device in (accelerator, CPU):
        tracker = Tracker(load(device), radius=2)
        tracker.step(CLIP.frames[0], points=[Keypoint("a", 20, 20)])
        found.append(tracker.step(CLIP.frames[1]).tracked_points()[0][1:])
    assert found[0] == pytest.approx(found[1], abs=0.1)


@pytest.mark.parametrize("noise", [NoNoise(), Gaussian(ensemble=2), LatentInversion(steps=1)], ids=str)
def test_noise(load, accelerator, noise):
    labels = [track(load(device, noise=noise))[0] for device in (accelerator, CPU)]
    assert_equal(*labels)


def test_features_that_are_left_on_the_cpu_are_noticed(load, accelerator):
    backbone = load(CPU)
    misplaced = SimpleNamespace(device=accelerator, stride=8, layers=backbone.layers, description={})
    misplaced.features = lambda frames, generator, **options: backbone.features(frames.cpu(), generator)
    with pytest.raises(RuntimeError, match="same device"):
        track(misplaced)


def test_half_precision_is_the_default(load, accelerator):
    labels, tracker = track(load(accelerator, precision="auto"))
    assert tracker.backbone.description["precision"] == "float16"
    assert all(one.probabilities.isfinite().all() for one in labels)


def test_dinov2(accelerator):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    model = Dinov2Model(config)
    labels = [track(DINOv2(deepcopy(model)).to(device))[0] for device in (accelerator, CPU)]
    assert_equal(*labels)


def test_a_run_of_the_command_line(checkpoint, accelerator, tmp_path, monkeypatch):
    """From the frames' files to masks and scores: learned prompt and head weights, refinement, figures, report."""
    monkeypatch.setattr(
        "sys.argv",
        [
            "evaluate.py",
            "data=davis",
            f"data.root={write_davis(tmp_path / 'data', {'square': CLIP})}",
            f"backbone.checkpoint={checkpoint}",
            f"backbone.layers=[{COARSE},{FINE}]",
            "adaptation=drift",
            "adaptation.head_weighting.steps=1",
            "adaptation.textual_inversion.steps=1",
            "refinement=sam_tiny",
            "trainer=gpu",
            f"trainer.accelerator={accelerator.type}",
            "trainer.devices=[0]",
            "logger=none",
            f"output.dir={tmp_path / 'out'}",
        ],
    )
    assert run(evaluate, config_dir=CONFIGS, config_name="evaluate") == 0
    assert len(list((tmp_path / "out").rglob("square/*.png"))) >= 3
    assert list((tmp_path / "out").rglob("square.safetensors"))


def test_blocks_as_features(load, accelerator):
    options = {"affinity": "cosine", "temperature": 0.1}
    assert_equal(
        *[track(load(device, layers=("up_blocks.2",)), **options)[0] for device in (accelerator, CPU)]
    )


def test_a_tracker_goes_on_from_its_saved_state(load, accelerator, tmp_path):
    backbone = load(accelerator)
    points = [Keypoint("a", 20, 20)]
    _, tracker = track(backbone, points=points)
    file = ProgressFile(tmp_path / "clip.safetensors", {}, resume=True)
    state = tracker.state()
    file.save(ClipProgress(done=3, tracker=state))
    expected = tracker.step(CLIP.frames[0])
    for earlier in (state, file.earlier().tracker):
        resumed = Tracker(backbone, radius=2, top_k=3, memory_frames=1)
        resumed.restore(earlier, lambda index: CLIP.frames[index])
        assert_equal([resumed.step(CLIP.frames[0])], [expected])


@pytest.mark.parametrize("heads", ["separate", "fused"])
def test_attention_maps(load, accelerator, heads):
    (_, there), (_, here) = (track(load(device), heads=heads) for device in (accelerator, CPU))
    (frames, maps), (_, expected) = (tracker.attention([(5, 9), (40, 60)]) for tracker in (there, here))
    assert frames == [0, 1]
    for layer, attention in maps.items():
        assert close(attention, expected[layer])


def test_features_from_the_cache(load, accelerator, tmp_path):
    cached = load(accelerator, cache=str(tmp_path), noise=Gaussian(ensemble=2))
    first, again = track(cached)[0], track(cached)[0]
    assert sorted(tmp_path.rglob("*.safetensors"))
    assert_equal(first, again)
    assert_equal(first, track(load(CPU, noise=Gaussian(ensemble=2)))[0])


PROPAGATION = PropagationOptions(temperature=0.3, top_k=3, radius=2)


@pytest.mark.parametrize(
    ("affinity", "heads"),
    [("attention", "separate"), ("attention", "joint"), ("attention", "fused"), ("cosine", "separate")],
)
def test_head_weighting(load, accelerator, affinity, heads):
    propagation = PropagationOptions(affinity, heads, 0.3, 3, 2)
    options = Learned(views=1)
    learned = []
    for device in (accelerator, CPU):
        module = HeadWeighting(load(device), CLIP.frames[0], CLIP.given[0], propagation, options)
        fit(module, steps=2)
        learned.append((module.weights(), module.losses))
    assert learned[0][1] == pytest.approx(learned[1][1], abs=1e-3)
    for layer, weights in learned[0][0].items():
        assert close(weights, learned[1][0][layer])


INVERSIONS = {
    "conditioned": {},
    "conditioned, at each step": {"refresh": 0},
    "conditioned, diffusion loss": {"diffusion_weight": 0.5},
    "not conditioned, slots": {"conditioned": False, "slot_weight": 0.1},
    "not conditioned, diffusion loss": {"conditioned": False, "diffusion_weight": 0.5},
}


@pytest.mark.parametrize("name", INVERSIONS)
def test_textual_inversion(load, accelerator, name):
    options = PromptOptions(**vars(SLOTS) | INVERSIONS[name])
    learned = []
    for device in (accelerator, CPU):
        module = TextualInversion(load(device), CLIP.frames[0], CLIP.given[0], options)
        fit(module, steps=2)
        learned.append(module)
    assert learned[0].losses == pytest.approx(learned[1].losses, abs=2e-3)
    assert learned[0].slot_iou() == pytest.approx(learned[1].slot_iou(), abs=0.1)
    assert learned[0].prompt.device == accelerator


@pytest.mark.parametrize(
    ("conditioned", "noise"), [(True, LatentInversion(steps=1)), (False, Gaussian())], ids=str
)
def test_a_clip_is_adapted_and_tracked(load, accelerator, conditioned, noise, tmp_path):
    """Also an object that appears later, whose slots are learned beside the known ones; and from the file."""
    clip = moving_square(3, given={0: CLIP.given[0], 1: LATER})
    prompts = PromptOptions(tokens=3, steps=2, conditioned=conditioned, slot_weight=0.1)
    adaptation = Adaptation(head_weighting=Learned(views=1, steps=2), textual_inversion=prompts)
    labels, figures = [], []
    for device in (accelerator, CPU):
        backbone = load(device, noise=noise)
        folder = AdapterFolder(adaptation, PROPAGATION, tmp_path / device.type)
        learned, read = (folder.adapter(clip, backbone) for _ in range(2))
        assert learned.warning is None
        assert read.losses == learned.losses
        labels.append(track(backbone, later=LATER, adapter=read)[0])
        figures.append(learned.losses)
    assert_equal(*labels)
    assert figures[0].keys() == figures[1].keys()
    for name, losses in figures[0].items():
        assert losses == pytest.approx(figures[1][name], abs=5e-3)


def random_sam(device):
    """A small Segment Anything model of the official classes with random weights."""
    return SamProposer(small_sam(), prompts=PromptSettings(), device=device, precision="float32")


REFINERS = {
    "grabcut": lambda device, **options: grabcut_refiner(device=device, min_iou=0, **options),
    "sam_tiny": lambda device, **options: load_refiner(
        device=device, precision="float32", min_iou=0, max_area_change=1e6, **options
    ),
}


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("name", REFINERS)
def test_refinement(load, accelerator, name, feedback):
    results, outcomes = [], []
    for device in (accelerator, CPU):
        refiner = REFINERS[name](device, feedback=feedback)
        labels, tracker = track(load(device), refiner=refiner, later=LATER, radius=0)
        results.append(labels)
        outcomes.append(tracker.refinements)
    assert_equal(*results)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["refined"]


@pytest.mark.parametrize("make", [*REFINERS.values(), random_sam], ids=[*REFINERS, "random"])
def test_masks_of_boxes_and_points(accelerator, make):
    prompts = [
        ObjectPrompt(1, box=(8, 12, 24, 28)),
        ObjectPrompt(2, points=((16.0, 20.0), (40.0, 8.0)), inside=(True, False)),
    ]
    found = []
    for device in (accelerator, CPU):
        made = make(device)
        proposer = getattr(made, "proposer", made)
        masks = [proposer.segment(torch.from_numpy(CLIP.frames[0]), prompt).cpu() for prompt in prompts]
        found.append(torch.stack(masks))
    assert (found[0] != found[1]).float().mean() < 0.01


@pytest.mark.parametrize("device", [None, "accelerator"])
def test_a_stopwatch_waits_for_the_device_only_where_asked(accelerator, device, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    with Stopwatch(accelerator if device else None).stage("kernel"):
        pass
    assert waited == ([accelerator] if device else [])


class LargeActivations(nn.Module):
    """A model of 12 heads of dim 64 whose queries and keys are near 40: their products are too large for float16."""

    stride, heads, dim, layer = 8, 12, 64, "layer"

    def __init__(self):
        super().__init__()
        self.description, self.under_autocast = {"noise": "none"}, set()
        self.register_buffer("prompt", torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(0)))
        self.layers = self.attention_layers = {self.layer: self.heads}

    @property
    def device(self):
        return self.prompt.device

    def encode(self, frames):
        return frames

    def noised(self, latents, generator):
        return latents

    def features(self, frames, generator, *, prompt=None, cross=()):
        attended = self.attend(frames, self.prompt, layers=[self.layer], cross=cross)
        return [
            replace(attended.features[self.layer], prompt_queries=attended.prompt_queries.get(self.layer))
        ]

    def attend(self, latents, prompt, *, layers=(), cross=(), output=False):
        self.under_autocast.add(torch.is_autocast_enabled(self.device.type))
        tokens = nn.functional.avg_pool2d(latents.float(), self.stride).permute(0, 2, 3, 1)
        heads = 40 + tokens.mean(-1)[:, None, ..., None].expand(-1, self.heads, -1, -1, self.dim)
        features = {name: Features(name, heads, heads, tokens) for name in layers}
        return AttentionPass(features, dict.fromkeys(cross, heads))

    def prompt_keys(self, layer, embeddings):
        keys = 40 + 0.01 * embeddings.mean(-1, keepdim=True).expand(-1, self.heads * self.dim)
        return keys.unflatten(1, (self.heads, self.dim)).transpose(0, 1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def autocast_device(request):
    """A device whose autocast computes in float16; that of the pretended device does nothing."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is False")
    return torch.device(request.param)


@pytest.fixture
def large(autocast_device):
    """The model of large activations, under autocast in float16, in which products of its activations are infinite."""
    model = LargeActivations().to(autocast_device)
    activations = torch.full((64, 64), 40.0, device=autocast_device)
    with torch.autocast(autocast_device.type, dtype=torch.float16):
        assert (activations @ activations).isinf().all()
        yield model


@pytest.mark.parametrize("heads", ["separate", "joint", "fused"])
def test_head_weights_of_large_activations_are_learned(large, heads):
    module = HeadWeighting(
        large, CLIP.frames[0], CLIP.given[0], PropagationOptions(heads=heads), Learned(views=2)
    )
    fit(module, steps=3)
    assert np.isfinite(module.losses).all()
    assert sum(weights.sum() for weights in module.weights().values()) == pytest.approx(1)


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_prompt_is_learned_from_large_activations(large, conditioned):
    options = PromptOptions(tokens=3, conditioned=conditioned, self_layer="layer")
    module = TextualInversion(large, CLIP.frames[0], CLIP.given[0], options)
    fit(module, steps=3)
    assert np.isfinite(module.losses).all()
    assert len(set(module.losses)) > 1
    assert large.under_autocast == {False}
    assert 0 <= module.slot_iou() <= 1


def test_a_clip_of_large_activations_is_adapted_and_tracked(large):
    adaptation = Adaptation(
        head_weighting=Learned(views=2, steps=2),
        textual_inversion=PromptOptions(tokens=3, steps=2, slot_weight=0.1, self_layer="layer"),
    )
    adapter = adaptation.adapt(CLIP.given_frames(), large, PROPAGATION)
    assert adapter.warning is None
    for labels in track(large, adapter=adapter)[0]:
        assert labels.probabilities.isfinite().all()


def test_maps_of_large_activations_are_those_without_autocast(large):
    frame = torch.from_numpy(CLIP.frames[0]).permute(2, 0, 1)[None].to(large.device) / 255
    attended = large.attend(frame, large.prompt, layers=["layer"], cross=["layer"])
    keys = {"layer": large.prompt_keys("layer", large.prompt[0])}
    features = attended.features["layer"]

    def maps():
        return (
            slot_maps(attended.prompt_queries, keys, 4, features.grid),
            mean_attention(features.queries, features.keys),
        )

    found = maps()
    with torch.autocast(large.device.type, enabled=False):
        expected = maps()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert one.isfinite().all()
        assert torch.equal(one, other)
