"""Scenes: what they say they show is what they show, and the second view is the same scene, moved."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from examples import CUTOUTS, GROUNDS, NAMES, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.pictures import Cutout
from pretraining.scenes import (
    Light,
    PlacedObject,
    Scene,
    SceneDataset,
    caption,
    imagine,
    moved,
    render,
    vocabulary_captions,
)
from pretraining.warping import Bend, Placement, bend, similarity, warp

SIDE = 32
PLAIN = Light(1.0, (1.0, 1.0, 1.0), 0.0)


def batches(*, length: int = 8, **options: int) -> SceneDataset:
    return SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=length, **options)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "a landscape"),
        (["tiger"], "a tiger"),
        (["emperor tamarin"], "an emperor tamarin"),
        (["tiger", "apple", "apple"], "a tiger and two apples"),
        (["apple", "tiger", "apple"], "two apples and a tiger"),
        (["fern"] * 3 + ["owl", "tiger"], "three ferns and an owl and a tiger"),
        (["fern"] * 9, "six ferns"),
    ],
)
def test_a_caption_counts_what_it_names(names: list[str], expected: str) -> None:
    assert caption(names) == f"a photo of {expected}"


def test_the_vocabulary_holds_every_name() -> None:
    text = " ".join(vocabulary_captions(CUTOUTS))
    assert all(name in text and f"{name}s" in text for name in NAMES)


def test_a_batch_is_two_views_of_each_scene_and_what_is_in_them() -> None:
    for batch in batches(batch_size=3):
        assert batch.views.shape == (3, 2, 3, SIDE, SIDE)
        assert batch.views.dtype == torch.float32
        assert -1 <= batch.views.min() < batch.views.max() <= 1
        for text, names in zip(batch.captions, batch.names, strict=True):
            assert text.startswith("a photo of ")
            assert all(name in text for name in names)
            assert {name for name in NAMES if name in text} == set(names)


def test_scenes_show_objects_and_some_show_none() -> None:
    captions = [text for batch in batches(length=20, batch_size=3) for text in batch.captions]
    assert "a photo of a landscape" in captions
    assert all(any(name in text for text in captions) for name in NAMES)


def test_a_scene_depends_on_its_seed_and_number_only() -> None:
    views = batches(first=0)[5].views
    for again in (batches()[5], batches(first=5)[0], batches(first=3, length=3)[2]):
        assert torch.equal(again.views, views)
    assert torch.equal(batches(batch_size=2)[2].views[1], views[0]), "however they are batched"
    assert not torch.equal(batches(seed=1)[5].views, views)
    assert not torch.equal(batches()[4].views, views)


def test_the_scenes_end_at_their_length() -> None:
    scenes = batches(length=3, first=5)
    assert len(scenes) == len(list(scenes)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            scenes[index]


def disc(colour: tuple[int, int, int], name: str = "disc") -> Cutout:
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[..., :3] = colour
    cv2.circle(rgba, (32, 32), 30, (*colour, 255), -1)
    return Cutout(rgba, name)


def scene_of(*objects: PlacedObject) -> Scene:
    ground = np.zeros((50, 50, 3), dtype=np.uint8)
    return Scene(ground, Placement((0.5, 0.5), 1.2, 0, False), (PLAIN,), objects, blur=0, grain=0)


def at(x: float, y: float, cutout: Cutout, size: float = 0.4) -> PlacedObject:
    return PlacedObject(cutout, Placement((x, y), size, 0, False), (PLAIN,))


def test_objects_lie_where_they_are_placed_and_the_nearer_hides_the_farther() -> None:
    far, near = disc((255, 0, 0)), disc((0, 255, 0))
    scene = scene_of(at(0.3, 0.5, far), at(0.5, 0.5, near))
    image, (far_cover, near_cover) = render(scene, 100, np.random.default_rng(0))
    assert image[50, 50] == pytest.approx([0, 1, 0], abs=0.02)
    assert image[50, 18] == pytest.approx([1, 0, 0], abs=0.02)
    assert image[5, 5] == pytest.approx([0, 0, 0], abs=0.02)
    rows, columns = np.nonzero(near_cover > 0.5)
    assert (rows.mean(), columns.mean()) == pytest.approx((50, 50), abs=1)
    assert len(rows) == pytest.approx(math.pi * (0.4 * 100 * 30 / 64) ** 2, rel=0.05)
    assert far_cover[50, 50] == pytest.approx(0, abs=0.02)
    assert (far_cover + near_cover).max() < 1.01


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_covers_are_shares_and_the_picture_is_in_range(seed: int) -> None:
    random = np.random.default_rng(seed)
    scene = moved(imagine(CUTOUTS, GROUNDS, random), random)
    image, covers = render(scene, SIDE, random)
    assert image.min() >= 0
    assert image.max() <= 1
    assert len(covers) == len(scene.objects)
    assert np.all(sum(covers, np.zeros((SIDE, SIDE))) <= 1 + 1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_second_view_shows_the_same_objects_a_little_elsewhere(seed: int) -> None:
    random = np.random.default_rng(seed)
    scene = imagine(CUTOUTS, GROUNDS, random)
    later = moved(scene, random)
    assert later.caption == scene.caption
    assert later.ground is scene.ground
    for before, after in zip(scene.objects, later.objects, strict=True):
        assert after.cutout is before.cutout
        assert after.placement.mirrored == before.placement.mirrored
        assert 0.69 < after.placement.size / before.placement.size < 1.45
        assert abs(after.placement.degrees - before.placement.degrees) <= 26 + 1e-9
        assert np.abs(np.subtract(after.placement.centre, before.placement.centre)).max() < 0.5


def test_imagine_gives_as_many_kinds_as_are_asked_for() -> None:
    cutouts = [Cutout(noise(48, 60, 4, seed=i), f"thing{i}") for i in range(500)]
    random = np.random.default_rng(0)
    for kinds in (0, 1, 4):
        scene = imagine(cutouts, GROUNDS, random, kinds=kinds)
        assert len({placed.cutout.name for placed in scene.objects}) == kinds


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_similarity_maps_the_centre_and_the_longest_side(mirrored: bool) -> None:
    matrix = similarity((40, 80), Placement((0.25, 0.75), 0.5, 90, mirrored), 200, longest=True)
    assert matrix @ (40, 20, 1) == pytest.approx((50, 150))
    ends = [matrix @ (x, 20, 1) for x in (0, 80)]
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(100)
    assert np.linalg.det(matrix[:, :2]) * (-1 if mirrored else 1) > 0


def test_a_strong_reduction_does_not_alias() -> None:
    stripes = np.tile(np.uint8([[[0, 0, 0], [255, 255, 255]]]), (256, 128, 1))
    matrix = similarity((256, 256), Placement((0.5, 0.5), 1, 0, False), 16, longest=True)
    assert warp(stripes, matrix, 16, cv2.BORDER_REFLECT_101).std() < 3


def test_a_bend_of_nothing_changes_nothing_and_one_of_something_does() -> None:
    layer = noise(SIDE, SIDE, 4).astype(np.float32) / 255
    assert np.allclose(bend(layer, Bend(np.zeros((5, 5, 2), dtype=np.float32))), layer)
    assert not np.allclose(bend(layer, Bend.drawn(np.random.default_rng(0), 0.05)), layer, atol=0.1)


def test_light_moves_contrast_about_middle_grey() -> None:
    grey = np.full((2, 2, 3), 0.5, dtype=np.float32)
    assert np.allclose(Light(1.7, (1.1, 0.9, 1.0), 0.0).on(grey), 0.5)
    assert np.allclose(Light(2.0, (1, 1, 1), 0.1).on(grey + 0.1), 0.8)
    assert Light(9, (1, 1, 1), 0).on(grey + 0.4).max() == 1
