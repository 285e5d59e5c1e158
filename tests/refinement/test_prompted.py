"""Segmentation from box and point prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import moving_square
from small_sam import small_sam

from datamodules.davis import Davis2016
from drift.clip import ObjectPrompt
from drift.errors import InputError
from drift.refinement import grabcut_refiner, load_refiner
from drift.refinement.prompted import mask_of_prompts
from drift.refinement.sam import SamProposer
from drift.refinement.sam_prompts import PromptSettings

CLIP = moving_square(1, size=(96, 128))
BOX = (6.0, 22.0, 26.0, 42.0)  # around the square of 16 pixels at (8, 24)


def iou(mask, truth):
    return ((mask > 0) & (truth > 0)).sum() / ((mask > 0) | (truth > 0)).sum()


@pytest.fixture(scope="module")
def embedded():
    return load_refiner().proposer


@pytest.mark.parametrize(
    "prompt",
    [
        ObjectPrompt(1, box=BOX),
        ObjectPrompt(1, points=((16.0, 32.0),), inside=(True,)),
        ObjectPrompt(1, box=BOX, points=((16.0, 32.0), (7.0, 41.0)), inside=(True, False)),
    ],
)
def test_a_plain_object_is_segmented(embedded, prompt):
    for segmenter in (embedded, grabcut_refiner().proposer):
        mask = mask_of_prompts(segmenter, CLIP.frames[0], [prompt])
        assert mask.shape == (96, 128)
        assert iou(mask, CLIP.truth[0]) > 0.8


def test_real_objects_are_segmented_from_their_boxes(embedded, davis_root):
    """Three of the ten clips of docs/own-video.md, whose mean IoU is 0.73."""
    ious = []
    for clip in Davis2016(davis_root, sequences=["blackswan", "camel", "dog"]).predict_dataloader():
        rows, columns = np.nonzero(clip.given[0])
        box = tuple(float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        ious.append(iou(mask_of_prompts(embedded, clip.frames[0], [ObjectPrompt(1, box)]), clip.given[0]))
    assert np.mean(ious) > 0.7


@pytest.mark.parametrize(
    "prompt",
    [
        ObjectPrompt(3, box=(5.0, 5.0, 60.0, 70.0)),
        ObjectPrompt(3, points=((30.0, 30.0),), inside=(True,)),
        ObjectPrompt(
            3, box=(0.0, 0.0, 128.0, 96.0), points=((1.0, 1.0), (120.0, 90.0)), inside=(True, False)
        ),
    ],
)
def test_two_pass_prediction_gives_masks_of_the_frames_size(prompt):
    segmenter = SamProposer(small_sam(), prompts=PromptSettings())
    mask = segmenter.segment(torch.from_numpy(CLIP.frames[0]), prompt)
    assert (mask.shape, mask.dtype) == ((96, 128), torch.bool)


def test_a_point_on_the_edge_of_the_frame_is_valid(embedded):
    prompt = ObjectPrompt(1, points=((127.7, 95.6),), inside=(True,))
    assert embedded.segment(torch.from_numpy(CLIP.frames[0]), prompt).shape == (96, 128)


class Fixed:
    """Returns fixed masks."""

    def __init__(self, masks):
        self.masks = masks

    def segment(self, frame, prompt):
        return torch.from_numpy(self.masks[prompt.object_id])


def test_a_small_object_is_in_front_of_a_large_one():
    large, small = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    large[1:8, 1:8], small[3:5, 3:5] = True, True
    prompts = [ObjectPrompt(2), ObjectPrompt(7)]
    mask = mask_of_prompts(Fixed({2: small, 7: large}), np.zeros((9, 9, 3), np.uint8), prompts)
    assert np.array_equal(mask == 2, small)
    assert np.array_equal(mask == 7, large & ~small)


def test_an_empty_mask_is_refused_with_the_objects_id():
    with pytest.raises(InputError, match="the prompt of object 4 gives an empty mask"):
        mask_of_prompts(Fixed({4: np.zeros((9, 9), bool)}), np.zeros((9, 9, 3), np.uint8), [ObjectPrompt(4)])
