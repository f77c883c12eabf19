"""Units that a caller names have to be those that the loader drew."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, SamplingMismatchError


TOLD = "units= names fewer units than the loader drew"
SAID = "Units that were drawn and had no loss had none by themselves"
NUM = 12


class Run:
    """All of a dataset in each batch, with a unit a row unless *users* are given."""

    def __init__(self, make_plan, users=None):
        torch.manual_seed(0)
        unit = {} if users is None else {"unit_of_privacy": "one value of user"}
        plan = make_plan(
            sampling=dp.PoissonSampling(sampling_probability=1.0),
            expected_batch_size=float(NUM),
            **unit,
        )
        data = TensorDataset(torch.randn(NUM, 4), torch.randn(NUM))
        self.model = nn.Linear(4, 1)
        self.loader = plan.loader(data, units=users)
        self.optimizer = DPOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.1),
            plan=plan,
            loader=self.loader,
        )
        self.batch = next(iter(self.loader))

    def losses(self, tokens=1):
        x, y = self.batch
        return (self.model(x) - y[:, None] * torch.arange(1, tokens + 1)).square()

    def backward(self, losses, units):
        self.optimizer.backward(losses, units=units)

    def step_and_tell(self):
        """Take a step; return what was warned of."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.optimizer.step()
        return [str(one.message) for one in told]

    def states(self):
        return any(SAID in text for text in self.optimizer.certificate().assumptions)


# Whose clipped sum one drawn row moves by up to 2 C, or one drawn user.
OTHERS = {
    "rows of a user": (None, torch.arange(NUM) // 4),
    "all as one": (None, torch.zeros(NUM, dtype=torch.long)),
    "two rows as one": (None, torch.arange(NUM).clamp(max=NUM - 2)),
    "users in parts": (torch.arange(NUM) // 4, torch.arange(NUM) % 3),
    "users together": (torch.arange(NUM) // 4, (torch.arange(NUM) >= 4).long()),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_units_than_were_drawn_are_refused(make_plan, kind):
    """The plan's unit is what the loader drew, and is clipped as that."""
    users, units = OTHERS[kind]
    run = Run(make_plan, users)

    with pytest.raises(SamplingMismatchError, match="other units than the loader drew"):
        run.backward(run.losses()[:, 0], units)
    assert run.optimizer.mechanism.pending is None


def test_what_is_clipped_together_moves_by_more_than_the_norm(make_plan):
    """Why: without one of two opposite rows of a user the sum is the other one's."""
    model = nn.Linear(4, 1, bias=False)
    plan = make_plan(sampling=dp.Unamplified(), unit_of_privacy="a user")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan)
    x = torch.tensor([[10.0, 0, 0, 0], [-30.0, 0, 0, 0]])
    sums = []
    for rows in (x, x[:1]):
        optimizer.backward(
            model(rows)[:, 0], units=torch.zeros(len(rows), dtype=torch.long)
        )
        (weight,) = optimizer.mechanism.pending.sums.of_parameters()
        sums.append(weight.clone())
        optimizer.zero_grad()

    assert (sums[0] - sums[1]).norm() > 1.99 * plan.max_grad_norm


NAMED = {
    "each row": (None, torch.arange(NUM)),
    "in another order": (None, torch.arange(NUM).flip(0)),
    "as drawn": (torch.arange(NUM) // 4, torch.arange(NUM) // 4),
}


@pytest.mark.parametrize("kind", NAMED)
def test_units_that_were_drawn_are_taken_as_named(make_plan, kind):
    """The twin, which says nothing and states nothing."""
    users, units = NAMED[kind]
    run = Run(make_plan, users)
    run.backward(run.losses()[:, 0], units)

    assert not [text for text in run.step_and_tell() if TOLD in text]
    assert not run.states()


def test_units_without_a_loss_are_told_once_and_stated(make_plan):
    """As where losses of tokens are cut off at a number, behind those of others."""
    run = Run(make_plan)
    of_tokens = torch.arange(NUM).repeat_interleave(3)
    told = []
    for _ in range(2):
        run.backward(run.losses(3).flatten()[:20], of_tokens[:20])
        told += run.step_and_tell()
        run.batch = next(iter(run.loader))

    assert [TOLD in text for text in told].count(True) == 1
    assert run.states()


def test_a_call_that_names_nothing_lets_no_other_leave_units_out(make_plan):
    """An empty part with units, and a part of the batch without."""
    run = Run(make_plan)
    losses = run.losses()[:, 0]
    run.backward(losses[:0], torch.arange(0))
    run.optimizer.backward(losses[:5])

    with pytest.raises(SamplingMismatchError, match="has not seen every example"):
        run.optimizer.step()


def test_a_batch_without_any_loss_is_a_step_all_the_same(make_plan):
    """Of texts none of which has a labelled token."""
    run = Run(make_plan)
    run.backward(run.losses().flatten()[:0], torch.arange(0))

    assert any(TOLD in text for text in run.step_and_tell())
    assert run.optimizer.ledger.steps == 1


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_an_empty_draw_is_a_step_whatever_the_shape_of_its_units(make_plan, shape):
    """The function is not called, so nobody says what shape its losses would have."""
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.05), steps=1000)
    model, loader = nn.Linear(4, 1), plan.loader(torch.randn(NUM, 4))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
    empty = next(batch for batch in loader if not len(batch))
    units = torch.zeros(shape, dtype=torch.long)

    optimizer.backward(lambda x: model(x).square(), empty, units=units)
    optimizer.step()

    assert optimizer.ledger.steps == 1
