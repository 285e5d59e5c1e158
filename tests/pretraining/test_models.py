"""The embedded model's parts: an encoder that is exact, attention that looks across views, names that count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from examples import CUTOUTS, GROUNDS, NAMES
from torch.nn import functional as F

from drift.backbones import load_backbone
from pretraining.attentions import cross_attention_queries, self_attentions
from pretraining.autoencoder import AutoencoderTraining, build_autoencoder, set_principal_encoder
from pretraining.diffusion import (
    DiffusionTraining,
    ViewsTogether,
    make_rotations,
    mean_skew,
    save_pipeline,
    set_self_attention,
)
from pretraining.naming import NamedWord, named_words, naming_loss
from pretraining.scenes import SceneBatch, SceneDataset, caption, vocabulary_captions
from pretraining.text import build_tokenizer, token_places

SIDE = 32


def views(count: int = 12, side: int = 64) -> torch.Tensor:
    return SceneDataset(CUTOUTS, GROUNDS, side=side, length=1, batch_size=count)[0].views.flatten(0, 1)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Crops of two real photographs in [-1, 1]."""
    skimage_data = pytest.importorskip("skimage.data")
    crops = []
    for picture in (skimage_data.astronaut(), skimage_data.chelsea()):
        image = torch.from_numpy(picture[:256, :256].copy()).permute(2, 0, 1).float() / 127.5 - 1
        crops.append(image)
    return torch.stack(crops)


def patches(images: torch.Tensor) -> torch.Tensor:
    return F.pixel_unshuffle(images, 8).permute(0, 2, 3, 1).reshape(-1, 192).double()


def test_the_encoder_is_a_linear_map_of_patches(photographs: torch.Tensor) -> None:
    vae = build_autoencoder()
    set_principal_encoder(vae, photographs)
    with torch.no_grad():
        latents = vae.encode(photographs).latent_dist.mode().permute(0, 2, 3, 1).reshape(-1, 16).double()
    with_one = torch.cat([patches(photographs), torch.ones(len(latents), 1)], dim=1)
    linear = with_one @ torch.linalg.lstsq(with_one, latents).solution
    assert (linear - latents).abs().max() < 0.02 * latents.std()


def test_the_latents_keep_as_much_as_sixteen_principal_components_can(photographs: torch.Tensor) -> None:
    vae = build_autoencoder()
    set_principal_encoder(vae, photographs)
    whole = patches(photographs)
    with torch.no_grad():
        latents = vae.encode(photographs).latent_dist.mode().permute(0, 2, 3, 1).reshape(-1, 16).double()
    known = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    lost = (known @ torch.linalg.lstsq(known, whole).solution - whole).square().sum()
    centred = whole - whole.mean(0)
    least = torch.linalg.svdvals(centred)[16:].square().sum()
    assert lost < 1.15 * least, "components of components lose little beside the best sixteen"


def test_the_latents_have_unit_spread_and_no_mean(photographs: torch.Tensor) -> None:
    vae = build_autoencoder()
    set_principal_encoder(vae, photographs)
    with torch.no_grad():
        latents = vae.encode(photographs).latent_dist.mode() * vae.config["scaling_factor"]
    assert float(latents.std()) == pytest.approx(1, abs=0.01)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05


def test_full_whitening_gives_every_latent_the_same_spread(photographs: torch.Tensor) -> None:
    vae = build_autoencoder()
    set_principal_encoder(vae, photographs, whitening=1.0)
    with torch.no_grad():
        spreads = vae.encode(photographs).latent_dist.mode().std((0, 2, 3))
    assert torch.allclose(spreads / spreads.mean(), torch.ones(16), atol=0.02)


def test_too_many_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="40 latents do not fit in 64 channels"):
        set_principal_encoder(build_autoencoder(latent_channels=40), views())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_the_decoder_learns_and_the_encoder_stays() -> None:
    vae = build_autoencoder()
    images = views()
    set_principal_encoder(vae, images)
    module = AutoencoderTraining(vae, max_steps=10)
    batch = SceneBatch(images.unflatten(0, (-1, 2)), [], [])
    before = {name: value.clone() for name, value in vae.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in vae.encoder.state_dict().items())


@pytest.fixture
def training() -> DiffusionTraining:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    return DiffusionTraining(build_autoencoder(), tokenizer, names=NAMES, max_steps=10)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_one_step_has_a_finite_loss_that_trains_all_but_the_autoencoder(training: DiffusionTraining) -> None:
    loss = training.training_step(SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=2)[0], 0)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(p.grad is None for p in training.vae.parameters())
    for part in (training.unet, training.text_encoder):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


def test_keys_are_tied_to_queries_and_start_as_rotations(training: DiffusionTraining) -> None:
    assert self_attentions(training.unet)
    assert all(attention.to_k.weight is attention.to_q.weight for attention in self_attentions(training.unet))
    assert float(mean_skew(training.unet).detach()) < 1e-8


