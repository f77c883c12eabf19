"""Units of privacy that have several rows, views or losses: drawn whole, clipped once."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import PoissonSampling, SamplingMismatchError, Unamplified
from dp.sampling._units import UnitIndex


C = 0.5
USERS = [0, 1, 2, 0, 3, 0, 1, 4, 4, 4, 4, 5, 2, 0, 0]
ONE_USER = "one value of user_id"


def make_plan(**changed):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.6),
        "noise_multiplier": 0.0,
        "max_grad_norm": C,
        "expected_batch_size": 1.0,
        "steps": 8,
        "target_delta": 1e-5,
        "unit_of_privacy": ONE_USER,
    }
    return dp.PrivacyPlan(**numbers | changed)


class Run:
    """A linear model in float64 on rows of users, and the sums that it would release."""

    def __init__(self, users=USERS, plan=None, **loader_options):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(len(users), 3, generator=generator, dtype=torch.float64)
        self.plan = make_plan() if plan is None else plan
        self.data = TensorDataset(rows, torch.arange(len(users)))
        self.loader = None
        if not isinstance(self.plan.sampling, Unamplified):
            self.loader = self.plan.loader(self.data, units=users, **loader_options)
        self.model = nn.Linear(3, 1, dtype=torch.float64)
        self.optimizer = dp.DPOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.1),
            plan=self.plan,
            loader=self.loader,
        )

    def losses(self, rows):
        return (self.model(rows).squeeze(-1) - 1).square()

    def sums(self):
        return torch.cat(
            [s.flatten() for s in self.optimizer.mechanism.pending.sums.of_parameters()]
        )

    def clipped(self, loss):
        grads = torch.autograd.grad(
            loss, list(self.model.parameters()), retain_graph=True
        )
        grad = torch.cat([g.flatten() for g in grads])
        return grad * (C / grad.norm()).clamp(max=1)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_unit_is_clipped_once_however_many_rows_it_has():
    """The released sum is a loop over users: gradient of all rows, clipped to C."""
    run = Run()
    for rows, index in run.loader:
        user = torch.tensor(USERS)[index]
        expected = [run.clipped(run.losses(rows[user == u]).sum()) for u in set(USERS)]
        run.optimizer.backward(run.losses(rows))

        assert_close(run.sums(), torch.stack(expected).sum(0))
        run.optimizer.step()


def test_units_are_drawn_whole_and_in_one_piece():
    """Every row of a drawn user is in the batch, beside the user's other rows."""
    for _, index in Run().loader:
        users = [USERS[i] for i in index]

        assert sorted(index.tolist()) == [
            i for i, u in enumerate(USERS) if u in set(users)
        ]
        assert len([1 for a, b in itertools.pairwise(users) if a != b]) == (
            max(len(set(users)) - 1, 0)
        )


@pytest.mark.slow
def test_each_unit_is_drawn_with_the_stated_probability():
    """Binomial at 1e-9 each: users with one row are drawn as often as those with four."""
    plan = make_plan(steps=2000)
    counts = np.zeros(6)
    for _, index in Run(plan=plan).loader:
        counts[list({USERS[i] for i in index})] += 1

    assert (abs(counts / 2000 - 0.6) < 7 * np.sqrt(0.24 / 2000)).all()


def test_at_most_so_many_rows_of_a_unit_are_in_a_batch():
    """A fresh random part of them: over time each row has its turn."""
    seen = set()
    for _, index in Run(plan=make_plan(steps=200), max_per_unit=2).loader:
        users = [USERS[i] for i in index]
        seen |= set(index.tolist())

        assert all(users.count(u) <= 2 for u in users)
    assert seen == set(range(len(USERS)))


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(1, 3))
def test_units_may_be_anything_hashable(units, limit):
    """Strings, numbers, arrays and tensors name the same units."""
    index = UnitIndex(units, num_rows=len(units), max_per_unit=None)
    numbers = [ord(u) for u in units]
    rows, position = index.select(range(index.num_units))

    assert sorted(rows) == list(range(len(units)))
    assert [units[r] for r in rows] == [list(dict.fromkeys(units))[p] for p in position]
    for same in (numbers, np.array(numbers), torch.tensor(numbers)):
        other = UnitIndex(same, num_rows=len(units), max_per_unit=limit)
        assert other.digest == index.digest
        assert all(len(other.rows_of(u)) <= limit for u in range(other.num_units))


