"""That what the page on sharp edges says is tested, and the tests that only it needs."""

import copy
import itertools
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dp
from dp import DPOptimizer, PerLayerClipping, PoissonSampling
from dp.per_sample import Engine


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/sharp-edges.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE)))
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| what goes"))
]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file, name):
    """A row cannot point at a test that was renamed, moved or dropped."""
    source = (ROOT / "tests" / file).read_text("utf-8")

    assert re.search(rf"^(?:def )?{name}\b", source, re.MULTILINE)


def test_every_row_names_a_test_and_a_severity():
    """What is said without either is a hope."""
    assert len(ROWS) > 90
    for row in ROWS:
        assert "::test_" in row, row
        severity = row.split("|")[2].strip(" *")
        assert severity in {"critical", "serious", "small", "utility"}, row


def released(run):
    """One step on gradients of zero: what is released is the noise."""
    run.optimizer.backward(run.losses(next(iter(run.loader))) * 0)
    run.optimizer.step()
    return run.model.weight.grad.clone()


def test_a_resumed_run_repeats_no_noise(make_run):
    """Nothing in a checkpoint or a seed brings back noise that was released."""
    torch.manual_seed(0)
    run = make_run(num_features=64)
    state = copy.deepcopy(run.optimizer.state_dict())
    first = [released(run) for _ in range(3)]
    torch.manual_seed(0)
    resumed = make_run(num_features=64)
    resumed.optimizer.load_state_dict(state)
    second = [released(resumed) for _ in range(3)]

    assert not any(torch.equal(a, b) for a in first for b in second)


def test_nothing_of_the_data_is_in_a_checkpoint_of_the_ledger(make_run):
    """Runs on other data, of another size, write the same ledger, ids apart."""
    ledgers = []
    for num_examples in (20, 21):
        run = make_run(
            num_examples=num_examples,
            sampling=PoissonSampling(sampling_probability=0.5),
        )
        run.train(3)
        (segment,) = run.optimizer.ledger.state_dict()["segments"].values()
        ledgers.append(segment)

    assert ledgers[0] == ledgers[1]


def test_a_scheduled_norm_reaches_every_layer(make_run):
    """Clipping by layer follows a schedule of C, as the noise does."""
    schedule = dp.Schedule(((1, 1.0), (1, 0.01)))
    run = make_run(max_grad_norm=schedule, noise_multiplier=0.0, steps=2)
    rule = PerLayerClipping(max_grad_norm=1.0)
    optimizer = DPOptimizer(
        torch.optim.SGD(run.model.parameters(), lr=0.0),
        plan=run.optimizer.plan,
        loader=run.loader,
        clipping=rule,
    )
    for batch, bound in zip(run.loader, (1.0, 0.01), strict=False):
        optimizer.backward(1e6 * run.losses(batch))
        optimizer.step()
        sums = [10.0 * p.grad for p in run.model.parameters()]

        assert max(s.norm() for s in sums) <= len(batch[1]) * bound / math.sqrt(2)


def test_a_split_batch_is_charged_once_at_the_plans_probability(make_run):
    """Three passes over parts of a draw are one release at q, not at 3 q."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1.0), steps=1)
    x, y = next(iter(run.loader))
    for part in zip(x.split(7), y.split(7), strict=True):
        run.optimizer.backward(run.losses(part))
    run.optimizer.step()

    (charge,) = run.optimizer.ledger.charges()
    assert (charge.sampling_probability, charge.count) == (1.0, 1)


@pytest.mark.parametrize(
    "rule",
    [
        dp.FlatClipping(max_grad_norm=1.0),
        dp.AutomaticClipping(max_grad_norm=1.0),
        PerLayerClipping(max_grad_norm=1.0),
        dp.PerGroupClipping(group_sizes=(1, 1), max_grad_norms=(0.6, 0.8)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_every_rule_takes_an_empty_batch(make_plan, rule):
    """No example, no gradient, and noise on every parameter.

    Noise is rounded to a lattice, so that an element is 0 with probability 0.025; that
    half of 64 are has probability 1e-33.
    """
    plan = make_plan(sampling=PoissonSampling(sampling_probability=1e-9), steps=1)
    loader = plan.loader(torch.randn(20, 3))
    model = nn.Linear(3, 64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan, loader=loader, clipping=rule)
    (batch,) = loader
    optimizer.backward(model(batch).sum(1))
    optimizer.step()

    assert all(2 * p.grad.count_nonzero() > p.numel() for p in model.parameters())


def loop(losses, parameters):
    """The gradients of every example by a backward pass each, flat."""
    rows = [torch.autograd.grad(x, parameters, retain_graph=True) for x in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def assert_exact(losses, parameters):
    """The engine's norms are those of a backward pass an example."""
    expected = loop(losses, parameters).square().sum(1)
    gradients = Engine().gradients(losses, parameters)
    (norms,) = gradients.squared_norms([0] * len(parameters))

    torch.testing.assert_close(norms, expected)


