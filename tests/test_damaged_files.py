"""Every file that is read may be damaged, of another kind or hostile: one line names it, and nothing else happens."""

from __future__ import annotations

import csv
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import moving_square, write_davis, write_video
from PIL import Image
from safetensors.torch import save_file

import evaluate
from datamodules.davis import Davis2016, Davis2017
from datamodules.long_videos import LongVideos
from datamodules.video import read_keypoints
from datamodules.youtube_vos import YouTubeVos
from drift.adaptation.adapter_files import load_adapter, save_adapter
from drift.backbones import Features, StableDiffusion, load_backbone
from drift.backbones.cache import FeatureCache
from drift.backbones.lora import fuse_lora
from drift.checkpoint_files import read_json
from drift.command_line import run
from drift.download import extract
from drift.errors import DriftError, InputError
from drift.formats.tables import points_by_frame
from drift.frame_sources import open_frames
from drift.image_files import read_frame, read_mask, write_mask
from drift.propagation.adapter import Adapter
from drift.refinement.sam_checkpoints import load_sam
from drift.refinement.tiny_sam import TinySam
from drift.resuming import ClipProgress, ProgressFolder

CLIP = moving_square(6, size=(48, 64))


def damaged(content: bytes, seed: int) -> bytes:
    """The content of a file, cut off, with bits flipped, replaced by noise, or with a part lost or twice."""
    random = np.random.default_rng(seed)
    changed = bytearray(content)
    place = int(random.integers(len(content)))
    match seed % 6:
        case 0:
            return content[:place]
        case 1 | 2 | 3:
            early = 400 if seed % 6 == 2 else len(content)  # headers
            for position in random.integers(min(early, len(content)), size=2 ** (seed % 5)):
                changed[position] ^= 1 << int(random.integers(8))
            return bytes(changed)
        case 4:
            return content[:place] + random.bytes(len(content) - place)
        case _:
            other = int(random.integers(len(content)))
            return content[: max(place, other)] + content[min(place, other) :]


OTHER_KINDS = {
    "empty": b"",
    "noise": np.random.default_rng(0).bytes(3000),
    "zeros": bytes(3000),
    "text": b"not a file of this kind\n" * 9,
    "utf-16": "x,y\n1,2\n".encode("utf-16"),
    "latin-1": "point,x,y\nvid\u00e9o,1,2\n".encode("latin-1"),
    "json": b"[3]",
    "nested json": b"[" * 100_000,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
    "list of files": b"ffconcat version 1.0\nfile other.mp4\n",
}


