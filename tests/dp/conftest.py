"""A small private run that the optimizer's tests build on."""

import io
import os
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from dp import (
    BudgetExhaustedError,
    DPOptimizer,
    PoissonLoader,
    PoissonSampling,
    PrivacyPlan,
)
from dp.cli import main


# Where tensors are made: DP_TEST_DEVICE=cuda runs the tests on a GPU.
DEVICE = os.environ.get("DP_TEST_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def device():
    """Put the tensors of a test where they were asked to be.

    Whichever tests ran before, models and data are the same; noise and draws are the
    operating system's and cannot be seeded.
    """
    torch.manual_seed(0)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    yield DEVICE
    if DEVICE != "cpu":
        torch.set_default_device(None)


FALSE_ALARM = 1e-9  # Of a test that decides by a p-value.


class Decisions:
    """What statistical tests decide by, taken down for tests/benchmarks/error_rates.py.

    It repeats a test hundreds of times, and tells how far values stay from their limit.
    """

    def __init__(self, record_property):
        self._record = record_property

    def refutes(self, name, p):
        """Whether a p-value is below the rate of false alarms."""
        score, limit = stats.norm.isf([min(max(p, 1e-300), 1) / 2, FALSE_ALARM / 2])
        self._record(name, (float(score), float(limit)))
        return p < FALSE_ALARM

    def differs(self, name, value, expected, *, rel):
        """Whether a value is not what is expected, up to a relative tolerance."""
        self._record(name, (value / expected - 1, rel))
        return abs(value / expected - 1) > rel

    def exceeds(self, name, value, limit):
        """Whether a value is above its limit."""
        self._record(name, (float(value), float(limit)))
        return value > limit


@pytest.fixture
def decisions(record_property):
    """Decide, and take down what by."""
    return Decisions(record_property)


@dataclass
class Run:
    """A model, its private optimizer, and the loader of its batches."""

    model: nn.Module
    optimizer: DPOptimizer
    loader: PoissonLoader

    @property
    def inner(self):
        return self.optimizer.original_optimizer

    def losses(self, batch):
        x, y = batch
        return (self.model(x).squeeze(1) - y).square()

    def train(self, num_steps):
        for batch, _ in zip(self.loader, range(num_steps), strict=False):
            self.optimizer.backward(self.losses(batch))
            self.optimizer.step()


@pytest.fixture
def make_plan():
    """Build a plan from the defaults of these tests."""

    def make(**changes):
        numbers = {
            "sampling": PoissonSampling(sampling_probability=0.5),
            "noise_multiplier": 1.0,
            "max_grad_norm": 1.0,
            "expected_batch_size": 10.0,
            "steps": 20,
            "target_delta": 1e-5,
        }
        return PrivacyPlan(**{**numbers, **changes})

    return make


@pytest.fixture
def make_run(make_plan):
    """Build a run: a linear model on 20 examples, as the plan's changes say.

    Noise on one feature is 0 with probability 0.025, and equals another's with
    probability 0.018: whoever tells runs by their noise asks for more than three.
    """

    def make(
        optimizer=torch.optim.SGD,
        *,
        lr=0.1,
        num_examples=20,
        num_features=3,
        **changes,
    ):
        model = nn.Linear(num_features, 1)
        data = TensorDataset(
            torch.randn(num_examples, num_features), torch.randn(num_examples)
        )
        plan = make_plan(**changes)
        loader = plan.loader(data)
        inner = optimizer(model.parameters(), lr=lr)
        return Run(model, DPOptimizer(inner, plan=plan, loader=loader), loader)

    return make


@pytest.fixture
def check_resumed_steps():
    """See a run of 20 steps, charged by fours, resume after 6 of them in another run."""

    def check(run, resumed):
        run.train(6)
        file = io.BytesIO()
        torch.save(run.optimizer.state_dict(), file)
        file.seek(0)

        resumed.optimizer.load_state_dict(torch.load(file))
        assert resumed.optimizer.ledger.steps == 8
        resumed.train(4)

        assert resumed.optimizer.ledger.steps == 12
        with pytest.raises(BudgetExhaustedError):
            resumed.train(20)
        assert resumed.optimizer.ledger.steps == 20

    return check


@pytest.fixture
def call(capsys):
    """Run the command line; return its exit code, output and error output."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def csv(tmp_path):
    """Write a CSV file of the given lines."""

    def csv(*lines, name="table.csv"):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return csv
