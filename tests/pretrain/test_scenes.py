"""The training of the embedded model: its pictures, its scenes, and one step of it on a tiny scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image

from drift.backbone import load_latent_diffusion
from drift.errors import InputError
from drift.pretrain.autoencoder import build_autoencoder
from drift.pretrain.diffusion import DiffusionTraining, save_pipeline
from drift.pretrain.pictures import SOURCES, Cutout, find_cutouts, load_pictures
from drift.pretrain.scenes import SceneDataset, caption
from drift.pretrain.text import build_tokenizer

SIDE = 32


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _scenes(*, length: int = 8, **options: int) -> SceneDataset:
    cutouts = [Cutout(_noise(48, 60, 4, seed=i), name) for i, name in enumerate(("tiger", "apple", "fern"))]
    backgrounds = [_noise(70, 90, 3, seed=i) for i in (7, 8)]
    return SceneDataset(cutouts, backgrounds, side=SIDE, length=length, **options)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "a landscape"),
        (["tiger"], "a tiger"),
        (["emperor tamarin"], "an emperor tamarin"),
        (["tiger", "apple", "apple"], "a tiger and two apples"),
        (["apple", "tiger", "apple"], "two apples and a tiger"),
        (["fern"] * 3 + ["owl", "tiger"], "three ferns and an owl and a tiger"),
        (["fern"] * 9, "six ferns"),
    ],
)
def test_a_caption_counts_what_it_names(names: list[str], expected: str) -> None:
    assert caption(names) == f"a photo of {expected}"


def test_a_scene_is_a_picture_in_range_and_a_caption() -> None:
    for image, text in _scenes():
        assert image.shape == (3, SIDE, SIDE)
        assert image.dtype == torch.float32
        assert -1 <= image.min() < image.max() <= 1
        assert text.startswith("a photo of ")


def test_scenes_show_objects_and_some_show_none() -> None:
    captions = [text for _, text in _scenes(length=60)]
    assert "a photo of a landscape" in captions
    assert all(any(name in text for text in captions) for name in ("tiger", "apple", "fern"))


def test_a_scene_depends_on_its_seed_and_number_only() -> None:
    image, text = _scenes(first=0)[5]
    for again in (_scenes()[5], _scenes(first=5)[0], _scenes(first=3, length=3)[2]):
        assert torch.equal(again[0], image)
        assert again[1] == text
    assert not torch.equal(_scenes(seed=1)[5][0], image)
    assert not torch.equal(_scenes()[4][0], image)


def test_the_scenes_end_at_their_length() -> None:
    scenes = _scenes(length=3, first=5)
    assert len(scenes) == len(list(scenes)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            scenes[index]


def test_missing_pictures_are_an_error_that_names_every_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 cut-outs and 0 backgrounds") as raised:
        load_pictures(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert all(package in str(raised.value) for package in SOURCES)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A root with two stamps of many colours, one of them held out, and two files that are no pictures."""
    folder = tmp_path / "usr/share/tuxpaint/stamps/animals"
    folder.mkdir(parents=True)
    for seed, stem in enumerate(("fox", "owl")):
        Image.fromarray(_noise(64, 80, 4, seed=seed)).save(folder / f"{stem}.png")
    whole = (folder / "owl.png").read_bytes()
    (folder / "cut-off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "owl.txt").write_text("A snowy owl. It hoots.\n", encoding="utf-8")
    return tmp_path


def test_unreadable_and_held_out_cut_outs_are_left_out(stamps: Path) -> None:
    (owl,) = find_cutouts(stamps)
    assert owl.name == "snowy owl"
    assert np.array_equal(owl.rgba, _noise(64, 80, 4, seed=1))


def test_the_sample_clip_gets_the_held_out_cut_outs_only(stamps: Path) -> None:
    assert [cutout.name for cutout in find_cutouts(stamps, held_out=True)] == ["fox"]


def test_large_cut_outs_are_reduced_and_small_ones_refused(stamps: Path) -> None:
    assert find_cutouts(stamps, max_side=70)[0].rgba.shape == (56, 70, 4)
    assert find_cutouts(stamps, max_side=50) == [], "40 pixels are too few on the shorter side"


def test_drawings_are_no_cut_outs(stamps: Path) -> None:
    plain = np.full((64, 64, 4), 255, dtype=np.uint8)
    Image.fromarray(plain).save(stamps / "usr/share/tuxpaint/stamps/animals/drawing.png")
    assert [cutout.name for cutout in find_cutouts(stamps)] == ["snowy owl"]


@pytest.fixture
def training() -> DiffusionTraining:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(caption([name]) for name in ("tiger", "apple", "fern"))
    return DiffusionTraining(build_autoencoder(), tokenizer, max_steps=10)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_one_step_has_a_finite_loss_that_trains_all_but_the_autoencoder(training: DiffusionTraining) -> None:
    image, text = _scenes()[0]
    loss = training.training_step((image[None], [text]), 0)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(p.grad is None for p in training.vae.parameters())
    for part in (training.unet, training.text_encoder):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


def test_keys_are_tied_to_queries(training: DiffusionTraining) -> None:
    attentions = [b.attn1 for b in training.unet.modules() if isinstance(b, BasicTransformerBlock)]
    assert attentions
    assert all(attention.to_k.weight is attention.to_q.weight for attention in attentions)


def test_the_saved_model_is_a_backbone_whose_keys_are_its_queries(
    training: DiffusionTraining, tmp_path: Path
) -> None:
    save_pipeline(training, tmp_path)
    backbone = load_latent_diffusion(str(tmp_path), layers=["up_blocks.1.attentions.0"], timestep=20)
    latents = backbone.encode(torch.rand(1, 3, SIDE, SIDE))
    assert latents.shape == (1, 16, SIDE // 8, SIDE // 8)
    (layer,) = backbone.read(latents, torch.Generator().manual_seed(0))
    assert layer.queries.isfinite().all()
    assert torch.equal(layer.keys, layer.queries)