@dataclass(frozen=True)
class Kind:
    """A kind of file: an example, and what reads it."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    seeds: int = 60


def read_all_frames(path: Path) -> None:
    source = open_frames(path)
    for frame in source.frames:
        assert frame.shape == (*source.size, 3)


def read_any_mask(path: Path) -> None:
    for binary in (None, False, True):
        mask = read_mask(path, binary=binary)
        assert mask.dtype == np.uint8
        assert mask.ndim == 2


def save(array: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path, **options)


def write_meta(path: Path) -> None:
    objects = {"1": {"category": "x", "frames": CLIP.frame_names}}
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (path.parent / folder / "a").mkdir(parents=True, exist_ok=True)
        for name in CLIP.frame_names:
            Image.fromarray(CLIP.truth[0]).save(path.parent / folder / "a" / f"{name}.{suffix}")
    path.write_text(json.dumps({"videos": {"a": {"objects": objects}}}))


def write_points(path: Path) -> None:
    rows = [
        {"frame": n // 2, "point": n % 2, "x": 1.5, "y": 2.5, "confidence": 0.5, "time": 0} for n in range(20)
    ]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"folder/{number}.txt", "line\n" * 200)


def unpack(path: Path) -> None:
    folder = path.parent / "unpacked"
    try:
        extract(path, folder, limit=10**6)
    except InputError:
        assert not folder.exists()
        raise
    assert {file.name for file in path.parent.iterdir()} == {path.name, "unpacked"}


ADAPTER = Adapter(
    head_weights={"a": torch.ones(3)}, embeddings=[torch.ones(2, 4)], figures={"x": 1.0}, losses={"x": [1.0]}
)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
MASK = CLIP.truth[0]
KINDS = [
    Kind("frame.jpg", save(PICTURE), read_frame),
    Kind("frame.png", save(PICTURE), read_frame),
    Kind("frame.webp", save(PICTURE), read_frame),
    Kind("progressive.jpg", save(PICTURE, progressive=True), read_frame),
    Kind("frame.bmp", save(PICTURE), read_frame),
    Kind("palette.png", lambda path: write_mask(path, MASK), read_any_mask),
    Kind("grey.png", save(MASK * 255), read_any_mask),
    Kind("sixteen.png", save(MASK.astype(np.uint16)), read_any_mask),
    Kind("sixteen.tif", save(MASK.astype(np.uint16)), read_any_mask),
    Kind("packed.tif", save(MASK, compression="tiff_lzw"), read_any_mask),
    Kind("mask.gif", save(MASK), read_any_mask),
    Kind("clip.mp4", lambda path: write_video(path, CLIP.frames), read_all_frames),
    Kind("clip.mkv", lambda path: write_video(path, CLIP.frames), read_all_frames),
    Kind("clip.webm", lambda path: write_video(path, CLIP.frames), read_all_frames, seeds=30),
    Kind("clip.gif", lambda path: write_video(path, CLIP.frames), read_all_frames, seeds=30),
    Kind(
        "points.csv",
        lambda path: path.write_text("point,x,y,frame\na,10,20,0\nb,9.5,2,0\nc,1,2,3\n"),
        read_keypoints,
    ),
    Kind("tracked.csv", write_points, lambda path: list(points_by_frame(path))),
    Kind("meta.json", write_meta, lambda path: YouTubeVos(path.parent, split="").setup()),
    Kind("config.json", lambda path: path.write_text('{"a": [1, 2, {"b": null}]}'), read_json),
    Kind(
        "adapter.safetensors",
        lambda path: save_adapter(path, ADAPTER, {"a": "1"}),
        lambda p: load_adapter(p, {"a": "1"}),
    ),
    Kind("data.zip", write_zip, unpack),
]


def refusal(read: Callable[[], object]) -> str | None:
    """The message of the error about a file, or None."""
    try:
        read()
    except DriftError as error:
        return str(error)
    return None


def assert_read_or_refused(kind: Kind, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    line = refusal(lambda: kind.read(path))
    assert line is None or (path.name in line and len(line.splitlines()) == 1)


@pytest.fixture
def silent(capfd, request) -> Iterator[None]:
    """Nothing is printed, neither by Python nor by libraries in C; Pillow's warnings are hidden by entry points."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
    if "packed.tif" not in request.node.name:  # libtiff, of Pillow, prints what it finds in compressed files
        assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_read_or_named_in_one_line(kind, tmp_path):
    path = tmp_path / "folder" / kind.name
    path.parent.mkdir()
    kind.write(path)
    content = path.read_bytes()
    kind.read(path)
    for seed in range(kind.seeds):
        assert_read_or_refused(kind, path, damaged(content, seed))
    path.unlink()
    with pytest.raises(DriftError, match=kind.name):
        kind.read(path)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("other", OTHER_KINDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_of_another_kind_is_refused(kind, other, tmp_path):
    path = tmp_path / "folder" / kind.name
    path.parent.mkdir()
    kind.write(path)
    (path.parent / "other.mp4").write_bytes(b"")
    path.write_bytes(OTHER_KINDS[other])
    with pytest.raises(DriftError) as raised:
        kind.read(path)
    assert path.name in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


class TestSize:
    """What a file declares is checked before memory is taken."""

    def png(self, width: int, height: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return (
                struct.pack(">I", len(content))
                + kind
                + content
                + struct.pack(">I", zlib.crc32(kind + content))
            )

        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        data = zlib.compress(bytes(10**6))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    @pytest.mark.usefixtures("silent")
    @pytest.mark.parametrize("read", [read_frame, read_mask])
    @pytest.mark.parametrize("size", [(9000, 9000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**30, 1)])
    def test_of_images(self, tmp_path, size, read):
        path = tmp_path / "large.png"
        path.write_bytes(self.png(*size))
        with pytest.raises(InputError, match=r"large\.png: cannot be read as an image"):
            read(path)

    def test_of_videos(self, tmp_path):
        path = tmp_path / "large.gif"
        content = bytearray(write_video(path, CLIP.frames).read_bytes())
        content[6:10] = struct.pack("<HH", 12_000, 12_000)
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"large\.gif: .*pixels"):
            open_frames(path)

    def test_of_archives(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(10**7))
        with pytest.raises(InputError, match=r"bomb\.zip: .* more than the allowed"):
            extract(tmp_path / "bomb.zip", tmp_path / "unpacked", limit=10**6)


class TestPaths:
    """No name in a file leads out of the folder of the data set, and so out of `output.dir`."""

    NAMES = ("../outside", "/outside", "..", ".", "a/../../outside", "a\0b")

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("data", [Davis2017, LongVideos, YouTubeVos])
    def test_of_sequences(self, tmp_path, data, name):
        root = write_davis(tmp_path / "data", {"square": CLIP})
        (root / "ImageSets" / "2017" / "val.txt").write_text(f"square\n{name}\n")
        (root / "videos.txt").write_text(f"square\n{name}\n")
        write_meta(root / "meta.json")
        meta = json.loads((root / "meta.json").read_text())
        (root / "meta.json").write_text(json.dumps({"videos": {**meta["videos"], name: meta["videos"]["a"]}}))
        with pytest.raises(
            InputError, match=r"(val\.txt|videos\.txt|meta\.json): sequence .* is not the name"
        ):
            data(root).setup()

    def test_of_davis_2016(self, tmp_path):
        root = write_davis(tmp_path / "data", {"square": CLIP}, binary=True)
        (root / "ImageSets" / "480p" / "val.txt").write_text(
            "/JPEGImages/480p/../0.jpg /Annotations/480p/../0.png\n"
        )
        with pytest.raises(InputError, match=r"val\.txt: sequence '\.\.' is not the name"):
            Davis2016(root).setup()

    @pytest.mark.parametrize(
        "name", ["../outside", "/outside", "a/../../outside", "C:outside", "..\\outside"]
    )
    def test_of_members_of_archives(self, tmp_path, name):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(InputError, match="outside the folder"):
            extract(tmp_path / "data.zip", tmp_path / "unpacked", limit=10**6)
        assert os.listdir(tmp_path) == ["data.zip"]

    def test_a_video_reads_no_other_file(self, tmp_path):
        write_video(tmp_path / "other.mp4", CLIP.frames)
        (tmp_path / "clip.mp4").write_bytes(OTHER_KINDS["list of files"])
        with pytest.raises(InputError, match=r"clip\.mp4: cannot be read as a video"):
            open_frames(tmp_path / "clip.mp4")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("layout", ["pickle", "archive", "legacy"])
@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("sam.pth", load_sam),
        ("model.ckpt", load_backbone),
        ("sam.safetensors", load_sam),
        ("model.safetensors", load_backbone),
    ],
)
def test_nothing_of_a_checkpoint_is_executed(tmp_path, name, load, layout):
    path, trace = tmp_path / name, tmp_path / "executed"
    content = {"weight": Malicious(trace), "state_dict": {"weight": Malicious(trace)}}
    if layout == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "archive")
    with pytest.raises(InputError, match=name) as raised:
        load(str(path))
    assert len(str(raised.value).splitlines()) == 1
    assert not trace.exists()


