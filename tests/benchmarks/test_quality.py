"""The quality table's rows: each follows a moving square, and shared features are the features."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from examples import CUTOUTS, GROUNDS, NAMES, Clips, moving_square, write_davis

from benchmarks import pointing, quality, tuning
from benchmarks.quality import PATCHES, Row, run_rows, tracked
from benchmarks.yardsticks import ColourPatches, ImageNetFeatures, copy_first_mask, warp_by_flow
from drift.backbone import load_latent_diffusion
from drift.metrics.functional import jaccard
from drift.pretrain.scenes import vocabulary_captions
from drift.pretrain.text import build_tokenizer
from drift.stopwatch import Stopwatch


def overlap(clip, masks):
    return jaccard(
        torch.from_numpy(list(masks)[-1]) > 0, torch.from_numpy(clip.truth[len(clip) - 1]) > 0
    ).item()


def test_copying_stands_still_and_flow_follows():
    clip = moving_square(6, (64, 96))
    assert overlap(clip, warp_by_flow(clip)) > 0.6 > overlap(clip, copy_first_mask(clip))


def test_colour_patches_attend_by_squared_distance():
    patches = ColourPatches()
    frames = torch.rand(2, 3, 16, 24)
    (reading,) = patches.read(patches.encode(frames), torch.Generator())
    assert reading.inputs.shape == (2, 2, 3, 48)
    logits = reading.queries[0, 0, 0, 0] @ reading.keys[1, 0].flatten(0, 1).T
    query, keys = reading.inputs[0, 0, 0], reading.inputs[1].flatten(0, 1)
    distances = (query - keys).square().sum(-1)
    assert torch.allclose(logits - query.square().sum(), -distances, atol=1e-5)


def test_imagenet_features_lie_on_the_first_blocks_grid():
    network = ImageNetFeatures((4, 10))
    (reading,) = network.read(network.encode(torch.rand(1, 3, 64, 88)), torch.Generator())
    assert reading.inputs.shape == (1, 8, 11, 40 + 112)
    assert torch.allclose(reading.inputs.norm(dim=-1), torch.tensor(math.sqrt(2)), atol=1e-4)


def test_the_imagenet_network_knows_a_cat():
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()[20:280, 80:340].copy()).permute(2, 0, 1)[None].float() / 255
    network = ImageNetFeatures((4,))
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        assert int(network._network(network.encode(image)).argmax()) in range(281, 286), "ImageNet's cats"


def test_rows_are_scored_and_timed_side_by_side():
    clips = Clips(moving_square(4, name="a"), moving_square(5, name="b"))
    shared = ColourPatches()
    chosen = [
        Row("one", "colour", tracked(shared, PATCHES)),
        Row("two", "colour", tracked(shared, PATCHES | {"top_k": 1, "radius": 0})),
        Row("copy", "", lambda clip, stopwatch: copy_first_mask(clip)),
    ]
    figures = run_rows(chosen, clips)
    assert [one.sequence for one in figures["one"].scores.sequences] == ["a", "b"]
    assert figures["one"].scores.j_and_f > figures["copy"].scores.j_and_f
    assert figures["one"].feature_seconds == figures["two"].feature_seconds > 0
    assert figures["copy"].feature_seconds == 0


def test_shared_features_are_those_of_each_tracker_alone():
    clip = moving_square(4)
    alone = [list(tracked(ColourPatches(), PATCHES)(clip, Stopwatch())) for _ in range(2)]
    figures = run_rows([Row("one", "colour", tracked(ColourPatches(), PATCHES))], Clips(clip))
    assert np.array_equal(alone[0], alone[1])
    assert 0 < figures["one"].scores.j_and_f <= 1


def test_the_search_varies_one_option_at_a_time_and_gives_what_a_run_gives():
    clip = moving_square(4)
    read = tuning.read_clips(ColourPatches(), Clips(clip), frames=4)
    start = PATCHES | {"memory_frames": 2}
    tried = list(tuning.search(read, [], start, rounds=1))
    assert tried[0][0] == start
    assert len({json.dumps(options, sort_keys=True) for options, _, _ in tried}) == len(tried)
    best, top = dict(start), tried[0][1]
    for options, result, _ in tried[1:]:
        assert sum(options[name] != best[name] for name in best) <= 2, "at most the option in hand"
        if result > top:
            best, top = options, result
    assert 0.5 < top <= 1


def test_composites_show_two_objects_where_they_say():
    for composite in pointing.composites(CUTOUTS, GROUNDS, count=3, side=48):
        assert len(set(composite.names)) == 2
        assert all(name in composite.caption for name in composite.names)
        assert all(0.05 <= shown.mean() <= 0.33 for shown in composite.shown)
        assert not np.logical_and(*composite.shown).any()


def test_a_hit_is_a_maximum_on_the_object():
    composite = pointing.composites(CUTOUTS, GROUNDS, count=1, side=48)[0]
    maps = torch.stack([torch.from_numpy(shown.astype(np.float32)) for shown in composite.shown])
    assert pointing.hits(maps, composite) == [True, True]
    assert pointing.hits(maps.flip(0), composite) == [False, False]


def test_the_maps_of_names_are_read_from_a_checkpoint(checkpoint):
    backbone = load_latent_diffusion(str(checkpoint), layers=["up_blocks.1.attentions.2"], timestep=0)
    backbone.tokenizer = build_tokenizer(vocabulary_captions(CUTOUTS))
    backbone.text_encoder.resize_token_embeddings(len(backbone.tokenizer))
    composite = pointing.composites(CUTOUTS, GROUNDS, count=1, side=64)[0]
    maps = pointing.name_maps(backbone, composite, ["up_blocks.1.attentions.2"], 100)
    assert maps["up_blocks.1.attentions.2"].shape[0] == len(composite.names) == 2
    assert set(composite.names) <= set(NAMES)


def test_the_table_the_figure_and_the_json_are_written(tmp_path, monkeypatch, capsys):
    root = write_davis(tmp_path / "data", {"ant": moving_square(4, name="ant")}, binary=True)
    words = ["--rows", "copy,colour", "--json", str(tmp_path / "q.json"), "--figure", str(tmp_path / "q.png")]
    monkeypatch.setattr(sys, "argv", ["quality", str(root), *words])
    quality.main()
    figures = json.loads((tmp_path / "q.json").read_text())
    assert figures["sequences"] == 1
    assert 0 < figures["J&F_copy"] < figures["J&F_colour"] <= 1
    assert figures["J&F_colour"] == pytest.approx((figures["J_colour"] + figures["F_colour"]) / 2)
    assert "ant" in capsys.readouterr().out
    assert (tmp_path / "q.png").stat().st_size > 1000
