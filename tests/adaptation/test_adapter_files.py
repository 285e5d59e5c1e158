"""Adapters on disk: read only for what they were learned for, and written as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import ColourBackbone, moving_square
from safetensors.torch import save_file

from drift import tensor_files
from drift.adaptation import Adaptation, Diverged, Fixed, Learned, PromptOptions, Uniform
from drift.adaptation import adaptation as adaptation_module
from drift.adaptation.adapter_files import AdapterFolder, load_adapter, origin, save_adapter
from drift.backbones import load_backbone
from drift.errors import InputError, OptionError
from drift.propagation import Adapter, PropagationOptions, Tracker

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]
FUSED = PropagationOptions("attention", "fused", 0.5, 3, 4)
CLIP = moving_square(4, (64, 96), name="ant")
GIVEN = CLIP.given_frames()
HEADS = Learned(views=1, steps=2)
PROMPT = PromptOptions(tokens=4, steps=2, slot_weight=0.1)
BOTH = Adaptation(HEADS, PROMPT)


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(checkpoint, layers=LAYERS, timestep=51, precision="float32")


@pytest.fixture(scope="module")
def learned(backbone):
    """An adapter with a second appearance of objects."""
    late = np.zeros((64, 96), np.uint8)
    late[44:60, 64:88] = 7
    given = {0: GIVEN[0], 2: (CLIP.frames[2], late)}
    return given, BOTH.learn(given, backbone, FUSED)


def tracked(backbone, adapter):
    tracker = Tracker(backbone, heads="fused", radius=4, top_k=3, adapter=adapter)
    tracker.step(CLIP.frames[0], CLIP.given[0])
    return tracker.step(CLIP.frames[1]).probabilities


def test_a_file_holds_all_of_an_adapter(backbone, learned, tmp_path):
    given, adapter = learned
    expected = origin(given, backbone, BOTH, FUSED)
    save_adapter(tmp_path / "ant.safetensors", adapter, expected)
    loaded = load_adapter(tmp_path / "ant.safetensors", expected)
    assert all(torch.equal(a, b) for a, b in zip(loaded.embeddings, adapter.embeddings, strict=True))
    assert all(torch.equal(loaded.head_weights[layer], adapter.head_weights[layer]) for layer in LAYERS)
    assert (loaded.figures, loaded.losses, loaded.warning) == (adapter.figures, adapter.losses, None)
    complete, exact = (BOTH.with_prompts(one, given, backbone) for one in (loaded, adapter))
    assert complete.slot_weight == 0.1
    assert sorted(complete.prompts) == sorted(complete.slots) == [0, 2]
    assert torch.equal(tracked(backbone, complete), tracked(backbone, exact))


def test_a_warning_is_kept(tmp_path):
    path = tmp_path / "ant.safetensors"
    save_adapter(path, Adapter(warning="not adapted", figures={"seconds": 1.5}), {"a": "1"})
    loaded = load_adapter(path, {"a": "1"})
    assert loaded.warning == "not adapted"
    assert loaded.figures == {"seconds": 1.5}
    assert (loaded.head_weights, list(loaded.embeddings)) == ({}, [])


def test_embeddings_keep_their_order(tmp_path):
    path = tmp_path / "ant.safetensors"
    adapter = Adapter(embeddings=[torch.full((1, 1, 1), float(number)) for number in range(12)])
    save_adapter(path, adapter, {})
    assert [float(one) for one in load_adapter(path, {}).embeddings] == list(range(12))


def other_frame(given):
    frame, mask = given[0]
    return {0: (frame + 1, mask)}


def other_mask(given):
    frame, mask = given[0]
    return {0: (frame, mask * 2)}


def other_index(given):
    return {1: given[0]}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (other_frame, "frames with a mask"),
        (other_mask, "masks"),
        (other_index, "masks"),
        (lambda given: replace(BOTH, seed=1), "adaptation.seed is 1, it was 0"),
        (
            lambda given: replace(BOTH, head_weighting=replace(HEADS, views=3)),
            "adaptation.head_weighting.views is 3, it was 1",
        ),
        (
            lambda given: replace(BOTH, textual_inversion=replace(PROMPT, tokens=5)),
            "adaptation.textual_inversion.tokens is 5, it was 4",
        ),
        (lambda given: replace(FUSED, radius=3), "propagation.radius is 3, it was 4"),
    ],
)
def test_an_adapter_of_something_else_is_refused_with_what_differs(backbone, tmp_path, change, part):
    arguments = [GIVEN, backbone, BOTH, FUSED]
    path = tmp_path / "ant.safetensors"
    save_adapter(path, Adapter(), origin(*arguments))
    load_adapter(path, origin(*arguments))
    changed = change(GIVEN)
    arguments[[dict, type(backbone), Adaptation, PropagationOptions].index(type(changed))] = changed
    with pytest.raises(InputError, match="learned for something else") as error:
        load_adapter(path, origin(*arguments))
    assert part in str(error.value)
    assert "train.py" in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"timestep": 99}, {"layers": LAYERS[:1]}, {"prompt": "a dog"}])
def test_an_adapter_of_another_backbone_is_refused(backbone, checkpoint, tmp_path, options):
    path = tmp_path / "ant.safetensors"
    save_adapter(path, Adapter(), origin(GIVEN, backbone, BOTH, FUSED))
    other = load_backbone(
        checkpoint, **({"layers": LAYERS, "timestep": 51, "precision": "float32"} | options)
    )
    with pytest.raises(InputError, match="learned for something else: backbone"):
        load_adapter(path, origin(GIVEN, other, BOTH, FUSED))


@pytest.mark.parametrize(
    ("narrower", "wider"),
    [
        (Adaptation(HEADS), BOTH),
        (Adaptation(Uniform(), PROMPT), BOTH),
        (Adaptation(Fixed({LAYERS[0]: 1}), PROMPT), Adaptation(Fixed({LAYERS[1]: 1}), PROMPT)),
    ],
)
def test_an_adapter_of_other_parts_is_never_used(backbone, tmp_path, narrower, wider):
    """Weights that were learned under a learned prompt are not those of the backbone's own prompt."""
    for number, (trained, used) in enumerate(((narrower, wider), (wider, narrower))):
        folder = tmp_path / str(number)
        AdapterFolder(trained, FUSED, folder).adapter(CLIP, backbone)
        read = replace(used, checkpoints=str(folder))
        try:
            adapter = AdapterFolder.to_read(read, FUSED, tmp_path / "none").adapter(CLIP, backbone)
        except InputError:
            continue
        exact = used.adapt(GIVEN, backbone, FUSED)
        assert adapter.head_weights.keys() == exact.head_weights.keys()
        assert all(torch.equal(adapter.head_weights[n], exact.head_weights[n]) for n in exact.head_weights)
        assert len(adapter.embeddings) == len(exact.embeddings)


