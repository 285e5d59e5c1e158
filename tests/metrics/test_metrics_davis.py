"""`DavisScore`: scored frames, averaging, and invariance to the order and distribution of updates."""

from __future__ import annotations

import math
import pickle
import random
import warnings
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from drift.errors import InputError, OptionError
from drift.metrics.davis import DavisScore, DavisScores, scored_frames
from drift.metrics.functional import boundary_f, jaccard, statistics

OBJECTS = {"bear": [1, 2], "cow": [1], "eel": [3, 7, 9]}
FRAMES = {"bear": 9, "cow": 6, "eel": 4}
SIZE = (24, 31)

Update = tuple[Tensor, Tensor, dict[str, Any]]


def place(
    frame: int = 1, frames: int = 3, objects: Sequence[int] = (1,), sequence: str = "cow"
) -> dict[str, Any]:
    """Keyword arguments of `update`."""
    return {"sequence": sequence, "frame": frame, "frames": frames, "objects": list(objects)}


def random_ids(generator: np.random.Generator, objects: list[int]) -> Tensor:
    mask = np.zeros(SIZE, dtype=np.uint8)
    for object_id in objects:
        top, left = generator.integers(0, 16, 2)
        mask[top : top + generator.integers(3, 12), left : left + generator.integers(3, 16)] = object_id
    return torch.from_numpy(mask)


def make_updates(seed: int = 0) -> list[Update]:
    """One update per frame of three sequences: random masks, and predictions shifted by up to 2 pixels."""
    generator = np.random.default_rng(seed)
    updates = []
    for name, objects in OBJECTS.items():
        for frame in range(FRAMES[name]):
            truth = random_ids(generator, objects)
            prediction = truth.roll(tuple(generator.integers(-2, 3, 2).tolist()), dims=(0, 1))
            updates.append((prediction, truth, place(frame, FRAMES[name], objects, name)))
    return updates


def scores_of(updates: list[Update], sequences: tuple[str, ...] = ("bear", "cow", "eel")) -> DavisScores:
    score = DavisScore(sequences)
    for prediction, truth, where in updates:
        score.update(prediction, truth, **where)
    with warnings.catch_warnings():  # torchmetrics warns when compute is called before update
        warnings.simplefilter("ignore", UserWarning)
        return score.compute()


def two_masks(objects: int = 1, agree: bool = True) -> tuple[Tensor, Tensor]:
    truth = torch.zeros(SIZE, dtype=torch.uint8)
    for object_id in range(1, objects + 1):
        truth[2:10, 7 * object_id - 5 : 7 * object_id] = object_id
    return (truth.clone() if agree else torch.zeros_like(truth)), truth


