"""Segment Anything as it is asked: frames of any shape, many objects, every kind of prompt, the official sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from drift.propagation.labels import SoftLabels
from drift.refinement.architectures import build_tiny
from drift.refinement.decoding import content_size, embed, stacked
from drift.refinement.gates import Gates
from drift.refinement.prompts import PromptSettings, prompts_of
from drift.refinement.refinement import Refinement
from drift.refinement.sam import SamProposer

OPEN = Gates(min_iou=0.0, max_area_change=1e9)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_tiny()


def labels_of(objects: int, size: tuple[int, int]) -> SoftLabels:
    """Squares in a row, on tokens of 8 pixels."""
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    soft = torch.zeros(objects + 1, rows, columns)
    for number in range(objects):
        left = number * columns // objects
        soft[
            number + 1,
            rows // 4 : max(rows // 2, rows // 4 + 1),
            left : left + max(columns // objects // 2, 1),
        ] = 0.9
    soft[0] = 1 - soft[1:].sum(0)
    return SoftLabels(soft, tuple(range(1, objects + 1)), size, 8)


@pytest.mark.parametrize("size", [(48, 640), (600, 40), (33, 57), (480, 854)])
def test_frames_of_any_shape_give_masks_of_their_size(sam, size):
    refinement = Refinement(SamProposer(sam, prompts=PromptSettings()), gates=OPEN, feedback=False)
    refined = refinement.refine(torch.zeros(*size, 3, dtype=torch.uint8), labels_of(1, size))
    assert refined.probabilities.shape == (2, *size)
    assert len(refined.outcomes) == 1


def test_thirty_objects_are_asked_for_at_once_and_embedded_once(sam, monkeypatch):
    calls = {"encoder": 0, "decoder": 0}
    for name, module in (("encoder", sam.image_encoder), ("decoder", sam.mask_decoder.transformer)):
        usual = module.forward

        def counted(*arguments, usual=usual, name=name):
            calls[name] += 1
            return usual(*arguments)

        monkeypatch.setattr(module, "forward", counted)
    refinement = Refinement(SamProposer(sam, prompts=PromptSettings()), gates=OPEN, feedback=False)
    refined = refinement.refine(torch.zeros(240, 960, 3, dtype=torch.uint8), labels_of(30, (240, 960)))
    assert len(refined.outcomes) == 30
    assert calls == {"encoder": 1, "decoder": 1}


def test_a_batch_of_objects_gives_what_each_gives_alone(sam):
    proposer = SamProposer(sam, prompts=PromptSettings())
    frame = torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8)
    grid = proposer.grid((120, 200))
    soft = F.interpolate(labels_of(3, (120, 200)).upsampled()[None], grid, mode="area")[0]
    with torch.inference_mode():
        together = proposer.propose(frame, soft, [1, 2, 3])
        alone = [proposer.propose(frame, soft, [n]) for n in (1, 2, 3)]
    assert torch.allclose(together.probabilities, torch.cat([one.probabilities for one in alone]), atol=1e-4)
    assert torch.allclose(together.scores, torch.cat([one.scores for one in alone]), atol=1e-4)


@pytest.mark.parametrize(
    "left_out",
    [{"box": False}, {"mask": False}, {"positive_points": 0}, {"positive_points": 0, "negative_points": 0}],
)
def test_a_kind_of_prompt_that_is_left_out_does_not_count(sam, left_out):
    frame = torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8)
    soft = F.interpolate(labels_of(2, (120, 200)).upsampled()[None], (90, 160), mode="area")[0]
    with torch.inference_mode():
        usual, other = (
            SamProposer(sam, prompts=PromptSettings(**kinds)).propose(frame, soft, [1]).probabilities
            for kinds in ({}, left_out)
        )
    assert not torch.allclose(usual, other)


def test_prompts_lie_on_the_same_place_of_picture_and_mask():
    """A Sam's input is four times as fine as its masks: centres of pixels must agree."""
    soft = np.zeros((90, 160), np.float32)
    soft[20:30, 40:60] = 1
    asked = stacked([prompts_of(soft, np.zeros_like(soft), PromptSettings(margin=0.0))], 640)
    # Sam adds half a pixel to what it is given: the box's edges then are those of pixels 160 to 239, 80 to 119.
    assert (asked.boxes[0] + 0.5).tolist() == [160, 80, 240, 120]
    inside = asked.points[0][asked.labels[0] == 1] + 0.5
    assert ((inside > torch.tensor([160, 80])) & (inside < torch.tensor([240, 120]))).all()
    assert asked.logits.shape == (1, 1, 160, 160)
    assert (asked.logits[0, 0, 90:] == asked.logits.amin()).all()


def test_the_small_encoder_computes_nothing_for_padding(sam):
    picture = torch.rand(3, 96, 160) * 255
    with torch.inference_mode():
        whole = sam.image_encoder(sam.preprocess(F.interpolate(picture[None], (384, 640))))
        resized = embed(sam, picture)
    assert content_size((96, 160), 640) == (384, 640)
    assert whole.shape == (1, 128, 40, 40)
    assert (whole[:, :, 24:] == 0).all()
    assert resized.shape == (1, 128, 24, 40)
    assert (resized != 0).any()


def test_the_small_model_is_a_sam_like_any_other(sam):
    """What is written for Segment Anything's class takes it as it is."""
    request = {
        "image": torch.rand(3, 360, 640) * 255,
        "original_size": (480, 854),
        "boxes": torch.tensor([[100.0, 100.0, 200.0, 200.0]]),
    }
    (answer,) = sam([request], multimask_output=True)
    assert answer["masks"].shape == (1, 3, 480, 854)
    assert answer["low_res_logits"].shape == (1, 3, 160, 160)


@pytest.mark.parametrize("size", [(1, 1), (480, 854), (1080, 1920), (7, 900), (333, 500), (854, 480)])
def test_masks_cover_the_frame_exactly(sam, size):
    rows, columns = SamProposer(sam, prompts=PromptSettings()).grid(size)
    assert (rows * 4, columns * 4) == content_size(size, 640)
    assert max(rows, columns) == 160
    assert abs(rows / columns - size[0] / size[1]) < 0.01 * max(1, size[0] / size[1])


def test_half_precision_gives_nearly_the_same(sam):
    frame = torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8)
    soft = F.interpolate(labels_of(2, (120, 200)).upsampled()[None], (96, 160), mode="area")[0]
    with torch.inference_mode():
        exact, half = (
            SamProposer(sam, prompts=PromptSettings(), precision=precision).propose(frame, soft, [1, 2])
            for precision in ("float32", "bfloat16")
        )
    assert half.probabilities.dtype == torch.float32
    assert (exact.probabilities - half.probabilities).abs().max() < 0.05
