"""What the verification notices of defects in the engine.

A file leaves the page of what must be believed only if the verification notices a
defect in it that lets units mix, or that makes sums or norms other than torch's own.

Shapes: ``B`` examples.
"""

import itertools
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from dp.exceptions import SampleMixingError, WrongGradientError
from dp.per_sample import Engine, _backward_pass, _known_graphs
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._graph import nodes
from dp.per_sample._isolation import (
    following,
    integer_rules,
    own_backward,
    static_rules,
)
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.rule_table import Kind, rule_for_owners
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._rules import context, fallback
from dp.per_sample._rules.context import RuleContext


B = 8


class Neighbours(torch.autograd.Function):
    """A user's function that adds every row to the next one."""

    @staticmethod
    def forward(_ctx, x):
        return x + x.roll(1, 0)

    @staticmethod
    def backward(_ctx, grad):
        return grad + grad.roll(-1, 0)


def another_rule(name, **changes):
    """Give an operation another rule of owners."""

    def rule(node):
        found = rule_for_owners(node)
        return replace(found, **changes) if type(node).__name__ == name else found

    return patch.object(following, "rule_for_owners", rule)


def each_row_its_own(_node, rows, _shapes):
    return [rows]


def softmax_over_the_batch(hidden, _step):
    return hidden + hidden.softmax(0)


def neighbours(hidden, _step):
    return hidden + hidden[torch.arange(B).roll(1)]


def neighbours_by_rolling(hidden, _step):
    return hidden + hidden.roll(1, 0)


