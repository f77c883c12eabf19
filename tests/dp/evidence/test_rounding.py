"""Losses that the order of sums moves are not taken for losses that others move.

A batch of other shapes, as of graphs or texts of other lengths, makes torch choose other
kernels. Here the order is chosen by the whole batch in plain sight, so that the same
happens on every machine.

Shapes: ``B`` examples, ``D`` features, ``T`` terms.
"""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from dp.evidence._company import Companies, Company
from dp.evidence._comparison import same_losses
from dp.evidence._look import Look
from dp.evidence._program_state import ProgramState
from dp.evidence._rounding import rounding_error


B, D = 8, 64


def large_terms(x_BD):
    """Terms of which large ones cancel, in an order that follows from the batch."""
    terms_BT = torch.cat([x_BD + 20, torch.full_like(x_BD, -20)], 1)
    return terms_BT[:, torch.cat([x_BD, -x_BD], 1).sum(0).argsort()]


def by_product(x_BD):
    terms_BT = large_terms(x_BD)
    return (terms_BT @ torch.ones(terms_BT.shape[1])).square()


def by_index(x_BD):
    terms_BT = large_terms(x_BD)
    sums_1B = terms_BT.new_zeros(1, B)
    place = torch.zeros(terms_BT.shape[1], dtype=torch.long)
    return sums_1B.index_add(0, place, terms_BT.T)[0].square()


def with_the_largest(x_BD):
    return by_index(x_BD) + (B * x_BD[:, 0]).exp().sum().log()


def with_little_of_a_mean(x_BD):
    """As much as where terms cancel, but nothing cancels here."""
    return x_BD.square().sum(1) * (1 + 3e-3 * x_BD.mean())


def look_at(function, *, in_step):
    x_BD = torch.randn(B, D)
    company = Companies().of(x_BD, num_losses=B, units=None, loader=None, drawn=None)
    state = ProgramState(function)
    losses_B = function(x_BD)
    with state.excursion() as after:
        look = Look(function, company, state, after, losses_B, in_step=in_step)
        return look.verdict(both_halves=True)


@pytest.fixture
def other_shapes():
    """Let batches be taken for such as are collated anew, with other shapes."""
    with mock.patch.object(Company, "keeps_shapes", new=False):
        yield


@pytest.mark.usefixtures("other_shapes")
@pytest.mark.parametrize("function", [by_product, by_index], ids=lambda f: f.__name__)
def test_another_order_of_sums_is_no_mixing(function):
    """Several ranks cannot look again, each for itself, and leave it in doubt."""
    assert {look_at(function, in_step=False) for _ in range(5)} == {"alone"}
    assert look_at(function, in_step=True) in {"alone", "unclear"}


@pytest.mark.parametrize(
    "function", [with_the_largest, with_little_of_a_mean], ids=lambda f: f.__name__
)
def test_what_others_add_beyond_rounding_is_mixing(function):
    """Whether little of it is found depends on how well the losses are conditioned."""
    verdicts = [look_at(function, in_step=False) for _ in range(20)]

    assert verdicts.count("mixed") >= 15  # By chance all others may be alike.


def test_ranks_are_as_strict_as_ever_where_shapes_stay():
    """Then no other kernel is chosen, and little of a mean is mixing."""
    verdicts = [look_at(with_little_of_a_mean, in_step=True) for _ in range(20)]

    assert verdicts.count("mixed") >= 15


@pytest.mark.usefixtures("other_shapes")
def test_ranks_find_what_is_more_than_rounding():
    """At once, and without a further evaluation."""
    verdicts = [look_at(with_the_largest, in_step=True) for _ in range(20)]

    assert verdicts.count("mixed") >= 15


MODELS = {
    "linear": (nn.Linear(D, 3), torch.randn(B, D)),
    "convolution": (nn.Conv1d(4, 3, 3), torch.randn(B, 4, 9)),
    "layer norm": (nn.LayerNorm(D, elementwise_affine=False), torch.randn(B, D)),
    "group norm": (nn.GroupNorm(2, 4, affine=False), torch.randn(B, 4, 9)),
    "softmax": (nn.LogSoftmax(1), torch.randn(B, D)),
    "encoder": (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        torch.randn(B, 5, 8),
    ),
    "encoder in eval": (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval(),
        torch.randn(B, 5, 8),
    ),
    "bfloat16": (nn.Linear(D, 3).bfloat16(), torch.randn(B, D).bfloat16()),
    "double": (nn.Linear(D, 3).double(), torch.randn(B, D).double()),
}


@pytest.mark.parametrize("name", MODELS)
def test_rounding_moves_losses_by_their_last_digits(name):
    """By some, and by few where nothing cancels; generators stay as they are."""
    model, x = MODELS[name]
    losses_B = model(x).detach().flatten(1).square().sum(1)
    state = torch.get_rng_state()

    def again(*, inside):
        with torch.no_grad(), inside:
            return model(x).flatten(1).square().sum(1)

    error_B = rounding_error(again, losses_B)

    assert torch.equal(torch.get_rng_state(), state)
    assert (error_B > 0).any()
    eps = torch.finfo(losses_B.dtype).eps
    # No error is less than the median one, and a loss of these models may be near zero.
    assert (error_B < 100 * eps * losses_B.double().clamp(min=losses_B.median())).all()


def test_recurrent_layers_and_counts_are_left_as_they_are():
    """Numbers that are compared, counted or used as indices do not change."""
    model, packed = nn.LSTM(2, 3), pack_sequence([torch.randn(4, 2), torch.randn(2, 2)])

    def losses(x_B):
        kept_B = (x_B == 1.0).long().cumsum(0)
        return kept_B.double() + model(packed)[1][0].sum().double()

    def again(*, inside):
        with torch.no_grad(), inside:
            return losses(torch.ones(B))

    unchanged_B = losses(torch.ones(B)).detach()
    assert (rounding_error(again, unchanged_B) < 1e-5).all()


def test_a_known_error_is_allowed_where_it_is_known():
    """Sixteen times as much, for that loss alone, and none where there is no number."""
    before_B = torch.ones(3)
    error_B = torch.tensor([1e-3, 0.0, 1e-3])

    assert same_losses(before_B, torch.tensor([1.015, 1, 1]), None, error_B)
    assert not same_losses(before_B, torch.tensor([1.017, 1, 1]), None, error_B)
    assert not same_losses(before_B, torch.tensor([1, 1.015, 1]), None, error_B)
    nan_B = torch.tensor([torch.nan, 1, 1])
    assert same_losses(nan_B, torch.tensor([torch.nan, 1, 1.015]), None, error_B)
    assert not same_losses(nan_B, torch.tensor([1, 1, 1.0]), None, error_B)
