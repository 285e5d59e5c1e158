"""The embedded Segment Anything model: drawn prompts, frames of any shape, IoU on real frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.prompts import prompted
from datamodules.davis import Davis2016
from drift.clip import ObjectPrompt
from drift.refinement import load_refiner
from drift.refinement.sam_prompts import PromptSettings
from drift.refinement.tiny_decoder import draw_boxes, draw_masks, draw_points
from drift.refinement.tiny_proposer import TinySamProposer
from drift.refinement.tiny_sam import TinySam


@pytest.fixture(scope="module")
def proposer():
    """The embedded model with random weights."""
    torch.manual_seed(0)
    return TinySamProposer(TinySam(), prompts=PromptSettings(), precision="float32")


@pytest.fixture
def frame():
    return torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def squares(proposer, size: tuple[int, int]) -> torch.Tensor:
    """Probabilities of the background and of three squares, on the proposer's grid."""
    rows, columns = proposer.grid(size)
    soft = torch.zeros(4, rows, columns)
    for number in range(3):
        soft[
            number + 1, rows // 4 : rows // 2, number * columns // 3 : number * columns // 3 + columns // 6
        ] = 0.9
    soft[0] = 1 - soft[1:].sum(0)
    return soft


@pytest.mark.parametrize("size", [(1, 1), (480, 854), (1080, 1920), (7, 900), (333, 500), (854, 480)])
def test_inputs_keep_the_frames_shape(size):
    height, width = TinySam.input_size(size)
    assert max(height, width) == 640
    assert max(TinySam.input_size(size, 384)) == 384
    assert height % 32 == width % 32 == 0
    assert abs(height / width * size[1] / size[0] - 1) < 0.1 or min(height, width) == 32


@pytest.mark.parametrize("size", [(48, 640), (600, 40), (33, 57), (480, 854)])
def test_frames_of_any_shape_give_masks_on_the_grid(proposer, size):
    soft = squares(proposer, size)
    with torch.inference_mode():
        found = proposer.propose(torch.zeros(*size, 3, dtype=torch.uint8), soft, [1, 2, 3])
    assert found.probabilities.shape == (3, 1, *soft.shape[-2:])
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    mask = proposer.segment(torch.zeros(*size, 3, dtype=torch.uint8), ObjectPrompt(1, box=(1, 1, 30, 30)))
    assert (mask.shape, mask.dtype) == (size, torch.bool)


def test_a_batch_of_objects_equals_single_objects(proposer, frame):
    soft = squares(proposer, (120, 200))
    with torch.inference_mode():
        together = proposer.propose(frame, soft, [1, 2, 3])
        alone = [proposer.propose(frame, soft, [n]) for n in (1, 2, 3)]
    assert torch.allclose(together.probabilities, torch.cat([x.probabilities for x in alone]), atol=1e-4)
    assert torch.allclose(together.scores, torch.cat([x.scores for x in alone]), atol=1e-4)


@pytest.mark.parametrize(
    "disabled", [{"box": False}, {"mask": False}, {"positive_points": 0}, {"negative_points": 0}]
)
def test_a_disabled_prompt_changes_the_mask(proposer, frame, disabled):
    soft = squares(proposer, (120, 200))
    other = TinySamProposer(proposer.sam, prompts=PromptSettings(**disabled), precision="float32")
    with torch.inference_mode():
        masks = [each.propose(frame, soft, [1]).probabilities for each in (proposer, other)]
    assert not torch.allclose(*masks)


def test_points_are_drawn_where_they_are():
    points = torch.tensor([[[17.5, 9.5], [41.5, 25.5]], [[17.5, 9.5], [0.0, 0.0]]])
    planes = draw_points((8, 16), points, torch.tensor([[1, 0], [0, -1]]))
    peaks = [divmod(int(plane.argmax()), 16) for plane in (*planes[0], *planes[1, 2:])]
    assert peaks == [(2, 4), (2, 4), (6, 10), (6, 10), (2, 4), (2, 4)]
    assert (planes[1, :2] == 0).all()
    assert (planes[:, 1] >= planes[:, 0]).all()


def test_boxes_are_filled_and_graded():
    filled, graded = draw_boxes((8, 16), torch.tensor([[15.5, 7.5, 47.5, 23.5]]))[0]
    inside = torch.zeros(8, 16, dtype=torch.bool)
    inside[2:6, 4:12] = True
    assert torch.equal(filled == 1, inside)
    assert torch.equal(filled == -1, ~inside)
    assert torch.equal(graded > 0, inside)
    assert graded[3:5, 7:9].min() > 0.7


def test_masks_are_drawn_with_a_plane_that_says_so():
    mask, given = draw_masks(torch.tensor([[[[-8.0, 0.0, 8.0]]]]))[0]
    assert mask.tolist()[0] == pytest.approx([-0.964, 0, 0.964], abs=1e-3)
    assert (given == 1).all()


def test_what_the_embedded_model_answers_on_real_frames(davis_root):
    """Mean IoU over three clips, measured as in `benchmarks.prompts`."""
    clips = Davis2016(davis_root, sequences=["blackswan", "camel", "dog"]).predict_dataloader()
    segmenter = load_refiner().proposer
    ious = [prompted(segmenter, clip.frames[0], clip.given[0] > 0) for clip in clips]
    mean = {kind: np.mean([each[kind] for each in ious]) for kind in ious[0]}
    assert mean["box"] > 0.7
    assert mean["one click"] > 0.5
    assert mean["five clicks"] > mean["one click"]
    assert mean["mask"] > mean["corrupted"]


def test_a_point_on_the_background_takes_it_from_the_mask():
    frame = torch.zeros(120, 200, 3, dtype=torch.uint8)
    frame[20:60, 20:60] = torch.tensor([200, 60, 30], dtype=torch.uint8)
    frame[20:60, 100:140] = torch.tensor([30, 60, 200], dtype=torch.uint8)
    segmenter = load_refiner().proposer
    both = ((40.0, 40.0), (120.0, 40.0))
    one = segmenter.segment(frame, ObjectPrompt(1, points=both, inside=(True, False)))
    two = segmenter.segment(frame, ObjectPrompt(1, points=both, inside=(True, True)))
    assert one[40, 40]
    assert not one[40, 120]
    assert two[40, 120]


def test_the_grid_is_half_as_fine_as_the_input(proposer):
    rows, columns = proposer.grid((480, 854))
    assert (rows * 2, columns * 2) == TinySam.input_size((480, 854)) == (352, 640)


def test_a_frame_that_is_clicked_again_is_embedded_once(proposer, frame, monkeypatch):
    embedded = []
    embed = proposer.sam.embed
    monkeypatch.setattr(proposer.sam, "embed", lambda *args: embedded.append(args[1]) or embed(*args))
    click = ObjectPrompt(1, points=((60, 50),), inside=(True,))
    first = proposer.segment(frame, click)
    assert len(embedded) == len(set(embedded)) == 2  # one of each size
    assert torch.equal(proposer.segment(frame.clone(), click), first)
    assert len(embedded) == 2
    other = 255 - frame
    proposer.segment(other, click)
    assert len(embedded) == 4
    assert torch.equal(proposer.segment(frame, click), first)