def test_a_damaged_sam_is_named_in_one_line(tmp_path):
    weights = dict(TinySam().state_dict())
    torch.save(weights, tmp_path / "sam.pth")
    save_file(weights, tmp_path / "sam.safetensors")
    for name in ("sam.pth", "sam.safetensors"):
        kind = Kind(name, Path.exists, lambda path: load_sam(str(path)))
        content = (tmp_path / name).read_bytes()
        for seed in range(12):
            assert_read_or_refused(kind, tmp_path / name, damaged(content, seed))
        for other in OTHER_KINDS.values():
            (tmp_path / name).write_bytes(other)
            with pytest.raises(InputError, match=name):
                kind.read(tmp_path / name)


def test_a_damaged_entry_of_a_cache_is_computed_again(tmp_path):
    cache = FeatureCache(tmp_path, 1)
    features = [
        Features(name, torch.rand(1, 2, 3, 4, 5), torch.rand(1, 2, 3, 4, 5), torch.rand(1, 3, 4, 10))
        for name in "ab"
    ]
    key = "0" * 40
    cache.save(key, features, torch.arange(5))
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    for seed in range(120):
        path.write_bytes(damaged(content, seed))
        entry = cache.load(key)
        if entry is not None:  # what was changed is not read
            assert [layer.layer for layer in entry[0]] == ["a", "b"]
            assert all(
                torch.equal(one.keys, other.keys) for one, other in zip(entry[0], features, strict=True)
            )
        path.parent.mkdir(exist_ok=True)