def neighbours_later(hidden, step):
    return hidden + hidden[torch.arange(B).roll(step // 3)]


def neighbours_by_a_function(hidden, _step):
    return hidden + Neighbours.apply(hidden)


def mean_beside_rows(hidden, _step):
    return hidden + hidden.mean(0)


def nothing(hidden, _step):
    return hidden


def zeros_of(grad):
    return None if grad is None else torch.zeros_like(grad)


# By file of ``dp/per_sample/_isolation``: a defect, and a model that it lets through.
VERIFIED = {
    "static_rules": (
        another_rule("SoftmaxBackward0", rows=static_rules.pointwise, integers=None),
        softmax_over_the_batch,
    ),
    "integer_rules": (
        another_rule("SoftmaxBackward0", integers=integer_rules.pointwise),
        softmax_over_the_batch,
    ),
    "placement_rules": (
        another_rule("RollBackward0", rows=each_row_its_own, integers=None),
        neighbours_by_rolling,
    ),
    "routing_rules": (
        another_rule("IndexBackward0", rows=each_row_its_own),
        neighbours,
    ),
    "rule_table": (
        another_rule("IndexBackward0", kind=Kind.STATIC),
        neighbours_later,
    ),
    "following": (
        patch.object(
            following,
            "_joined_at",
            lambda owners, edge, answer, *_: owners.get(edge, answer),
        ),
        mean_beside_rows,
    ),
    "following, of a known graph": (
        patch.object(following.Moved, "is_as_before", lambda *_: True),
        neighbours_later,
    ),
    "own_backward": (
        patch.object(following, "owners_of_inputs", lambda _n, rows, *_: [*rows]),
        neighbours_by_a_function,
    ),
    "known_graphs": (
        patch.object(_known_graphs._OfSizes, "is_as_before", lambda *_: True),
        neighbours_later,
    ),
    "nodes": (
        patch.object(
            own_backward,
            "run_backward",
            lambda node, grads: [*map(zeros_of, nodes.run_backward(node, grads))],
        ),
        neighbours_by_a_function,
    ),
    "batch_layout": (
        patch.object(
            Layout,
            "examples_first",
            lambda self, tensor, num_samples: (
                tensor.movedim(self.axis, 0)
                .reshape(-1, num_samples, tensor.shape[-1])
                .transpose(0, 1)
            ),
        ),
        nothing,
    ),
}


def passes(mix, num_passes=8):
    """Compute gradients of a small model, verified each time."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    engine = Engine(verification=Verification(every=1))
    for step in range(num_passes):
        hidden = mix(model[:2](torch.randn(B, 4)), step)
        rows = model[2](hidden[:, None].expand(B, 2, 4).reshape(2 * B, 4))
        losses_B = rows.view(B, 2, 3).sin().sum((1, 2))
        engine.gradients(losses_B, [*model.parameters()])


@pytest.mark.parametrize("name", VERIFIED)
def test_a_defect_that_lets_units_mix_is_noticed(name):
    """Owners are not believed: powers of two show whether units stay apart."""
    defect, mix = VERIFIED[name]

    with defect, pytest.raises(SampleMixingError, match="powers of two"):
        passes(mix)


def test_without_a_defect_nothing_is_noticed():
    """Twin: the same passes of a model that mixes nothing."""
    passes(nothing)


@pytest.mark.parametrize(
    "mix",
    [
        softmax_over_the_batch,
        neighbours,
        neighbours_later,
        neighbours_by_a_function,
        mean_beside_rows,
    ],
)
def test_without_a_defect_owners_notice_first(mix):
    """Twin: it is the owners, not the verification, that refuse these models."""
    with pytest.raises(SampleMixingError, match="units meet in"):
        passes(mix)


def of_another_unit(saved):
    def changed(self, name):
        value = saved(self, name)
        return value.roll(2, 0) if name == "mat1" else value

    return changed


def a_hundredth(norms):
    return lambda self: norms(self) / 100


def only_the_first(parts_of_use):
    """Lose every second use of a parameter."""
    calls = itertools.count()
    return lambda *args: parts_of_use(*args) if next(calls) % 2 else {}


def twice(add):
    """Serve every use as if it occurred twice."""

    def changed(*args):
        add(*args)
        add(*args)

    return changed


def moved_on(stacked_sums):
    """Give each of the layers that are served together the next one's sum."""
    return lambda self, factors: stacked_sums(self, factors).roll(1, 0)


def overwritten(add_weighted_sum):
    """Forget the sum that another is to be added to."""

    def changed(self, factors_GB, group_of, sums, *, beta=1):
        del beta
        add_weighted_sum(self, factors_GB, group_of, sums, beta=0)

    return changed


def without_the_first(find_uses):
    """Lose the first use that a walk finds."""

    def changed(*args, **kwargs):
        graph = find_uses(*args, **kwargs)
        return replace(graph, uses=graph.uses[1:])

    return changed


def with_the_first_again(find_uses):
    def changed(*args, **kwargs):
        graph = find_uses(*args, **kwargs)
        return replace(graph, uses=[graph.uses[0], *graph.uses])

    return changed


def of_the_next_row(saved):
    """Say that a node kept other rows than it did."""

    def changed(node, name):
        value = saved(node, name)
        is_matrix = isinstance(value, torch.Tensor) and value.dim() > 1
        return value.roll(1, 0) if is_matrix else value

    return changed


def replaced(owner, name, change):
    return patch.object(owner, name, change(getattr(owner, name)))


# By file of ``dp/per_sample``: a defect that powers of two do not show.
WRONG = {
    "_rules/context: another unit's activations": (
        replaced(RuleContext, "saved", of_another_unit)
    ),
    "_parts/part: a norm that is too small": (
        replaced(MaterializedGrads, "squared_norms", a_hundredth)
    ),
    "_backward_pass: a use is lost": (
        replaced(_backward_pass, "parts_of_use", only_the_first)
    ),
    "_backward_pass: a use counts twice": (
        replaced(_backward_pass.BackwardPass, "_add", twice)
    ),
    "_known_graphs: a use is lost": (
        replaced(_known_graphs, "find_uses", without_the_first)
    ),
    "_known_graphs: a use counts twice": (
        replaced(_known_graphs, "find_uses", with_the_first_again)
    ),
    "_graph/nodes: another row is read": (replaced(context, "saved", of_the_next_row)),
    "_gradients: parts of a batch do not add up": (
        replaced(PerSampleGradients, "add_weighted_sum", overwritten)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_gradient_that_is_not_torchs_own_is_noticed(name):
    """Rules, parts and caches are not believed: torch's own sums and norms show it."""
    with WRONG[name], pytest.raises(WrongGradientError, match="torch's own"):
        passes(nothing)


class Times(torch.autograd.Function):
    """A user's product, which no rule serves."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum(0)


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_a_node_that_is_run_otherwise_is_noticed():
    """Where no rule serves an operation, its own backward is run for each unit."""

    def doubled(run_backward):
        return lambda *args: [
            None if grad is None else 2 * grad for grad in run_backward(*args)
        ]

    model, weight = nn.Linear(4, 4), torch.randn(4, requires_grad=True)
    losses_B = Times.apply(model(torch.randn(B, 4)).sin(), weight).sin().sum(1)

    with (
        replaced(fallback, "run_backward", doubled),
        pytest.raises(WrongGradientError, match="torch's own"),
    ):
        Engine().gradients(losses_B, [*model.parameters(), weight])


def test_a_flag_that_nobody_looked_at_is_noticed():
    """It scales a unit's gradient by the batch, which no pass shows: it is asked again."""
    table = nn.Embedding(5, 3, scale_grad_by_freq=True)
    losses_B = table(torch.randint(5, (B,))).sin().sum(1)

    with (
        patch.object(_known_graphs, "check_flags"),
        pytest.raises(SampleMixingError, match="scale_grad_by_freq"),
    ):
        Engine().gradients(losses_B, [*table.parameters()])


def test_sums_of_another_layer_are_noticed():
    """Layers that are alike are served as one, once their graph is known."""
    model, engine = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), Engine()
    parameters = [*model.parameters()]
    for kind in (FactoredGrads, MaterializedGrads):
        engine.gradients(model(torch.randn(B, 4)).sin().sum(1), parameters)
        with (
            replaced(kind, "stacked_sums", moved_on),
            pytest.raises(WrongGradientError, match="torch's own"),
        ):
            engine.gradients(model(torch.randn(B, 4)).sin().sum(1), parameters)


def test_norms_of_another_unit_are_noticed():
    """Twin: what scales with another unit's power is seen, in norms alone, too."""
    model, norms = nn.Linear(90, 90), FactoredGrads.squared_norms
    losses_B = model(torch.randn(B, 90)).sin().sum(1)

    with (
        patch.object(FactoredGrads, "squared_norms", lambda self: norms(self).roll(1)),
        pytest.raises(SampleMixingError, match="by their norms"),
    ):
        Engine().gradients(losses_B, [*model.parameters()])
