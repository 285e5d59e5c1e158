"""Every option of every group: wrong values end in one line that names the key and what is allowed."""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter

import evaluate
from drift.command_line import run
from drift.configuration import groups
from drift.configuration.checking import check
from drift.configuration.contradictions import group_at
from drift.configuration.groups import GROUPS, Configuration, Output
from drift.errors import DriftError, shown

CONFIGS = evaluate.CONFIGS
CHOICES = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((CONFIGS / group.replace(".", "/")).glob("*.yaml"))
]
NEEDED = {  # by choices that cannot be used as they are
    "video": ["data.path=clip.mp4", "data.mask=mask.png"],
    "fixed": ["adaptation.head_weighting.layer_weights={a: 1}"],
    **{
        name: ["data.root=data"]
        for name in ("davis", "davis2016", "folder", "long_videos", "mose", "youtube_vos")
    },
}


@cache
def composed(group: str, choice: str, name: str = "evaluate") -> dict[str, Any]:
    chosen = [f"{group.replace('.', '/')}={choice}", *NEEDED.get(choice, [])] if choice else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(name, overrides=[*chosen, "output.dir=out"])
    return OmegaConf.to_container(config, resolve=True)


def with_value(settings: Mapping[str, Any], path: str, key: str, value: Any) -> dict[str, Any]:
    """A copy in which one option of a group is another."""
    copied = {**settings}
    if not path:
        return copied | {key: value}
    first, _, rest = path.partition(".")
    return copied | {first: with_value(settings[first], rest, key, value)}


def options(group: str, choice: str) -> dict[str, Any]:
    """The types of the options of a choice."""
    target = group_at(composed(group, choice), group)["_target_"]
    return get_type_hints(GROUPS[group][target], include_extras=True)


class Key(NamedTuple):
    """An option of a composed configuration."""

    settings: Mapping[str, Any]
    group: str
    name: str
    kind: Any

    def check(self, value: Any) -> None:
        check(with_value(self.settings, self.group, self.name, value))

    @property
    def full(self) -> str:
        return f"{self.group}.{self.name}".removeprefix(".")

    @property
    def default(self) -> Any:
        return (group_at(self.settings, self.group) if self.group else self.settings).get(self.name)


def every_key() -> dict[str, Key]:
    """All options of the composed configurations and those that are declared beyond; once for each `_target_`."""
    found = {}
    for name in ("evaluate", "train", "demo"):
        settings = composed("", "", name)
        declared = get_type_hints(Configuration)
        for group in [group for group in ("output", "page") if group in settings]:
            kinds = get_type_hints(declared[group], include_extras=True)
            for key in settings[group]:
                found[f"{name} {group}.{key}"] = Key(settings, group, key, kinds[key])
        seed = get_type_hints(Configuration, include_extras=True)["seed"]
        found[f"{name} seed"] = Key(settings, "", "seed", seed)
    for group, choice in CHOICES:
        settings = composed(group, choice)
        node = group_at(settings, group)
        kinds = options(group, choice)
        for key in dict.fromkeys([*kinds, *(key for key in node if key[0] != "_")]):
            kind = kinds.get(key, Any)
            if kind is not Any:
                found[f"{node['_target_'].rpartition('.')[2]} {group}.{key}"] = Key(
                    settings, group, key, kind
                )
    return found


