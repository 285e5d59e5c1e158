"""The whole run, from the command line's words to the files, on small clips and a small random model."""

from __future__ import annotations

import csv
import gc
import io
import json
import shutil
import sys
import weakref
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from examples import few_steps, moving_square, replaced, write_davis
from PIL import Image

import evaluate
from drift.backbones import StableDiffusion
from drift.clip import Clip
from drift.command_line import run
from drift.image_files import DAVIS_PALETTE, read_mask
from drift.metrics.folders import score_folders
from drift.module import TrackingModule

CLIPS = {name: moving_square(frames, name=name) for name, frames in (("ant", 5), ("bee", 4))}


def words(checkpoint: Path, out: Path, *overrides: str, flags: Sequence[str] = ()) -> list[str]:
    """The command line of `evaluate.py` with the small checkpoint."""
    defaults = [
        "data=davis",
        f"backbone.checkpoint={checkpoint}",
        "backbone.layers=[up_blocks.2.attentions.0]",
        "logger=none",
        "refinement=none",
        f"output.dir={out}",
    ]
    return ["evaluate.py", *flags, *few_steps(replaced(defaults, overrides))]


@pytest.fixture
def command(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs `evaluate.py` with the small checkpoint; gives the exit status and what was printed."""

    def call(*overrides: str, flags: Sequence[str] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", words(checkpoint, tmp_path / "out", *overrides, flags=flags))
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


class Finished(NamedTuple):
    """Exit status, output and folders of a run."""

    status: int
    printed: str
    errors: str
    out: Path
    root: Path


@pytest.fixture(scope="module")
def finish(checkpoint, tmp_path_factory):
    """Runs `evaluate.py` on clips, for tests that only read its output."""

    def call(clips: dict[str, Clip], *overrides: str, suffix=".jpg", prepare=None) -> Finished:
        folder = tmp_path_factory.mktemp("finished")
        root, out = write_davis(folder / "data", clips, suffix=suffix), folder / "out"
        if prepare is not None:
            prepare(root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words(checkpoint, out, f"data.root={root}", *overrides))
            with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
                status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        return Finished(status, printed.getvalue(), errors.getvalue(), out, root)

    return call


@pytest.fixture(scope="module")
def finished(finish):
    """A run on `CLIPS`; read-only."""
    return finish(CLIPS, "seed=3", "logger=csv")


@pytest.fixture
def root(tmp_path):
    return write_davis(tmp_path / "data", CLIPS)


def frame_path(root: Path, clip: str, name: str) -> Path:
    return root / "JPEGImages" / "480p" / clip / f"{name}.jpg"


def mask_path(root: Path, clip: str, name: str) -> Path:
    return root / "Annotations" / "480p" / clip / f"{name}.png"


def test_a_run_leaves_all_its_files(finished):
    status, printed, errors, out, _ = finished
    assert (status, errors) == (0, "")
    for name, clip in CLIPS.items():
        for frame in clip.frame_names:
            image = Image.open(out / "masks" / name / f"{frame}.png")
            assert image.mode == "P"
            assert image.getpalette("RGB")[:30] == DAVIS_PALETTE[:10].ravel().tolist()
        assert np.array_equal(read_mask(out / "masks" / name / "00000.png"), clip.truth[0])
        with av.open(str(out / "overlays" / f"{name}.mp4")) as video:
            frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
        assert [f.shape for f in frames] == [(48, 64, 3)] * len(clip)
        assert Image.open(out / "attention" / f"{name}.png").width > 500
        assert f"{name}" in printed
    results = json.loads((out / "results.json").read_text())
    assert set(results["sequences"]) == set(CLIPS)
    told = {"J", "F", "J&F", "frames", "seconds_per_frame", "seconds_per_frame_by_stage", "peak_memory_mb"}
    assert set(results["sequences"]["ant"]) - {"absences"} == {*told, "adaptation"}
    assert set(results["sequences"]["ant"]["adaptation"]) >= {"seconds", "prompt0_frame0_slot_iou"}
    assert results["config"]["seed"] == results["seed"] == 3
    assert results["versions"]["torch"]
    assert set(results["seconds_per_frame_by_stage"]) == {
        "decode",
        "features",
        "kernel",
        "refine",
        "attention",
        "write",
        "score",
    }
    assert results["seconds_per_frame_by_stage"].pop("refine") == 0  # refinement=none
    unused = {stage for stage, seconds in results["seconds_per_frame_by_stage"].items() if not seconds}
    assert unused <= {"cache", "refine"}
    assert "seed: 3" in (out / "config.yaml").read_text()
    assert "J&F" in printed


def test_the_scores_are_those_of_the_written_masks(finished):
    out, root = finished.out, finished.root
    scores = score_folders(out / "masks", root / "Annotations" / "480p", list(CLIPS))
    results = json.loads((out / "results.json").read_text())
    assert results["J"] == pytest.approx(scores.jaccard.mean, abs=1e-9)
    assert results["F"] == pytest.approx(scores.boundary.mean, abs=1e-9)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sequence"], row["object"]) for row in rows] == [("ant", "1"), ("bee", "1")]
    for row, score in zip(rows, scores.objects, strict=True):
        assert float(row["J"]) == pytest.approx(score.jaccard.mean, abs=1e-6)
        assert float(row["F_decay"]) == pytest.approx(score.boundary.decay, abs=1e-6)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_the_order_of_clips_and_a_second_run_change_nothing(command, finished, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    status, *_ = command(f"data.root={finished.root}", "seed=3", "data.sequences=[bee,ant]")
    assert status == 0
    assert contents(tmp_path / "out" / "masks") == contents(finished.out / "masks")


def test_the_models_of_the_first_run_of_a_process_are_freed(command, root, monkeypatch):
    """Imported objects are frozen by `gc.freeze`; the objects of a run are not."""
    modules = []
    make = TrackingModule.__init__

    def made(module, *arguments, **options):
        modules.append(weakref.ref(module))
        make(module, *arguments, **options)

    monkeypatch.setattr(TrackingModule, "__init__", made)
    gc.unfreeze()
    assert command(f"data.root={root}", "output.report=false", "adaptation=none")[0] == 0
    gc.collect()
    assert gc.get_freeze_count()
    assert [module() for module in modules] == [None]


def test_half_precision_runs_and_draws(command, root, tmp_path):
    status, _, errors = command(f"data.root={root}", "trainer.precision=bf16-mixed")
    assert (status, errors) == (0, "")
    assert (tmp_path / "out" / "attention" / "bee.png").is_file()


SIZES = [(47, 61), (64, 45), (33, 80)]
MODES = ["RGB", "L", "RGBA"]


def odd_name(size: tuple[int, int], mode: str) -> str:
    return f"{mode}-{size[0]}x{size[1]}"


@pytest.fixture(scope="module")
def odd(finish):
    """A run on a clip of each of `SIZES` and `MODES`."""
    names = {odd_name(size, mode): (size, mode) for size in SIZES for mode in MODES}
    clips = {name: moving_square(3, size=size, name=name) for name, (size, _) in names.items()}

    def convert(root: Path) -> None:
        for name, (_, mode) in names.items():
            for path in (root / "JPEGImages" / "480p" / name).iterdir():
                Image.open(path).convert(mode).save(path)

    return finish(clips, suffix=".png", prepare=convert)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_odd_sizes_portrait_grey_and_alpha_work(odd, size, mode):
    assert (odd.status, odd.errors) == (0, "")
    with Image.open(odd.root / "JPEGImages" / "480p" / odd_name(size, mode) / "00002.png") as frame:
        assert frame.mode == mode
    assert read_mask(odd.out / "masks" / odd_name(size, mode) / "00002.png").shape == size


def test_a_clip_of_one_frame_works_and_says_it_has_nothing_to_score(command, tmp_path):
    root = write_davis(tmp_path / "data", {"ant": moving_square(1, name="ant")})
    status, printed, errors = command(f"data.root={root}")
    assert (status, errors) == (0, "")
    assert "nothing to score" in printed
    assert json.loads((tmp_path / "out" / "results.json").read_text())["J&F"] is None


def test_several_objects_are_scored_each(command, tmp_path):
    clip = moving_square(4, name="ant")
    truth = {}
    for t, mask in clip.truth.items():
        truth[t] = mask.copy()
        truth[t][36:46, 40:60] = 4
    both = Clip("ant", clip.frames, clip.frame_names, {0: truth[0]}, truth)
    root = write_davis(tmp_path / "data", {"ant": both})
    assert command(f"data.root={root}")[0] == 0
    with (tmp_path / "out" / "results.csv").open() as file:
        assert [row["object"] for row in csv.DictReader(file)] == ["1", "4"]


class TestBadInput:
    """Each ends in one line that names the file or key, with what was written before still there."""

    def refuse(self, result: tuple[int, str, str], *parts: str) -> None:
        status, _, errors = result
        assert status == 2
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1, errors
        for part in parts:
            assert part in errors

    def test_a_mask_of_another_size(self, command, root):
        Image.new("P", (30, 30), 1).save(mask_path(root, "ant", "00000"))
        self.refuse(command(f"data.root={root}"), "ant/00000.png", "30 x 30", "64 x 48")

    def test_a_true_mask_of_another_size(self, command, root):
        Image.new("P", (30, 30), 1).save(mask_path(root, "ant", "00003"))
        self.refuse(command(f"data.root={root}"), "ant/00003.png", "30 x 30")

    def test_an_rgb_mask(self, command, root):
        Image.new("RGB", (64, 48), (128, 0, 0)).save(mask_path(root, "ant", "00000"))
        self.refuse(command(f"data.root={root}"), "ant/00000.png", "colour image")

    def test_too_many_ids(self, command, root):
        ids = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)
        Image.fromarray(ids).save(mask_path(root, "ant", "00000"))
        self.refuse(command(f"data.root={root}"), "ant/00000.png", "255")

    def test_an_empty_first_mask(self, command, root):
        Image.new("P", (64, 48), 0).save(mask_path(root, "ant", "00000"))
        self.refuse(command(f"data.root={root}"), "ant", "00000", "no object")

    def test_no_first_mask(self, command, root):
        mask_path(root, "bee", "00000").unlink()
        self.refuse(command(f"data.root={root}"), "bee/00000.png", "first frame needs a mask")

    def test_a_truncated_frame_loses_nothing_written(self, command, root, tmp_path):
        path = frame_path(root, "bee", "00002")
        path.write_bytes(path.read_bytes()[:400])
        self.refuse(command(f"data.root={root}"), "bee/00002.jpg", "cannot be read")
        out = tmp_path / "out"
        results = json.loads((out / "results.json").read_text())
        assert list(results["sequences"]) == ["ant"]
        assert results["J&F"] is not None
        assert sorted(p.stem for p in (out / "masks" / "bee").iterdir()) == ["00000", "00001"]
        with av.open(str(out / "overlays" / "bee.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == 2

    @pytest.mark.parametrize("batch", [1, 3])
    def test_frames_that_change_size(self, command, root, batch):
        Image.new("RGB", (32, 32)).save(frame_path(root, "ant", "00002"))
        words = [f"data.root={root}", f"backbone.batch={batch}"]
        self.refuse(command(*words), "ant", "00002", "one size")

    def test_a_root_without_the_layout(self, command, tmp_path):
        self.refuse(command(f"data.root={tmp_path}"), "ImageSets", "no such list")

    def test_a_missing_root(self, command):
        self.refuse(command(), "data.root=null", "data.root=FOLDER")
        self.refuse(command("data.root=/no/such"), "data.root=/no/such", "a folder that exists")

    def test_a_missing_checkpoint(self, command, root):
        self.refuse(
            command(f"data.root={root}", "backbone.checkpoint=/no/such"), "/no/such", "no such file or folder"
        )

    def test_an_output_folder_that_cannot_be_written(self, command, root, tmp_path):
        (tmp_path / "file").write_text("")
        self.refuse(
            command(f"data.root={root}", f"output.dir={tmp_path / 'file' / 'out'}"), "output.dir", "file"
        )

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("propagation.topk=3", ["propagation.topk", "did you mean propagation.top_k"]),
            ("propagate.top_k=3", ["propagate.top_k", "propagation"]),
            ("propagation.top_k=many", ["propagation.top_k=many", "a whole number"]),
            ("propagation.radius=-1", ["propagation.radius=-1", "0 or more"]),
            ("propagation.affinity=x", ["propagation.affinity=x", "attention, cosine"]),
            ("backbone.timestep=1000", ["backbone.timestep=1000", "0 to 999"]),
            ("backbone.precision=half", ["backbone.precision=half", "auto, float32, bfloat16, float16"]),
            ("noise=ddim", ["noise=ddim", "gaussian", "inversion", "none"]),
            ("backbone.layers=[x]", ["backbone.layers=", "up_blocks.2.attentions.0"]),
            ("backbone=sd99", ["backbone=sd99", "sd21", "tiny"]),
            ("data=nowhere", ["data=nowhere", "davis2016"]),
            ("data.sequences=[cow]", ["data.sequences=cow", "ant, bee"]),
            ("data.sequences=[cow", ["data.sequences=[cow"]),
            ("trainer.accelerator=abacus", ["trainer.accelerator=abacus"]),
            ("trainer.devices=none", ["trainer.devices=none"]),
            ("trainer.precision=7", ["trainer.precision=7"]),
            ("refinement=magic", ["refinement=magic", "none"]),
            ("seed=abc", ["seed=abc", "a whole number"]),
            ("seed=-1", ["seed=-1", "a whole number"]),
            ("output.formats=[movie]", ["output.formats=[movie]", "masks, overlay"]),
            ("backbone.prompt=null", ["backbone.prompt=null", "a text"]),
            ("data.sequences=[ant,ant]", ["data.sequences=[ant,ant]", "each once"]),
            ("data.splitt=val", ["data.splitt", "did you mean data.split?"]),
        ],
    )
    def test_a_wrong_option_is_named_with_what_is_allowed(self, command, root, override, parts):
        self.refuse(command(f"data.root={root}", *override.split()), *parts)


def test_help_lists_groups_and_main_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for words in (
        "backbone: "
        + ", ".join(sorted(path.stem for path in (evaluate.CONFIGS / "backbone").glob("*.yaml"))),
        "data: davis, davis2016, folder, long_videos, mose, sample, video, youtube_vos",
        "propagation.top_k",
        "-m",
        "hydra/launcher=processes",
    ):
        assert words in printed


def test_a_sweep_runs_each_setting_into_its_own_folder(command, root, tmp_path):
    status, *_ = command("propagation.top_k=3,5", f"data.root={root}", "data.sequences=[bee]", flags=["-m"])
    assert status == 0
    for number, top_k in enumerate((3, 5)):
        results = json.loads((tmp_path / "out" / str(number) / "results.json").read_text())
        assert results["config"]["propagation"]["top_k"] == top_k


def test_without_an_account_wandb_runs_offline_and_asks_nothing(command, root, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    status, printed, _ = command(f"data.root={root}", "logger=wandb")
    assert status == 0
    assert "J&F" in printed
    (run_folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    media = [path for path in run_folder.rglob("*") if path.suffix in {".png", ".mp4"}]
    assert sum(path.suffix == ".mp4" for path in media) == len(CLIPS)
    assert sum(path.suffix == ".png" for path in media) == len(CLIPS)
    logged = b"".join(path.read_bytes() for path in run_folder.glob("*.wandb"))
    assert b"ant/J&F" in logged
    assert b"bee/seconds_per_frame" in logged


def test_lines_for_machines_are_json_and_nothing_else(command, root):
    status, printed, errors = command(f"data.root={root}", "output.json_logs=true")
    assert (status, errors) == (0, "")
    ant, bee, end = (json.loads(line) for line in printed.splitlines())
    assert [(one["event"], one["sequence"], one["frames"]) for one in (ant, bee)] == [
        ("clip", "ant", 5),
        ("clip", "bee", 4),
    ]
    assert end["event"] == "run"
    assert end["J&F"] == pytest.approx((ant["J&F"] + bee["J&F"]) / 2)


def test_more_is_told_when_asked_for(command, root, finished):
    status, printed, errors = command(f"data.root={root}", "data.sequences=[bee]", flags=["-v"])
    assert (status, errors) == (0, "")
    assert "seconds a frame: decode 0." in printed
    assert "J&F" in finished.printed
    assert "seconds a frame" not in finished.printed


def test_a_csv_log_holds_the_scores(finished):
    assert finished.status == 0
    (log,) = (finished.out / "log").rglob("metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    results = json.loads((finished.out / "results.json").read_text())
    logged = [float(row["J&F"]) for row in rows if row.get("J&F")]
    assert logged == [pytest.approx(results["J&F"])]


def test_pictures_that_cannot_be_made_stop_nothing(command, root, tmp_path):
    for name in ("samples", "attention"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("no folder")
    status, printed, errors = command(f"data.root={root}", "data.sequences=[bee]")
    assert status == 0
    assert "J&F" in printed
    assert "no picture of its attention" in errors
    assert "no picture of frame 0" in errors
    assert all(line.startswith("warning: bee: ") for line in errors.splitlines())


def test_pictures_of_an_earlier_run_are_not_taken_for_this_ones(command, root, tmp_path):
    command(f"data.root={root}", "data.sequences=[bee]", "output.sampled_frames=4")
    samples, attention = tmp_path / "out" / "samples" / "bee", tmp_path / "out" / "attention"
    assert len(list(samples.glob("*.errors.jpg"))) == 4
    assert len(list(attention.iterdir())) == 2
    command(f"data.root={root}", "data.sequences=[bee]", "output.sampled_frames=2", "output.attention=false")
    assert len(list(samples.glob("*.errors.jpg"))) == 2
    assert not list(attention.iterdir())


@pytest.mark.parametrize(
    "points",
    [
        "5",
        "[]",
        "[[1]]",
        "[[1,nan]]",
        "[[true,1]]",
        "[[1,2],[3,4],[5,6],[1,2],[3,4],[5,6],[1,1],[2,2],[3,3]]",
    ],
)
def test_points_whose_attention_cannot_be_shown_are_named(command, root, points):
    status, _, errors = command(f"data.root={root}", f"output.attention_points={points}")
    assert status == 2
    assert errors.startswith("error: output.attention_points=")
    assert errors.count("\n") == 1


def test_frames_that_are_read_together_have_the_same_masks(command, root, tmp_path, monkeypatch):
    batches = []
    features = StableDiffusion.features

    def counted(self, frames, generator, **options):
        batches.append(len(frames))
        return features(self, frames, generator, **options)

    monkeypatch.setattr(StableDiffusion, "features", counted)
    masks = []
    for batch in (1, 4):
        batches.clear()
        out = tmp_path / f"batch{batch}"
        words = [f"data.root={root}", "data.sequences=[ant]", f"backbone.batch={batch}", f"output.dir={out}"]
        assert command(*words, "adaptation.textual_inversion.steps=3")[0] == 0
        masks.append([read_mask(path) for path in sorted((out / "masks" / "ant").iterdir())])
    assert batches[-3:] == [2, 2, 1], "frames 0 and 3, which have slots, then 1 and 2, then the next batch"
    assert np.array_equal(*masks)


def test_chosen_points_are_shown(command, root, tmp_path):
    points = "output.attention_points=[[3,4],[63,47]]"
    assert command(f"data.root={root}", "data.sequences=[bee]", points)[::2] == (0, "")
    assert (tmp_path / "out" / "attention" / "bee.png").is_file()


def test_a_chosen_point_outside_of_the_frame_is_named(command, root, tmp_path):
    points = "output.attention_points=[[3,4],[64,3]]"
    status, _, errors = command(f"data.root={root}", "data.sequences=[bee]", points)
    assert status == 0
    assert "output.attention_points=[64,3]: allowed is pixels of a 64 x 48 frame" in errors
    assert errors.count("\n") == 1