def test_damaged_progress_is_refused_or_done_again(tmp_path):
    folder = ProgressFolder(tmp_path, {"a": "1"}, resume=True)
    file = folder.of(CLIP)
    file.save(ClipProgress(done=len(CLIP), losses={"x": [1.0]}))
    content = file.path.read_bytes()
    for seed in [seed for seed in range(120) if seed % 6 in (0, 4)]:
        file.path.write_bytes(damaged(content, seed))
        line = refusal(lambda: (folder.check(), file.earlier()))
        assert line is None or ("square" in line and len(line.splitlines()) == 1)


CHECKPOINT_FILES = (
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
)


@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_checkpoint_is_named_in_one_line(checkpoint, tmp_path, name):
    folder = tmp_path / "model"
    for file in checkpoint.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    path = folder / name
    content = path.read_bytes()
    several = [
        damaged(content, 0),
        damaged(content, 2),
        b"",
        b"{}",
        b"[]",
        b'{"vae": 3, "_class_name": []}',
        b"\xff" * 99,
    ]
    for changed in several:
        path.unlink()
        path.write_bytes(changed)
        line = refusal(lambda: load_backbone(str(folder), layers=["up_blocks.2.attentions.0"]))
        assert line is None or (str(folder) in line and len(line.splitlines()) == 1)


@pytest.mark.usefixtures("silent")
def test_a_damaged_lora_is_named_in_one_line(checkpoint, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs the package peft")
    backbone = load_backbone(str(checkpoint), layers=["up_blocks.2.attentions.0"])
    assert isinstance(backbone, StableDiffusion)
    module = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = backbone.unet.get_submodule(module).weight.shape[0]
    path = tmp_path / "mine.safetensors"
    names = (f"unet.{module}.lora_A.weight", f"unet.{module}.lora_B.weight")
    save_file(dict(zip(names, (torch.ones(2, width), torch.ones(width, 2)), strict=True)), path)
    content = path.read_bytes()
    fuse_lora(path, backbone.unet, None)
    for changed in [*(damaged(content, seed) for seed in range(24)), *OTHER_KINDS.values()]:
        path.write_bytes(changed)
        line = refusal(lambda: fuse_lora(path, backbone.unet, None))
        assert line is None or (path.name in line and len(line.splitlines()) == 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1,\n  b", "mine.yaml, line 2: not valid YAML"),
        (b"# @package _global_\n\tpropagation: 3", "mine.yaml, line 2: not valid YAML"),
        (b"# @package _global_\nseed: 1\nseed: 2", "mine.yaml, line 3: not valid YAML (found duplicate key"),
        (b"seed: !!python/object/apply:os.abort []", "mine.yaml, line 1: not valid YAML"),
        (b"\0", "mine.yaml"),
        ("a: é".encode("latin-1"), "mine.yaml: not a text file in UTF-8"),
        (
            b"# @package _global_\npropagatoin:\n  top_k: 3",
            "propagatoin: no such group; did you mean propagation?",
        ),
        (b"propagation:\n  top_k: 3", "experiment: the file has no effect without `# @package _global_`"),
        (b"- 1", "experiment: the file has no effect"),
        (b"# @package _global_\nseed: ${nothing}", "Interpolation key 'nothing' not found"),
    ],
)
def test_a_damaged_experiment_is_named_in_one_line(content, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config-dir", str(tmp_path), "experiment=mine"])
    assert run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert said in errors
    assert errors.count("\n") == 1
