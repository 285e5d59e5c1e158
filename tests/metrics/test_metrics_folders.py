"""`score_folders` and `python -m drift.metrics`: accepted layouts, scores and error messages."""

from __future__ import annotations

import csv
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drift.errors import InputError, OptionError
from drift.image_files import write_mask
from drift.metrics.__main__ import main
from drift.metrics.davis import DavisScores
from drift.metrics.folders import score_folders
from drift.metrics.functional import boundary_f, jaccard

SIZE = (20, 30)


def picture(*objects: int, shift: int = 0) -> np.ndarray:
    """A mask with one rectangle per object; rectangles do not overlap."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    for object_id in objects:
        left = 9 * (object_id - 1) + shift
        mask[4:12, left : left + 7] = object_id
    return mask


def write_sequence(folder: Path, masks: list[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        write_mask(folder / f"{number:05d}.png", mask)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and annotations of `cow` (one object, correct) and `eel` (two, the second shifted by 1 px)."""
    predictions, annotations = tmp_path / "predictions", tmp_path / "annotations"
    write_sequence(annotations / "cow", [picture(1)] * 5)
    write_sequence(predictions / "cow", [picture(1)] * 5)
    write_sequence(annotations / "eel", [picture(1, 2)] * 4)
    write_sequence(predictions / "eel", [np.maximum(picture(1), picture(2, shift=1))] * 4)
    return predictions, annotations


class TestScoring:
    def test_scores_of_every_object(self, folders: tuple[Path, Path]) -> None:
        scores = score_folders(*folders)
        assert [(s.sequence, s.object_id, s.frames) for s in scores.objects] == [
            ("cow", 1, 3),
            ("eel", 1, 2),
            ("eel", 2, 2),
        ]
        shifted, true = (torch.from_numpy(picture(2, shift=shift)) == 2 for shift in (1, 0))
        assert [s.jaccard.mean for s in scores.objects] == [1, 1, jaccard(shifted, true)]
        assert [s.boundary.mean for s in scores.objects] == [1, 1, boundary_f(shifted, true)]

    def test_chosen_sequences_only(self, folders: tuple[Path, Path]) -> None:
        (folders[0] / "cow" / "00002.png").unlink()
        scores = score_folders(*folders, sequences=["eel"])
        assert [score.sequence for score in scores.sequences] == ["eel"]
        assert scores.unscored == ()

    def test_first_and_last_frame_need_no_prediction_and_do_not_count(
        self, folders: tuple[Path, Path]
    ) -> None:
        expected = score_folders(*folders)
        write_mask(folders[0] / "cow" / "00000.png", np.zeros(SIZE, dtype=np.uint8))
        write_mask(folders[0] / "cow" / "00004.png", np.zeros((3, 3), dtype=np.uint8))
        assert score_folders(*folders) == expected
        for name in ("cow/00000.png", "cow/00004.png", "eel/00000.png", "eel/00003.png"):
            (folders[0] / name).unlink()
        assert score_folders(*folders) == expected

    def test_frames_in_between_do_count(self, folders: tuple[Path, Path]) -> None:
        for frame in (1, 2, 3):
            before = score_folders(*folders).objects[0].jaccard.mean
            write_mask(folders[0] / "cow" / f"{frame:05d}.png", np.zeros(SIZE, dtype=np.uint8))
            if frame < 3:
                assert score_folders(*folders).objects[0].jaccard.mean == pytest.approx(before - 1 / 3)

    def test_other_files_are_ignored(self, folders: tuple[Path, Path]) -> None:
        expected = score_folders(*folders)
        for folder in folders:
            (folder / "readme.txt").write_text("not a sequence")
            (folder / "cow" / "._00000.png").write_text("a resource fork, not an image")
        (folders[1] / ".cache").mkdir()
        (folders[0] / "other").mkdir()
        assert score_folders(*folders) == expected

    def test_binary_takes_any_id_for_foreground(self, folders: tuple[Path, Path]) -> None:
        for frame in range(5):
            write_mask(folders[1] / "cow" / f"{frame:05d}.png", picture(1, 2))
            write_mask(folders[0] / "cow" / f"{frame:05d}.png", 127 * np.sign(picture(1, 2)))
            Image.fromarray(255 * np.sign(picture(1, 2))).save(folders[1] / "cow" / f"{frame:05d}.png")
        (score,) = score_folders(*folders, sequences=["cow"], binary=True).objects
        assert (score.object_id, score.j_and_f) == (1, 1)

    def test_void_is_background(self, folders: tuple[Path, Path]) -> None:
        for frame in range(5):
            void = picture(1)
            void[15:, 20:] = 255
            write_mask(folders[1] / "cow" / f"{frame:05d}.png", void)
        assert score_folders(*folders).objects[0].j_and_f == 1

    def test_objects_that_appear_later_in_the_annotations_are_background(
        self, folders: tuple[Path, Path]
    ) -> None:
        write_mask(folders[1] / "cow" / "00002.png", picture(1, 3))
        scores = score_folders(*folders)
        assert [score.object_id for score in scores.sequences[0].objects] == [1]
        assert scores.sequences[0].j_and_f == 1

    @pytest.mark.parametrize("frames", [1, 2])
    def test_short_sequences_are_unscored(self, folders: tuple[Path, Path], frames: int) -> None:
        expected = score_folders(*folders)
        write_sequence(folders[1] / "ant", [picture(1)] * frames)
        (folders[0] / "ant").mkdir()
        scores = score_folders(*folders)
        assert scores.unscored == ("ant",)
        assert scores.sequences == expected.sequences
        assert scores.jaccard == expected.jaccard

    def test_three_frames_are_scored(self, folders: tuple[Path, Path]) -> None:
        for folder in folders:
            write_sequence(folder / "ant", [picture(1)] * 3)
        assert score_folders(*folders).objects[0].frames == 1