def test_skew_counts_what_is_no_scaled_rotation(training: DiffusionTraining) -> None:
    with torch.no_grad():
        for attention in self_attentions(training.unet):
            attention.to_q.weight.mul_(3)
    assert float(mean_skew(training.unet).detach()) < 1e-6, "the scale is free"
    with torch.no_grad():
        for attention in self_attentions(training.unet):
            attention.to_q.weight[0] = attention.to_q.weight[1]
    assert float(mean_skew(training.unet).detach()) > 0.01


def test_views_together_see_each_other_and_no_other_scene(training: DiffusionTraining) -> None:
    latents, condition = torch.randn(4, 16, 8, 8), torch.zeros(4, 77, 128)
    changed = latents.clone()
    changed[1] += 1
    for processor, reached in (
        (ViewsTogether(), [True, True, False, False]),
        (AttnProcessor2_0(), [False, True, False, False]),
    ):
        set_self_attention(training.unet, processor)
        with torch.no_grad():
            before, after = (
                training.unet(z, 20, encoder_hidden_states=condition).sample for z in (latents, changed)
            )
        assert [not torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)] == reached


def test_two_equal_views_together_are_as_each_alone(training: DiffusionTraining) -> None:
    latents = torch.randn(1, 16, 8, 8).expand(2, -1, -1, -1)
    condition = torch.zeros(2, 77, 128)
    with torch.no_grad():
        set_self_attention(training.unet, AttnProcessor2_0())
        alone = training.unet(latents, 20, encoder_hidden_states=condition).sample
        set_self_attention(training.unet, ViewsTogether())
        together = training.unet(latents, 20, encoder_hidden_states=condition).sample
    assert torch.allclose(alone, together, atol=1e-5)


def test_the_saved_model_is_a_backbone_whose_keys_are_its_queries(
    training: DiffusionTraining, tmp_path: Path
) -> None:
    set_self_attention(training.unet, ViewsTogether())
    save_pipeline(training, tmp_path)
    backbone = load_backbone(str(tmp_path), layers=["up_blocks.1.attentions.0"], timestep=20)
    latents = backbone.encode(torch.rand(1, 3, SIDE, SIDE))
    assert latents.shape == (1, 16, SIDE // 8, SIDE // 8)
    (layer,) = backbone.features(torch.rand(1, 3, SIDE, SIDE), torch.Generator().manual_seed(0))
    assert layer.queries.isfinite().all()
    assert torch.equal(layer.keys, layer.queries)


def test_a_name_is_found_in_its_caption() -> None:
    tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    text = caption(["tiger", "apple"])
    ids = tokenizer(text).input_ids
    for name in ("tiger", "apple"):
        places = token_places(tokenizer, text, name)
        assert [ids[i] for i in places] == tokenizer(name, add_special_tokens=False).input_ids
    assert token_places(tokenizer, text, "fern") == []


def test_named_words_are_the_means_over_their_tokens() -> None:
    tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    text = caption(["tiger", "fern"])
    encoded = torch.randn(1, 77, 8)
    words = named_words(tokenizer, [text], [["tiger", "fern", "not there"]], encoded)
    assert [word.name for word in words] == ["tiger", "fern"]
    assert torch.allclose(words[0].embedding, encoded[0, token_places(tokenizer, text, "tiger")].mean(0))


def test_the_naming_loss_falls_to_a_name_that_is_found_anywhere(training: DiffusionTraining) -> None:
    with cross_attention_queries(training.unet) as queries, torch.no_grad():
        training.unet(torch.randn(2, 16, 8, 8), 20, encoder_hidden_states=torch.zeros(2, 77, 128))
    assert len(queries) == len(self_attentions(training.unet))
    words = [NamedWord(name, torch.randn(128)) for name in NAMES]
    own: list[set[str]] = [{"tiger"}, {"apple", "fern"}]
    weights = torch.ones(2)
    before = naming_loss(queries, words, own, weights)
    attention, projected = queries[0]
    key = attention.to_k(words[0].embedding)
    found = projected.clone()
    found[0, 5] += 40 * key / key.norm()  # the first view has a place that answers to its name
    assert naming_loss([(attention, found)], words, own, weights) < naming_loss(
        [queries[0]], words, own, weights
    )
    lost = projected.clone()
    lost[1, 5] += 40 * key / key.norm()  # the second view answers to a name that it does not show
    assert naming_loss([(attention, lost)], words, own, weights) > naming_loss(
        [queries[0]], words, own, weights
    )
    assert torch.isfinite(before)
    assert naming_loss(queries, words, [set(), set()], weights) == 0
    assert np.isclose(float(naming_loss(queries, words, own, weights * 3).detach()), float(before.detach()))


def test_rotations_are_the_nearest_ones(training: DiffusionTraining) -> None:
    attention = self_attentions(training.unet)[0]
    rotation = attention.to_q.weight.detach().clone()
    with torch.no_grad():
        attention.to_q.weight.mul_(2).add_(0.01 * torch.randn_like(rotation))
    make_rotations(training.unet)
    assert float(mean_skew(training.unet).detach()) < 1e-8
    assert (attention.to_q.weight / 2 - rotation).abs().max() < 0.03
    assert attention.to_k.weight is attention.to_q.weight