class TestScores:
    def test_match_the_functional_metrics(self) -> None:
        updates = make_updates()
        scores = scores_of(updates)
        assert len(scores.objects) == 6
        for score in scores.objects:
            own = [u for u in updates if u[2]["sequence"] == score.sequence][1:-1]
            masks = [(p == score.object_id, t == score.object_id) for p, t, _ in own]
            assert score.frames == len(own)
            for measure, found in ((jaccard, score.jaccard), (boundary_f, score.boundary)):
                expected = statistics(torch.stack([measure(*pair) for pair in masks]))
                assert astuple(found) == pytest.approx(astuple(expected), abs=1e-12)
        assert {(s.sequence, s.object_id) for s in scores.objects} == {
            (name, object_id) for name, objects in OBJECTS.items() for object_id in objects
        }

    def test_objects_are_weighted_equally(self) -> None:
        scores = scores_of(make_updates())
        assert len(scores.objects) == 6
        assert 0 < scores.jaccard.recall < 1
        for measure in ("jaccard", "boundary"):
            for statistic in ("mean", "recall", "decay"):
                values = [getattr(getattr(score, measure), statistic) for score in scores.objects]
                assert getattr(getattr(scores, measure), statistic) == pytest.approx(
                    np.mean(values), abs=1e-12
                )
        assert scores.j_and_f == pytest.approx((scores.jaccard.mean + scores.boundary.mean) / 2)
        assert scores.jaccard.mean != pytest.approx(np.mean([s.jaccard.mean for s in scores.sequences]))

    def test_a_sequence_is_the_mean_of_its_objects(self) -> None:
        eel = scores_of(make_updates()).sequences[2]
        assert eel.sequence == "eel"
        assert [score.object_id for score in eel.objects] == [3, 7, 9]
        for measure in ("jaccard", "boundary"):
            for statistic in ("mean", "recall", "decay"):
                values = [getattr(getattr(score, measure), statistic) for score in eel.objects]
                assert getattr(getattr(eel, measure), statistic) == pytest.approx(np.mean(values), abs=1e-12)
        assert eel.j_and_f == pytest.approx(np.mean([score.j_and_f for score in eel.objects]))

    def test_an_object_missing_from_the_prediction_scores_zero(self) -> None:
        _, truth = two_masks(objects=2)
        prediction = torch.where(truth == 2, 0, truth)
        where = place(objects=[1, 2])
        found, lost = scores_of([(prediction, truth, where)]).objects
        assert (found.jaccard.mean, found.boundary.mean) == (1, 1)
        assert (lost.jaccard.mean, lost.boundary.mean) == (0, 0)

    def test_absent_in_both_masks_is_agreement(self) -> None:
        empty = torch.zeros(SIZE, dtype=torch.uint8)
        where = place()
        assert scores_of([(empty, empty, where)]).j_and_f == 1

    def test_unlisted_ids_are_background(self) -> None:
        prediction, truth = two_masks(objects=3)
        where = place(objects=[2])
        scores = scores_of([(prediction, truth, where)])
        assert [score.object_id for score in scores.objects] == [2]
        assert scores.j_and_f == 1

    def test_an_object_given_later_is_scored_from_then_on(self) -> None:
        pair = two_masks(objects=2)
        updates = [(*pair, place(frame=t, frames=6, objects=[1] if t < 3 else [1, 2])) for t in range(6)]
        assert [score.frames for score in scores_of(updates).objects] == [4, 2]

    def test_mask_types_may_differ(self) -> None:
        prediction, truth = two_masks()
        where = place()
        for kind in (torch.int64, torch.int32, torch.bool):
            assert scores_of([(prediction.to(kind), truth, where)]).j_and_f == 1

    def test_tolerance_is_applied(self) -> None:
        _, truth = two_masks()
        where = place()
        values = []
        for tolerance in (0.0, 3.0):
            score = DavisScore(["cow"], tolerance=tolerance)
            score.update(truth.roll(3, dims=1), truth, **where)
            values.append(score.compute().boundary.mean)
        assert values[0] < 1 == values[1]


class TestFrames:
    @pytest.mark.parametrize(("frames", "expected"), [(1, []), (2, []), (3, [1]), (5, [1, 2, 3])])
    def test_first_and_last_are_not_scored(self, frames: int, expected: list[int]) -> None:
        assert list(scored_frames(frames)) == expected
        wrong, right = two_masks(agree=False), two_masks()
        updates = [
            (
                *(right if t in expected else wrong),
                place(frame=t, frames=frames),
            )
            for t in range(frames)
        ]
        scores = scores_of(updates, sequences=("cow",))
        assert [score.frames for score in scores.objects] == ([len(expected)] if expected else [])
        assert scores.unscored == (() if expected else ("cow",))
        if expected:
            assert scores.j_and_f == 1

    @pytest.mark.parametrize("frames", [1, 2])
    def test_unscored_clips_are_excluded_from_means(self, frames: int) -> None:
        wrong = two_masks(agree=False)
        short = [(*wrong, place(frame=t, frames=frames)) for t in range(frames)]
        right = (*two_masks(), place(sequence="bear"))
        scores = scores_of([*short, right])
        assert scores.j_and_f == 1
        assert scores.jaccard.recall == 1
        assert scores.boundary.decay == 0
        assert [score.sequence for score in scores.sequences] == ["bear"]
        assert scores.unscored == ("cow", "eel")

    def test_nothing_scored_is_nan(self) -> None:
        scores = scores_of([])
        values = (scores.j_and_f, scores.jaccard.mean, scores.jaccard.recall, scores.boundary.decay)
        assert all(math.isnan(value) for value in values)
        assert scores.sequences == scores.objects == ()
        assert scores.unscored == ("bear", "cow", "eel")

    def test_a_clip_of_one_scored_frame_has_all_statistics(self) -> None:
        where = place()
        (score,) = scores_of([(*two_masks(), where)]).objects
        assert (score.frames, score.jaccard.recall, score.jaccard.decay) == (1, 1, 0)


