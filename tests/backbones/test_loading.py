"""Loading checkpoints: every accepted form, and every refusal."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types

import pytest
import torch
from diffusers import AutoencoderKL
from examples import write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from drift import checkpoint_files
from drift.backbones import StableDiffusion, folders, load_backbone, lora
from drift.backbones.cache import CachedBackbone
from drift.checkpoint_files import needed_files
from drift.errors import InputError, OptionError

LAYERS = ["up_blocks.1.attentions.0"]
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def load(path, **options):
    return load_backbone(str(path), **({"layers": LAYERS, "timestep": 51, "precision": "float32"} | options))


def features(backbone):
    frames = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    return backbone.features(frames, torch.Generator().manual_seed(0))[0].queries


def change(file, **values):
    """Changes a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def offline(monkeypatch):
    """No Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_snapshot(hub_cache, checkpoint, repository="owner/name"):
    """Stores a checkpoint as the Hub's client does."""
    root = hub_cache / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / ("0" * 40)
    shutil.copytree(checkpoint, folder)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    return folder


# Folders


def test_it_is_a_frozen_module_that_stays_in_evaluation_mode(checkpoint):
    backbone = load(checkpoint).train()
    assert isinstance(backbone, StableDiffusion)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_defaults_are_those_of_the_embedded_model():
    backbone = load_backbone()
    assert list(backbone.layers) == LAYERS
    assert backbone.timestep == 20


def test_both_prediction_types_load(checkpoint, tmp_path):
    epsilon = write_checkpoint(tmp_path / "epsilon", prediction_type="epsilon")
    assert load(checkpoint).scheduler.config["prediction_type"] == "v_prediction"
    assert load(epsilon).scheduler.config["prediction_type"] == "epsilon"
    assert load(epsilon, prediction_type="v_prediction").scheduler.config["prediction_type"] == "v_prediction"


def test_a_schedule_published_with_another_scheduler_is_kept(copied):
    file = copied / "scheduler" / "scheduler_config.json"
    change(file, _class_name="PNDMScheduler", skip_prk_steps=True, beta_end=0.013)
    assert load(copied).scheduler.config["beta_end"] == 0.013


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_weights_are_loaded_in_the_precision_that_is_computed_in(checkpoint, monkeypatch, precision):
    loaded = {}

    def spy(kind, folder, dtype, **options):
        model = checkpoint_files.load_weights(kind, folder, dtype, **options)
        loaded[folder.name] = model.dtype
        return model

    monkeypatch.setattr(folders, "load_weights", spy)
    backbone = load(checkpoint, precision=precision)
    dtype = getattr(torch, precision)
    assert loaded == {"unet": dtype, "vae": dtype, "text_encoder": torch.float32}
    assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}
    assert not any(isinstance(module, CLIPTextModel) for module in backbone.modules())


def test_the_prompt_is_encoded(checkpoint):
    prompts = [load(checkpoint, prompt=prompt).prompt for prompt in ("", "a photo of a dog")]
    assert prompts[0].shape == (1, 77, 24)
    assert not torch.allclose(*prompts)


