"""The kernel against a naive dense reference, and what it may never do."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from drift.errors import OptionError
from drift.propagation import kernel, strips, windows
from drift.propagation.kernel import attention_logits, attention_maps, nearest_keys, propagate
from drift.propagation.strips import attend_in_strips
from drift.propagation.tiles import TILE
from drift.propagation.windows import attend_in_windows


def dense(
    queries, keys, labels, *, temperature=1.0, radius=None, top_k=None, exclude_self=False, offsets=None
) -> Tensor:
    """The definition: all pairs of queries and keys, then masks."""
    heads, height, width, _ = queries.shape
    frames = len(keys)
    k = torch.stack(list(keys), 1).reshape(heads, frames * height * width, -1)
    y = torch.stack(list(labels)).reshape(frames * height * width, -1)
    logits = queries.reshape(heads, height * width, -1) @ k.transpose(1, 2) / temperature
    if radius is not None:
        row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
        near = [
            ((row + down)[:, None] - row).abs().le(radius)
            & ((column + right)[:, None] - column).abs().le(radius)
            for down, right in shifts(offsets, frames, height, width)
        ]
        logits = logits.masked_fill(~torch.cat(near, 1), -torch.inf)
    if exclude_self:
        logits = logits.masked_fill(torch.eye(*logits.shape[-2:], dtype=torch.bool), -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = torch.full_like(logits, -torch.inf)
        best = logits.topk(top_k, dim=-1)
        logits = kept.scatter(-1, best.indices, best.values)
    return (logits.softmax(-1) @ y).reshape(heads, height, width, -1)


def shifts(offsets, frames, height, width):
    """Rows and columns by which the neighbourhood of each query is shifted in each frame; tiles stay in the frame."""
    if offsets is None:
        return [(0, 0)] * frames
    moved = []
    for frame in offsets:
        down, right = torch.zeros(2, height, width, dtype=torch.long)
        for tile in itertools.product(range(0, height, TILE), range(0, width, TILE)):
            inside = tuple(slice(start, start + TILE) for start in tile)
            for axis, length, places in ((0, height, down), (1, width, right)):
                stop = min(tile[axis] + TILE, length)
                asked = frame[tile[0] // TILE, tile[1] // TILE, axis].item()
                places[inside] = max(-tile[axis], min(asked, length - stop))
        moved.append((down.flatten(), right.flatten()))
    return moved


@pytest.fixture(scope="module", params=[attend_in_strips, attend_in_windows], ids=["strips", "windows"])
def using(request):
    """Calls a function with either implementation of the kernel, on a CPU."""

    def call(function, *arguments, **options):
        with patch.object(kernel, "attend_in_strips", request.param):
            return function(*arguments, **options)

    return call


def random_problem(heads, height, width, dim, frames, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(heads, height, width, dim, generator=generator)
    keys = [torch.randn(heads, height, width, dim, generator=generator) for _ in range(frames)]
    labels = [torch.rand(height, width, channels, generator=generator).softmax(-1) for _ in range(frames)]
    return queries, keys, labels


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 3),
    height=st.integers(1, 29),
    width=st.integers(1, 29),
    frames=st.integers(1, 4),
    channels=st.integers(1, 9),
    radius=st.none() | st.integers(0, 32),
    top_k=st.none() | st.integers(1, 40),
    temperature=st.floats(0.2, 3),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_reference(
    using, heads, height, width, frames, channels, radius, top_k, temperature, seed
):
    queries, keys, labels = random_problem(heads, height, width, 5, frames, channels, seed)
    # In float64, since rounding may exchange keys that are nearly equal at the top-k boundary.
    problem = queries.double(), [k.double() for k in keys], [y.double() for y in labels]
    options = {"temperature": temperature, "radius": radius, "top_k": top_k}
    assert torch.allclose(using(propagate, *problem, **options), dense(*problem, **options), atol=1e-9)


@pytest.mark.parametrize(
    ("radius", "top_k"),
    [(3, 5), (0, 5), (0, None), (2, 10_000), (None, 7), (None, None), (12, None), (12, 15), (200, 15)],
)
def test_equals_the_dense_reference_at_length(using, radius, top_k):
    problem = random_problem(heads=3, height=31, width=47, dim=16, frames=5, channels=4)
    options = {"temperature": 0.3, "radius": radius, "top_k": top_k}
    assert torch.allclose(using(propagate, *problem, **options), dense(*problem, **options), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 29),
    width=st.integers(1, 29),
    frames=st.integers(1, 4),
    radius=st.none() | st.integers(0, 12),
    top_k=st.none() | st.integers(1, 40),
    reach=st.integers(0, 40),
    equal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_shifted_neighbourhoods_equal_the_dense_reference(
    using, height, width, frames, radius, top_k, reach, equal, seed
):
    queries, keys, labels = random_problem(2, height, width, 5, frames, 3, seed)
    problem = queries.double(), [k.double() for k in keys], [y.double() for y in labels]
    generator = torch.Generator().manual_seed(seed)
    tiles = 1 if equal else -(-height // TILE), 1 if equal else -(-width // TILE)
    offsets = torch.randint(-reach, reach + 1, (frames, *tiles, 2), generator=generator)
    offsets = list(offsets.expand(frames, -(-height // TILE), -(-width // TILE), 2))
    options = {"temperature": 0.5, "radius": radius, "top_k": top_k, "offsets": offsets}
    assert torch.allclose(using(propagate, *problem, **options), dense(*problem, **options), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(25, 40), st.integers(25, 40)),
    corner=st.tuples(st.integers(0, 39), st.integers(0, 39)),
    side=st.integers(0, 12),
    radius=st.integers(0, 6),
    top_k=st.none() | st.integers(1, 9),
    reach=st.none() | st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_equal_labels_around_an_object_change_nothing(size, corner, side, radius, top_k, reach, seed):
    """Tiles with the same label everywhere in reach are not computed."""
    height, width = size
    queries, keys, _ = random_problem(2, height, width, 5, 2, 2, seed)
    labels = []
    for frame in range(2):
        label = torch.tensor([0.75, 0.25, 0.0]).expand(height, width, 3).clone()
        y, x = corner[0] % height, corner[1] % width
        label[y : y + side, x + frame : x + frame + side] = torch.tensor([0.0, 0.5, 0.5])
        labels.append(label.double())
    problem = queries.double(), [k.double() for k in keys], labels
    offsets = None
    if reach is not None:
        generator = torch.Generator().manual_seed(seed)
        tiles = -(-height // TILE), -(-width // TILE)
        offsets = list(torch.randint(-reach, reach + 1, (2, *tiles, 2), generator=generator))
    options = {"temperature": 0.5, "radius": radius, "top_k": top_k, "offsets": offsets}
    assert torch.allclose(propagate(*problem, **options), dense(*problem, **options), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 3),
    height=st.integers(1, 29),
    width=st.integers(1, 29),
    frames=st.integers(1, 3),
    radius=st.none() | st.integers(0, 12),
    count=st.integers(1, 60),
    exclude_self=st.booleans(),
    reach=st.none() | st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_nearest_keys_are_those_of_the_largest_logits(
    using, heads, height, width, frames, radius, count, exclude_self, reach, seed
):
    queries, keys, _ = random_problem(heads, height, width, 5, frames, 1, seed)
    offsets = None
    if reach is not None and radius is not None and not exclude_self:
        generator = torch.Generator().manual_seed(seed)
        tiles = -(-height // TILE), -(-width // TILE)
        offsets = list(torch.randint(-reach, reach + 1, (frames, *tiles, 2), generator=generator))
    near = {"radius": radius, "exclude_self": exclude_self, "offsets": offsets}
    found = using(nearest_keys, queries, keys, count, **near).flatten(1, 2)
    tokens = frames * height * width
    one_hot = torch.eye(tokens).view(frames, height, width, tokens)
    allowed = dense(torch.zeros_like(queries), [k * 0 for k in keys], one_hot, **near).flatten(1, 2) > 0
    k = torch.stack(keys, 1).reshape(heads, tokens, -1)
    logits = (queries.flatten(1, 2) @ k.mT).masked_fill(~allowed, -torch.inf)
    for of_query, expected in zip(found.flatten(0, 1), logits.flatten(0, 1), strict=True):
        indices = of_query[of_query >= 0]
        possible = int(expected.isfinite().sum())
        assert len(indices) == len(indices.unique()) == min(count, possible)
        assert torch.allclose(expected[indices].sort().values, expected.topk(len(indices)).values.flip(0))


def test_an_undefined_label_stays_where_it_is():
    queries, keys, _ = random_problem(1, 40, 40, 4, 1, 2)
    label = torch.tensor([1.0, 0.0]).expand(40, 40, 2).clone()
    label[3, 3] = torch.nan
    carried = propagate(queries, keys, [label], radius=2, top_k=None)
    assert carried[:, 3, 3].isnan().all()
    assert torch.equal(carried[:, 20:, 20:], label[None, 20:, 20:])


def test_only_what_an_object_can_reach_is_compared(monkeypatch):
    compared = []
    attend = strips._attend
    monkeypatch.setattr(
        strips, "_attend", lambda *args, **options: compared.append(1) or attend(*args, **options)
    )
    queries, keys, _ = random_problem(1, 64, 64, 4, 2, 2)
    label = torch.tensor([1.0, 0.0]).expand(64, 64, 2).clone()
    label[:4, :4] = torch.tensor([0.0, 1.0])
    propagate(queries, keys, [label, label], radius=2, top_k=3)
    assert len(compared) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_offsets_of_zero_change_nothing(threads):
    problem = random_problem(heads=2, height=31, width=47, dim=8, frames=3, channels=4)
    still = [torch.zeros(4, 6, 2, dtype=torch.long)] * 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shifted = propagate(*problem, radius=6, top_k=5, offsets=still)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(shifted, propagate(*problem, radius=6, top_k=5), atol=1e-6)


@pytest.mark.parametrize("radius", [1, 3, None])
@pytest.mark.parametrize("top_k", [None, 1, 4])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_query_can_be_kept_from_attending_to_itself(using, radius, top_k, frames):
    problem = random_problem(heads=2, height=11, width=19, dim=8, frames=frames, channels=3)
    problem[1][0] = problem[0] * 9  # each query is most similar to itself
    options = {"radius": radius, "top_k": top_k, "exclude_self": True}
    assert torch.allclose(using(propagate, *problem, **options), dense(*problem, **options), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(2, 19),
    width=st.integers(2, 19),
    radius=st.none() | st.integers(1, 20),
    top_k=st.none() | st.integers(1, 9),
    kind=st.sampled_from(["plain", "exclude_self", "offsets"]),
    seed=st.integers(0, 99),
)
def test_gradients_equal_those_of_the_dense_reference(using, height, width, radius, top_k, kind, seed):
    queries, keys, labels = random_problem(2, height, width, 5, 2, 3, seed)
    options = {"radius": radius, "top_k": top_k, "exclude_self": kind == "exclude_self", "temperature": 0.5}
    if kind == "offsets":
        tiles = -(-height // TILE), -(-width // TILE)
        options["offsets"] = list(
            torch.randint(-9, 10, (2, *tiles, 2), generator=torch.Generator().manual_seed(seed))
        )
    target = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(seed))
    gradients = []
    for function in (propagate, dense):
        inputs = [x.double().requires_grad_() for x in (queries, *keys, *labels)]
        loss = (function(inputs[0], inputs[1:3], inputs[3:], **options) - target).square().sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    for ours, expected in zip(*gradients, strict=True):
        assert torch.allclose(ours, expected, atol=1e-9)


def test_logits_of_large_activations_stay_finite_under_half_precision():
    queries, keys = torch.full((1, 3, 64), 40.0), torch.full((1, 2, 64), 40.0)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = attention_logits(queries, keys)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.full((1, 3, 2), 12800.0))


@pytest.mark.parametrize("options", [{}, {"radius": 4}, {"radius": 4, "top_k": 5}, {"top_k": 5}])
def test_labels_keep_their_sum(options):
    carried = propagate(*random_problem(2, 17, 23, 8, 3, 5), **options)
    assert carried.shape == (2, 17, 23, 5)
    assert torch.allclose(carried.sum(-1), torch.ones(2, 17, 23), atol=1e-5)


@pytest.mark.parametrize("options", [{"radius": 5}, {"radius": 5, "top_k": 15}, {"top_k": 15}, {}])
def test_no_matrix_of_all_pairs_is_held(options):
    height, width, frames = 40, 60, 6
    problem = random_problem(1, height, width, 16, frames, 2)
    all_pairs = height * width * height * width * frames * 4  # bytes of float32
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        propagate(*problem, **options)
    largest = max(event.cpu_memory_usage for event in profiled.events())
    assert 0 < largest < all_pairs / 10


def test_autocast_changes_nothing():
    problem = random_problem(1, 12, 12, 8, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = propagate(*problem, radius=3, top_k=4)
    assert torch.equal(inside, propagate(*problem, radius=3, top_k=4))


def test_attention_map_is_what_the_kernel_weighs_with():
    queries, keys, labels = random_problem(2, 6, 7, 8, 3, 4)
    weights = attention_maps(queries[:, [2, 0], [5, 1]], keys, temperature=0.7)
    assert weights.shape == (2, 3, 6, 7)
    per_head = propagate(queries, keys, labels, temperature=0.7)
    for weight, place in zip(weights, ((2, 5), (0, 1)), strict=True):
        carried = per_head.mean(0)[place]
        assert torch.allclose(torch.einsum("fyx,fyxc->c", weight, torch.stack(labels)), carried, atol=1e-5)
    weights = torch.tensor([0.9, 0.1])
    attention = attention_maps(queries[:, 2, 5:6], keys, temperature=0.7, weights=weights)[0]
    carried = torch.einsum("h,hc->c", weights, per_head[:, 2, 5])
    assert torch.allclose(torch.einsum("fyx,fyxc->c", attention, torch.stack(labels)), carried, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("options", [{"radius": 3}, {"radius": 5, "top_k": 4}, {"top_k": 6}])
def test_several_threads_carry_what_one_carries(threads, options):
    problem = random_problem(2, 21, 30, 8, 3, 4)
    expected = propagate(*problem, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            assert torch.allclose(propagate(*problem, **options), expected, atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(propagate(*problem, **options), expected, atol=1e-6)
            assert torch.get_num_threads() == threads
            with pytest.raises(RuntimeError):  # in a thread: one frame's labels have fewer channels
                propagate(*problem[:2], [problem[2][0][..., :2], *problem[2][1:]], **options)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0),
        ("temperature", "x"),
        ("radius", -1),
        ("radius", 1.5),
        ("top_k", 0),
        ("top_k", True),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(OptionError, match=option):
        propagate(*random_problem(1, 4, 4, 4, 1, 2), **{option: value})


def test_memory_that_does_not_fit_is_refused():
    queries, keys, labels = random_problem(1, 4, 4, 4, 2, 2)
    with pytest.raises(ValueError, match="frames of keys"):
        propagate(queries, [], [])
    with pytest.raises(ValueError, match="frames of keys"):
        propagate(queries, keys, labels[:1])
    with pytest.raises(ValueError, match="grid"):
        propagate(queries, keys, [label[:3] for label in labels])


def test_windows_in_several_batches_give_the_same_labels(monkeypatch):
    queries, keys, labels = random_problem(2, 37, 50, 6, 3, 2)
    options = {"exclude_self": True, "offsets": None, "return_indices": False}
    whole = attend_in_windows(queries, keys, labels, 5, 7, **options)
    monkeypatch.setattr(windows, "_BATCH", 2**21)
    assert torch.equal(attend_in_windows(queries, keys, labels, 5, 7, **options), whole)


def test_operations_on_an_accelerator_do_not_grow_with_the_number_of_tiles():
    """The number of operations, each a kernel launch on a GPU, does not depend on the number of tiles."""

    def steps(side):
        queries, keys, labels = random_problem(1, side, side, 8, 3, 2)
        offsets = [torch.full((-(-side // TILE), -(-side // TILE), 2), 3)] * 3
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            attend_in_windows(
                queries, keys, labels, 4, 5, exclude_self=False, offsets=offsets, return_indices=False
            )
        return len(profiled.events())

    assert steps(56) == steps(16)
