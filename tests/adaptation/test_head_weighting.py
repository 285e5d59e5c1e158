"""Head weighting: finds the head that holds the correspondence, with the tracker's own functions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import ColourBackbone, moving_square
from torch.nn import functional as F

from drift.adaptation import Diverged, HeadWeighting, Learned, fit, head_weighting
from drift.adaptation.fitting import ClipModule
from drift.adaptation.head_weighting import reach_in_pixels
from drift.backbones import Features, load_backbone
from drift.errors import OptionError
from drift.propagation import Adapter, PropagationOptions, Tracker
from drift.propagation.heads import compare, mean_over_heads, propagate_by_head

STRIDE, RADIUS = 4, 4
MODES = ("separate", "joint", "fused")
CLIP = moving_square(1, (64, 96))
FRAME, MASK = CLIP.frames[0], CLIP.given[0]

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


class OneGoodHead:
    """Layers of noise, except for one head, counted over all layers, whose tokens tell how much object they hold.

    The object of `moving_square` is the only bright thing, so that this backbone knows it in every view.
    """

    device = torch.device("cpu")
    stride = STRIDE

    def __init__(self, good_head, *, heads=(3, 2), coarse=False):
        self.description = {"noise": "none"}
        self.layers = {f"layer{number}": count for number, count in enumerate(heads)}
        self.good_head, self.coarse = good_head, coarse

    def features(self, frames, generator, *, prompt=None, cross=()):
        features, first = [], 0
        generator = generator[0] if isinstance(generator, list) else generator
        for number, (layer, count) in enumerate(self.layers.items()):
            size = STRIDE * 2 if self.coarse and number else STRIDE
            angle = F.avg_pool2d((frames[:, 0] > 0.5).float(), size, ceil_mode=True) * torch.pi
            tokens = F.normalize(torch.randn(1, count, *angle.shape[1:], 8, generator=generator), dim=-1) * 8
            if self.good_head in range(first, first + count):
                telling = F.pad(torch.stack([angle.cos(), angle.sin()], -1)[0], (0, 6))
                own = tokens[0, self.good_head - first]
                tokens[0, self.good_head - first] = telling * 8 + own / 80
            first += count
            features.append(Features(layer, tokens, tokens, tokens[0].permute(1, 2, 0, 3).flatten(2)[None]))
        return features


class Unlike(OneGoodHead):
    """Each token is like itself alone."""

    def __init__(self):
        super().__init__(0, heads=(1,))

    def features(self, frames, generator, *, prompt=None, cross=()):
        grid = frames.shape[2] // STRIDE, frames.shape[3] // STRIDE
        tokens = F.normalize(torch.randn(1, 1, *grid, 200, generator=generator), dim=-1) * 50
        return [Features("layer0", tokens, tokens, tokens[:, 0])]


def head_weights(backbone, mode="separate", *, top_k=None, seed=0, radius=RADIUS, temperature=1.0, **options):
    options = {"views": 4, "caution": 0.0} | options
    propagation = PropagationOptions("attention", mode, temperature, top_k, radius)
    return HeadWeighting(backbone, FRAME, MASK, propagation, Learned(**options), seed=seed)


def learned(module):
    fit(module)
    return torch.cat(list(module.weights().values()))


def dense_labels(target, memory, labels, options, *, exclude_self):
    """Labels propagated by one layer's heads, from the full matrix of logits; `(heads, rows, columns, channels)`."""
    rows, columns = target.shape[1:3]
    logits = torch.einsum("hqd,hkd->hqk", target.flatten(1, 2), memory.flatten(1, 2)) / options["temperature"]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    if options["radius"] is not None:
        near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= options["radius"]
        logits = logits.masked_fill(~near, -math.inf)
    if exclude_self:
        logits = logits.masked_fill(torch.eye(len(y), dtype=torch.bool), -math.inf)
    if options["top_k"] is not None:
        least = logits.topk(options["top_k"], dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return (logits.softmax(-1) @ labels.flatten(0, 1)).unflatten(1, (rows, columns))


def dense_loss(example, frame, weights, mode, options):
    """Cross-entropy of a view, written with full matrices; differentiable with respect to the weights."""
    grid = example.labels.shape[1:]
    names = [features.layer for features in frame]
    tokens = {}
    for name, of_view, of_frame in zip(names, example.features, frame, strict=True):
        dim = of_view.queries.shape[-1]
        tokens[name] = of_view.queries[0].double() / dim**0.5, of_frame.keys[0].double()
        if mode == "fused" and of_view.grid != grid:  # all on the finest grid
            tokens[name] = tuple(
                F.interpolate(t.permute(0, 3, 1, 2), scale_factor=2.0, mode="bilinear").permute(0, 2, 3, 1)
                for t in tokens[name]
            )
    labels = MASK_LABELS.double()
    total = torch.zeros(2, *grid, dtype=torch.float64)
    if mode == "fused":  # one attention map, from the weighted sum of all heads' logits
        queries = [tokens[name][0] * weights[name][:, None, None, None] for name in names]
        queries, keys = torch.cat(queries).unsqueeze(0), torch.cat([tokens[name][1] for name in names])
        queries = queries[0].permute(1, 2, 0, 3).flatten(2)[None]
        keys = keys.permute(1, 2, 0, 3).flatten(2)[None]
        propagated = dense_labels(queries, keys, labels, options, exclude_self=example.is_frame)[0]
        total = propagated.permute(2, 0, 1)
    else:
        for name in names:
            (queries, keys), of_heads = tokens[name], weights[name].double()
            coarse = queries.shape[1] < grid[0]
            own = F.avg_pool2d(labels.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0) if coarse else labels
            radius = options["radius"]
            if mode == "joint":
                mean = queries * (of_heads / of_heads.sum())[:, None, None, None]
                queries, keys = (t.permute(1, 2, 0, 3).flatten(2)[None] for t in (mean, keys))
                of_heads = of_heads.sum()[None]
            halved = None if radius is None else math.ceil(radius / 2) if coarse else radius
            layer = options | {"radius": halved}
            per_head = dense_labels(queries, keys, own, layer, exclude_self=example.is_frame)
            propagated = torch.einsum("h,hyxc->cyx", of_heads, per_head)
            if coarse:
                propagated = F.interpolate(propagated[None], scale_factor=2.0, mode="bilinear")[0]
            total = total + propagated
    cross_entropy = -(example.labels * total.clamp(1e-3, 1).log()).sum(0)
    return (example.token_weights * cross_entropy).sum()


_share = F.avg_pool2d(torch.from_numpy(MASK)[None].float(), STRIDE)[0]
MASK_LABELS = torch.stack([1 - _share, _share], -1)


def prepared(module):
    """The examples of the module, as `Trainer.fit` gets them."""
    module.on_fit_start()
    return list(module.train_dataloader())


@pytest.mark.parametrize("good_head", [1, 4])
def test_the_one_good_head_gets_the_weight(good_head):
    weights = learned(head_weights(OneGoodHead(good_head)))
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert weights[good_head] > 0.9, weights


def test_the_one_good_head_gets_the_weight_with_top_k():
    assert learned(head_weights(OneGoodHead(2), top_k=5))[2] > 0.9


def test_the_one_good_head_gets_the_weight_in_a_coarser_layer():
    assert learned(head_weights(OneGoodHead(3, coarse=True)))[3] > 0.9


@pytest.mark.parametrize("mode", ["joint", "fused"])
@pytest.mark.parametrize("patience", [3, 30])
def test_learned_weights_beat_equal_weights(mode, patience):
    """With averaged logits, weights of noisy heads also scale the temperature: the loss counts, not a head's weight."""
    module = head_weights(OneGoodHead(1), mode, temperature=0.3, patience=patience, steps=30)
    learned(module)
    options = {"temperature": 0.3, "radius": RADIUS, "top_k": None}
    for seed in (0, 1) if mode == "joint" else (0,):  # the views that it was learned on, and others
        examples = prepared(head_weights(OneGoodHead(1), mode, seed=seed, temperature=0.3))
        frame = examples[0].features
        equal = {layer: torch.full((heads,), 0.5 / heads) for layer, heads in module.layers.items()}
        of_learned, of_equal = (
            sum(dense_loss(example, frame, weights, mode, options).item() for example in examples)
            for weights in (module.weights(), equal)
        )
        assert of_learned <= of_equal + 1e-5
        if patience == 30:
            assert of_learned < 0.97 * of_equal


def test_learned_weights_track_better_than_equal_weights():
    clip = moving_square(4, (64, 96))
    backbone = OneGoodHead(4)
    module = head_weights(backbone)
    learned(module)

    def iou(adapter):
        tracker = Tracker(backbone, heads="separate", radius=RADIUS, top_k=None, adapter=adapter)
        masks = [
            tracker.step(frame, MASK if t == 0 else None).mask().numpy()
            for t, frame in enumerate(clip.frames)
        ]
        found, true = masks[-1] > 0, clip.truth[3] > 0
        return (found & true).sum() / (found | true).sum()

    assert iou(Adapter(head_weights=module.weights())) > iou(Adapter()) + 0.1


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize(("mode", "top_k"), [(mode, top_k) for mode in MODES for top_k in (None, 3)])
def test_the_loss_and_its_gradient_are_those_of_a_dense_reference(mode, top_k, candidates, coarse):
    module = head_weights(OneGoodHead(1, coarse=coarse), mode, top_k=top_k, temperature=0.7)
    examples = prepared(module)
    options = {"temperature": 0.7, "radius": RADIUS, "top_k": top_k}
    with torch.no_grad():
        module.theta.copy_(torch.tensor([0.3, -0.5, 0.1, 1.0, -0.2]))
    if candidates:
        module.on_train_epoch_start()
        assert bool(module._candidates) == (mode != "separate" and top_k is not None)
    for number in (0, 1, 2):  # the frame itself, a view, a mirrored view
        loss = module.training_step(examples[number], number)
        (gradient,) = torch.autograd.grad(loss, module.theta)
        theta = module.theta.detach().double().requires_grad_()
        by_layer = dict(zip(module.layers, theta.softmax(0).split([3, 2]), strict=True))
        expected = dense_loss(examples[number], examples[0].features, by_layer, mode, options)
        (expected_gradient,) = torch.autograd.grad(expected, theta)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert torch.allclose(gradient.double(), expected_gradient, rtol=1e-2, atol=1e-4)
        assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_that_of_labels_propagated_by_the_tracker(mode):
    """The tracker's first step after the frame propagates what the loss is computed on."""
    backbone = OneGoodHead(1)
    module = head_weights(backbone, mode, top_k=3, views=1)
    _, example = prepared(module)
    loss = module.training_step(example, 0)
    features = iter([prepared(module)[0].features, example.features])
    tracker = Tracker(
        backbone,
        heads=mode,
        radius=RADIUS,
        top_k=3,
        adapter=Adapter(head_weights=module.weights()),
    )
    backbone.features = lambda *args, **options: next(features)
    tracker.step(FRAME, MASK)
    propagated = tracker.step(FRAME).probabilities
    cross_entropy = -(example.labels * propagated.clamp(1e-3, 1).log()).sum(0)
    assert loss.item() == pytest.approx((example.token_weights * cross_entropy).sum().item(), rel=1e-4)


@pytest.fixture
def calls(monkeypatch):
    """Names of the tracker's functions that head weighting calls, in order."""
    calls = []
    for function in (compare, propagate_by_head, mean_over_heads):

        def call(*args, function=function, **options):
            calls.append(function.__name__)
            return function(*args, **options)

        monkeypatch.setattr(head_weighting, function.__name__, call)
    return calls


@pytest.mark.parametrize("top_k", [None, 3, 200])
@pytest.mark.parametrize("mode", MODES)
def test_training_uses_the_functions_of_the_tracker(mode, top_k, calls):
    module = head_weights(OneGoodHead(1), mode, top_k=top_k)
    example = prepared(module)[1]
    module.on_train_epoch_start()
    calls.clear()
    module.training_step(example, 0)
    propagated = [] if mode == "separate" or top_k == 3 else ["propagate_by_head"]
    assert calls == ["compare", *propagated, "mean_over_heads"]


@pytest.mark.parametrize("mode", ["joint", "fused"])
def test_a_layer_without_weight_does_not_count(mode):
    module = head_weights(OneGoodHead(1), mode, top_k=3)
    with torch.no_grad():
        module.theta.copy_(torch.tensor([0.0, 0.0, 0.0, -1000.0, -1000.0]))
    example = prepared(module)[1]
    exact = module.training_step(example, 1)
    module.on_train_epoch_start()
    assert module.training_step(example, 1).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("mode", ["joint", "fused"])
def test_joint_heads_learn_on_candidates_what_they_learn_on_all_keys(mode, follow, monkeypatch):
    if follow:  # the neighbourhoods depend on the weights as well
        monkeypatch.setattr(head_weighting, "_CHANGE", 0.0)

    def learning(candidates):
        if not candidates:
            monkeypatch.setattr(HeadWeighting, "on_train_epoch_start", ClipModule.on_train_epoch_start)
        module = head_weights(OneGoodHead(1), mode, top_k=3, steps=12, patience=12, learning_rate=0.1)
        module.propagation = replace(module.propagation, follow=follow)
        return learned(module), module.losses

    (weights, losses), (exact_weights, exact_losses) = learning(True), learning(False)
    assert losses == pytest.approx(exact_losses, rel=1e-3)
    assert torch.allclose(weights, exact_weights, atol=1e-3)
    assert len(losses) == 12


@pytest.mark.parametrize("change", [0.0, 0.2, 2.0])
def test_candidates_are_chosen_anew_when_the_weights_have_changed(change, monkeypatch):
    chosen = []
    choose = head_weighting.candidate_keys
    monkeypatch.setattr(head_weighting, "_CHANGE", change)
    monkeypatch.setattr(
        head_weighting,
        "candidate_keys",
        lambda *args, **options: chosen.append(1) or choose(*args, **options),
    )
    learned(head_weights(OneGoodHead(1), "joint", top_k=3, views=0, steps=9, patience=9))
    assert len(chosen) == 9 if change == 0 else len(chosen) == 1 if change == 2 else 1 < len(chosen) < 9


def test_heads_compared_by_cosine_similarity_are_one():
    module = head_weights(OneGoodHead(1), "fused", top_k=3)
    module.propagation = replace(module.propagation, affinity="cosine", temperature=0.1)
    example = prepared(module)[1]
    exact = module.training_step(example, 1)
    module.on_train_epoch_start()
    assert module._candidates
    assert module.training_step(example, 1).item() == pytest.approx(exact.item(), rel=1e-5)


def test_separate_heads_propagate_once_to_each_view(calls):
    learned(head_weights(OneGoodHead(1), views=2, steps=5, tolerance=0.0))
    assert calls.count("propagate_by_head") == 3
    assert calls.count("mean_over_heads") == 15


def test_on_the_frame_itself_a_token_never_attends_to_itself():
    """Otherwise labels would be propagated without error, whatever the head."""
    module = head_weights(Unlike(), "joint", views=0)
    (example,) = prepared(module)
    assert example.is_frame
    assert module.training_step(example, 0) > 0.1
    compared = compare(example.features, module.propagation)
    keys, labels = [[compared[0].keys]], [[MASK_LABELS]]
    exact = mean_over_heads(compared, propagate_by_head(compared, keys, labels, module.propagation))
    assert torch.allclose(exact.permute(1, 2, 0), MASK_LABELS, atol=1e-3)


def test_only_the_frame_itself_excludes_the_own_token():
    module = head_weights(OneGoodHead(1), views=3)
    assert [example.is_frame for example in prepared(module)] == [True, False, False, False]


def test_features_of_mirrored_views_are_aligned_with_the_frame():
    """Where the mask of the view is, its bright tokens are."""
    examples = prepared(head_weights(ColourBackbone(), views=2))
    for example in examples:
        bright = example.features[0].tokens[0, ..., 0] > 0.1
        covered = example.labels[1] > 0.9
        assert covered.any()
        assert bright[covered].all()
        assert torch.equal(example.features[0].queries[0, 0, ..., 0] > 1, bright)
    mirrored = examples[2].labels
    assert not torch.equal(mirrored, mirrored.flip(-1)), "otherwise a missing flip would not show"


def test_objects_and_background_count_the_same():
    mask = MASK.copy()
    mask[40:44, 72:80] = 2  # a small object
    module = HeadWeighting(
        ColourBackbone(), FRAME, mask, PropagationOptions(radius=RADIUS), Learned(views=2), seed=0
    )
    for example in prepared(module):
        channel = example.labels.argmax(0)
        sums = [example.token_weights[channel == number].sum().item() for number in range(3)]
        assert sums == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_tokens_that_the_frame_does_not_show_do_not_count():
    module = head_weights(ColourBackbone(), views=4)
    for view, example in zip(module._views[1:], prepared(module)[1:], strict=True):
        hidden = ~view.reachable.unflatten(0, (-1, STRIDE)).unflatten(2, (-1, STRIDE)).all(1).all(-1)
        assert hidden.any()
        assert (example.token_weights[hidden] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_learning_starts_from_equal_weights(mode):
    weights = head_weights(OneGoodHead(1), mode).weights()
    assert torch.allclose(weights["layer0"], torch.full((3,), 1 / 6))
    assert torch.allclose(weights["layer1"], torch.full((2,), 1 / 4))


def test_learning_starts_from_given_weights():
    start = {"layer0": [1, 1, 2], "layer1": 4}
    weights = head_weights(OneGoodHead(1), layer_weights=start).weights()
    assert torch.allclose(torch.cat(list(weights.values())), torch.tensor([1, 1, 2, 2, 2]) / 8)


def test_caution_keeps_weights_close_to_where_they_start():
    start = {"layer0": [1, 1, 2], "layer1": 4}
    cautious = learned(head_weights(OneGoodHead(1), caution=100.0, layer_weights=start))
    assert torch.allclose(cautious, torch.tensor([1, 1, 2, 2, 2]) / 8, atol=0.02)
    assert learned(head_weights(OneGoodHead(1), layer_weights=start))[1] > 0.9


def test_caution_adds_the_divergence_from_the_start():
    plain, cautious = (head_weights(OneGoodHead(1), caution=caution, views=0) for caution in (0.0, 2.0))
    theta = torch.tensor([0.3, -0.5, 0.1, 1.0, -0.2])
    losses = []
    for module in (plain, cautious):
        with torch.no_grad():
            module.theta.copy_(theta)
        losses.append(module.training_step(prepared(module)[0], 0).item())
    start = torch.tensor([1 / 6] * 3 + [1 / 4] * 2)
    divergence = F.kl_div(start.log(), theta.log_softmax(0), log_target=True, reduction="sum").item()
    assert losses[1] - losses[0] == pytest.approx(2 * divergence, rel=1e-4)


def test_the_state_dict_is_theta_alone(checkpoint):
    backbone = load_backbone(checkpoint, layers=["up_blocks.2.attentions.0"], timestep=51)
    module = HeadWeighting(backbone, FRAME, MASK)
    assert list(module.state_dict()) == ["theta"]
    assert [name for name, _ in module.named_parameters()] == ["theta"]
    assert list(module.children()) == []
    fit(module, steps=1)
    assert list(module.state_dict()) == ["theta"]


def test_a_state_dict_restores_the_weights():
    module, other = head_weights(OneGoodHead(1)), head_weights(OneGoodHead(1))
    weights = learned(module)
    other.load_state_dict(module.state_dict())
    assert torch.equal(torch.cat(list(other.weights().values())), weights)
    assert not torch.allclose(weights, torch.tensor([1 / 6] * 3 + [1 / 4] * 2))


def test_features_are_computed_once_for_each_view():
    backbone = OneGoodHead(1)
    calls, exact = [], backbone.features
    backbone.features = lambda *args, **options: calls.append(1) or exact(*args, **options)
    learned(head_weights(backbone, views=2, steps=5, tolerance=0.0))
    assert len(calls) == 3


def test_the_prompt_of_the_clip_is_used():
    seen = []
    backbone = ColourBackbone()
    exact = backbone.features

    def features(frames, generator, *, prompt=None, cross=()):
        seen.append(prompt)
        return exact(frames, generator)

    backbone.features = features
    prompt = torch.ones(1, 3, 4)
    HeadWeighting(backbone, FRAME, MASK, options=Learned(views=1), prompt=prompt).on_fit_start()
    assert len(seen) == 2
    assert all(one is prompt for one in seen)


def test_cosine_affinity_weighs_layers():
    propagation = PropagationOptions("cosine", "separate", 0.1, 5, RADIUS)
    module = HeadWeighting(ColourBackbone(2), FRAME, MASK, propagation, Learned(caution=0.0))
    fit(module, steps=20)
    weights = module.weights()
    assert {layer: len(of_heads) for layer, of_heads in weights.items()} == {"0": 2, "1": 2}
    assert weights["0"].sum() > 0.6, "the finer layer propagates better"


def test_features_that_are_not_finite_diverge():
    backbone = OneGoodHead(1)
    exact = backbone.features

    def features(*args, **options):
        return [
            Features(one.layer, one.queries * math.nan, one.keys, one.tokens)
            for one in exact(*args, **options)
        ]

    backbone.features = features
    with pytest.raises(Diverged, match="HeadWeighting diverged at step 1"):
        fit(head_weights(backbone), steps=3)


def test_weights_that_fit_no_layer_are_refused_before_any_step():
    with pytest.raises(OptionError, match=r"layer0 \(3 heads\), layer1 \(2 heads\)"):
        head_weights(OneGoodHead(1), layer_weights={"nowhere": 1})


def test_a_tracker_refuses_weights_of_other_layers(checkpoint):
    backbone = load_backbone(checkpoint, layers=["up_blocks.2.attentions.0"], timestep=51)
    tracker = Tracker(backbone, adapter=Adapter(head_weights={"up_blocks.1.attentions.0": torch.ones(4) / 4}))
    with pytest.raises(OptionError, match="other layers"):
        tracker.step(FRAME, MASK)


@pytest.mark.parametrize(("radius", "tokens"), [(None, 12), (0, 1), (5, 5), (40, 12)])
def test_views_are_displaced_within_the_radius(radius, tokens):
    """A radius of 0 still needs a neighbour, since a token never attends to itself."""
    assert reach_in_pixels(radius, 8) == tokens * 8


def test_a_mask_of_several_objects_is_learned_from():
    mask = np.zeros_like(MASK)
    mask[16:32, 8:24], mask[40:56, 60:84] = 4, 9
    module = HeadWeighting(ColourBackbone(), FRAME, mask, options=Learned(views=1))
    fit(module, steps=2)
    assert torch.cat(list(module.weights().values())).sum().item() == pytest.approx(1, abs=1e-5)