def remove(path: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        target = root / path
        if target.is_file():
            return target.unlink()
        for file in target.iterdir():
            file.unlink()
        target.rmdir()

    return act


def replace(path: str, mask: np.ndarray) -> Callable[[Path], None]:
    return lambda root: write_mask(root / path, mask)


def empty(path: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for file in (root / path).iterdir():
            write_mask(file, np.where(picture(1, 2) == 2, 0, picture(1, 2)))

    return act


def recolour(path: str) -> Callable[[Path], None]:
    return lambda root: Image.new("RGB", SIZE[::-1], "red").save(root / path)


FAULTS = {
    "missing prediction": (remove("predictions/eel/00002.png"), r"predictions/eel/00002\.png: no such file"),
    "missing sequence": (remove("predictions/eel"), "predictions/eel: no such folder"),
    "empty sequence": (
        lambda root: [f.unlink() for f in (root / "predictions/eel").iterdir()],
        "00001.png: no such",
    ),
    "no annotation": (
        lambda root: [f.unlink() for f in (root / "annotations/eel").iterdir()],
        "eel: no PNG files found",
    ),
    "wrong size": (
        replace("predictions/eel/00001.png", picture(1)[:, :-1]),
        r"predictions/eel/00001\.png: the mask is 29 x 20, but .*annotations/eel/00001\.png is 30 x 20",
    ),
    "colours": (recolour("predictions/eel/00001.png"), r"predictions/eel/00001\.png: is a colour image"),
    "broken": (
        lambda root: (root / "predictions/eel/00002.png").write_bytes(b"\x89PNG"),
        r"predictions/eel/00002\.png: cannot be read",
    ),
    "broken annotation": (
        lambda root: (root / "annotations/eel/00002.png").write_bytes(b"\x89PNG"),
        r"annotations/eel/00002\.png: cannot be read",
    ),
    "missing object": (
        empty("predictions/eel"),
        r"predictions/eel: no mask contains object 2 of .*annotations/eel/00000\.png",
    ),
    "missing object and first frame": (
        lambda root: (empty("predictions/eel")(root), remove("predictions/eel/00000.png")(root)),
        r"predictions/eel: no mask contains object 2 of .*annotations/eel/00000\.png",
    ),
    "unknown object": (
        replace("predictions/eel/00002.png", picture(1, 2, 3)),
        r"predictions/eel/00002\.png: contains object 3, but the annotated objects are 1, 2",
    ),
    "nothing annotated": (
        replace("annotations/eel/00000.png", picture()),
        r"annotations/eel/00000\.png: the first annotation contains no object",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
class TestFaults:
    def test_are_errors_that_name_the_file(self, fault: str, folders: tuple[Path, Path]) -> None:
        act, message = FAULTS[fault]
        act(folders[0].parent)
        with pytest.raises(InputError, match=message):
            score_folders(*folders)

    def test_command_prints_one_line(
        self, fault: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        FAULTS[fault][0](folders[0].parent)
        assert main([str(folder) for folder in folders]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1


class TestMoreErrors:
    def test_an_object_lost_immediately_is_scored(self, folders: tuple[Path, Path]) -> None:
        for frame in (1, 2, 3):
            write_mask(folders[0] / "eel" / f"{frame:05d}.png", picture(1))
        assert score_folders(*folders).objects[-1].j_and_f == 0  # still in the first prediction

    def test_foreground_of_255_suggests_binary(self, folders: tuple[Path, Path]) -> None:
        write_mask(folders[1] / "cow" / "00000.png", 255 * picture(1))
        with pytest.raises(InputError, match=r"cow/00000\.png: .*--binary"):
            score_folders(*folders)

    def test_missing_roots(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="nowhere: no such folder"):
            score_folders(folders[0], tmp_path / "nowhere")
        with pytest.raises(InputError, match="nowhere/cow: no such folder"):
            score_folders(tmp_path / "nowhere", folders[1])
        with pytest.raises(InputError, match="cow: no sequence folders found"):
            score_folders(folders[0], folders[1] / "cow")
        with pytest.raises(InputError, match="annotations/gnu: no such folder"):
            score_folders(*folders, sequences=["gnu"])

    def test_nothing_to_score(self, folders: tuple[Path, Path]) -> None:
        write_sequence(folders[1] / "ant", [picture(1)] * 2)
        (folders[0] / "ant").mkdir()
        with pytest.raises(InputError, match="annotations: nothing to score"):
            score_folders(*folders, sequences=["ant"])

    @pytest.mark.parametrize("sequences", [[], ["cow", "cow"]])
    def test_options(self, folders: tuple[Path, Path], sequences: list[str]) -> None:
        with pytest.raises(OptionError, match="sequences="):
            score_folders(*folders, sequences=sequences)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestCommand:
    def test_prints_a_row_per_object_and_the_mean(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([str(folder) for folder in folders]) == 0
        output = capsys.readouterr()
        lines = [line.split() for line in output.out.splitlines() if line.strip()]
        scores = score_folders(*folders)
        assert lines[0][:3] == ["sequence", "object", "frames"]
        assert [line[:2] for line in lines[2:5]] == [["cow", "1"], ["eel", "1"], ["eel", "2"]]
        assert lines[5][:4] == ["mean", "of", "3", f"{scores.j_and_f:.3f}"]
        assert output.err == ""
        assert "not scored" not in output.out

    def test_lists_unscored_sequences(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_sequence(folders[1] / "ant[red]", [picture(1)] * 2)
        (folders[0] / "ant[red]").mkdir()
        assert main([str(folder) for folder in folders]) == 0
        assert "not scored, fewer than 3 frames: ant[red]\n" in capsys.readouterr().out

    def test_long_names_are_not_cut(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = "a-name-of-thirty-characters[b]"
        for folder in folders:
            (folder / "cow").rename(folder / name)
        assert main([str(folder) for folder in folders]) == 0
        assert name in capsys.readouterr().out

    def test_writes_csv(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        file = tmp_path / "scores.csv"
        assert main([*map(str, folders), "--csv", str(file)]) == 0
        rows, scores = read_csv(file), score_folders(*folders)
        assert [(row["sequence"], row["object"], row["frames"]) for row in rows] == [
            (score.sequence, str(score.object_id), str(score.frames)) for score in scores.objects
        ]
        for row, score in zip(rows, scores.objects, strict=True):
            expected = {"J&F": score.j_and_f}
            for letter, measure in (("J", score.jaccard), ("F", score.boundary)):
                expected |= {
                    f"{letter}_{name}": getattr(measure, name) for name in ("mean", "recall", "decay")
                }
            found = {name: float(row[name]) for name in expected}
            assert found == pytest.approx(expected, abs=1e-6)

    def test_sequences_option(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        file = tmp_path / "scores.csv"
        assert main([*map(str, folders), "--csv", str(file), "--sequences", "eel, cow"]) == 0
        assert [row["sequence"] for row in read_csv(file)] == ["eel", "eel", "cow"]

    def test_binary_option(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        file = tmp_path / "scores.csv"
        assert main([*map(str, folders), "--csv", str(file), "--binary"]) == 0
        assert [(row["sequence"], row["object"]) for row in read_csv(file)] == [("cow", "1"), ("eel", "1")]

    @pytest.mark.parametrize("target", ["nowhere/scores.csv", "."])
    def test_unwritable_csv(
        self, folders: tuple[Path, Path], tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*map(str, folders), "--csv", str(tmp_path / target)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / target}: ")

    @pytest.mark.parametrize(
        "arguments", [[], ["only-one"], ["a", "b", "--sequences", "x,,y"], ["a", "b", "--what"]]
    )
    def test_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: python -m drift.metrics" in capsys.readouterr().err

    def test_csv_folder_is_checked_before_scoring(
        self, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folders[0] / "cow" / "00001.png").unlink()
        target = tmp_path / "nowhere" / "scores.csv"
        assert main([*map(str, folders), "--csv", str(target)]) == 2
        expected = f"error: {target}: cannot be written: its folder does not exist\n"
        assert capsys.readouterr().err == expected

    def test_help_lists_all_arguments(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for word in (
            "PREDICTIONS",
            "ANNOTATIONS",
            "--sequences",
            "--binary",
            "--csv",
            "exit codes",
            "not scored",
        ):
            assert word in text

    def test_runs_as_a_module(self, folders: tuple[Path, Path]) -> None:
        command = [sys.executable, "-m", "drift.metrics", *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "mean of 3" in done.stdout

    def test_fails_as_a_module(
        self,
        folders: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (folders[0] / "cow" / "00001.png").unlink()
        monkeypatch.setattr(sys, "argv", ["drift.metrics", *map(str, folders)])
        monkeypatch.delitem(sys.modules, "drift.metrics.__main__")  # which runs it anew, as `python -m` does
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("drift.metrics", run_name="__main__")
        assert stop.value.code == 2
        expected = f"error: {folders[0] / 'cow' / '00001.png'}: no such file\n"
        assert capsys.readouterr() == ("", expected)


@pytest.fixture(scope="module")
def real_scores() -> DavisScores:
    folder = real_data()
    return score_folders(folder / "osvos", folder / "davis2016" / "Annotations" / "480p", binary=True)


def real_data() -> Path:
    folder = os.environ.get("DRIFT_DATA")
    if not folder:
        pytest.skip("DRIFT_DATA is not set to the folder that contains davis2016/ and osvos/")
    return Path(folder)


class TestKnownAnswers:
    """Published OSVOS masks, scored by the official DAVIS code."""

    def test_are_reproduced(self, real_scores: DavisScores) -> None:
        answers = {row["sequence"]: row for row in read_csv(real_data() / "osvos" / "known_answers.csv")}
        assert {score.sequence for score in real_scores.objects} == set(answers)
        for score in real_scores.objects:
            answer = answers[score.sequence]
            assert score.frames == int(answer["frames"]) - 2
            for letter, measure in (("J", score.jaccard), ("F", score.boundary)):
                for name in ("mean", "recall", "decay"):
                    expected = float(answer[f"{letter}_{name}"])
                    assert getattr(measure, name) == pytest.approx(expected, abs=1e-6), (
                        score.sequence,
                        letter,
                        name,
                    )

    def test_mean_over_sequences(self, real_scores: DavisScores) -> None:
        answers = read_csv(real_data() / "osvos" / "known_answers.csv")
        for letter, measure in (("J", real_scores.jaccard), ("F", real_scores.boundary)):
            for name in ("mean", "recall", "decay"):
                expected = np.mean([float(answer[f"{letter}_{name}"]) for answer in answers])
                assert getattr(measure, name) == pytest.approx(expected, abs=1e-6)
