"""SAM-HQ, SAM 2 and EdgeTAM as refiners: small random models of transformers' classes."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamHQConfig,
    SamHQModel,
)
from transformers.models.edgetam import modeling_edgetam

from drift.clip import ObjectPrompt
from drift.errors import InputError, OptionError
from drift.propagation.labels import SoftLabels
from drift.refinement import load_refiner, load_transformers_refiner
from drift.refinement.gates import Gates
from drift.refinement.prompted import mask_of_prompts
from drift.refinement.refinement import Refinement
from drift.refinement.sam_prompts import PromptSettings
from drift.refinement.transformers_sam import FAMILIES, TransformersSamProposer, load_transformers_sam

REFINEMENTS = Path(__file__).parents[2] / "configs" / "refinement"
SIDE = 128
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16}
DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
PYRAMID = {"fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "window_size_per_stage": [8, 4, 8, 4],
    "global_attention_blocks": [3],
}
SAM2 = {
    "vision_config": {"backbone_config": HIERA, "backbone_channel_list": [64, 32, 16, 8], **PYRAMID},
    "prompt_encoder_config": PROMPTS,
    "mask_decoder_config": DECODER,
}


class Pyramid(nn.Module):
    """In place of timm's RepViT, which EdgeTAM's image encoder needs: features of strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 32, 64)
        strides = (4, 2, 2, 2)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, width, stride, stride)
            for before, width, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )

    def forward(self, pixels, **_):
        outputs = []
        for stage in self.stages:
            pixels = stage(pixels).tanh()
            outputs.append(pixels)
        return SimpleNamespace(last_hidden_state=outputs, hidden_states=None)


def make(family):
    torch.manual_seed(0)
    if family == "sam_hq":
        vision = {
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "initializer_range": 0.02,
        }
        model = SamHQModel(
            SamHQConfig(
                vision_config=vision,
                prompt_encoder_config=PROMPTS,
                mask_decoder_config=DECODER | {"vit_dim": 32},
            )
        )
    elif family == "sam2":
        model = Sam2Model(Sam2Config(**SAM2))
    else:
        vision = {"backbone_channel_list": [64, 32, 16, 8], **PYRAMID}
        model = EdgeTamModel(EdgeTamConfig(**SAM2 | {"vision_config": vision}))
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.15)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    patch = pytest.MonkeyPatch()
    patch.setattr(modeling_edgetam.AutoModel, "from_config", staticmethod(without_timm))
    yield {family: make(family) for family in FAMILIES}
    patch.undo()


FROM_CONFIG = transformers.AutoModel.from_config


def without_timm(config, **options):
    return Pyramid() if config.model_type == "timm_wrapper" else FROM_CONFIG(config, **options)


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def model(models, family):
    return models[family]


def proposer_of(model, family, **prompts):
    keeps_aspect = FAMILIES[family].keeps_aspect
    return TransformersSamProposer(model, keeps_aspect=keeps_aspect, prompts=PromptSettings(**prompts))


def frame_of(*size, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=random)


