"""Where a view's places are seen again, and the loss that has attention find them there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import CUTOUTS, GROUNDS
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.pretrain.correspondence import seen_again
from drift.pretrain.diffusion import build_unet, tie_keys_to_queries
from drift.pretrain.matching import matching_loss
from drift.pretrain.queries import self_attentions
from drift.pretrain.scene_batches import SceneDataset
from drift.pretrain.scenes import Light, PlacedObject, Scene, imagine, moved, render
from drift.pretrain.warping import Bend, Placement

SIDE, GRID = 128, 16
PLAIN = Light(1.0, (1.0, 1.0, 1.0), 0.0)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture in which every place has a colour of its own: red by column, green by row."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * columns, 255 * rows, 128 + 0 * rows], -1).astype(np.uint8)


def plain(scene: Scene) -> Scene:
    """Without light, shadows, blur or grain: then what is seen again has its colour again."""
    objects = tuple(
        replace(placed, lights=(PLAIN,), shadow=None, cutout=_coloured(placed.cutout))
        for placed in scene.objects
    )
    ground = smooth(*scene.ground.shape[:2])
    return replace(scene, ground=ground, ground_lights=(PLAIN,), objects=objects, blur=0.0, grain=0.0)


def _coloured(cutout):
    rgba = cutout.rgba.copy()
    rgba[..., :3] = 255 - smooth(*rgba.shape[:2])
    rgba[..., 3] = 255
    return replace(cutout, rgba=rgba)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_is_seen_again_has_the_same_colour(seed: int) -> None:
    random = np.random.default_rng(seed)
    first = imagine(CUTOUTS, GROUNDS, random)
    first = plain(first)
    second = plain(moved(first, random))
    (image, covers), (later, later_covers) = (render(scene, SIDE, random) for scene in (first, second))
    places = seen_again(first, second, covers, later_covers, grid=GRID)
    assert places.shape == (GRID, GRID, 2)
    known = np.isfinite(places).all(-1)
    centres = ((np.arange(GRID) + 0.5) / GRID * SIDE - 0.5).round().astype(int)
    before = image[centres][:, centres][known]
    columns, rows = np.rint(places[known] * SIDE - 0.5).astype(int).clip(0, SIDE - 1).T
    difference = np.abs(before - later[rows, columns]).max(-1)
    if len(difference):
        assert np.mean(difference < 0.08) > 0.95  # steep small objects change more than that within a pixel


def still(*objects: PlacedObject) -> Scene:
    ground = Placement((0.5, 0.5), 1.5, 0.0, False)
    return Scene(GROUNDS[0], ground, (PLAIN,), objects, blur=0.0, grain=0.0)


def covers_of(scene: Scene) -> list[np.ndarray]:
    return render(scene, SIDE, np.random.default_rng(0))[1]


def test_a_still_scene_is_seen_again_where_it_was() -> None:
    scene = still(PlacedObject(CUTOUTS[0], Placement((0.4, 0.5), 0.5, 0.0, False), (PLAIN,)))
    places = seen_again(scene, scene, covers_of(scene), covers_of(scene), grid=GRID)
    centres = (np.arange(GRID) + 0.5) / GRID
    known = np.isfinite(places).all(-1)
    assert known.mean() > 0.8
    assert np.allclose(places[known], np.stack(np.meshgrid(centres, centres), -1)[known], atol=1e-5)


def test_what_leaves_or_is_covered_is_not_seen_again() -> None:
    empty = still()
    shifted = replace(empty, ground_placement=replace(empty.ground_placement, centre=(0.75, 0.5)))
    places = seen_again(empty, shifted, [], [], grid=GRID)
    assert np.isfinite(places[:, : 3 * GRID // 4]).all()
    assert np.isnan(places[:, 3 * GRID // 4 :]).all()
    before = still(_opaque((0.25, 0.25)), _opaque((0.75, 0.75)))
    after = still(_opaque((0.25, 0.25)), _opaque((0.25, 0.25)))  # the nearer one has come before the other
    places = seen_again(before, after, covers_of(before), covers_of(after), grid=GRID)
    assert np.isnan(places[2:6, 2:6]).all()
    assert np.allclose(places[11, 11] + 0.5, (11.5 / GRID, 11.5 / GRID), atol=1e-5)


def _opaque(centre: tuple[float, float]) -> PlacedObject:
    return PlacedObject(_coloured(CUTOUTS[0]), Placement(centre, 0.4, 0.0, False), (PLAIN,))


def test_bent_objects_of_the_first_view_are_refused() -> None:
    bent = replace(_opaque((0.5, 0.5)), bend=Bend(np.zeros((5, 5, 2), np.float32)))
    scene = still(bent)
    with pytest.raises(ValueError, match="unbent"):
        seen_again(scene, scene, covers_of(scene), covers_of(scene), grid=GRID)


def test_batches_tell_where_each_cell_is_seen_again() -> None:
    batch = SceneDataset(CUTOUTS, GROUNDS, side=SIDE, length=1, batch_size=2)[0]
    assert batch.seen_again.shape == (2, GRID, GRID, 2)
    known = batch.seen_again[batch.seen_again.isfinite()]
    assert 0 <= known.min() <= known.max() <= 1


def one_attention():
    unet = build_unet()
    tie_keys_to_queries(unet)
    return self_attentions(unet)[0]


def identity_places(scenes: int, grid: int) -> torch.Tensor:
    centres = (torch.arange(grid) + 0.5) / grid
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns, rows], -1).expand(scenes, -1, -1, -1)


def test_the_matching_loss_is_small_where_attention_finds_the_place_and_a_guess_elsewhere() -> None:
    attention, places, weights = one_attention(), identity_places(1, 4), torch.ones(1)
    distinct = 40 * torch.eye(16, 128)
    same, indifferent = torch.stack([distinct, distinct]), torch.ones(2, 16, 128)
    assert matching_loss([(attention, same)], places, weights) < 1e-3
    assert matching_loss([(attention, indifferent)], places, weights) == pytest.approx(np.log(16), abs=1e-4)
    turned = torch.stack([distinct, distinct.roll(1, dims=0)])
    assert matching_loss([(attention, turned)], places, weights) > 10


def test_the_matching_loss_follows_a_shift_and_passes_over_what_is_hidden() -> None:
    attention, weights = one_attention(), torch.ones(1)
    distinct = 40 * torch.eye(16, 128)
    places = identity_places(1, 4) + torch.tensor([0.25, 0.0])  # one column to the right
    places[:, :, 3] = torch.nan
    shifted = torch.stack([distinct, distinct.unflatten(0, (4, 4)).roll(1, dims=1).flatten(0, 1)])
    assert matching_loss([(attention, shifted)], places, weights) < 1e-3
    nothing = torch.full_like(places, torch.nan)
    assert matching_loss([(attention, shifted)], nothing, weights) == 0


def test_views_side_by_side_count_as_in_turn_and_coarse_layers_take_the_mean_place() -> None:
    attention, weights = one_attention(), torch.rand(3)
    tokens = torch.randn(6, 16, 128)
    fine = identity_places(3, 8)
    one = matching_loss([(attention, tokens)], fine, weights)
    joined = tokens.unflatten(0, (3, 2)).flatten(1, 2)
    assert torch.allclose(one, matching_loss([(attention, joined)], fine, weights))
    assert torch.allclose(one, matching_loss([(attention, tokens)], identity_places(3, 4), weights))
