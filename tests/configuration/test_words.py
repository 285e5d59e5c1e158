"""The words of the command line: flags, quotes, choices given twice."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
from drift.command_line import run
from drift.configuration.messages import blamed
from drift.configuration.words import prepared_words
from drift.errors import DriftError

CONFIGS = evaluate.CONFIGS


def composed(*words: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("evaluate", overrides=prepared_words(words, CONFIGS))


names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="$"), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(names, names), min_size=4, max_size=4))
def test_a_path_of_any_characters_arrives(pairs):
    """Several paths in each configuration, as composing it takes most of the time."""
    path = f"/a folder/{'/'.join(f'{name} ({other})' for name, other in pairs)}.mp4"
    masks = {index: f"/b/{other},{name}/x" for index, (name, other) in enumerate(pairs)}
    given_masks = ", ".join(f"{index}: {mask}" for index, mask in masks.items())
    config = composed("data=video", f"data.path={path}", f"data.masks={{{given_masks}, 9: plain.png}}")
    assert config.data.path == path
    assert dict(config.data.masks) == {**masks, 9: "plain.png"}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.path='clip (1).mp4'", "clip (1).mp4"),
        (r"data.path=clip\ \(1\).mp4", "clip (1).mp4"),
        ("data.path=null", None),
        ("data.path=123", "123"),
        ("data.path=true", "true"),
        ("data.path=out_${seed}/a.mp4", "out_0/a.mp4"),
        ("data.path=a,b.mp4", "a,b.mp4"),
        ("data.path=", ""),
    ],
)
def test_values_that_hydra_reads_are_left_to_it(word, value):
    assert composed("data=video", word).data.path == value


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.devices=2"],
        ["propagation.top_k=null"],
        ["data.sequences=[a,b]"],
        ["backbone.layers=[up_blocks.1.attentions.0]"],
        ["~logger"],
        ["+backbone.other=3"],
        ["experiment=ablation/heads"],
        ["hydra.run.dir=out"],
        ["adaptation.head_weighting.layer_weights={a: [1,2]}"],
        ["-m", "backbone.checkpoint=a,b", "propagation.top_k=range(3,9)", "refinement=sam,none"],
    ],
    ids=" ".join,
)
def test_other_words_are_left_as_they_are(words):
    assert prepared_words(words, CONFIGS) == words


def test_flags_may_stand_anywhere():
    words = ["data=sample", "-m", "propagation.top_k=3,5", "-v", "--cfg", "job", "--package", "data"]
    assert prepared_words(words, CONFIGS) == [
        *("-m", "--cfg", "job", "--package", "data"),
        *("data=sample", "propagation.top_k=3,5", "output.verbose=true"),
    ]


def test_choices_below_a_folder_are_spelled_out():
    (word,) = prepared_words(["experiment=glob(ablation/h*)"], CONFIGS)
    assert word == "experiment=ablation/heads,ablation/heads_gaussian"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--box", "1,2"], ["--box: no such option", "key=value"]),
        (["--box=1,2"], ["--box: no such option"]),
        (["data=video", "data=sample"], ["data=sample: given twice", "data=video"]),
        (["data.sequences=[clip (1)]"], ["data.sequences=[clip (1)]", "data.sequences=['clip (1)',other]"]),
        (["tuned=nope"], ["tuned: no such key"]),
        (["output.dir="], ["output.dir=: allowed is a folder"]),
        (["adaptation.views=0"], ["adaptation.views: no such key", "did you mean adaptation.", ".views?"]),
        (["temperature=3"], ["temperature: no such key; did you mean propagation.temperature?"]),
        (["data.path=a.mp4"], ["data.path: no such key; it is an option of data=video"]),
        (
            ["trainer.strategy=ddp"],
            ["trainer.strategy: has no value to replace; add it as +trainer.strategy=VALUE"],
        ),
        (
            ["adaptation.head_weighting.views=0"],
            ["no such key; it is an option of adaptation/head_weighting=learned"],
        ),
        (["output=3"], ["output: has options, such as output.dir=FOLDER"]),
        (["hydra.run.dir="], ["hydra.run.dir=: allowed is a folder"]),
        (["data.box=1,2,3,4"], ["data.box=1,2,3,4: a list is written data.box=[1,2,3,4]"]),
        (["data.masks={0:", "a.png}"], ["data.masks={0:: incomplete; put all of it in quotes"]),
        (["data=null"], ["data=null: allowed is davis, "]),
        (["propagation=3"], ["propagation=3: allowed is "]),
        (["=3"], ["'=3': cannot be read as key=value"]),
        ([""], ["'': cannot be read as key=value"]),
        (["data=video", "data"], ["data: cannot be read as key=value; --help lists the keys"]),
        (["--cfg", "jobb"], ["--cfg jobb: allowed is job, hydra, all"]),
        (["--package"], ["--package: needs a value"]),
        (["--config-name", "nope"], ["--config-name nope: allowed is demo, evaluate, train"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_words_are_told_in_one_line(words, parts, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert run(lambda config: None, config_dir=CONFIGS, config_name="evaluate") == 2
    assert errors.getvalue().startswith("error: ")
    assert errors.getvalue().count("\n") == 1
    assert all(part in errors.getvalue() for part in parts)


def test_a_group_chosen_twice_alike_is_no_error():
    assert prepared_words(["data=sample", "data=sample"], CONFIGS) == ["data=sample", "data=sample"]
    with pytest.raises(DriftError):
        prepared_words(["adaptation/head_weighting=single", "adaptation/head_weighting=uniform"], CONFIGS)


def test_a_library_s_error_is_about_the_option_that_it_mentions():
    options = {"_target_": "x", "accelerator": "gpu", "devices": 1, "strategy": "fsdp9", "logger": False}
    assert blamed("trainer", options, "No supported gpu backend found!") == "trainer.accelerator=gpu"
    assert blamed("trainer", options, "invalid strategy: strategy='fsdp9' on gpu") == "trainer.strategy=fsdp9"
    assert blamed("trainer", options, "something else") == "trainer"


def test_the_configuration_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert composed().output.dir.startswith("outputs/")
    assert Path(CONFIGS).is_absolute()