def test_what_an_adapter_does_not_depend_on_may_change(backbone, tmp_path):
    """A prompt does not depend on how labels are propagated."""
    prompt_alone = Adaptation(textual_inversion=PROMPT)
    path = tmp_path / "ant.safetensors"
    save_adapter(path, Adapter(), origin(GIVEN, backbone, prompt_alone, FUSED))
    load_adapter(path, origin(GIVEN, backbone, prompt_alone, replace(FUSED, radius=9)))


@pytest.mark.parametrize("lost", [1, 50, 10_000])
def test_a_truncated_file_is_named(backbone, learned, tmp_path, lost):
    path = tmp_path / "ant.safetensors"
    save_adapter(path, learned[1], {})
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(InputError, match=r"ant\.safetensors: truncated or corrupt adapter") as error:
        load_adapter(path, {})
    assert "\n" not in str(error.value)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "ant.safetensors"
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"ant\.safetensors: not an adapter"):
        load_adapter(path, {})


def test_a_missing_file_says_how_to_learn_it(tmp_path):
    with pytest.raises(
        InputError, match=f"no such adapter; learn it with python train.py output.dir={tmp_path}"
    ):
        load_adapter(tmp_path / "ant.safetensors", {})


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "ant.safetensors"
    save_adapter(path, Adapter(warning="first"), {})

    def interrupted(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(path, Adapter(warning="second"), {})
    assert load_adapter(path, {}).warning == "first"
    assert list(tmp_path.glob("*.safetensors")) == [path]


class Counted:
    """Counts what is learned."""

    def __init__(self, monkeypatch):
        self.count, exact = 0, Adaptation.learn

        def learn(adaptation, *args):
            self.count += 1
            return exact(adaptation, *args)

        monkeypatch.setattr(Adaptation, "learn", learn)


def heads_folder(root, **options):
    return AdapterFolder(Adaptation(HEADS), FUSED, root, **options)


def test_a_folder_learns_what_is_missing_once(tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    folder = heads_folder(tmp_path / "new")
    first = folder.adapter(CLIP, ColourBackbone())
    assert (tmp_path / "new" / "ant.safetensors").exists()
    again = folder.adapter(CLIP, ColourBackbone())
    assert counted.count == 1
    assert all(torch.equal(first.head_weights[n], again.head_weights[n]) for n in first.head_weights)


def test_adapters_in_a_cache_share_their_prompts(backbone, tmp_path, monkeypatch):
    fitted = []
    fit = adaptation_module.fit
    monkeypatch.setattr(adaptation_module, "fit", lambda module: fitted.append(module) or fit(module))

    def adapter(adaptation, propagation, run, shared):
        return AdapterFolder(adaptation, propagation, tmp_path / run, shared=shared).adapter(CLIP, backbone)

    weighted = replace(BOTH, head_weighting=Fixed(dict.fromkeys(LAYERS, 0.5)))
    runs = [
        (BOTH, FUSED),
        (BOTH, replace(FUSED, temperature=0.7)),
        (weighted, FUSED),
        (Adaptation(HEADS), FUSED),
    ]
    for number, run in enumerate(runs):
        alone = adapter(*run, f"{number} alone", None)
        fitted.clear()
        of_sweep = adapter(*run, str(number), tmp_path / "cache")
        assert len(fitted) == (number == 0)
        assert of_sweep.head_weights.keys() == alone.head_weights.keys()
        assert all(torch.equal(of_sweep.head_weights[n], w) for n, w in alone.head_weights.items())
        assert len(of_sweep.embeddings) == len(alone.embeddings) == (number < 3)
        assert all(map(torch.equal, of_sweep.embeddings, alone.embeddings))
        assert of_sweep.figures.keys() == alone.figures.keys()
        assert of_sweep.losses == alone.losses


def test_a_prompt_that_diverged_is_not_weighted(backbone, tmp_path, monkeypatch):
    def diverge(module):
        module.losses.append(float("nan"))
        raise Diverged("the loss is infinite", module.losses)

    monkeypatch.setattr(adaptation_module, "fit", diverge)
    folder = AdapterFolder(BOTH, FUSED, tmp_path, shared=tmp_path / "cache")
    adapter = folder.adapter(CLIP, backbone)
    assert adapter.warning == "not adapted: the loss is infinite"
    assert (adapter.head_weights, list(adapter.embeddings)) == ({}, [])


def test_a_folder_that_does_not_learn_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"ant\.safetensors: no such adapter"):
        heads_folder(tmp_path, learns=False).adapter(CLIP, ColourBackbone())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["corrupt", "of another clip"])