class TestMerging:
    @given(st.randoms(use_true_random=False))
    @settings(max_examples=20, deadline=None)
    def test_order_does_not_matter(self, shuffler: random.Random) -> None:
        updates = make_updates()
        shuffled = updates.copy()
        shuffler.shuffle(shuffled)
        assert scores_of(shuffled) == scores_of(updates)

    def test_decay_uses_the_order_of_frame_indices(self) -> None:
        """Frames are sorted by index, not by the order of updates."""
        right, wrong = two_masks(), two_masks(agree=False)
        updates = [(*(right if t < 3 else wrong), place(frame=t, frames=6)) for t in reversed(range(6))]
        assert scores_of(updates).jaccard.decay == 1

    @pytest.mark.parametrize("processes", [1, 2, 3, 50])
    def test_merging_across_processes(self, processes: int) -> None:
        """With a fake `dist_sync_fn` that returns the rows of all processes."""
        updates = make_updates()
        gathered: list[Tensor] = []
        options: dict[str, Any] = {
            "dist_sync_fn": lambda *_, **__: gathered,
            "distributed_available_fn": lambda: True,
        }
        ranks = [DavisScore(["bear", "cow", "eel"], **options) for _ in range(processes)]
        for number, (prediction, truth, where) in enumerate(updates):
            ranks[number % processes].update(prediction, truth, **where)
        gathered += [dim_zero_cat(rank.rows) for rank in ranks]  # with more ranks than frames, some are empty
        assert len({rows.shape[1:] for rows in gathered}) == len({rows.dtype for rows in gathered}) == 1
        assert ranks[0].compute() == scores_of(updates)
        assert torch.equal(dim_zero_cat(ranks[0].rows), gathered[0])  # unsynced again

    def test_forward_accumulates(self) -> None:
        updates = make_updates()
        score = DavisScore(["bear", "cow", "eel"])
        for prediction, truth, where in updates:
            frame_score = score(prediction, truth, **where)
            assert len(frame_score.objects) == (
                len(where["objects"]) if where["frame"] in scored_frames(where["frames"]) else 0
            )
        assert score.compute() == scores_of(updates)

    def test_a_repeated_frame_counts_once(self) -> None:
        updates = make_updates()
        assert scores_of([*updates, *updates[:9], *updates[:4]]) == scores_of(updates)

    def test_differing_repeats_of_a_frame_are_averaged(self) -> None:
        right, wrong = two_masks(), two_masks(agree=False)
        updates = [
            (*(wrong if number == 0 else right), place(frame=t, frames=4))
            for number, t in enumerate([1, 1, 2])
        ]
        (score,) = scores_of(updates).objects
        assert (score.frames, score.jaccard.mean) == (2, 0.75)

    def test_reset_clears_scores(self) -> None:
        score = DavisScore(["cow"])
        where = place()
        score.update(*two_masks(agree=False), **where)
        assert score.compute().j_and_f == 0
        score.reset()
        score.update(*two_masks(), **where)
        assert score.compute().j_and_f == 1
        assert dim_zero_cat(DavisScore(["cow"]).rows).tolist() == []  # no state is shared between scores

    def test_pickling_preserves_state(self) -> None:
        updates = make_updates()
        score = DavisScore(["bear", "cow", "eel"])
        for number, (prediction, truth, where) in enumerate(updates):
            if number == 7:
                score = pickle.loads(pickle.dumps(score))
            score.update(prediction, truth, **where)
        assert score.compute() == scores_of(updates)
        assert pickle.loads(pickle.dumps(score.compute())) == score.compute()

    def test_compute_between_updates(self) -> None:
        updates = make_updates()
        score = DavisScore(["bear", "cow", "eel"])
        for prediction, truth, where in updates:
            score.update(prediction, truth, **where)
            score.compute()
        assert score.compute() == scores_of(updates)


