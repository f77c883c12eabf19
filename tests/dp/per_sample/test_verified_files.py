"""What the verification of units notices of defects in the engine, and what it does not.

A file leaves the page of what must be believed only if the verification notices a
defect in it that lets units mix.

Shapes: ``B`` examples.
"""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from dp.exceptions import SampleMixingError
from dp.per_sample import Engine
from dp.per_sample._isolation import following, integer_rules, static_rules
from dp.per_sample._isolation.batch_layout import Layout
from dp.per_sample._isolation.rule_table import Kind, rule_for_owners
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._parts.factored import FactoredGrads
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


def neighbours_later(hidden, step):
    return hidden + hidden[torch.arange(B).roll(step // 3)]


def neighbours_by_a_function(hidden, _step):
    return hidden + Neighbours.apply(hidden)


def mean_beside_rows(hidden, _step):
    return hidden + hidden.mean(0)


def nothing(hidden, _step):
    return hidden


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


def test_activations_of_another_unit_are_not_noticed():
    """Powers of two multiply gradients, so rules stay on the page, held by tests."""
    saved = RuleContext.saved

    def of_another_unit(self, name):
        value = saved(self, name)
        return value.roll(2, 0) if name == "mat1" else value

    with patch.object(RuleContext, "saved", of_another_unit):
        passes(nothing)


def test_norms_that_are_too_small_are_not_noticed():
    """They scale as they should, so parts stay on the page, held by tests."""
    norms = FactoredGrads.squared_norms

    with patch.object(FactoredGrads, "squared_norms", lambda self: norms(self) / 100):
        passes(nothing)


def test_norms_of_another_unit_are_noticed():
    """Twin: what scales with another unit's power is seen, in norms alone, too."""
    model, norms = nn.Linear(90, 90), FactoredGrads.squared_norms
    losses_B = model(torch.randn(B, 90)).sin().sum(1)

    with (
        patch.object(FactoredGrads, "squared_norms", lambda self: norms(self).roll(1)),
        pytest.raises(SampleMixingError, match="by their norms"),
    ):
        Engine().gradients(losses_B, [*model.parameters()])