def test_features_are_cached_in_a_folder(checkpoint, tmp_path):
    backbone = load(checkpoint, cache=str(tmp_path / "cache"))
    assert isinstance(backbone, CachedBackbone)
    computed = features(backbone)
    assert torch.equal(computed, features(backbone))
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def half_precision(folder, *, keep_full):
    """Adds float16 weights beside the full ones, as the Hub's repositories hold them."""
    for part, name in WEIGHTS.items():
        full = folder / part / f"{name}.safetensors"
        halves = {
            key: (value / 2).half() for key, value in load_file(full).items()
        }  # told apart by their values
        save_file(halves, folder / part / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        if not keep_full:
            full.unlink()


@pytest.mark.parametrize(
    ("keep_full", "precision", "half"),
    [(False, "float32", True), (False, "float16", True), (True, "float32", False), (True, "float16", True)],
)
def test_half_precision_weights_are_used_alone_and_in_float16(copied, keep_full, precision, half):
    expected = load_file(copied / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    half_precision(copied, keep_full=keep_full)
    found = load(copied, precision=precision).unet.conv_in.weight.float()
    assert torch.allclose(found, expected / 2 if half else expected, atol=1e-3)


def test_the_autoencoder_is_of_the_class_that_the_checkpoint_names(copied, monkeypatch):
    class SmallAutoencoder(AutoencoderKL):
        """An autoencoder that ships with drift."""

    module = types.ModuleType("drift.backbones.small_autoencoder")
    module.SmallAutoencoder = SmallAutoencoder
    monkeypatch.setitem(sys.modules, module.__name__, module)
    change(copied / "model_index.json", vae=[module.__name__, "SmallAutoencoder"])
    assert type(load(copied).vae) is SmallAutoencoder
    change(copied / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    assert type(load(copied).vae) is AutoencoderKL


@pytest.mark.parametrize(
    ("library", "name"),
    [("evil", "AutoencoderKL"), ("drift.nothing", "A"), ("drift.errors", "InputError"), ("drift/../x", "A")],
)
def test_the_autoencoder_is_never_of_another_library(copied, library, name):
    (copied / "evil.py").write_text("raise SystemExit")
    change(copied / "model_index.json", vae=[library, name])
    with pytest.raises(InputError, match=r"model_index.json: vae .* is not a model of diffusers or drift"):
        load(copied)


# The Hub


def test_a_cached_snapshot_is_used_offline(checkpoint, hub_cache, offline):
    folder = cache_snapshot(hub_cache, checkpoint)
    expected = features(load(checkpoint))
    assert torch.equal(features(load("owner/name")), expected)
    assert torch.equal(features(load("owner/name", revision="0" * 40)), expected)
    assert torch.equal(features(load(folder)), expected), "also as a folder"


def test_a_hub_id_without_network_and_cache_says_how_to_pass_a_folder(hub_cache, offline):
    with pytest.raises(
        InputError, match=r"^backbone.checkpoint=nobody/nothing: .*backbone.checkpoint=FOLDER$"
    ):
        load("nobody/nothing")


def test_only_what_is_needed_is_downloaded(checkpoint, monkeypatch):
    files = [
        "model_index.json", "v2-1.safetensors", "v2-1.ckpt", "README.md", "safety_checker/model.safetensors",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors", "tokenizer/merges.txt",
    ]  # fmt: skip
    downloaded = []

    class Hub:
        def model_info(self, repository, *, revision, timeout):
            siblings = [types.SimpleNamespace(rfilename=name) for name in files]
            return types.SimpleNamespace(siblings=siblings)

    def download(repository, *, revision, allow_patterns):
        downloaded.append((revision, sorted(allow_patterns)))
        return str(checkpoint)

    monkeypatch.setattr(checkpoint_files, "HfApi", Hub)
    monkeypatch.setattr(checkpoint_files, "snapshot_download", download)
    load("owner/name")
    load("owner/name", precision="float16")
    (_, full), (_, half) = downloaded
    assert full == [
        "model_index.json", "text_encoder/model.safetensors", "tokenizer/merges.txt", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in half
    assert "unet/diffusion_pytorch_model.safetensors" not in half


def test_a_transformers_repository_is_downloaded_without_its_other_formats():
    files = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "preprocessor_config.json",
        "onnx/model.onnx",
    ]
    assert needed_files(files, torch.float32) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


# Single files


def original_unet(weights):
    """A UNet's weights by the names of the original Stable Diffusion code."""
    blocks = {"conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2."}
    blocks |= {"time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2."}
    blocks |= {"mid_block.attentions.0.": "middle_block.1."}
    blocks |= {f"mid_block.resnets.{j}.": f"middle_block.{2 * j}." for j in range(2)}
    for i in range(4):
        for j in range(2):
            blocks[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{3 * i + j + 1}.0."
            blocks[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{3 * i + j + 1}.1."
        for j in range(3):
            blocks[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{3 * i + j}.0."
            blocks[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{3 * i + j}.1."
        blocks[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{3 * i + 3}.0.op."
        blocks[f"up_blocks.{i}.upsamplers.0."] = f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}."
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
    }
    resnet |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    renamed = {}
    for name, value in weights.items():
        block = next(block for block in blocks if name.startswith(block))
        rest = name.removeprefix(block)
        if "resnets" in block:
            part, leaf = rest.rsplit(".", 1)
            rest = f"{resnet[part]}.{leaf}"
        renamed[f"model.diffusion_model.{blocks[block]}{rest}"] = value
    return renamed


def original_vae(weights):
    """An autoencoder's weights by the names of the original Stable Diffusion code."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    renamed = {}
    for name, value in weights.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "attentions" in name:
            for new, old in attention.items():
                name = name.replace(f"attentions.0.{new}.", f"attn_1.{old}.")
            if value.ndim == 2:
                value = value[..., None, None]
        name = name.replace("mid_block.attn_1", "mid.attn_1")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        renamed[f"first_stage_model.{name}"] = value
    return renamed


def original_clip(weights):
    """The text encoder of Stable Diffusion 1.x by its original names."""
    prefix = "cond_stage_model.transformer.text_model."
    return {prefix + name.removeprefix("text_model."): value for name, value in weights.items()}


def original_open_clip(weights):
    """The text encoder of Stable Diffusion 2.x by its original names, its query, key and value fused."""
    renamed, fused = {"text_projection": torch.eye(24)}, {}
    names = {"embeddings.position_embedding.weight": "positional_embedding"}
    names |= {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    names |= {"encoder.layers": "transformer.resblocks", "self_attn": "attn"}
    names |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}
    for name, value in weights.items():
        name = name.removeprefix("text_model.")
        for new, old in names.items():
            name = name.replace(new, old)
        if match := re.fullmatch(r"(.*attn\.)([qkv])_proj\.(weight|bias)", name):
            fused.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = value
        else:
            renamed[name] = value
    renamed |= {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in fused.items()}
    return {f"cond_stage_model.model.{name}": value for name, value in renamed.items()}


def original_weights(folder, original_text=original_clip):
    unet, vae, text = (
        load_file(folder / part / f"{WEIGHTS[part]}.safetensors") for part in ("unet", "vae", "text_encoder")
    )
    return original_unet(unet) | original_vae(vae) | original_text(text)


@pytest.fixture
def single_file(checkpoint, tmp_path):
    """The checkpoint as weights in the original layout, a folder of its configurations, and a file to write."""
    config = shutil.copytree(checkpoint, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return original_weights(checkpoint), config, tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("suffix", "original_text"),
    [(".safetensors", original_clip), (".safetensors", original_open_clip), (".ckpt", original_clip)],
)
def test_a_single_file_equals_its_folder(checkpoint, single_file, suffix, original_text):
    _, config, file = single_file
    weights, file = original_weights(checkpoint, original_text), file.with_suffix(suffix)
    if suffix == ".ckpt":
        torch.save({"state_dict": weights}, file)
    else:
        save_file(weights, file)
    options = {"layers": ["up_blocks.2.attentions.1"], "prompt": "a photo of a dog"}
    expected, found = load(checkpoint, **options), load(file, config=str(config), **options)
    assert torch.equal(found.prompt, expected.prompt)
    assert torch.equal(features(found), features(expected))
    assert load(file, config=str(config), precision="bfloat16").unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "lost", ["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias", "text"]
)
def test_a_weight_missing_from_a_single_file_is_an_error(single_file, lost):
    weights, config, file = single_file
    if lost == "text":
        lost = next(name for name in weights if name.endswith("final_layer_norm.weight"))
    del weights[lost]
    save_file(weights, file)
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: "):
        load(file, config=str(config))


def test_a_single_file_needs_a_configuration_offline(checkpoint, single_file, hub_cache, offline):
    weights, _, file = single_file
    save_file(weights, file)
    with pytest.raises(
        InputError, match=r"model.safetensors: a single file holds no .*backbone.config=FOLDER"
    ):
        load(file)
    cache_snapshot(hub_cache, checkpoint, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert torch.equal(features(load(file)), features(load(checkpoint)))


def test_the_configuration_of_a_folder_is_its_own(checkpoint):
    with pytest.raises(OptionError, match=r"config=x: allowed is null where backbone.checkpoint is a folder"):
        load(checkpoint, config="x")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"conditioner.embedders.0.x": torch.zeros(1)}, "Stable Diffusion XL; .*backbone=sdxl"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, "unCLIP"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3)},
            "9 channels, .*inpainting",
        ),
        ({"model.diffusion_model.input_blocks.0.0.weight": None}, "not a checkpoint of Stable Diffusion"),
    ],
)
def test_single_files_that_are_not_supported_are_refused(single_file, added, message):
    weights, config, file = single_file
    weights = {name: value for name, value in (weights | added).items() if value is not None}
    save_file(weights, file)
    with pytest.raises(InputError, match=message) as error:
        load(file, config=str(config))
    assert "\n" not in str(error.value)


def test_files_of_another_format_are_refused(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=r"model.onnx: not a .safetensors or .ckpt file"):
        load(tmp_path / "model.onnx")


# LoRA


def low_rank(model, module, rank=2, seed=0):
    """Two random factors of a change to a module's weight."""
    random = torch.Generator().manual_seed(seed)
    outputs, inputs = model.get_submodule(module).weight.shape[:2]
    return torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)


UNET_MODULE = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_MODULE = "encoder.layers.0.self_attn.out_proj"


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_is_added_to_unet_and_text_encoder(checkpoint, tmp_path, layout):
    pytest.importorskip("peft", reason="LoRA needs the package peft")
    plain = load(checkpoint)
    text = CLIPTextModel.from_pretrained(checkpoint / "text_encoder")
    down, up = low_rank(plain.unet, UNET_MODULE)
    text_down, text_up = low_rank(text, TEXT_MODULE)
    if layout == "diffusers":
        scale = 1.0
        weights = {
            f"unet.{UNET_MODULE}.lora_A.weight": down,
            f"unet.{UNET_MODULE}.lora_B.weight": up,
            f"text_encoder.text_model.{TEXT_MODULE}.lora_A.weight": text_down,
            f"text_encoder.text_model.{TEXT_MODULE}.lora_B.weight": text_up,
        }
    else:
        scale = 0.25  # alpha / rank
        weights = {}
        for prefix, module, factors in (
            ("lora_unet_", UNET_MODULE, (down, up)),
            ("lora_te_text_model_", TEXT_MODULE, (text_down, text_up)),
        ):
            name = prefix + module.replace(".", "_")
            weights |= dict(zip((f"{name}.lora_down.weight", f"{name}.lora_up.weight"), factors, strict=True))
            weights[f"{name}.alpha"] = torch.tensor(0.5)
    save_file(weights, tmp_path / "lora.safetensors")
    backbone = load(checkpoint, lora=str(tmp_path / "lora.safetensors"))
    before, after = plain.unet.state_dict(), backbone.unet.state_dict()
    assert before.keys() == after.keys()
    changed = before.pop(f"{UNET_MODULE}.weight") + scale * up @ down
    assert torch.allclose(after.pop(f"{UNET_MODULE}.weight"), changed, atol=1e-5)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        text.get_submodule(TEXT_MODULE).weight += scale * text_up @ text_down
    text.save_pretrained(tmp_path / "text")
    fused = shutil.copytree(checkpoint, tmp_path / "fused")
    shutil.copy(tmp_path / "text" / "model.safetensors", fused / "text_encoder" / "model.safetensors")
    assert torch.allclose(backbone.prompt, load(fused).prompt, atol=1e-5)
    assert backbone.description["weights"] != plain.description["weights"]


def test_a_lora_of_another_model_is_refused(checkpoint, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs the package peft")
    file = tmp_path / "lora.safetensors"
    for name, message in [
        (f"unet.{UNET_MODULE}", "does not fit backbone.checkpoint"),
        (
            "unet.down_blocks.7.resnets.0.conv1",
            "does not fit backbone.checkpoint, which has no down_blocks.7",
        ),
        ("transformer.blocks.0.attn.to_q", "holds no LoRA weights of a UNet"),
    ]:
        save_file(
            {f"{name}.lora_A.weight": torch.zeros(2, 7), f"{name}.lora_B.weight": torch.zeros(7, 2)}, file
        )
        with pytest.raises(InputError, match=rf"^backbone.lora=.*lora.safetensors: {message}") as error:
            load(checkpoint, lora=str(file))
        assert "\n" not in str(error.value)


def test_a_lora_without_peft_names_the_extra(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "is_peft_available", lambda: False)
    save_file({"unet.x.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(
        InputError, match=r"lora.safetensors: needs the package peft; pip install 'drift\[lora\]'"
    ):
        load(checkpoint, lora=str(tmp_path / "lora.safetensors"))


def test_a_missing_lora_is_named(checkpoint):
    with pytest.raises(InputError, match=r"^backbone.lora=/nowhere: no such .safetensors file"):
        load(checkpoint, lora="/nowhere")


# Refusals


def test_options_of_another_family_are_named(checkpoint):
    with pytest.raises(
        OptionError, match=r"^ensemble=8: allowed is no value: options of this checkpoint are layers"
    ):
        load(checkpoint, ensemble=8)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layers", []),
        ("layers", ["nowhere"]),
        ("layers", LAYERS * 2),
        ("timestep", 1000),
        ("timestep", -1),
        ("prompt", None),
        ("prediction_type", "x0"),
        ("precision", "half"),
        ("lora", ""),
        ("cache", ""),
        ("cache_gigabytes", 0),
    ],
)
def test_options_out_of_range_are_named(checkpoint, tmp_path, option, value):
    options = {"cache": str(tmp_path)} | {option: value}
    with pytest.raises(OptionError, match=rf"^{option}="):
        load(checkpoint, **options)


@pytest.mark.parametrize("checkpoint", ["/no/such/folder", "embedded:nothing"])
def test_a_missing_checkpoint_says_what_can_be_given(checkpoint):
    with pytest.raises(
        InputError, match=rf"backbone.checkpoint={checkpoint}: no such .*Hub id.*embedded:tiny"
    ):
        load_backbone(checkpoint)


def test_folders_of_no_known_family_say_what_is_supported(tmp_path):
    with pytest.raises(
        InputError, match=r"neither model_index.json nor config.json; supported are .*Diffusion"
    ):
        load_backbone(tmp_path)
    for model_type in ("bert", "cache", "stable_diffusion_checkpoints", "../x"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(
            InputError, match=rf"model_type {re.escape(model_type)}; supported are .*Diffusion"
        ):
            load_backbone(tmp_path)


def test_a_prediction_type_that_is_not_supported_is_refused(copied):
    change(copied / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(InputError, match=r"scheduler: prediction_type sample is not supported"):
        load(copied)
    assert load(copied, prediction_type="epsilon").scheduler.config["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels, latents have 4: inpainting"),
        ("unet/config.json", {"class_embed_type": "projection"}, "unCLIP"),
        ("unet/config.json", {"num_class_embeds": 1000}, "unCLIP"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "Stable Diffusion XL; .*backbone=sdxl",
        ),
        (
            "model_index.json",
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            "Stable Diffusion XL; .*backbone=sdxl",
        ),
        ("text_encoder/config.json", {"hidden_size": 48}, "text_encoder has width 48, unet expects 24"),
    ],
)
def test_checkpoints_that_are_not_supported_are_refused(copied, file, values, message):
    change(copied / file, **values)
    for weights in copied.rglob("*.safetensors"):
        weights.unlink()  # refused before any weights are loaded
    with pytest.raises(InputError, match=rf"^backbone.checkpoint={copied}: .*{message}") as error:
        load(copied)
    assert "\n" not in str(error.value)


def test_a_text_encoder_of_another_width_is_refused(copied):
    shutil.rmtree(copied / "text_encoder")
    config = CLIPTextConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(config).save_pretrained(copied / "text_encoder")
    with pytest.raises(
        InputError, match=r"text_encoder has width 16, unet expects 24 \(cross_attention_dim\)"
    ):
        load(copied)


def test_a_pipeline_of_no_known_family_says_what_is_supported(copied):
    change(copied / "model_index.json", _class_name="SanaPipeline")
    (copied / "unet").rename(copied / "transformer")
    change(copied / "transformer" / "config.json", _class_name="SanaTransformer2DModel")
    with pytest.raises(
        InputError, match=r"SanaPipeline; supported are .*FluxPipeline.*StableDiffusionPipeline"
    ):
        load(copied)


def test_weights_in_bin_files_alone_are_refused(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    load(copied)
    weights.unlink()
    with pytest.raises(
        InputError, match=r"^backbone.checkpoint: .*unet holds only .bin weights.*save_pretrained"
    ):
        load(copied)
    with pytest.raises(InputError, match=r"^backbone.checkpoint: unet holds only .bin weights"):
        needed_files(["model_index.json", "unet/diffusion_pytorch_model.bin"], torch.float32)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_an_incomplete_checkpoint_names_what_it_lacks(copied, part):
    shutil.rmtree(copied / part)
    with pytest.raises(InputError, match=f"lacks {part} of diffusers' layout"):
        load(copied)


def test_truncated_weights_name_their_folder(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"unet: incomplete or corrupt"):
        load(copied)


def test_missing_weights_name_their_folder(copied):
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"vae: incomplete or corrupt"):
        load(copied)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_single_missing_weight_is_an_error(copied, part):
    path = copied / part / f"{WEIGHTS[part]}.safetensors"
    weights = load_file(path)
    del weights[next(iter(weights))]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{part}: 1 missing keys in the weights"):
        load(copied)


def test_weights_of_another_shape_are_an_error(copied):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(16, 5, 3, 3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="unet"):
        load(copied)


def test_a_corrupt_configuration_is_named(copied):
    (copied / "unet" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"unet/config.json: cannot be read"):
        load(copied)