def test_only_a_folder_that_replaces_learns_again(tmp_path, monkeypatch, harm):
    folder = heads_folder(tmp_path)
    expected = folder.adapter(CLIP, ColourBackbone())
    if harm == "corrupt":
        folder.path(CLIP).write_bytes(b"nothing")
    else:
        save_adapter(folder.path(CLIP), Adapter(), origin(other_frame(GIVEN), ColourBackbone(), BOTH, FUSED))
    with pytest.raises(InputError, match="ant"):
        folder.adapter(CLIP, ColourBackbone())
    counted = Counted(monkeypatch)
    replaced = heads_folder(tmp_path, replaces=True).adapter(CLIP, ColourBackbone())
    assert counted.count == 1
    assert all(torch.equal(replaced.head_weights[n], expected.head_weights[n]) for n in expected.head_weights)
    folder.adapter(CLIP, ColourBackbone())


def test_without_anything_to_learn_no_file_is_read_or_written(tmp_path):
    folder = AdapterFolder(Adaptation(Fixed({"0": [1, 3]})), FUSED, tmp_path / "new")
    assert folder.adapter(CLIP, ColourBackbone()).head_weights["0"].tolist() == [0.25, 0.75]
    assert not (tmp_path / "new").exists()


def test_evaluate_reads_what_train_wrote_and_its_own_folder(tmp_path):
    def to_read(checkpoints, adaptation=None):
        adaptation = adaptation or Adaptation(HEADS, checkpoints=checkpoints)
        return AdapterFolder.to_read(adaptation, FUSED, tmp_path / "own")

    nested = tmp_path / "run" / "adapters"
    nested.mkdir(parents=True)
    assert to_read(None) == AdapterFolder(Adaptation(HEADS), FUSED, tmp_path / "own", replaces=True)
    assert (to_read(str(nested)).root, to_read(str(nested)).learns) == (nested, False)
    assert to_read(str(nested.parent)).root == nested
    with pytest.raises(OptionError, match=r"checkpoints=/no/such: allowed is null where nothing is learned"):
        to_read(None, Adaptation(checkpoints="/no/such"))
    with pytest.raises(OptionError, match="checkpoints=/no/such: allowed is a folder that train.py wrote"):
        to_read("/no/such")


def test_an_unusable_mask_names_the_clip(tmp_path):
    clip = moving_square(2, (48, 64), name="bee", given={0: np.ones((5, 5), np.uint8)})
    with pytest.raises(InputError, match="bee"):
        heads_folder(tmp_path).adapter(clip, ColourBackbone())
