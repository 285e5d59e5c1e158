"""What is read of frames and kept on disk: the same as what is computed, whatever happens to the files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from dataclasses import fields

import pytest
import torch

from drift.backbone import load_latent_diffusion
from drift.backbone.reading_cache import ReadingCache, reading_key
from drift.errors import OptionError
from drift.stopwatch import Stopwatch

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.1.attentions.0"]


@pytest.fixture
def load(checkpoint, tmp_path):
    def loaded(**options):
        options = {"layers": LAYERS, "timestep": 40, "cache": str(tmp_path / "cache")} | options
        return load_latent_diffusion(str(checkpoint), **options)

    return loaded


def read(backbone, frame=0, **options):
    """Readings of a picture, the stages that they took, and the next number of their noise's generator."""
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(frame))
    stopwatch = Stopwatch()
    readings = backbone.read_frames(picture, generator, stopwatch=stopwatch, **options)
    return readings, set(stopwatch.seconds), torch.rand(1, generator=generator).item()


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_comes_from_the_cache_is_what_was_computed(load, precision):
    computed, _, following = read(load(cache=None, precision=precision), cross=[LAYERS[0]])
    first, stages, after_first = read(load(precision=precision), cross=[LAYERS[0]])
    assert {"encode", "unet", "cache"} <= stages
    second, stages, after_second = read(load(precision=precision), cross=[LAYERS[0]])
    assert stages == {"cache"}
    assert_equal(computed, first)
    assert_equal(computed, second)
    assert following == after_first == after_second  # the noise of the next frame is the same
    assert second[0].prompt_queries is not None
    assert second[1].prompt_queries is None


@pytest.mark.parametrize(
    "other",
    [
        {"timestep": 41},
        {"noise": "none"},
        {"layers": LAYERS[:1]},
        {"ensemble": 2},
        {"prompt": "a rooster"},
        {"prediction_type": "epsilon"},
        {"precision": "bfloat16"},
    ],
)
def test_another_way_of_reading_is_another_entry(load, other):
    read(load())
    backbone = load(**other)
    readings, stages, _ = read(backbone)
    assert "unet" in stages
    assert_equal(readings, read(load(cache=None, **other))[0])


def test_another_frame_condition_or_noise_is_another_entry(load):
    backbone = load()
    read(backbone)
    assert "unet" in read(backbone, frame=1)[1]
    assert "unet" in read(backbone, condition=backbone.condition() * 2)[1]
    assert "unet" in read(backbone, cross=[LAYERS[0]])[1]
    assert read(backbone)[1] == {"cache"}
    picture = torch.rand(1, 3, 32, 48)
    states = [torch.Generator().manual_seed(seed).get_state() for seed in (0, 1)]
    assert reading_key({}, picture, states[0], None, []) != reading_key({}, picture, states[1], None, [])


def entries(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*.safetensors") if path.is_file()]


@pytest.mark.parametrize("harm", ["flipped byte", "half", "empty", "another's"])
def test_a_damaged_entry_is_computed_anew(load, tmp_path, harm):
    backbone = load()
    right, _, following = read(backbone)
    (path,) = entries(tmp_path)
    content = bytearray(path.read_bytes())
    if harm == "flipped byte":
        content[-20] ^= 4
    elif harm == "half":
        content = content[: len(content) // 2]
    elif harm == "empty":
        content = bytearray()
    else:
        read(backbone, frame=1)
        (other,) = set(entries(tmp_path)) - {path}
        content = bytearray(other.read_bytes())
    path.write_bytes(content)
    again, stages, after = read(backbone)
    assert "unet" in stages
    assert_equal(right, again)
    assert following == after
    assert read(backbone)[1] == {"cache"}  # and it is whole again


def test_a_full_disk_is_said_once_and_stops_nothing(load, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("drift.backbone.reading_cache.save_tensors", full)
    backbone = load()
    for frame in range(3):
        read(backbone, frame)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "backbone.cache=" in told
    assert "No space left on device" in told


def test_a_folder_that_cannot_be_one_stops_nothing(load, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    backbone = load(cache=str(tmp_path / "file" / "cache"))
    assert_equal(read(backbone)[0], read(load(cache=None))[0])
    assert "cannot be written" in capsys.readouterr().err


def test_where_the_cache_is_full_old_entries_make_room_and_own_ones_do_not(load, tmp_path, capsys):
    read(load())
    (old,) = entries(tmp_path)
    size = old.stat().st_size
    os.utime(old, (time.time() - 1000,) * 2)
    backbone = load(cache_gigabytes=2.5 * size / 1e9)
    for frame in (1, 2, 3):
        read(backbone, frame)
    assert old not in entries(tmp_path)
    assert len(entries(tmp_path)) == 2
    assert "is full" in capsys.readouterr().err
    assert read(backbone, 1)[1] == {"cache"}
    assert "unet" in read(backbone, 3)[1]


def test_what_a_killed_process_left_is_removed(load, tmp_path):
    left = tmp_path / "cache" / ".partial-1" / ".x.safetensors.partial"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    os.utime(left, (time.time() - 10000,) * 2)
    read(load())
    assert not left.exists()


def use(backbone, expected, first):
    """In a process of its own: reads all frames several times, others than its fellow first."""
    for turn in range(6):
        for frame in range(4):
            frame = (frame + first + turn) % 4
            assert_equal(expected[frame], read(backbone, frame)[0])


def test_two_processes_share_a_cache_that_is_too_small_at_once(load, tmp_path):
    expected = [read(load(cache=None), frame)[0] for frame in range(4)]
    read(load())
    (entry,) = entries(tmp_path)
    size = entry.stat().st_size
    backbones = [load(cache_gigabytes=2.5 * size / 1e9) for _ in range(2)]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=use, args=(backbone, expected, 2 * place))
        for place, backbone in enumerate(backbones)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.glob("cache/.partial-*/*"))


def test_files_that_are_not_the_caches_are_left_alone(load, tmp_path):
    others = [
        tmp_path / "cache" / name for name in ("model.safetensors", "ab/adapter.safetensors", "model.json")
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10000))
        os.utime(path, (time.time() - 10000,) * 2)
    read(load(cache_gigabytes=1e-9))
    assert all(path.is_file() for path in others)


def test_an_entry_that_cannot_be_touched_is_used_all_the_same(load, monkeypatch):
    right, *_ = read(load())

    def refuse(*arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("drift.backbone.reading_cache.os.utime", refuse)
    again, stages, _ = read(load())
    assert stages == {"cache"}
    assert_equal(right, again)


@pytest.mark.parametrize("folder", ["", True, 5])
def test_a_folder_that_is_none_is_named(load, folder):
    with pytest.raises(OptionError, match="cache"):
        load(cache=folder)


def test_another_schedule_of_the_same_weights_is_another_entry(load):
    read(load())
    other = load()
    other.scheduler.register_to_config(beta_end=0.02)
    assert "unet" in read(other)[1]


@pytest.mark.parametrize("size", [0, -1, "much"])
def test_a_size_that_is_none_is_named(tmp_path, size):
    with pytest.raises(OptionError, match="cache_gigabytes"):
        ReadingCache(tmp_path, size)
