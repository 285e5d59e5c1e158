"""The hard clips and what it takes to hold them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from examples import moving_square, write_davis

from benchmarks import loops, scene_cuts
from benchmarks.hard_clips import CASES, FRAMES, sample_scene, write_cases, write_variants
from benchmarks.holding_on import held
from datamodules.davis import Davis2016, Davis2017


@pytest.fixture(scope="module")
def clips():
    scene = sample_scene()
    return {name: [case(scene, t) for t in range(FRAMES)] for name, case in CASES.items()}


def centres(clip):
    return np.array([[np.mean(axis) for axis in np.nonzero(mask == 1)] for _, mask in clip])


def test_the_clips_are_as_hard_as_they_claim(clips):
    areas = {name: [np.count_nonzero(mask) for _, mask in clip] for name, clip in clips.items()}
    steps = np.abs(np.diff(centres(clips["fast_pan"])[:, 1]))
    assert 90 < steps.max() < 110
    assert 5.5 < areas["growth"][-1] / areas["growth"][0] < 6.5
    for name in ("occlusion", "return"):
        hidden = np.flatnonzero(np.array(areas[name]) == 0)
        assert 9 <= len(hidden) <= 12
        assert hidden[-1] < FRAMES - 8, "there is time to be found again"
    first, last = clips["twins"][0][1], clips["twins"][-1][1]
    sides = [[np.nonzero(mask == i)[1].mean() for i in (1, 2)] for mask in (first, last)]
    assert sides[0][0] < sides[0][1]
    assert sides[1][0] > sides[1][1], "they pass each other"
    assert min(np.count_nonzero(mask == 1) for _, mask in clips["twins"]) < np.count_nonzero(first == 1)


def test_masks_cover_what_is_drawn(clips):
    scene = sample_scene()
    frame, mask = clips["growth"][10]
    differs = np.abs(frame.astype(int) - scene.background()).sum(-1) > 60
    assert (differs & (mask > 0)).sum() / (mask > 0).sum() > 0.9
    assert (differs & (mask == 0)).sum() < 0.1 * (mask > 0).sum(), "but for its soft edge"


def test_true_masks_hold_every_clip_and_empty_ones_none(clips):
    for name, clip in clips.items():
        truth = [mask for _, mask in clip]
        assert held(name, truth, truth)
        assert not held(name, [mask * 0 for mask in truth], truth)


def test_swapped_twins_and_a_mask_that_stays_on_the_tree_are_not_held(clips):
    truth = [mask for _, mask in clips["twins"]]
    assert not held("twins", [np.choose(mask, [0, 2, 1]) for mask in truth], truth)
    truth = [mask for _, mask in clips["occlusion"]]
    stays = [mask if mask.any() else truth[0] for mask in truth]
    assert not held("occlusion", stays, truth)


def test_clips_are_read_as_davis(tmp_path):
    write_cases(tmp_path)
    data = Davis2017(tmp_path)
    assert [clip.name for clip in data.predict_dataloader()] == list(CASES)
    assert {len(clip) for clip in data.predict_dataloader()} == {FRAMES}


def test_variants_are_the_clips_reversed_and_thinned(tmp_path):
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        folder = tmp_path / "davis" / kind / "480p" / "dog"
        folder.mkdir(parents=True)
        for t in range(7):
            (folder / f"{t:05d}.{ending}").write_text(str(t))
    names = write_variants(tmp_path / "davis", tmp_path / "variants")
    assert names == ["dog-reversed", "dog-third", "dog-reversed-third"]
    frames = tmp_path / "variants" / "JPEGImages" / "480p"
    read = {name: [path.read_text() for path in sorted((frames / name).iterdir())] for name in names}
    assert read["dog-third"] == ["0", "3", "6"]
    assert read["dog-reversed"] == list("6543210")
    assert read["dog-reversed-third"] == ["6", "3", "0"]
    assert Davis2016(tmp_path / "variants").sequences == names


def test_looped_clips_are_compared_at_both_ends(tmp_path, monkeypatch, capsys):
    root = write_davis(tmp_path / "data", {"square": moving_square(4, (64, 96), name="square")}, binary=True)
    words = [str(root), "--frames", "9", "--json", str(tmp_path / "out.json"), "--clips", "square"]
    monkeypatch.setattr(sys, "argv", ["loops", *words, "refinement=none", "adaptation=none", "logger=none"])
    loops.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures.keys() == {"square", "mean", "ratio"}
    assert figures["square"] == figures["mean"]
    assert loops.spans({"J": [1, 1, 0, 0.5], "F": [1, 0.5, 0, 0.5]}, 2) == (0.875, 0.25)


def test_ratios_of_one_scene_and_of_a_cut_are_reported(tmp_path, monkeypatch, capsys):
    clips = {name: moving_square(14, (64, 96), name=name) for name in ("ant", "bee")}
    clips["bee"] = replace(clips["bee"], frames=[255 - frame[::-1] for frame in clips["bee"].frames])
    root = write_davis(tmp_path / "data", clips, binary=True)
    monkeypatch.setattr(sys, "argv", ["scene_cuts", str(root), "--json", str(tmp_path / "out.json")])
    scene_cuts.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["cuts"] == 2
    assert figures["largest ratio of cuts"] < figures["smallest ratio within a clip, step 1"]
