"""Segment Anything proposals: frame sizes, many objects, prompt kinds, precision, autocast."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small_sam import small_sam
from torch.nn import functional as F

from datamodules.davis import Davis2016
from drift.clip import ObjectPrompt
from drift.errors import OptionError
from drift.metrics.functional import jaccard
from drift.propagation.labels import SoftLabels
from drift.refinement import load_refiner
from drift.refinement.architectures import _load
from drift.refinement.decoding import content_size, stacked
from drift.refinement.gates import Gates
from drift.refinement.refinement import Refinement
from drift.refinement.sam import SamProposer
from drift.refinement.sam_prompts import PromptSettings, prompts_of

REFINEMENTS = Path(__file__).parents[2] / "configs" / "refinement"
OPEN = Gates(min_iou=0.0, max_area_change=1e9)


@pytest.fixture(scope="module")
def sam():
    return small_sam()


def labels_of(objects: int, size: tuple[int, int]) -> SoftLabels:
    """Squares in a row, at stride 8."""
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
    refinement = Refinement(
        SamProposer(sam, prompts=PromptSettings(), precision="float32"), gates=OPEN, feedback=False
    )
    refined = refinement.refine(torch.zeros(*size, 3, dtype=torch.uint8), labels_of(1, size))
    assert refined.probabilities.shape == (2, *size)
    assert len(refined.outcomes) == 1


def test_thirty_objects_are_decoded_in_one_batch_from_one_embedding(sam, monkeypatch):
    counts = {"encoder": 0, "decoder": 0}
    for name, module in (("encoder", sam.image_encoder), ("decoder", sam.mask_decoder.transformer)):
        forward = module.forward

        def counted(*arguments, forward=forward, name=name):
            counts[name] += 1
            return forward(*arguments)

        monkeypatch.setattr(module, "forward", counted)
    refinement = Refinement(
        SamProposer(sam, prompts=PromptSettings(), precision="float32"), gates=OPEN, feedback=False
    )
    refined = refinement.refine(torch.zeros(240, 960, 3, dtype=torch.uint8), labels_of(30, (240, 960)))
    assert len(refined.outcomes) == 30
    assert counts == {"encoder": 1, "decoder": 1}


def test_a_batch_of_objects_equals_single_objects(sam):
    proposer = SamProposer(sam, prompts=PromptSettings(), precision="float32")
    frame = torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8)
    grid = proposer.grid((120, 200))
    soft = F.interpolate(labels_of(3, (120, 200)).upsampled()[None], grid, mode="area")[0]
    with torch.inference_mode():
        together = proposer.propose(frame, soft, [1, 2, 3])
        alone = [proposer.propose(frame, soft, [n]) for n in (1, 2, 3)]
    assert torch.allclose(
        together.probabilities, torch.cat([single.probabilities for single in alone]), atol=1e-4
    )
    assert torch.allclose(together.scores, torch.cat([single.scores for single in alone]), atol=1e-4)


@pytest.mark.parametrize(
    "disabled",
    [{"box": False}, {"mask": False}, {"positive_points": 0}, {"positive_points": 0, "negative_points": 0}],
)
def test_a_disabled_prompt_changes_the_mask(sam, disabled):
    frame = torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8)
    soft = F.interpolate(labels_of(2, (120, 200)).upsampled()[None], (90, 160), mode="area")[0]
    with torch.inference_mode():
        usual, other = (
            SamProposer(sam, prompts=PromptSettings(**kinds), precision="float32")
            .propose(frame, soft, [1])
            .probabilities
            for kinds in ({}, disabled)
        )
    assert not torch.allclose(usual, other)


def test_prompts_are_aligned_between_input_and_mask_grid():
    """The input is four times as fine as the mask grid: pixel centres must agree."""
    soft = np.zeros((90, 160), np.float32)
    soft[20:30, 40:60] = 1
    tensors = stacked([prompts_of(soft, np.zeros_like(soft), PromptSettings(margin=0.0))], 640)
    # SAM adds 0.5 to coordinates: the box then spans pixels 160 to 239 and 80 to 119.
    assert (tensors.boxes[0] + 0.5).tolist() == [160, 80, 240, 120]
    inside = tensors.points[0][tensors.labels[0] == 1] + 0.5
    assert ((inside > torch.tensor([160, 80])) & (inside < torch.tensor([240, 120]))).all()
    assert tensors.logits.shape == (1, 1, 160, 160)
    assert (tensors.logits[0, 0, 90:] == tensors.logits.amin()).all()


@pytest.mark.parametrize("size", [(1, 1), (480, 854), (1080, 1920), (7, 900), (333, 500), (854, 480)])
def test_masks_cover_the_frame_exactly(sam, size):
    rows, columns = SamProposer(sam, prompts=PromptSettings(), precision="float32").grid(size)
    assert (rows * 4, columns * 4) == content_size(size, 640)
    assert max(rows, columns) == 160
    assert abs(rows / columns - size[0] / size[1]) < 0.01 * max(1, size[0] / size[1])


@pytest.fixture(scope="module")
def real(davis_root):
    """A real frame, and labels at stride 8 from its true mask."""
    (clip,) = Davis2016(davis_root, sequences=["blackswan"]).predict_dataloader()
    truth = torch.from_numpy((clip.truth[10] > 0).astype(np.float32))
    soft = F.avg_pool2d(truth[None], 8, ceil_mode=True)
    return torch.from_numpy(clip.frames[10]), SoftLabels(torch.cat([1 - soft, soft]), (1,), truth.shape, 8)


def refined(labels_of_frame, **options) -> torch.Tensor:
    frame, labels = labels_of_frame
    out = load_refiner(trust=1.0, **options).refine(frame, labels)
    assert out.outcomes == ("refined",)
    assert out.probabilities.dtype == torch.float32
    return out.probabilities


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_masks_agree_with_those_of_float32(real, precision):
    exact, half = (refined(real, precision=name) for name in ("float32", precision))
    assert not torch.equal(exact, half)
    assert jaccard(exact[1] > 0.5, half[1] > 0.5) > 0.98


def test_only_the_encoders_stages_are_converted():
    sam = load_refiner(precision="bfloat16").proposer.sam
    stages = [*sam.image_encoder.stem.parameters(), *sam.image_encoder.stages.parameters()]
    assert {p.dtype for p in stages} == {torch.bfloat16}
    converted = {id(p) for p in stages}
    assert {p.dtype for p in sam.parameters() if id(p) not in converted} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("outer", [torch.bfloat16, torch.float16])
def test_an_outer_autocast_changes_nothing(precision, outer):
    frame, labels = torch.randint(0, 255, (120, 200, 3), dtype=torch.uint8), labels_of(2, (120, 200))
    refiner = load_refiner(precision=precision, min_iou=0.0, max_area_change=1e9)
    prompt = ObjectPrompt(1, box=(30.0, 30.0, 90.0, 80.0))
    usual, mask = refiner.refine(frame, labels).probabilities, refiner.proposer.segment(frame, prompt)
    with torch.autocast("cpu", outer):
        assert torch.equal(refiner.refine(frame, labels).probabilities, usual)
        assert torch.equal(refiner.proposer.segment(frame, prompt), mask)


def test_large_activations_in_the_neck_stay_finite_in_float16():
    modeling = _load("modeling")
    encoder = modeling.ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2, out_chans=128)
    torch.nn.init.normal_(encoder.pos_embed, std=2e3)
    exact = encoder(torch.zeros(1, 3, 64, 64))
    sam = small_sam()
    sam.image_encoder = encoder
    SamProposer(sam, prompts=PromptSettings(), precision="float16")
    half = encoder(torch.zeros(1, 3, 64, 64).half())
    assert half.dtype == torch.float32
    assert torch.allclose(half, exact, atol=0.02)


@pytest.mark.parametrize("name", ["grabcut", "none", "sam", "sam_tiny"])
def test_every_configuration_accepts_a_device(name):
    config = OmegaConf.merge({"seed": 0}, {"refinement": OmegaConf.load(REFINEMENTS / f"{name}.yaml")})
    changes = {"checkpoint": "embedded:sam_tiny"} if name == "sam" else {}
    refiner = instantiate(config.refinement, device=torch.device("cpu"), **changes)
    assert (refiner is None) == (name == "none")


def test_the_defaults_are_those_of_the_embedded_models_configuration():
    options = OmegaConf.load(REFINEMENTS / "sam_tiny.yaml")
    defaults = {key: value.default for key, value in inspect.signature(load_refiner).parameters.items()}
    keys = options.keys() - {"_target_", "seed"}
    assert {key: options[key] for key in keys} == {key: defaults[key] for key in keys}
    assert defaults.keys() - options.keys() == {"device", "size", "download"}


@pytest.mark.parametrize("negative_points", [0, 4])
def test_disabling_every_prompt_is_refused_before_the_checkpoint_is_read(negative_points):
    with pytest.raises(OptionError, match="box=false: allowed is true where mask=false"):
        load_refiner("no.pth", box=False, mask=False, positive_points=0, negative_points=negative_points)