def soft_of(grid, objects):
    """Squares in a row on `grid`, with the background first."""
    soft = torch.zeros(objects + 1, *grid)
    for number in range(objects):
        left = number * grid[1] // objects
        soft[number + 1, grid[0] // 4 : grid[0] // 2, left : left + max(grid[1] // objects // 2, 1)] = 0.9
    soft[0] = 1 - soft[1:].sum(0)
    return soft


@pytest.mark.parametrize("size", [(48, 200), (90, 60), (7, 9)])
def test_masks_of_frames_of_any_shape_equal_the_models_own_call(model, family, size):
    """The reference prepares each object by itself, as the authors' predictors do, and calls the whole model."""
    proposer = proposer_of(model, family)
    frame = frame_of(*size)
    grid = proposer.grid(size)
    soft = soft_of(grid, 2)
    proposals = proposer.propose(frame, soft, [1, 2])
    if FAMILIES[family].keeps_aspect:
        scale = SIDE / max(size)
        resized = [max(round(length * scale / 4), 1) * 4 for length in size]
    else:
        resized = [SIDE, SIDE]
    assert grid == (resized[0] // 4, resized[1] // 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    pixels = F.interpolate(
        frame.permute(2, 0, 1)[None].float(), resized, mode="bilinear", antialias=True, align_corners=False
    )
    pixels = F.pad((pixels - mean) / std, (0, SIDE - resized[1], 0, SIDE - resized[0]))
    for row, channel in enumerate((1, 2)):
        prompts = proposer._prompts(soft.numpy(), channel)
        low = float(min(proposer._prompts(soft.numpy(), n).logits.min() for n in (1, 2)))
        logits = F.pad(
            torch.from_numpy(prompts.logits)[None, None],
            (0, SIDE // 4 - grid[1], 0, SIDE // 4 - grid[0]),
            value=low,
        )
        with torch.no_grad():
            output = model(
                pixel_values=pixels,
                input_points=(torch.from_numpy(prompts.points)[None, None] + 0.5) * 4 - 0.5,
                input_labels=torch.from_numpy(prompts.labels)[None, None],
                input_boxes=(torch.from_numpy(prompts.box)[None, None] + 0.5) * 4 - 0.5,
                input_masks=logits,
                multimask_output=False,
            )
        expected = output.pred_masks[0, 0, :, : grid[0], : grid[1]].sigmoid()
        assert proposals.probabilities[row].shape == (1, *grid)
        assert torch.allclose(proposals.probabilities[row], expected, atol=1e-5)
        assert torch.allclose(proposals.scores[row], output.iou_scores[0, 0], atol=1e-5)


def test_many_objects_are_decoded_in_one_batch_from_one_embedding(model, family, monkeypatch):
    calls = {"vision_encoder": 0, "mask_decoder": []}
    proposer = proposer_of(model, family)

    def encode(*_):
        calls["vision_encoder"] += 1

    hooks = [
        model.vision_encoder.register_forward_pre_hook(encode),
        model.mask_decoder.register_forward_hook(lambda *a: calls["mask_decoder"].append(a[2][0].shape[0])),
    ]
    frame = frame_of(64, 128)
    proposer.propose(frame, soft_of(proposer.grid((64, 128)), 12), list(range(1, 13)))
    assert calls == {"vision_encoder": 1, "mask_decoder": [12]}
    masks = mask_of_prompts(
        proposer,
        frame.numpy(),
        [ObjectPrompt(1, box=(0, 0, 60, 60)), ObjectPrompt(2, box=(64, 0, 120, 60))],
    )
    assert masks.shape == (64, 128)
    assert calls["vision_encoder"] == 1, "the same frame"
    proposer.propose(frame_of(64, 128, seed=1), soft_of(proposer.grid((64, 128)), 1), [1])
    assert calls["vision_encoder"] == 2
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ({}, 1),
        ({"box": False, "mask": False}, 1),
        ({"mask": False, "positive_points": 0, "negative_points": 0}, 1),
        ({"box": False, "positive_points": 0, "negative_points": 0}, 1),
        ({"box": False, "mask": False, "positive_points": 1, "negative_points": 0}, 3),
    ],
)
def test_a_single_point_gives_three_masks_and_unambiguous_prompts_one(model, family, prompts, count):
    proposer = proposer_of(model, family, **prompts)
    proposals = proposer.propose(frame_of(64, 64), soft_of(proposer.grid((64, 64)), 2), [1, 2])
    assert proposals.probabilities.shape[:2] == proposals.scores.shape == (2, count)
    assert proposals.probabilities.isfinite().all()


def test_every_prompt_changes_the_mask(model, family):
    grid = proposer_of(model, family).grid((64, 96))
    masks = [
        proposer_of(model, family, **options).propose(frame_of(64, 96), soft_of(grid, 1), [1]).probabilities
        for options in ({}, {"box": False}, {"mask": False}, {"positive_points": 0, "negative_points": 0})
    ]
    for other in masks[1:]:
        assert not torch.allclose(masks[0], other, atol=1e-4)


@pytest.mark.parametrize("size", [(48, 128), (100, 60)])
def test_boxes_and_clicks_are_passed_in_pixels_of_the_input(model, family, size, monkeypatch):
    proposer = proposer_of(model, family)
    passed = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **words: passed.append(words) or forward(self, **words)
    )
    clicks = ObjectPrompt(1, points=((10, 20), (0, 0)), inside=(True, False))
    both = ObjectPrompt(1, box=(0, 0, size[1], size[0]), points=((30, 30),), inside=(True,))
    one = ObjectPrompt(1, points=((30, 30),), inside=(True,))
    for prompt in (clicks, both, one):
        assert proposer.segment(frame_of(*size), prompt).shape == size
    rows, columns = (
        (SIDE, SIDE) if not FAMILIES[family].keeps_aspect else [s * SIDE / max(size) for s in size]
    )
    scale = torch.tensor([round(columns / 4) * 4 / size[1], round(rows / 4) * 4 / size[0]])
    first, second = passed[0], passed[1]
    expected = (torch.tensor([[10.0, 20.0], [0.0, 0.0]]) + 0.5) * scale  # the model adds the 0.5
    assert torch.allclose(first["input_points"][0, 0] + 0.5, expected)
    assert first["input_labels"].tolist() == [[[1, 0]]]
    assert first["input_boxes"] is None
    assert first["input_masks"] is None
    assert second["input_masks"].shape == (1, 1, SIDE // 4, SIDE // 4), "the mask of the first pass"
    corners = passed[2]["input_boxes"][0, 0] + 0.5
    assert torch.allclose(corners, torch.cat([torch.zeros(2), torch.tensor(size[::-1]) * scale]))
    assert [words["multimask_output"] for words in passed] == [False, False, False, False, True, False]


def test_it_refines_in_the_harness(model, family):
    refinement = Refinement(proposer_of(model, family), gates=Gates(min_iou=0.0, max_area_change=1e9))
    soft = soft_of((8, 12), 2)
    refined = refinement.refine(frame_of(64, 96), SoftLabels(soft, (1, 2), (64, 96), 8))
    assert refined.probabilities.shape == (3, 64, 96)
    assert torch.allclose(refined.probabilities.sum(0), torch.ones(64, 96), atol=1e-5)


@pytest.fixture
def folder(models, family, tmp_path, monkeypatch):
    monkeypatch.setattr("drift.refinement.transformers_sam.importlib.util.find_spec", lambda package: package)
    models[family].save_pretrained(tmp_path / family)
    return tmp_path / family


def test_a_checkpoint_is_loaded_strictly(models, family, folder):
    loaded = load_transformers_sam(family, str(folder), precision=torch.float32)
    weights = models[family].state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    refinement = load_transformers_refiner(family, str(folder), precision="float32", min_iou=0.3)
    assert refinement.gates == Gates(0.3, 2.0, 0.5)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"{folder}: incomplete or corrupt checkpoint"):
        load_transformers_sam(family, str(folder), precision=torch.float32)


