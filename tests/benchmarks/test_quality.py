"""Rows of the quality table, shared features, the search for options, and the pointing game."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from examples import CUTOUTS, GROUNDS, NAMES, Clips, moving_square, write_davis

from benchmarks import pointing, quality, tuning
from benchmarks.quality import PATCHES, Row, Tracked, run_rows
from benchmarks.wrapping import SharedFeatures
from benchmarks.yardsticks import ColourPatches, ImageNetFeatures, copy_first_mask, warp_by_flow
from drift.backbones import load_backbone
from drift.metrics.davis import DavisScore
from drift.metrics.functional import jaccard
from drift.stopwatch import Stopwatch
from pretraining.text import token_places


def last_iou(clip, masks):
    return jaccard(
        torch.from_numpy(list(masks)[-1]) > 0, torch.from_numpy(clip.truth[len(clip) - 1]) > 0
    ).item()


def test_flow_follows_a_moving_square():
    clip = moving_square(6, (64, 96))
    assert last_iou(clip, warp_by_flow(clip)) > 0.6 > last_iou(clip, copy_first_mask(clip))


def test_colour_patches_attend_by_squared_distance():
    (layer,) = ColourPatches().features(torch.rand(2, 3, 16, 24), torch.Generator())
    assert layer.tokens.shape == (2, 2, 3, 48)
    logits = layer.queries[0, 0, 0, 0] @ layer.keys[1, 0].flatten(0, 1).T
    query, keys = layer.tokens[0, 0, 0], layer.tokens[1].flatten(0, 1)
    distances = (query - keys).square().sum(-1)
    assert torch.allclose(logits - query.square().sum(), -distances, atol=1e-5)


def test_imagenet_features_lie_on_the_first_blocks_grid():
    backbone = ImageNetFeatures((4, 10))
    (layer,) = backbone.features(torch.rand(1, 3, 64, 88), torch.Generator())
    assert [layer.layer] == list(backbone.layers)
    assert layer.tokens.shape == (1, 8, 11, 40 + 112)
    assert torch.allclose(layer.tokens.norm(dim=-1), torch.tensor(math.sqrt(2)), atol=1e-4)


def test_the_imagenet_network_classifies_a_cat():
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()[20:280, 80:340].copy()).permute(2, 0, 1)[None].float() / 255
    backbone = ImageNetFeatures((4,))
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        assert int(backbone.network(backbone.normalised(image)).argmax()) in range(281, 286), (
            "ImageNet's cats"
        )


def test_rows_are_scored_and_timed_together():
    clips = Clips(moving_square(4, name="a"), moving_square(5, name="b"))
    shared = SharedFeatures(ColourPatches())
    chosen = [
        Row("first", "colour", Tracked(shared, PATCHES)),
        Row("second", "colour", Tracked(shared, PATCHES | {"top_k": 1, "radius": 0})),
        Row("copy", "", lambda clip, stopwatch: copy_first_mask(clip)),
    ]
    figures = run_rows(chosen, clips)
    assert [score.sequence for score in figures["first"].scores.sequences] == ["a", "b"]
    assert figures["first"].scores.j_and_f > figures["copy"].scores.j_and_f
    assert figures["first"].feature_seconds == figures["second"].feature_seconds > 0
    assert figures["copy"].feature_seconds == 0


class NoisyPatches(ColourPatches):
    """Colour patches with noise; counts how often features are computed."""

    computed = 0

    def features(self, frames, generator, *, prompt=None, cross=()):
        self.computed += 1
        noise = torch.randn(frames.shape, generator=generator[0])
        return super().features(frames + noise / 10, generator)


def test_shared_features_are_computed_once_and_are_those_of_a_tracker_alone():
    clip, noisy = moving_square(4), NoisyPatches()
    alone = list(Tracked(NoisyPatches(), PATCHES)(clip, Stopwatch()))
    shared = SharedFeatures(noisy)
    pairs = zip(*(Tracked(shared, PATCHES)(clip, Stopwatch()) for _ in range(2)), strict=True)
    for mask, (first, second) in zip(alone, pairs, strict=True):
        assert np.array_equal(mask, first)
        assert np.array_equal(mask, second)
    assert noisy.computed == len(clip)


def test_the_search_varies_one_option_at_a_time_and_scores_as_a_run_does():
    clip = moving_square(4)
    features = tuning.compute_features(ColourPatches(), Clips(clip), frames=4)
    start = PATCHES | {"memory_frames": 2}
    results = list(tuning.search(features, ["patches"], start, rounds=1))
    assert results[0][0] == start
    assert len({json.dumps(options, sort_keys=True) for options, _, _ in results}) == len(results)
    best, top = dict(start), results[0][1]
    for options, result, _ in results[1:]:
        assert sum(options[name] != best[name] for name in best) <= 2, "at most the option that is varied"
        if result > top:
            best, top = options, result
    masks = list(Tracked(ColourPatches(), best)(clip, Stopwatch()))
    score = DavisScore(["square"])
    for index, mask in enumerate(masks):
        truth = torch.from_numpy(clip.truth[index])
        score.update(
            torch.from_numpy(mask), truth, sequence="square", frame=index, frames=len(masks) + 1, objects=(1,)
        )
    assert 0.5 < top == pytest.approx(score.compute().j_and_f, abs=0.02), "but for half precision"


def test_the_search_starts_from_the_given_options(tmp_path, monkeypatch):
    root = write_davis(tmp_path / "data", {"ant": moving_square(3, name="ant")}, binary=True)
    path = tmp_path / "results.json"
    words = ["--row", "colour", "--rounds", "0", "--start", '{"top_k": 2}', "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["tuning", str(root), *words])
    tuning.main()
    (result,) = json.loads(path.read_text())
    assert result["top_k"] == 2
    assert result["temperature"] == tuning.START["colour"]["temperature"]
    assert 0 < result["J&F"] <= 1


def test_composites_show_both_objects():
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


def test_name_maps_are_the_cross_attention_of_a_checkpoint(checkpoint):
    layer = "up_blocks.1.attentions.2"
    backbone = load_backbone(str(checkpoint), layers=[layer], timestep=100, precision="float32")
    text = pointing.TextEncoder.of(str(checkpoint))
    composite = pointing.composites(CUTOUTS, GROUNDS, count=1, side=64)[0]
    prompt = text(composite.caption)
    assert torch.equal(text(""), backbone.prompt)
    maps = pointing.name_maps(backbone, text, composite, [layer])[layer]
    assert len(maps) == len(composite.names) == 2
    assert set(composite.names) <= set(NAMES)
    noisy = backbone.noised(backbone.encode(composite.image[None]), torch.Generator().manual_seed(0))
    queries = backbone.attend(noisy, prompt, cross=[layer]).prompt_queries[layer][0]
    logits = queries.flatten(1, 2) @ backbone.prompt_keys(layer, prompt[0]).mT / math.sqrt(queries.shape[-1])
    places = token_places(text.tokenizer, composite.caption, composite.names[0])
    assert torch.allclose(maps[0].flatten(), logits.softmax(-1)[..., places].mean((0, -1)), atol=1e-6)


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
