"""Features from the cache are those that the model computes, whatever happens to the files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time

import pytest
import torch
from examples import ColourBackbone

from drift import Gaussian, LatentInversion, NoNoise, load_backbone
from drift.backbones.cache import CachedBackbone, FeatureCache, feature_key
from drift.errors import OptionError

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.1.attentions.0"]


@pytest.fixture
def load(checkpoint, tmp_path):
    def loaded(**options):
        options = {"layers": LAYERS, "timestep": 40, "cache": str(tmp_path / "cache")} | options
        return load_backbone(str(checkpoint), precision=options.pop("precision", "float32"), **options)

    return loaded


def read(backbone, frame=0, **options):
    """Features of a picture, whether they were computed, and the generator's next number."""
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(frame))
    model, runs = getattr(backbone, "backbone", backbone), []
    handle = model.unet.register_forward_pre_hook(lambda module, arguments: runs.append(1))
    features = backbone.features(picture, generator, **options)
    handle.remove()
    return features, bool(runs), torch.rand(1, generator=generator).item()


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.layer == other.layer
        assert one.tensors().keys() == other.tensors().keys()
        for name, value in one.tensors().items():
            assert torch.equal(value, other.tensors()[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_comes_from_the_cache_is_what_was_computed(load, precision):
    computed, _, following = read(load(cache=None, precision=precision), cross=[LAYERS[0]])
    first, was_computed, after_first = read(load(precision=precision), cross=[LAYERS[0]])
    assert was_computed
    second, was_computed, after_second = read(load(precision=precision), cross=[LAYERS[0]])
    assert not was_computed
    assert_equal(computed, first)
    assert_equal(computed, second)
    assert following == after_first == after_second  # the noise of the next frame is the same
    assert second[0].prompt_queries is not None
    assert second[1].prompt_queries is None


@pytest.mark.parametrize(
    "other",
    [
        {"timestep": 41},
        {"noise": NoNoise()},
        {"noise": LatentInversion(2)},
        {"layers": LAYERS[:1]},
        {"noise": Gaussian(2)},
        {"prompt": "a rooster"},
        {"prediction_type": "epsilon"},
        {"precision": "bfloat16"},
    ],
)
def test_other_options_are_another_entry(load, other):
    read(load())
    backbone = load(**other)
    features, was_computed, _ = read(backbone)
    assert was_computed
    assert_equal(features, read(load(cache=None, **other))[0])


def test_another_frame_prompt_or_noise_is_another_entry(load):
    backbone = load()
    read(backbone)
    assert read(backbone, frame=1)[1]
    assert read(backbone, prompt=backbone.prompt * 2)[1]
    assert read(backbone, cross=[LAYERS[0]])[1]
    assert not read(backbone)[1]
    picture = torch.rand(1, 3, 32, 48)
    states = [torch.Generator().manual_seed(seed).get_state() for seed in (0, 1)]
    assert feature_key({}, picture, states[0], None, []) != feature_key({}, picture, states[1], None, [])


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
    again, was_computed, after = read(backbone)
    assert was_computed
    assert_equal(right, again)
    assert following == after
    assert not read(backbone)[1]  # and the entry is whole again


def test_a_full_disk_is_said_once_and_stops_nothing(load, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("drift.backbones.cache.save_tensors", full)
    backbone = load()
    for frame in range(3):
        read(backbone, frame)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "backbone.cache=" in warning
    assert "No space left on device" in warning


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
    assert not read(backbone, 1)[1]
    assert read(backbone, 3)[1]


def test_what_a_killed_process_left_is_removed(load, tmp_path):
    left = tmp_path / "cache" / ".partial-1" / ".x.safetensors.partial"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    os.utime(left, (time.time() - 10000,) * 2)
    read(load())
    assert not left.exists()


def use(backbone, expected, first):
    """In a process of its own: features of all frames several times, in another order than the other process."""
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

    monkeypatch.setattr("drift.backbones.cache.os.utime", refuse)
    again, was_computed, _ = read(load())
    assert not was_computed
    assert_equal(right, again)


@pytest.mark.parametrize("folder", ["", True, 5])
def test_a_folder_that_is_none_is_named(load, folder):
    with pytest.raises(OptionError, match="cache"):
        load(cache=folder)


def test_another_schedule_of_the_same_weights_is_another_entry(load):
    read(load())
    other = load()
    other.scheduler.register_to_config(beta_end=0.02)
    assert read(other)[1]


@pytest.mark.parametrize("size", [0, -1, "much"])
def test_a_size_that_is_none_is_named(tmp_path, size):
    with pytest.raises(OptionError, match="cache_gigabytes"):
        FeatureCache(tmp_path, size)


def test_the_cache_wraps_any_backbone(tmp_path):
    class Counting(ColourBackbone, torch.nn.Module):
        calls = 0

        def features(self, *arguments, **options):
            self.calls += 1
            return super().features(*arguments, **options)

    torch.nn.Module.__init__(inner := Counting.__new__(Counting))
    ColourBackbone.__init__(inner)
    cached = CachedBackbone(inner, FeatureCache(tmp_path, 1))
    frames = torch.rand(1, 3, 8, 8)
    first, second = (cached.features(frames, torch.Generator()) for _ in range(2))
    assert inner.calls == 1
    assert_equal(first, second)
    assert (cached.stride, cached.layers) == (inner.stride, inner.layers)
    assert not hasattr(cached, "prompt_keys"), "what the backbone lacks, the wrapper lacks too"


def test_frames_with_generators_of_their_own_are_entries_and_missing_ones_share_a_pass(load):
    pictures = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    batches = []

    def read(backbone, places, *, cross=(LAYERS[0],)):
        generators = [torch.Generator().manual_seed(place) for place in places]
        handle = getattr(backbone, "backbone", backbone).unet.register_forward_pre_hook(
            lambda module, arguments, options: batches.append(len(options.get("sample", arguments[0]))),
            with_kwargs=True,
        )
        found = backbone.features(pictures[places], generators, cross=cross)
        handle.remove()
        return found, [torch.rand(1, generator=one).item() for one in generators]

    expected, following = read(load(cache=None), [0, 1, 2])
    cached = load()
    read(cached, [1])
    batches.clear()
    for _ in range(2):  # two frames are computed, then none
        found, after = read(cached, [0, 1, 2])
        assert batches == [2]
        assert after == following
        for one, other in zip(found, expected, strict=True):
            for name, value in one.tensors().items():
                assert torch.allclose(value, other.tensors()[name], atol=1e-5), name
