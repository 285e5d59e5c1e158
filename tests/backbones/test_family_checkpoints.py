"""Checkpoints of every family: prompts as diffusers encodes them, parts that may be missing, refusals, summaries."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from diffusers import (
    AutoencoderRAE,
    DiTTransformer2DModel,
    FluxPipeline,
    PixArtAlphaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from huggingface_hub.errors import GatedRepoError
from published_models import PUBLISHED
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from small_models import CHECKPOINTS, small_adm, small_rae, write_flow
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
)

import evaluate
from drift import checkpoint_files
from drift.backbones import describe, load_backbone, prompts
from drift.backbones.__main__ import main
from drift.backbones.families import families
from drift.errors import InputError, OptionError

TEXT = "a photo of a Dog"


@pytest.fixture
def copied(small_checkpoint, tmp_path):
    """A copy of a checkpoint that a test may change."""
    return lambda name: shutil.copytree(small_checkpoint(name), tmp_path / name)


def load(path, **options):
    return load_backbone(str(path), **({"precision": "float32", "layers": None} | options))


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def features(backbone, size=(32, 48)):
    frames = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    return backbone.features(frames, torch.Generator().manual_seed(0))


# Prompts


def clip(folder, suffix="", kind=CLIPTextModelWithProjection):
    return {
        f"tokenizer{suffix}": CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}"),
        f"text_encoder{suffix}": kind.from_pretrained(folder / f"text_encoder{suffix}"),
    }


def t5(folder, suffix=""):
    return {
        f"tokenizer{suffix}": AutoTokenizer.from_pretrained(folder / f"tokenizer{suffix}"),
        f"text_encoder{suffix}": T5EncoderModel.from_pretrained(folder / f"text_encoder{suffix}"),
    }


@torch.no_grad()
def test_the_prompt_of_sdxl_is_encoded_as_by_diffusers(small_checkpoint):
    folder = small_checkpoint("sdxl")
    parts = clip(folder, kind=CLIPTextModel) | clip(folder, "_2")
    pipeline = StableDiffusionXLPipeline(vae=None, unet=None, scheduler=None, **parts)
    expected, zeros, pooled, zeros_pooled = pipeline.encode_prompt(TEXT, device="cpu")
    backbone, empty = load(folder, prompt=TEXT), load(folder)
    assert torch.allclose(backbone.prompt, expected, atol=1e-6)
    assert torch.allclose(backbone._pooled, pooled, atol=1e-6)
    assert torch.equal(empty.prompt, zeros)
    assert torch.equal(empty._pooled, zeros_pooled)


@torch.no_grad()
def test_the_prompt_of_sd35_is_encoded_as_by_diffusers(small_checkpoint):
    folder = small_checkpoint("sd35")
    parts = clip(folder) | clip(folder, "_2") | t5(folder, "_3")
    transformer = load(folder).denoiser
    pipeline = StableDiffusion3Pipeline(transformer=transformer, vae=None, scheduler=None, **parts)
    expected, _, pooled, _ = pipeline.encode_prompt(
        TEXT, None, None, do_classifier_free_guidance=False, device="cpu"
    )
    backbone = load(folder, prompt=TEXT)
    assert torch.allclose(backbone._prompt, expected, atol=1e-6)
    assert torch.allclose(backbone._pooled, pooled, atol=1e-6)


@torch.no_grad()
def test_the_prompt_of_flux_is_encoded_as_by_diffusers(small_checkpoint):
    folder = small_checkpoint("flux")
    parts = clip(folder, kind=CLIPTextModel) | t5(folder, "_2")
    pipeline = FluxPipeline(transformer=None, vae=None, scheduler=None, **parts)
    expected, pooled, _ = pipeline.encode_prompt(TEXT, device="cpu")
    backbone = load(folder, prompt=TEXT)
    assert torch.allclose(backbone._prompt, expected, atol=1e-6)
    assert torch.allclose(backbone._pooled, pooled, atol=1e-6)


@torch.no_grad()
def test_the_prompt_of_pixart_is_encoded_as_by_diffusers(small_checkpoint):
    folder = small_checkpoint("pixart")
    pipeline = PixArtAlphaPipeline(transformer=None, vae=None, scheduler=None, **t5(folder))
    expected, mask, _, _ = pipeline.encode_prompt(TEXT, do_classifier_free_guidance=False, device="cpu")
    backbone = load(folder, prompt=TEXT)
    assert torch.allclose(backbone.prompt, expected, atol=1e-6)
    assert torch.equal(backbone._mask, mask.bool())


@pytest.mark.parametrize("name", ["sdxl", "sd35", "flux", "pixart"])
def test_the_prompt_conditions_the_features(small_checkpoint, name):
    last = {"sdxl": "up_blocks.1.attentions.2", "flux": "single_transformer_blocks.5"}
    layers = [last.get(name, "transformer_blocks.10")]
    plain, dog = (
        features(load(small_checkpoint(name), prompt=text, layers=layers))[0].queries for text in ("", TEXT)
    )
    assert not torch.allclose(plain, dog, atol=1e-6)


def test_learned_tokens_behind_the_prompt_of_pixart_are_attended_to(small_checkpoint):
    backbone = load(small_checkpoint("pixart"), layers=["transformer_blocks.2"])
    learned = backbone.prompt.clone()
    learned[:, 100] += 1
    assert not backbone._mask[0, 100]
    frames = torch.rand(1, 3, 32, 48)
    before, after = (
        backbone.features(frames, torch.Generator().manual_seed(0), prompt=prompt)[0].queries
        for prompt in (backbone.prompt, learned)
    )
    assert not torch.allclose(before, after, atol=1e-6)


def test_the_size_of_the_frames_is_an_input_of_sdxl(small_checkpoint):
    backbone, seen = load(small_checkpoint("sdxl"), layers=["up_blocks.1.attentions.2"]), []
    forward = backbone.unet.forward
    backbone.unet.forward = lambda *a, **options: (
        seen.append(options["added_cond_kwargs"]),
        forward(*a, **options),
    )[1]
    features(backbone)
    assert seen[0]["time_ids"].tolist() == [[32, 48, 0, 0, 32, 48]]


# Parts that may be missing


def test_text_encoders_that_are_not_needed_may_be_missing(copied):
    sdxl, sd35 = copied("sdxl"), copied("sd35")
    expected = features(load(sdxl, layers=["up_blocks.1.attentions.2"]))[0].queries
    for part in ("text_encoder", "text_encoder_2", "tokenizer"):
        shutil.rmtree(sdxl / part)
    assert torch.equal(features(load(sdxl, layers=["up_blocks.1.attentions.2"]))[0].queries, expected)
    with pytest.raises(
        InputError, match=r"sdxl: incomplete checkpoint, lacks text_encoder, text_encoder_2, tokenizer"
    ):
        load(sdxl, prompt=TEXT)
    shutil.rmtree(sd35 / "text_encoder_3")
    assert not load(sd35, prompt=TEXT)._prompt[:, 77:].any()
    shutil.rmtree(sd35 / "text_encoder")
    with pytest.raises(
        InputError, match=r"sd35: incomplete checkpoint, lacks text_encoder of diffusers' layout$"
    ):
        load(sd35)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("flux", "text_encoder_2"),
        ("pixart", "tokenizer"),
        ("dit", "transformer"),
        ("dit", "vae"),
        ("sdxl", "scheduler"),
    ],
)
def test_a_missing_part_that_is_needed_is_named(copied, name, part):
    folder = copied(name)
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=rf"lacks {part} of diffusers' layout"):
        load(folder)


def test_a_tokenizer_of_sentencepiece_names_the_package(copied, monkeypatch):
    folder = copied("pixart")
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    monkeypatch.setattr(prompts, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"tokenizer: has no tokenizer.json and needs the package sentencepiece; pip"
    ):
        load(folder)


def test_a_tokenizer_of_sentencepiece_gives_the_tokens_of_its_model(tmp_path):
    """PixArt ships `spiece.model` without `tokenizer.json`."""
    (tmp_path / "text").write_text("a photo of a dog\na photo of the cat\nthe dog sits on a mat\n" * 10)
    SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=40,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    tokenizer = prompts.load_t5_tokenizer(tmp_path)
    expected = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model")).encode(TEXT)
    assert tokenizer(TEXT).input_ids == [*expected, 1]
    assert tokenizer(TEXT, padding="max_length", max_length=60).input_ids[-1] == 0


@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_overflows_is_computed_in_float32(copied, upcast):
    folder = copied("sdxl")
    change(folder / "vae" / "config.json", force_upcast=upcast)
    backbone = load(folder, precision="float16")
    assert backbone.unet.dtype == torch.float16
    assert backbone.vae.dtype == (torch.float32 if upcast else torch.float16)
    assert load(folder, precision="bfloat16").vae.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "rae"])
def test_half_precision_changes_features_little(small_checkpoint, name):
    last = {
        "adm": "output_blocks.7",
        "sdxl": "up_blocks.1.attentions.2",
        "flux": "single_transformer_blocks.1",
    }
    layers = [last.get(name, "transformer_blocks.2")]
    (exact,), (rough,) = (
        features(load(small_checkpoint(name), layers=layers, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    assert rough.tokens.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact.tokens, rough.tokens, dim=-1).mean() > 0.98


# ADM


def test_a_unet_alone_is_a_checkpoint_of_adm(copied, tmp_path):
    folder = copied("adm")
    expected = features(load(folder, layers=["output_blocks.7"]))[0].tokens
    shutil.copytree(folder / "unet", tmp_path / "alone")
    assert torch.equal(features(load(tmp_path / "alone", layers=["output_blocks.7"]))[0].tokens, expected)


def test_a_conversion_with_heads_in_the_order_of_openai_is_the_same_model(copied):
    """Fused projections of 3 · heads · dim rows, head by head, cut into three as `attention_legacy_order` says."""
    folder = copied("adm")
    expected = features(load(folder))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if ".to_q." in name]:
        names = [name.replace(".to_q.", f".to_{part}.") for part in "qkv"]
        by_head = torch.stack([weights[n].unflatten(0, (-1, 4)) for n in names], dim=1)  # heads, 3, dim, ...
        for n, rows in zip(names, by_head.flatten(0, 2).chunk(3), strict=True):
            weights[n] = rows.contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    assert not torch.allclose(features(load(folder))[3].queries, expected[3].queries)
    config = folder / "unet" / "config.json"
    change(config, attention_legacy_order=True, time_embedding_type="adm", attn_norm_num_groups=None)
    for one, other in zip(features(load(folder)), expected, strict=True):
        assert torch.allclose(one.tokens, other.tokens, atol=1e-6)
        assert torch.allclose(one.queries, other.queries, atol=1e-6)


def test_a_unet_conditioned_on_classes_is_refused(tmp_path):
    small_adm(tmp_path, num_class_embeds=10)
    with pytest.raises(InputError, match=r"conditioned on classes; give an unconditional checkpoint"):
        load(tmp_path)


# Representation autoencoders


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["dinov2", "mae"])
def test_a_representation_autoencoder_computes_what_diffusers_does(tmp_path, encoder):
    small_rae(tmp_path, encoder)
    model = AutoencoderRAE.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    backbone, seen = load(tmp_path, layers=["encoder.1", "decoder.1"]), {}
    frames = torch.rand(2, 3, 4 * backbone.stride, 4 * backbone.stride)
    model.decoder.decoder_layers[1].attention.register_forward_pre_hook(lambda m, a: seen.update(inputs=a[0]))
    model.decode(model.encode(frames).latent)
    decoder = backbone.features(frames, torch.Generator())[1]
    assert torch.allclose(decoder.tokens.flatten(1, 2), seen["inputs"][:, 1:], atol=1e-4)
    assert features(backbone, (3 * backbone.stride, 5 * backbone.stride))[0].grid == (3, 5)
    with pytest.raises(ValueError, match="no prompt"):
        backbone.features(frames, torch.Generator(), cross=["decoder.1"])


@torch.no_grad()
def test_a_transformer_on_the_latents_of_a_representation_autoencoder(copied):
    folder = copied("dit")
    shutil.rmtree(folder / "vae")
    small_rae(folder / "vae")
    write_flow(folder)
    change(folder / "model_index.json", vae=["diffusers", "AutoencoderRAE"])
    shutil.rmtree(folder / "transformer")
    DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=64, in_channels=128, num_layers=2, sample_size=4, patch_size=1,
        num_embeds_ada_norm=10,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    backbone = load(folder, timestep=1000)
    assert backbone.stride == 14
    frames = torch.rand(1, 3, 56, 56)
    model = AutoencoderRAE.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
    assert torch.allclose(backbone.encode(frames), model.encode(frames).latent, atol=1e-4)
    assert features(backbone, (42, 70))[0].grid == (3, 5)


# Refusals


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_another_family_says_what_to_use(small_checkpoint, name):
    with pytest.raises(InputError, match=rf"is a \w+, not stable_diffusion; use backbone={name}$"):
        load(small_checkpoint(name), family="stable_diffusion")
    family = next(family for family in families() if name in family.checkpoints.values())
    assert load(small_checkpoint(name), family=family.name)
    with pytest.raises(OptionError, match=r"family=nothing: allowed is adm, dinov2, .*stable_diffusion_xl"):
        load(small_checkpoint(name), family="nothing")


def test_every_family_states_different_checkpoints():
    kinds = [kind for family in families() for kind in family.checkpoints]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_layer_that_does_not_exist_is_named_with_those_that_do(small_checkpoint, name):
    with pytest.raises(
        OptionError, match=r"layers=\[nowhere\]: allowed is one or more distinct layers among \w+"
    ):
        load(small_checkpoint(name), layers=["nowhere"])


def test_weights_that_do_not_fit_are_refused_before_any_is_loaded(small_checkpoint, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(checkpoint_files, "free_memory", lambda: 100_000)
    monkeypatch.setattr(CLIPTextModel, "from_pretrained", never)
    message = (
        r"flux\d*: the weights of transformer and vae take 0.0 GB in float32, 0.0 GB of memory are free; use "
    )
    with pytest.raises(InputError, match=message):
        load(small_checkpoint("flux"))


def test_the_size_of_weights_is_that_of_the_model(small_checkpoint):
    backbone = load(small_checkpoint("flux"))
    size = sum(parameter.nbytes for parameter in backbone.denoiser.parameters())
    assert checkpoint_files.weights_size(small_checkpoint("flux") / "transformer", torch.float32) == size
    assert (
        checkpoint_files.weights_size(small_checkpoint("flux") / "transformer", torch.bfloat16) == size // 2
    )
    assert checkpoint_files.free_memory() > 1e6


def test_a_gated_repository_says_how_to_get_access(monkeypatch, tmp_path):
    class Hub:
        def model_info(self, repository, *, revision, timeout):
            response = type("Response", (), {"headers": {}, "request": None})()
            raise GatedRepoError("401", response=response)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoint_files, "HfApi", Hub)
    with pytest.raises(
        InputError, match=r"=owner/gated: gated; .*https://huggingface.co/owner/gated and set HF_TOKEN"
    ):
        load("owner/gated")


# Summaries


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_described_without_its_weights(copied, name):
    folder = copied(name)
    backbone = load(folder)
    computed = features(backbone, (42, 56) if name == "rae" else (32, 48))
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    summary = describe(folder, size=(42, 56) if name == "rae" else (32, 48))
    assert (summary.choice, summary.model, summary.stride) == (name, type(backbone).__name__, backbone.stride)
    assert [layer.name for layer in summary.layers] == list(backbone.layers)
    for layer, one in zip(summary.layers, computed, strict=True):
        assert layer.grid == one.grid
        assert (layer.heads, layer.width) == (one.queries.shape[1], one.queries.shape[-1])
        assert layer.tokens == one.tokens.shape[-1]
        assert layer.cross == (name in ("sdxl", "pixart") and layer.name in backbone.attention_layers)
    assert summary.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    prompts = dict.fromkeys(("sdxl", "pixart"), "cross-attention")
    prompts |= dict.fromkeys(("sd35", "flux"), "joint attention")
    assert summary.prompt == prompts.get(name, "none")
    assert ("gaussian" in summary.noises) == (name != "rae")
    assert json.dumps(summary.as_dict())


def test_the_command_lists_layers(capsys):
    assert main(["tiny", "--size", "64x96"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "embedded:tiny: StableDiffusion, backbone=tiny"
    assert any(
        line.split() == ["up_blocks.1.attentions.0", "8", "x", "12", "4", "32", "128", "yes"]
        for line in lines
    )
    assert main(["embedded:tiny", "timestep=20", 'prompt="dog"', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][-1]["grid"] == [60, 107]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such"], "backbone.checkpoint=/no/such: no such file or folder"),
        (["tiny", "ensemble=3"], "ensemble=3: allowed is no value"),
        (["tiny", "timestep"], "option=timestep: allowed is key=value"),
        (["tiny", "timestep=5000"], "timestep=5000: allowed is a whole number, 0 to 999"),
        (["tiny", "--size", "480"], "--size=480: allowed is HEIGHTxWIDTH"),
        (["tiny", "--size", "0x4"], "size=0x4: allowed is HEIGHTxWIDTH"),
    ],
)
def test_errors_of_the_command_are_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_layers_of_the_yaml_are_those_of_the_published_model(tmp_path, name):
    write, billions, stride, head = PUBLISHED[name]
    write(tmp_path)
    summary = describe(tmp_path, size=(448, 896))
    assert summary.parameters / 1e9 == pytest.approx(billions, rel=0.08)
    options = yaml.safe_load((evaluate.CONFIGS / "backbone" / f"{name}.yaml").read_text())["backbone"]
    (layer,) = (layer for layer in summary.layers if layer.name in options["layers"])
    assert layer.grid == (448 // stride, 896 // stride)
    assert (layer.heads, layer.width) == head
    assert options["family"] == summary.family