def run_process(rank: int, meeting: str, results: str) -> None:
    """Runs in each of two processes. `split` is updated by both of them, `single` only by rank 1."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    split, single = DavisScore(["bear", "cow", "eel"]), DavisScore(["bear", "cow", "eel"])
    for number, (prediction, truth, where) in enumerate(make_updates()):
        if number % 3 == rank or number % 3 == 2:  # a third of the frames is scored by both
            split.update(prediction, truth, **where)
        if rank == 1:
            single.update(prediction, truth, **where)
    Path(results, f"{rank}.pickle").write_bytes(pickle.dumps([split.compute(), single.compute()]))
    torch.distributed.destroy_process_group()


def test_two_gloo_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_process, args=(f"file://{tmp_path / 'meeting'}", str(tmp_path)), nprocs=2)
    expected = scores_of(make_updates())
    for rank in range(2):
        assert pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) == [expected, expected]


class TestErrors:
    @pytest.mark.parametrize("frame", [0, 1, 2])
    def test_size_mismatch(self, frame: int) -> None:
        prediction, truth = two_masks()
        with pytest.raises(InputError, match=f"cow, frame {frame}: the prediction is 24 x 31, .* is 31 x 24"):
            DavisScore(["cow"]).update(prediction.T, truth, **place(frame=frame))

    def test_batches_are_rejected(self) -> None:
        prediction, truth = two_masks()
        with pytest.raises(InputError, match="cow, frame 1"):
            DavisScore(["cow"]).update(prediction[None], truth[None], **place())

    def test_unknown_sequence(self) -> None:
        with pytest.raises(InputError, match="cow: unknown sequence, expected one of bear, eel"):
            DavisScore(["bear", "eel"]).update(*two_masks(), **place())

    @pytest.mark.parametrize("frame", [-1, 3])
    def test_frame_outside_the_clip(self, frame: int) -> None:
        with pytest.raises(ValueError, match=f"frame {frame} is out of range, the clip has 3 frames"):
            DavisScore(["cow"]).update(*two_masks(), **place(frame=frame))

    @pytest.mark.parametrize("objects", [[0], [1, 1], [-2], [256]])
    def test_invalid_objects(self, objects: list[int]) -> None:
        with pytest.raises(ValueError, match="objects must be unique ids from 1 to 255"):
            DavisScore(["cow"]).update(*two_masks(), **place(objects=objects))

    def test_options(self) -> None:
        with pytest.raises(OptionError, match="sequences=.*without duplicates"):
            DavisScore(["cow", "cow"])
        with pytest.raises(OptionError, match="tolerance=-0.1"):
            DavisScore(["cow"], tolerance=-0.1)

    def test_scores_are_immutable(self) -> None:
        scores = scores_of(make_updates())
        for target, name in (
            (scores, "sequences"),
            (scores.sequences[0], "objects"),
            (scores.objects[0], "frames"),
        ):
            with pytest.raises(AttributeError):
                setattr(target, name, None)
