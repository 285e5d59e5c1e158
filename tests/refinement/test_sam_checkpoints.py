"""Loading of Segment Anything checkpoints, and the messages for those that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drift.errors import InputError, OptionError
from drift.propagation.labels import SoftLabels
from drift.refinement import load_refiner, sam_checkpoints
from drift.refinement.architectures import build_official
from drift.refinement.sam_checkpoints import OFFICIAL_FILES, OfficialFile, load_sam
from drift.refinement.tiny_sam import TinySam


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("sam") / "mine.safetensors"
    save_file(TinySam().state_dict(), path)
    return path


def test_weights_equal_those_in_the_file(tiny_file):
    loaded, stored = load_sam(str(tiny_file)).state_dict(), load_file(tiny_file)
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_the_embedded_model_is_complete_and_small():
    sam = load_sam("embedded:sam_tiny", size="tiny")
    assert isinstance(sam, TinySam)
    assert {tensor.device.type for tensor in (*sam.parameters(), *sam.buffers())} == {"cpu"}
    assert {parameter.dtype for parameter in sam.parameters()} == {torch.float32}
    file = Path(sam_checkpoints.__file__).parents[1] / "assets" / "sam_tiny" / "model.safetensors"
    assert file.stat().st_size < 20e6


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere.pth", "nowhere.pth: no such file"),
        ("sam_vit_b_01ec64.pth", "refinement.download=true"),
        ("embedded:other", "embedded:sam_tiny"),
        (None, "checkpoint=null"),
    ],
)
def test_a_missing_file_is_named_with_a_remedy(checkpoint, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OptionError), match=message):
        load_sam(checkpoint)


def test_another_size_than_that_of_the_weights_is_refused(tiny_file):
    with pytest.raises(OptionError, match=r"size=vit_h: allowed is tiny"):
        load_sam(str(tiny_file), size="vit_h")
    with pytest.raises(OptionError, match="size=vit_x"):
        load_sam(str(tiny_file), size="vit_x")


@pytest.mark.parametrize("part", [0.5, 0.01, 0.0])
def test_a_truncated_file_is_refused(part, tiny_file, tmp_path):
    content = tiny_file.read_bytes()
    for name in ("cut.safetensors", "cut.pth"):
        path = tmp_path / name
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(InputError, match=name):
            load_sam(str(path))


def test_a_truncated_pth_is_refused(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(TinySam().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"cut\.pth: cannot be read"):
        load_sam(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {f"model.{k}": v for k, v in weights.items()}, "it contains model"),
        (lambda weights: {"model": weights}, "contains model"),
        (lambda weights: dict(list(weights.items())[:-1]), "mask_decoder.* missing"),
        (lambda weights: {**weights, "extra": torch.zeros(1)}, "extra unexpected"),
        (
            lambda weights: {**weights, "mask_decoder.mask.weight": torch.zeros(1, 7)},
            r"mask_decoder\.mask\.weight of another shape",
        ),
        (lambda weights: {}, "it contains nothing"),
        (lambda weights: [1, 2], "contains a list"),
    ],
)
def test_another_layout_is_refused_with_the_difference(change, message, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(change(TinySam().state_dict()), path)
    with pytest.raises(InputError, match=message):
        load_sam(str(path))


def test_the_sha256_of_official_file_names_is_checked(tiny_file, tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(tiny_file.read_bytes())
    with pytest.raises(InputError, match="not the official file"):
        load_sam(str(path))


def test_an_official_file_is_downloaded_on_request(tmp_path, monkeypatch):
    source = tmp_path / "server.pth"
    torch.save(TinySam().state_dict(), source)
    official = OfficialFile(source.as_uri(), sam_checkpoints.sha256_of(source))
    monkeypatch.setitem(OFFICIAL_FILES, "sam_vit_b_01ec64.pth", official)
    target = tmp_path / "deep" / "sam_vit_b_01ec64.pth"
    load_sam(str(target), download=True)
    assert target.read_bytes() == source.read_bytes()


def random_file(size: str, path: Path) -> Path:
    """An official layout with random float16 weights, which share memory so that the file is small."""
    with torch.device("meta"):
        layout = build_official(size).state_dict()
    largest = max(value.numel() for value in layout.values())
    noise = torch.randn(largest, generator=torch.Generator().manual_seed(0)).mul(0.02).half()
    weights = {name: noise[: value.numel()].view(value.shape) for name, value in layout.items()}
    torch.save(weights, path)
    return path


@pytest.mark.parametrize(
    ("size", "kept"),
    [("vit_b", slice(1, 3)), ("vit_l", slice(4, 6)), ("vit_h", slice(6, 8))],
)
def test_the_official_layouts_load_strictly_and_run_on_a_frame(size, kept, tmp_path):
    """All weights are loaded. Two of the encoder's blocks run, one of each kind: all take over a minute."""
    path = random_file(size, tmp_path / "random.pth")
    refinement = load_refiner(
        str(path), precision="bfloat16", min_iou=0.0, max_area_change=1e9, positive_points=2
    )
    encoder = refinement.proposer.sam.image_encoder
    assert encoder.patch_embed.proj.out_channels == {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}[size]
    assert {p.dtype for p in encoder.blocks.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder.neck.parameters()} == {torch.float32}
    encoder.blocks = encoder.blocks[kept]
    soft = torch.zeros(3, 60, 107)
    soft[1, 10:20, 10:20] = soft[2, 30:50, 60:90] = 0.9
    soft[0] = 1 - soft[1:].sum(0)
    labels = SoftLabels(soft, (1, 2), (480, 854), 8)
    frame = torch.zeros(480, 854, 3, dtype=torch.uint8)
    refined = refinement.refine(frame, labels)
    assert refined.probabilities.shape == (3, 480, 854)
    assert refined.probabilities.isfinite().all()
    assert len(refined.outcomes) == 2