def test_inputs_by_keyword_count():
    """How a module was called leaves no trace in the graph."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x, *, gate):
            return (self.linear(x) * gate).squeeze(1)

    model = Gated()
    losses = model(torch.randn(4, 3), gate=torch.randn(4, 1)).square()

    assert_exact(losses, list(model.parameters()))


def test_positions_are_not_taken_for_examples_where_they_are_as_many():
    """A table of positions, looked up once for all, at a batch as large as it is long."""
    words, positions, head = nn.Embedding(9, 3), nn.Embedding(5, 3), nn.Linear(3, 1)
    hidden = words(torch.randint(9, (5, 5))) + positions(torch.arange(5))
    losses = head(hidden.tanh()).square().sum((1, 2))
    parameters = [words.weight, positions.weight, *head.parameters()]

    assert_exact(losses, parameters)


def calls_of_a_step(num_tensors):
    """How many functions a step calls, in Python and in C."""
    model = nn.ParameterList(torch.zeros(2) for _ in range(num_tensors))
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=4.0,
        steps=3,
        target_delta=1e-5,
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan)
    x = torch.randn(4, 2)
    counts = []
    for _ in range(2):  # The first step learns what the graph looks like.
        calls = itertools.count()
        losses = sum((x * p).sum(1) for p in model)
        sys.setprofile(lambda *_about, calls=calls: next(calls))
        try:
            optimizer.backward(losses)
            optimizer.step()
        finally:
            sys.setprofile(None)
        counts.append(next(calls))
    return counts


@pytest.mark.slow
def test_work_grows_with_the_number_of_tensors_and_not_its_square():
    """Twice the tensors, twice the calls: for the first step and those after it."""
    few, more, most = (calls_of_a_step(n) for n in (50, 100, 200))
    for a, b, c in zip(few, more, most, strict=True):
        assert c - b < 2.1 * (b - a)


def test_a_tensor_is_a_dataset_for_any_number_of_runs(make_plan):
    """Rows of one tensor are drawn, by one loader after another, into one ledger."""
    rows = torch.randn(20, 3)
    model = nn.Linear(3, 1)
    optimizer = None
    for number in range(2):
        plan = make_plan(steps=2)
        loader = plan.loader(rows)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader, continue_from=optimizer)
        optimizer.backward(model(next(iter(loader))).squeeze(1))
        optimizer.step()

        assert optimizer.ledger.steps == number + 1


def test_a_scalar_parameter_is_a_layer(make_plan):
    """It has a norm of its own: its size."""
    scale = nn.Parameter(torch.tensor(1.0))
    plan = make_plan(sampling=dp.Unamplified(), noise_multiplier=0.0)
    optimizer = DPOptimizer(
        torch.optim.SGD([scale], lr=1.0),
        plan=plan,
        clipping=PerLayerClipping(max_grad_norm=1.0),
    )
    optimizer.backward(scale * torch.tensor([0.5, 30.0, -30.0]))
    optimizer.step()

    assert scale.grad.item() == pytest.approx(0.5 / 10, rel=1e-5)


def test_a_released_gradient_shares_no_memory(make_run):
    """What is done to it in place reaches no later release."""
    run = make_run(
        noise_multiplier=0.0, sampling=PoissonSampling(sampling_probability=1.0)
    )
    released = []
    for batch, _ in zip(run.loader, range(2), strict=False):
        run.optimizer.backward(run.losses(batch).detach() * 0 + run.model.bias * 0.1)
        run.optimizer.step()
        released.append(run.model.bias.grad.clone())
        run.model.bias.grad.fill_(1e9)

    assert torch.equal(*released)


def test_indices_are_pythons_own_integers():
    """A dataset may tell integers by their type."""

    class Strict(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            assert type(index) is int
            return float(index)

    loader = dp.PoissonLoader(Strict(), sampling_probability=1.0, steps=1)

    assert next(iter(loader)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_examples", [33, 400])
def test_rounding_of_sums_stays_within_its_bound(make_plan, dtype, num_examples):
    """Neighbours' sums, of gradients whose running sum rounds at every addition."""
    torch.manual_seed(num_examples)
    sums = []
    data = torch.rand(num_examples, 40, dtype=dtype).add_(0.1)
    data[0] = 1e6
    for rows in (data, data[:-1], data.flip(0)[1:]):
        model = nn.Linear(40, 1, bias=False, dtype=dtype)
        plan = make_plan(
            sampling=dp.Unamplified(),
            noise_multiplier=0.0,
            expected_batch_size=float(num_examples),
        )
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer = DPOptimizer(sgd, plan=plan)
        optimizer.backward(model(rows).squeeze(1))
        optimizer.step()
        sums.append(num_examples * model.weight.grad.double())
    allowed = 1 + num_examples**2 * torch.finfo(dtype).eps

    for neighbour in sums[1:]:
        assert (sums[0] - neighbour).norm() <= allowed