def test_a_batch_is_split_between_units():
    """Micro-batches hold whole users; their sums add up to those of the batch."""
    run = Run()
    parts = dp.MicroBatches(run.loader, per_step=3)
    seen = []
    for number, (rows, index) in enumerate(parts):
        run.optimizer.backward(run.losses(rows))
        seen.append({USERS[i] for i in index})
        if number % 3 == 2:
            drawn = set().union(*seen)
            everything = run.data.tensors[0]
            expected = [
                run.clipped(run.losses(everything[torch.tensor(USERS) == u]).sum())
                for u in drawn
            ]

            assert sum(map(len, seen)) == len(drawn)
            if expected:
                assert_close(run.sums(), torch.stack(expected).sum(0))
            run.optimizer.step()
            seen = []


def batch_of_all(run):
    """Return a batch with every user in it."""
    for rows, index in run.loader:
        if len(index) == len(USERS):
            return rows
    raise AssertionError


def all_drawn(**options):
    plan = make_plan(sampling=PoissonSampling(sampling_probability=1.0))
    run = Run(plan=plan, **options)
    return run, batch_of_all(run)


def test_a_batch_that_was_split_by_hand_is_refused():
    """Whose rows they are cannot be told; nothing is charged."""
    run, rows = all_drawn()

    with pytest.raises(SamplingMismatchError, match=r"dp\.MicroBatches"):
        run.optimizer.backward(run.losses(rows[:4]))
    assert run.optimizer.ledger.steps == 0


def test_a_unit_in_two_calls_is_refused():
    """Clipped in each, it could contribute twice C."""
    run, rows = all_drawn()
    units = run.loader.unit_of_row
    run.optimizer.backward(run.losses(rows[:3]), units=units[:3])

    with pytest.raises(SamplingMismatchError, match="clipped twice"):
        run.optimizer.backward(run.losses(rows[3:]), units=units[3:])


def test_losses_with_and_without_units_do_not_mix():
    """A row that is taken for granted may have been named before."""
    plan = make_plan(
        sampling=PoissonSampling(sampling_probability=1.0), unit_of_privacy="one row"
    )
    run = Run(users=range(3), plan=plan)
    run.loader = run.plan.loader(run.data, units=None)
    run.optimizer.attach(run.loader)
    rows, _ = next(iter(run.loader))
    run.optimizer.backward(run.losses(rows[:1]))

    with pytest.raises(SamplingMismatchError, match="without"):
        run.optimizer.backward(run.losses(rows[1:]), units=torch.tensor([1, 2]))


def test_units_that_were_not_drawn_are_refused():
    """A larger number would be a unit that nobody drew."""
    run, rows = all_drawn()

    with pytest.raises(ValueError, match=r"loader\.unit_of_row"):
        run.optimizer.backward(run.losses(rows), units=torch.arange(len(rows)))
    assert run.optimizer.mechanism.pending is None


@pytest.mark.parametrize(
    "units",
    [
        torch.zeros(15),
        torch.zeros(15, dtype=torch.bool),
        torch.zeros(14, dtype=torch.int64),
        torch.zeros(15, 1, dtype=torch.int64),
    ],
    ids=["floats", "booleans", "too few", "another shape"],
)
def test_units_are_integers_of_the_shape_of_the_losses(units):
    """Anything else is told with its type and shape."""
    run, rows = all_drawn()

    with pytest.raises(ValueError, match="units must be integers of the shape"):
        run.optimizer.backward(run.losses(rows), units=units)


def test_losses_of_any_shape_are_grouped_by_their_units():
    """As those of every token of a user's texts."""
    run, rows = all_drawn()
    units = run.loader.unit_of_row
    losses = torch.stack([run.losses(rows), run.losses(rows.flip(1))], dim=1)
    expected = [run.clipped(losses[units == u].sum()) for u in range(6)]
    run.optimizer.backward(
        torch.stack([run.losses(rows), run.losses(rows.flip(1))], dim=1),
        units=units[:, None].expand(-1, 2),
    )

    assert_close(run.sums(), torch.stack(expected).sum(0))


def test_a_drawn_unit_without_losses_contributes_nothing():
    """It was drawn all the same; the step is taken."""
    run, rows = all_drawn()
    units = run.loader.unit_of_row
    kept = units != 3
    expected = [
        run.clipped(run.losses(rows[units == u]).sum()) for u in (0, 1, 2, 4, 5)
    ]
    run.optimizer.backward(run.losses(rows[kept]), units=units[kept])

    assert_close(run.sums(), torch.stack(expected).sum(0))
    with pytest.warns(UserWarning, match="fewer units than the loader drew"):
        run.optimizer.step()
    assert run.optimizer.ledger.steps == 1