def test_half_precision_is_of_the_image_encoder_alone(model, family, folder):
    grid = proposer_of(model, family).grid((64, 96))
    frame, soft = frame_of(64, 96), soft_of(grid, 2)
    half = load_transformers_refiner(family, str(folder), precision="bfloat16").proposer
    assert half._encoder_dtype == torch.bfloat16
    assert next(half.model.mask_decoder.parameters()).dtype == torch.float32
    found = half.propose(frame, soft, [1, 2]).probabilities
    expected = proposer_of(model, family).propose(frame, soft, [1, 2]).probabilities
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        half._embedded = None
        assert torch.equal(half.propose(frame, soft, [1, 2]).probabilities, found)


@pytest.mark.parametrize("family", ["sam2"], indirect=True)
def test_the_checkpoint_of_a_video_model_holds_the_image_model(family, tmp_path):
    """Published checkpoints of SAM 2 are those of the video model."""
    torch.manual_seed(0)
    sizes = {
        "memory_attention_hidden_size": 32,
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 8,
        "memory_fuser_embed_dim": 32,
        "mask_downsampler_embed_dim": 32,
    }
    video = Sam2VideoModel(Sam2VideoConfig(**SAM2, **sizes))
    video.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
    loaded = load_transformers_sam("sam2", str(tmp_path), precision=torch.float32)
    assert isinstance(loaded, Sam2Model)
    weights = video.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_the_configuration_gives_the_defaults_of_the_factory(family, folder):
    options = OmegaConf.load(REFINEMENTS / f"{family}.yaml")
    parameters = inspect.signature(load_transformers_refiner).parameters
    assert parameters.keys() - options.keys() == {"device"}
    for name in options.keys() - {"_target_", "family", "checkpoint", "seed"}:
        assert options[name] == parameters[name].default
    config = OmegaConf.merge({"seed": 0}, {"refinement": options})
    refiner = instantiate(config.refinement, checkpoint=str(folder), device=torch.device("cpu"))
    assert isinstance(refiner.proposer, TransformersSamProposer)


def test_another_family_is_refused_with_the_refinement_to_use(family, folder):
    other = next(name for name in FAMILIES if name != family)
    with pytest.raises(
        InputError,
        match=rf"^refinement.checkpoint={folder}: .*model_type {family}, not {other}; use refinement={family}$",
    ):
        load_transformers_sam(other, str(folder), precision=torch.float32)
    with pytest.raises(
        InputError, match=rf"^{folder}: a folder; .* need refinement=sam_hq, sam2 or edgetam$"
    ):
        load_refiner(str(folder))


def test_bad_checkpoints_are_refused_in_one_line(tmp_path, monkeypatch):
    def refused(checkpoint, match, *, family="sam2", error=InputError):
        with pytest.raises(error, match=match) as raised:
            load_transformers_sam(family, checkpoint, precision=torch.float32)
        assert "\n" not in str(raised.value)

    refused(str(tmp_path / "none"), r"^refinement.checkpoint=.*none: no such file or folder")
    (tmp_path / "sam.pth").write_bytes(b"")
    refused(str(tmp_path / "sam.pth"), r"^refinement.checkpoint=.* needs refinement=sam$")
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    refused(str(tmp_path), "model_type dinov2, not sam2; expected sam_hq, sam2, edgetam$")
    refused("", r"^checkpoint=", error=OptionError)
    refused(str(tmp_path), r"^family=sam3: ", family="sam3", error=OptionError)
    monkeypatch.setattr("drift.refinement.transformers_sam.importlib.util.find_spec", lambda package: None)
    refused(str(tmp_path), r"^refinement=edgetam needs the package timm: pip install timm$", family="edgetam")
    shutil.rmtree(tmp_path)
