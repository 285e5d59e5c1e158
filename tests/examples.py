"""Examples that several tests use: a clip in memory, a Stable Diffusion 2.1 of small width."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from drift.backbones import Features
from drift.clip import Clip
from drift.image_files import write_mask
from pretraining.pictures import Cutout
from pretraining.text import build_tokenizer


def replaced(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Words of a command line, without those whose key is among the overrides, which follow."""
    keys = {word.partition("=")[0] for word in overrides}
    return [*(word for word in words if word.partition("=")[0] not in keys), *overrides]


def few_steps(words: Sequence[str]) -> list[str]:
    """Limits the default adaptation to 2 steps, unless the words choose another adaptation or backbone."""
    chosen = any(
        word.startswith(("adaptation", "experiment=", "+experiment", "backbone=", "--")) for word in words
    )
    return [*words] if chosen else [*words, "adaptation.textual_inversion.steps=2"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 values."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


NAMES = ("tiger", "apple", "fern")
CUTOUTS = [Cutout(noise(48, 60, 4, seed=i), name) for i, name in enumerate(NAMES)]
GROUNDS = [noise(70, 90, 3, seed=i) for i in (7, 8)]


def moving_square(
    frames: int = 5, size: tuple[int, int] = (48, 64), *, given: dict | None = None, name: str = "square"
) -> Clip:
    """A bright square that moves right over a dark textured ground, with its true masks."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 80, (*size, 3), dtype=np.uint8)
    pictures, masks = [], []
    for t in range(frames):
        mask = np.zeros(size, dtype=np.uint8)
        mask[size[0] // 4 : size[0] // 4 + 16, 8 + 3 * t : 24 + 3 * t] = 1
        pictures.append(np.where(mask[..., None] > 0, np.uint8([250, 200, 30]), ground))
        masks.append(mask)
    return Clip(
        name=name,
        frames=pictures,
        frame_names=[f"{t:05d}" for t in range(frames)],
        given={0: masks[0]} if given is None else given,
        truth=dict(enumerate(masks)),
    )


class Clips:
    """As a data module: clips in memory."""

    def __init__(self, *clips):
        self.sequences = [clip.name for clip in clips]
        self._clips = clips

    def predict_dataloader(self):
        return iter(self._clips)


ENCODERS = {
    "dinov2": (lambda **sizes: Dinov2Model(Dinov2Config(**sizes)), 14),
    "dinov2_with_registers": (
        lambda **sizes: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes)),
        14,
    ),
    "dinov3_vit": (
        lambda **sizes: DINOv3ViTModel(DINOv3ViTConfig(intermediate_size=64, num_register_tokens=4, **sizes)),
        16,
    ),
    "siglip": (lambda **sizes: SiglipModel(_siglip(SiglipConfig, **sizes)), 16),
    "siglip2": (
        lambda image_size, **sizes: Siglip2Model(_siglip(Siglip2Config, num_patches=16, **sizes)),
        16,
    ),
}
"""By family of image encoders, the maker of a model and the patch size of published checkpoints."""


def _siglip(kind, **vision):
    """A configuration with a text model, as in the published checkpoints."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(text_config=text | {"vocab_size": 9}, vision_config={"intermediate_size": 64, **vision})


def write_encoder(folder: Path, family: str, *, width: int = 32, layers: int = 3, heads: int = 4) -> Path:
    """A checkpoint of a family of `ENCODERS`, with random weights and a small width."""
    torch.manual_seed(0)
    make, patch = ENCODERS[family]
    model = make(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=4 * patch,
        patch_size=patch,
    )
    for weight in model.parameters():
        if weight.dim() > 1:  # of the size of trained weights, so that attention is not uniform
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return folder


def write_checkpoint(
    folder: Path, *, prediction_type: str = "v_prediction", layers_per_block: int = 2, seed: int = 0
) -> Path:
    """A checkpoint with Stable Diffusion 2.1's configuration keys, random weights and a small width."""
    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=96,
        in_channels=4,
        out_channels=4,
        center_input_sample=False,
        flip_sin_to_cos=True,
        freq_shift=0,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        only_cross_attention=False,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=layers_per_block,
        downsample_padding=1,
        mid_block_scale_factor=1,
        act_fn="silu",
        norm_num_groups=8,
        norm_eps=1e-5,
        cross_attention_dim=24,
        attention_head_dim=[2, 4, 4, 4],
        dual_cross_attention=False,
        use_linear_projection=True,
        upcast_attention=True,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    tokenizer = build_tokenizer(["a photo of a dog"])
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="gelu",
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_davis(root: Path, clips: dict[str, Clip], *, binary: bool = False, suffix: str = ".jpg") -> Path:
    """Clips as files in DAVIS-2017's layout, or with `binary` in DAVIS-2016's."""
    for clip in clips.values():
        frames = root / "JPEGImages" / "480p" / clip.name
        masks = root / "Annotations" / "480p" / clip.name
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index, name in enumerate(clip.frame_names):
            Image.fromarray(clip.frames[index]).save(frames / f"{name}{suffix}", quality=95)
            if binary:
                Image.fromarray(clip.truth[index] * 255).save(masks / f"{name}.png")
            else:
                write_mask(masks / f"{name}.png", clip.truth[index])
    lists = root / "ImageSets" / ("480p" if binary else "2017")
    lists.mkdir(parents=True)
    lines = list(clips)
    if binary:
        lines = [
            f"/JPEGImages/480p/{name}/{frame}.jpg /Annotations/480p/{name}/{frame}.png"
            for name, clip in clips.items()
            for frame in clip.frame_names
        ]
    (lists / "val.txt").write_text("\n".join(lines) + "\n")
    return root


class ColourBackbone:
    """Tokens are mean colours: correspondence without a model. Layer 1 has half the resolution of layer 0."""

    device = torch.device("cpu")
    stride = 4
    batch = 1

    def __init__(self, layers: int = 1) -> None:
        self.description = {"noise": "none"}
        self.layers = {str(layer): 2 for layer in range(layers)}

    def features(self, frames, generator, *, prompt=None, cross=()):
        colours = F.avg_pool2d(frames, self.stride)
        features = []
        for layer in range(len(self.layers)):
            tokens = F.avg_pool2d(colours, 2**layer, ceil_mode=True) - 0.5
            tokens = tokens.permute(0, 2, 3, 1)
            heads = torch.stack([tokens, tokens], 1) * 10
            features.append(Features(str(layer), heads, heads, tokens))
        return features


COLOUR_OPTIONS = {"affinity": "cosine", "temperature": 0.02, "top_k": 5, "radius": 4, "memory_frames": 2}


CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".gif": "gif"}


def write_video(path: Path, frames, *, times=None, rate: int = 24, options: dict | None = None) -> Path:
    """A video of `(height, width, 3)` RGB frames, shown at `times` in seconds or at an even rate."""
    codec = CODECS[path.suffix]
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.options = options or ({"crf": "12", "g": "6"} if codec == "libx264" else {})
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path, codec: str, *, seconds: float, rate: int = 16000) -> Path:
    """A file that holds a tone and no picture."""
    tone = (np.sin(np.arange(int(seconds * rate)) / 20) * 8000).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