def test_views_of_an_example_are_clipped_once():
    """Augmentation multiplicity: the mean over K views is the example's loss."""
    plan = make_plan(sampling=Unamplified(), unit_of_privacy="one training example")
    run = Run(plan=plan)
    (rows, _), views = run.data.tensors, 4
    augmented = (
        rows.repeat_interleave(views, 0) * torch.linspace(1, 2, 4).repeat(15)[:, None]
    )
    units = torch.arange(15).repeat_interleave(views)
    expected = [
        run.clipped(run.losses(augmented[units == u]).mean()) for u in range(15)
    ]
    run.optimizer.backward(run.losses(augmented), units=units, reduction="mean")

    assert_close(run.sums(), torch.stack(expected).sum(0))


def test_a_private_loss_takes_units_too():
    """For trainers that call backward() on a scalar."""
    run, rows = all_drawn()
    units = run.loader.unit_of_row
    loss = run.optimizer.private_loss(run.losses(rows), units=units)
    loss.backward()
    expected = [run.clipped(run.losses(rows[units == u]).sum()) for u in range(6)]

    assert loss.item() == pytest.approx(run.losses(rows).mean().item())
    assert_close(run.sums(), torch.stack(expected).sum(0))


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_a_reduction_is_sum_or_mean_of_units(reduction):
    """And without units there is nothing to reduce."""
    run, rows = all_drawn()
    units = run.loader.unit_of_row if reduction == "max" else None

    with pytest.raises(ValueError, match="reduction"):
        run.optimizer.backward(run.losses(rows), units=units, reduction=reduction)


def test_a_plan_for_examples_has_no_loader_for_users():
    """A sum that moves by C for a user moves by up to 2 C for one of its rows."""
    plan = make_plan(unit_of_privacy="one training example")

    with pytest.raises(ValueError, match="unit_of_privacy="):
        Run(plan=plan)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("move", [lambda x: x, torch.clone], ids=["as is", "moved"])
def test_losses_of_pieces_of_several_rows_are_refused(move, parts):
    """A reshape that forgot an axis: the loader's rows are recognised, and told."""
    plan = make_plan(
        sampling=PoissonSampling(sampling_probability=1.0), unit_of_privacy="one row"
    )
    loader = plan.loader(TensorDataset(torch.randn(8, 5, 4, dtype=torch.float64)))
    model = nn.Linear(4, 1, dtype=torch.float64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
    first = 0
    for (rows,) in dp.MicroBatches(loader, per_step=parts):
        x, units = move(rows), torch.arange(first, first + len(rows))
        pieces = model(x.view(-1, 4)).view(5, len(x)).transpose(0, 1)

        with pytest.raises(dp.SampleMixingError, match="units meet in the batch"):
            optimizer.backward(pieces.square().sum(1), units=units)
        optimizer.backward(model(x).square().sum((1, 2)), units=units)
        first += len(rows)
        if first == 8:
            optimizer.step()
            break
    assert optimizer.ledger.steps == 1


def test_a_plan_for_users_has_no_loader_that_does_not_know_them():
    """Rows would be clipped one by one, and certified as users."""
    run = Run()
    ungrouped = dp.PoissonLoader(run.data, sampling_probability=0.6, steps=8)

    with pytest.raises(ValueError, match="units=, the user_id of every row"):
        run.plan.loader(run.data)
    with pytest.raises(ValueError, match="units=, the user_id of every row"):
        run.optimizer.attach(ungrouped)


def test_losses_of_users_are_not_taken_for_users_where_no_loader_knows_them():
    """Without tickets, the caller says whose each loss is, or nothing is clipped."""
    run = Run(plan=make_plan(sampling=Unamplified()))
    rows, _ = run.data.tensors

    with pytest.raises(SamplingMismatchError, match="pass the user_id of each"):
        run.optimizer.backward(run.losses(rows))
    assert run.optimizer.mechanism.pending is None
    for parameter in run.model.parameters():  # As another library makes them.
        parameter.grad_sample = torch.ones(15, *parameter.shape)
    with pytest.raises(SamplingMismatchError, match="pass the user_id of each"):
        run.optimizer.step()
    run.optimizer.zero_grad()
    run.optimizer.backward(run.losses(rows), units=torch.tensor(USERS))
    run.optimizer.step()
    assert run.optimizer.ledger.steps == 1


def test_the_certificate_names_the_unit_and_assumes_that_it_is_a_person():
    """In the words of the plan; whom a value stands for nothing can check."""
    run, rows = all_drawn()
    run.optimizer.backward(run.losses(rows))
    run.optimizer.step()
    certificate = run.optimizer.certificate()

    assert certificate.unit_of_privacy == ONE_USER
    assert (
        "All rows of one person have the same value of user_id, and nobody else's have it."
        in certificate.assumptions
    )
    assert dp.verify(certificate, quick=True).ok


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"units": USERS[:3]}, "which has 15, got 3"),
        ({"units": torch.zeros(15, 1)}, "must be a vector"),
        ({"max_per_unit": 2}, "pass units="),
        ({"units": USERS, "max_per_unit": 0}, "max_per_unit"),
    ],
)
def test_units_that_do_not_fit_the_dataset_are_refused(options, told):
    """With the numbers that differ."""
    with pytest.raises(ValueError, match=told):
        make_plan().loader(Run().data, **options)


