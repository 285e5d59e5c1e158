"""Masks of objects that are shown by boxes and clicks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import moving_square

from datamodules.davis import Davis2016
from drift.clip import ObjectPrompt
from drift.errors import InputError
from drift.refinement import grabcut_refinement, sam_refinement
from drift.refinement.architectures import build_tiny
from drift.refinement.prompted import mask_of_prompts
from drift.refinement.prompts import PromptSettings
from drift.refinement.sam import SamProposer

CLIP = moving_square(1, size=(96, 128))
BOX = (6.0, 22.0, 26.0, 42.0)  # the square is 16 pixels from (8, 24) on


def iou(mask, truth):
    return ((mask > 0) & (truth > 0)).sum() / ((mask > 0) | (truth > 0)).sum()


@pytest.fixture(scope="module")
def embedded():
    return sam_refinement(checkpoint="embedded:sam_tiny", trust=0.7, score_weight=0.0).proposer


@pytest.mark.parametrize(
    "prompt",
    [
        ObjectPrompt(1, box=BOX),
        ObjectPrompt(1, points=((16.0, 32.0),), inside=(True,)),
        ObjectPrompt(1, box=BOX, points=((16.0, 32.0), (7.0, 41.0)), inside=(True, False)),
    ],
)
def test_a_plain_object_is_found(embedded, prompt):
    for segmenter in (embedded, grabcut_refinement().proposer):
        mask = mask_of_prompts(segmenter, CLIP.frames[0], [prompt])
        assert mask.shape == (96, 128)
        assert iou(mask, CLIP.truth[0]) > 0.8


def test_real_objects_are_found_by_their_boxes(embedded, davis_root):
    """0.73 on all ten clips (docs/own-video.md); these are three of them."""
    found = []
    for clip in Davis2016(davis_root, sequences=["blackswan", "camel", "dog"]).predict_dataloader():
        rows, columns = np.nonzero(clip.given[0])
        box = tuple(float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        found.append(iou(mask_of_prompts(embedded, clip.frames[0], [ObjectPrompt(1, box)]), clip.given[0]))
    assert np.mean(found) > 0.7


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
def test_the_official_way_of_asking_gives_masks_of_the_frames_size(prompt):
    torch.manual_seed(0)
    sam = build_tiny()
    sam.image_encoder.mends_masks = False
    segmenter = SamProposer(sam, prompts=PromptSettings())
    mask = segmenter.segment(torch.from_numpy(CLIP.frames[0]), prompt)
    assert (mask.shape, mask.dtype) == ((96, 128), torch.bool)


def test_a_click_on_the_very_edge_is_one(embedded):
    prompt = ObjectPrompt(1, points=((127.7, 95.6),), inside=(True,))
    assert embedded.segment(torch.from_numpy(CLIP.frames[0]), prompt).shape == (96, 128)


class Known:
    """Finds what it is told to."""

    def __init__(self, masks):
        self.masks = masks

    def segment(self, frame, prompt):
        return torch.from_numpy(self.masks[prompt.object_id])


def test_a_small_object_on_a_large_one_keeps_its_pixels():
    large, small = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    large[1:8, 1:8], small[3:5, 3:5] = True, True
    prompts = [ObjectPrompt(2), ObjectPrompt(7)]
    mask = mask_of_prompts(Known({2: small, 7: large}), np.zeros((9, 9, 3), np.uint8), prompts)
    assert np.array_equal(mask == 2, small)
    assert np.array_equal(mask == 7, large & ~small)


def test_an_object_that_is_not_found_is_named():
    with pytest.raises(InputError, match="nothing was found where object 4 is shown"):
        mask_of_prompts(Known({4: np.zeros((9, 9), bool)}), np.zeros((9, 9, 3), np.uint8), [ObjectPrompt(4)])