KEYS = every_key()
NUMBERS_OR_TEXT = {"backbone.batch", "trainer.devices", "trainer.precision", "logger.version"}
MAY_BE_EMPTY = {"backbone.prompt", "logger.name", "logger.version"}
MAPPINGS = {"data.masks", "backbone.members", "adaptation.head_weighting.layer_weights"}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from([10**30, -(10**30)])
    | st.floats()
    | st.sampled_from(["", "x", "1", "none", "ten", "0,1", "two\nlines"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@cache
def adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(dict[str, kind], config={"strict": True, "allow_inf_nan": False})


def is_allowed(kind: Any, value: Any) -> bool:
    """Whether pydantic takes a value for a type, on its own."""
    try:
        adapter(kind).validate_python({"value": value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_is_checked_and_allowed(group, choice):
    settings = composed(group, choice)
    check(settings)
    node = group_at(settings, group)
    assert node["_target_"] in GROUPS[group], "a choice of ours is checked"
    assert {key for key in node if key[0] != "_"} <= set(options(group, choice)), "all of its options are"


@pytest.mark.parametrize("name", ["evaluate", "train", "demo"])
def test_every_key_of_the_entry_points_is_tested(name):
    def leaves(node: Mapping[str, Any], above: str = "") -> Iterator[str]:
        for key, value in node.items():
            if isinstance(value, dict) and f"{above}{key}" != "backbone.noise":  # the group noise
                yield from leaves(value, f"{above}{key}.")
            elif key[0] != "_":
                yield above + key

    tested = {key.full for key in KEYS.values()} | {"backbone.noise"}
    assert set(leaves(composed("", "", name))) <= tested


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@settings(max_examples=8, deadline=None)
@given(value=VALUES)
def test_wrong_values_of_every_option_are_refused_in_one_line(key, value):
    try:
        key.check(value)
    except DriftError as error:
        line = str(error)
        assert "\n" not in line
        if not is_allowed(key.kind, value):
            assert line.startswith(f"{key.full}={shown(value)}: allowed is ")
            assert len(line) > len(f"{key.full}={shown(value)}: allowed is a")
    else:
        assert is_allowed(key.kind, value)


def wrong_values(key: Key) -> list[Any]:
    """What no option like this may take, judged by its default and not by its declared type."""
    wrong: list[Any] = [math.nan, math.inf, -math.inf, [[]], [None], [math.nan], -(10**30), -1.5]
    if key.full not in MAPPINGS:
        wrong += [{}, [{}], {"a": 1}, {0: "x"}]
    if key.full not in MAY_BE_EMPTY:
        wrong += [""]
    match key.default:
        case bool():
            wrong += [0, 1, 2, "yes", None, []]
        case int() | float() if key.full not in NUMBERS_OR_TEXT:
            wrong += ["x", "1", True, [1], 10**400]
        case int() | float():
            wrong += [True, 0.5, -(10**9)]
        case str() if key.full not in NUMBERS_OR_TEXT:
            wrong += [3, True, ["a"]]
        case list():
            wrong += ["a", 3, True, None] if key.full != "backbone.layers" else ["a", 3, True, [""], []]
    return wrong


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_no_option_takes_a_value_of_another_kind(key):
    for value in wrong_values(key):
        with pytest.raises(DriftError) as raised:
            key.check(value)
        line = str(raised.value)
        assert line.startswith(f"{key.full}={shown(value)}: allowed is "), value
        assert "\n" not in line


WRONG = {  # an example of each kind of option
    "seed": ["4294967296"],
    "output.dir": ["", "null"],
    "output.formats": ["masks", "[masks,masks]"],
    "output.attention_points": ["[[1,nan]]", "[[true,1]]"],
    "propagation.min_confidence": ["7", "nan"],
    "propagation.top_k": ["0", "1.5", "many"],
    "propagation.temperature": ["inf", "null"],
    "backbone.layers": ["up_blocks.2", "[]", "['']"],
    "data.sequences": ["[ant,ant]"],
    "trainer.devices": ["-2", "1.5"],
    "logger.mode": ["sometimes"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG for value in WRONG[key]])
def test_a_wrong_option_of_the_command_line_ends_with_status_2(key, value, monkeypatch, tmp_path):
    def never(config):
        raise AssertionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "output.dir=out", f"{key}={value}"])
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert run(never, config_dir=CONFIGS, config_name="evaluate") == 2
    line = errors.getvalue()
    assert line.startswith(f"error: {key}=")
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is written"


def changed_by(*words: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate", overrides=["output.dir=out", *words])
    return OmegaConf.to_container(config, resolve=True)


VIDEO = ["data=video", "data.path=clip.mp4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["noise=inversion", "noise.steps=21"], r"noise.steps=21: .* from 1 to backbone.timestep=20"),
        (["noise=inversion", "backbone.timestep=0"], "backbone.timestep=0: allowed is 1 or more"),
        (
            [
                "noise=none",
                "adaptation=drift",
                "adaptation.textual_inversion.diffusion_weight=0.1",
            ],
            "diffusion_weight=0.1: allowed is 0 with noise=none",
        ),
        (
            ["adaptation=none", "adaptation.checkpoints=out"],
            "adaptation.checkpoints=out: allowed is null where nothing is",
        ),
        (
            ["refinement.box=false", "refinement.mask=false", "refinement.positive_points=0"],
            "refinement.box=false: allowed is true where",
        ),
        (
            ["output.resume=true", "output.formats=[overlay]"],
            r"output.formats=\[overlay\]: .* includes masks",
        ),
        (VIDEO, "data.mask=null: allowed is a PNG with the objects to track"),
        ([*VIDEO, "data.mask=a.png", "data.masks={0: b.png}"], "has a mask for frame 0"),
        ([*VIDEO, "data.masks={-1: b.png}"], r"data.masks=\{-1: b.png\}: allowed is \{FRAME: FILE"),
        ([*VIDEO, "data.box=[5,5,5,40]"], r"data.box=\[5,5,5,40\]: .* x0 < x1"),
        ([*VIDEO, "data.box=[[0,0,9,9],[nan,5,8,9]]"], r"data.box=\[\[0,0,9,9\],\[nan,5,8,9\]\]: allowed"),
        ([*VIDEO, "data.points=[5,5]"], r"data.points=\[5,5\]: allowed is \[\[x,y\],...\] in pixels"),
        ([*VIDEO, "data.points=[[5,5]]", "data.labels=[1,2]"], "one label for each of the 1 points"),
        ([*VIDEO, "data.points=[[5,5]]", "data.labels=[0]"], "for at least one point"),
        ([*VIDEO, "data.points=[[5,5],[5,5]]", "data.labels=[1,0]"], "for the two clicks on"),
        (["+propagation.topk=3"], r"propagation.topk: no such key; did you mean propagation.top_k\?"),
    ],
)
def test_contradictions_are_refused(words, message):
    with pytest.raises(DriftError, match=message) as error:
        check(changed_by(*words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        [*VIDEO, "data.box=[[0,0,9,9],[1,2,3,4.5]]"],
        [*VIDEO, "data.points=[[5,5],[6,6]]", "data.labels=[1,0]"],
        [*VIDEO, "data.masks={0: a.png, 40: b.png}", "data.mask=c.png", "data.frame=3"],
        ["data.sequences=[1,b]"],
        ["trainer.devices=auto"],
        ["trainer.devices=[0,1]"],
        ["trainer.devices=-1"],
        [
            "trainer.precision=16-mixed",
            "trainer.accelerator=auto",
            "+trainer.num_nodes=2",
            "trainer.logger=true",
        ],
        ["propagation.top_k=null", "propagation.radius=null", "propagation.temperature=1"],
        ["propagation.memory_frames=0", "propagation.min_confidence=1"],
        ["+backbone.option_of_another_family=3"],
        ["output.formats=[]", "output.attention_points=[[3,4],[500,3]]"],
        ["adaptation=drift", "adaptation.head_weighting.views=0", "adaptation.textual_inversion.refresh=0"],
        ["adaptation=drift", "adaptation.head_weighting.layer_weights={a.b: [1,2], c: 0}"],
        ["backbone.cache_gigabytes=1", "backbone.layers=null", "backbone.prompt=''"],
        ["logger=csv", "logger.version=3", "logger.name=''"],
        ["logger=csv", "+logger.flush_logs_every_n_steps=3"],
    ],
    ids=" ".join,
)
def test_what_makes_sense_is_allowed(words):
    check(changed_by(*words))


def test_a_group_with_a_target_of_ones_own_takes_any_options():
    settings = composed("trainer", "cpu")
    own = {"_target_": "mine.Tracker", "temperature": "hot", "colour": 3}
    check({**settings, "propagation": own, "mine": {"x": 1}})
    with pytest.raises(DriftError, match="temperature=hot"):
        check({**settings, "propagation": {**settings["propagation"], "temperature": "hot"}})


def test_choices_are_those_of_the_library():
    """They are stated in `groups` too, as the library's modules are heavy to import."""
    from drift.backbones.stable_diffusion_checkpoints import _PREDICTION_TYPES
    from drift.formats import FORMATS
    from drift.precision import PRECISIONS
    from drift.propagation.heads import AFFINITIES, HEADS
    from drift.refinement.architectures import OFFICIAL_SIZES

    def stated(kind: Any, key: str) -> tuple[str, ...]:
        kind = get_type_hints(kind, include_extras=True)[key]
        literal = next(one for one in (kind, *get_args(kind)) if get_origin(one) is Literal)
        return get_args(literal)

    formats = get_type_hints(Output)["formats"]
    assert get_args(get_args(formats)[0]) == FORMATS
    assert stated(groups.Propagation, "affinity") == AFFINITIES
    assert stated(groups.Propagation, "heads") == HEADS
    assert stated(groups.Backbone, "precision") == PRECISIONS
    assert set(stated(groups.Backbone, "prediction_type")) == set(_PREDICTION_TYPES)
    assert set(stated(groups.SegmentAnything, "size")) == {*OFFICIAL_SIZES, "tiny"}


def test_values_are_shown_as_they_are_written():
    assert shown({"a": [1, None, True], "b": math.inf}) == "{a: [1,null,true], b: inf}"


@pytest.mark.parametrize("name", ["drift", "train", "demo"])
def test_help_names_options_and_words_that_exist(name):
    text = (CONFIGS / "hydra" / "help" / f"{name}.yaml").read_text()
    known = {key.full for key in KEYS.values()} | {f"{group.replace('.', '/')}" for group in GROUPS}
    known |= {"hydra/launcher", "experiment", "seed"}
    named = set(re.findall(r"(?<![\w./-])([a-z][a-z_./]*[a-z])=", text)) - {"key", "group"}
    assert named
    assert named <= known
    formats = get_args(get_args(get_type_hints(Output)["formats"])[0])
    assert name != "drift" or ", ".join(formats) in " ".join(text.split())