class Person:
    """A user whom only its address tells from others."""


@pytest.mark.parametrize(
    ("units", "error", "told"),
    [
        (np.array([7.0, 7.0, np.nan, np.nan]), ValueError, "has NaN"),
        (torch.tensor([7.0, torch.nan, torch.nan, 7.0]), ValueError, "has NaN"),
        ([7, 7, np.datetime64("NaT"), np.datetime64("NaT")], ValueError, "has NaN"),
        ([("a", 1.0), ("a", 1.0), ("b", np.nan), ("b", np.nan)], ValueError, "NaN"),
        ([torch.tensor(u) for u in (7, 7, 8, 8)], TypeError, "has a Tensor"),
        ([("a", torch.tensor(u)) for u in (7, 7, 8, 8)], TypeError, "a Tensor"),
        ([Person() for _ in range(4)], TypeError, "has a Person"),
    ],
    ids=["array", "tensor", "dates", "tuples", "tensors", "in tuples", "objects"],
)
def test_units_that_are_not_told_apart_by_their_values_are_refused(units, error, told):
    """Each row would be a unit of its own: 2 C for a user of two rows, in silence."""
    with pytest.raises(error, match=told):
        UnitIndex(units, num_rows=4, max_per_unit=None)


@pytest.mark.parametrize("missing", [None, ("a", None)])
def test_a_missing_unit_is_refused(missing):
    """The rows of several people would be clipped as one, and one of them moves 2 C."""
    with pytest.raises(ValueError, match="has None"):
        UnitIndex(["b", missing, "b", missing], num_rows=4, max_per_unit=None)


def test_a_limit_of_rows_needs_units():
    """A plan for examples has no units that could have several."""
    plan = make_plan(unit_of_privacy="one training example")

    with pytest.raises(ValueError, match="max_per_unit=2 limits the rows of a unit"):
        plan.loader(Run().data, max_per_unit=2)


def test_the_rows_of_a_unit_stay_on_one_rank():
    """Each rank draws from units of its own; together they have them all."""
    shares = []
    for rank in range(2):
        with patch("dp.sampling._loader.rank_and_size", lambda rank=rank: (rank, 2)):
            run = Run(
                plan=make_plan(sampling=PoissonSampling(sampling_probability=1.0))
            )
            _, index = next(iter(run.loader))
        shares.append({USERS[i] for i in index})

    assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == set(USERS)


def test_of_a_truncated_batch_whole_units_stay():
    """What is public, and limited, is the number of units."""
    sampling = dp.TruncatedPoissonSampling(
        sampling_probability=1.0, max_batch_size=2, dataset_size=6
    )
    plan = make_plan(sampling=sampling, neighboring_relation="zero_out")
    for _, index in Run(plan=plan).loader:
        users = {USERS[i] for i in index}

        assert len(users) == 2
        assert len(index) == sum(USERS.count(u) for u in users)


def test_no_batch_has_no_units():
    """Before the first batch, and of a loader that does not group rows."""
    assert Run().loader.unit_of_row is None
    ungrouped = make_plan(unit_of_privacy="one row").loader(Run().data)
    next(iter(ungrouped))
    assert ungrouped.unit_of_row is None
