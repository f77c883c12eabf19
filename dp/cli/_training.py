"""The training loop, with privacy and without.

Everything that is shown while it runs is measured on held-out rows, never on the
rows that privacy protects.

Shapes: ``B`` rows in a batch, ``N`` held-out rows.
"""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from dp._ranks import rank_and_size
from dp.accounting import Release, epsilon_curve
from dp.cli._errors import InputError
from dp.cli._input import Table
from dp.cli._processes import add_up_gradients
from dp.clipping import AutomaticClipping, FlatClipping
from dp.noise import GaussianNoise
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan
from dp.sampling import PoissonLoader, Unamplified


__all__ = (
    "Point",
    "Run",
    "Setup",
    "optimizer_for",
    "train_openly",
    "train_privately",
)

_NUM_POINTS: Final = 20
_MOMENTUM: Final = 0.9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a table is trained on.

    Attributes:
        plan: The public numbers of the private run.
        optimizer: The name of an optimizer of torch.
        learning_rate: Its learning rate; torch's own if None.
        normalizes: Whether every gradient gets about the same norm, instead of being
            clipped only if it is longer than that.
        averaged_share: The share of the steps, counted from the last, of whose weights
            the model is the mean. It costs no privacy and removes much of the noise; 0
            takes the last weights.
        before: What was released about the same rows before.
        debug_seed: The seed of noise that anyone can repeat; None for private noise.
    """

    plan: PrivacyPlan
    optimizer: str
    learning_rate: float | None
    normalizes: bool = False
    averaged_share: float = 0.0
    before: tuple[Release, ...] = ()
    debug_seed: int | None = None

    @property
    def noise(self) -> GaussianNoise:
        """The source of noise."""
        if self.debug_seed is None:
            return GaussianNoise()
        return GaussianNoise(rng="debug", seed=self.debug_seed)


@final
@dataclass(frozen=True, slots=True)
class Point:
    """The model after some steps: its score on held-out rows, and epsilon."""

    step: int
    score: float
    epsilon: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: its model, what was measured along it, and how long steps took."""

    model: nn.Module
    points: tuple[Point, ...]
    seconds: float


Shown = Callable[[int, Point], None]
"""Called after every step, with the latest point that was measured."""

_Batch = tuple[Tensor, Tensor]  # Features and targets.


def train_privately(
    model: nn.Module, table: Table, setup: Setup, *, show: Shown
) -> tuple[Run, DPOptimizer]:
    """Train a copy of *model* as the plan says; return the run and its optimizer.

    An interrupt ends the training. The certificate then claims the epsilon of the whole
    plan, since the score that was shown may have decided the end.
    """
    model = copy.deepcopy(model)
    plan = setup.plan
    loader = (
        None
        if isinstance(plan.sampling, Unamplified)
        else plan.loader(table.train, units=table.units)
    )
    norm = plan.max_grad_norm_at(0)
    optimizer = DPOptimizer(
        optimizer_for(model, setup),
        plan=plan,
        loader=loader,
        clipping=AutomaticClipping(max_grad_norm=norm)
        if setup.normalizes
        else FlatClipping(max_grad_norm=norm),
        noise=setup.noise,
    )

    def losses(batch: _Batch) -> Tensor:
        x, y_B = batch
        return table.problem.losses(model(x), y_B)

    def step(batch: _Batch) -> None:
        optimizer.backward(losses, batch)
        optimizer.step()

    batches = repeat(_share(table), plan.steps) if loader is None else loader
    run = _run(model, table, setup, batches, step, epsilons=_curve(setup), show=show)
    return run, optimizer


def _curve(setup: Setup) -> tuple[float, ...]:
    """Return epsilon by the number of steps, what was released before included."""
    plan = setup.plan
    if setup.debug_seed is not None:
        return (float("inf"),) * (plan.steps + 1)
    curve = epsilon_curve(
        [*setup.before, *plan.releases(plan.steps)],
        delta=plan.target_delta,
        neighboring_relation=plan.neighboring_relation,
        group_size=plan.group_size,
    )
    return curve[sum(release.count for release in setup.before) :]


def train_openly(model: nn.Module, table: Table, setup: Setup, *, show: Shown) -> Run:
    """Train a copy of *model* on batches drawn the same way, without privacy."""
    model = copy.deepcopy(model)
    plan = setup.plan
    optimizer = optimizer_for(model, setup)

    def step(batch: _Batch) -> None:
        x, y_B = batch
        optimizer.zero_grad()
        losses = table.problem.losses(model(x), y_B)
        (losses.sum() / plan.expected_batch_size).backward()
        add_up_gradients(model)
        optimizer.step()

    batches = (
        repeat(_share(table), plan.steps)
        if isinstance(plan.sampling, Unamplified)
        else PoissonLoader(
            table.train,
            sampling_probability=plan.sampling_probability,
            steps=plan.steps,
            units=table.units,
        )
    )
    never_private = (float("inf"),) * (plan.steps + 1)
    return _run(model, table, setup, batches, step, epsilons=never_private, show=show)


def _share(table: Table) -> _Batch:
    """Return all rows, or this process's share of them; each is a unit of its own."""
    x, y = table.train.tensors
    rank, size = rank_and_size()
    return x[rank::size], y[rank::size]


def _run(
    model: nn.Module,
    table: Table,
    setup: Setup,
    batches: Iterable[_Batch],
    step: Callable[[_Batch], None],
    *,
    epsilons: tuple[float, ...],
    show: Shown,
) -> Run:
    """Take every step; measure about twenty points, the first and the last included."""
    steps = setup.plan.steps
    measured = {round(steps * i / _NUM_POINTS) for i in range(_NUM_POINTS + 1)}
    mean = AveragedModel(model) if setup.averaged_share else None
    left_out = steps - round(steps * setup.averaged_share)
    points = [Point(0, _score(model, table), epsilons[0])]
    taken = 0
    start = time.perf_counter()
    try:
        for batch in batches:
            step(batch)
            taken += 1
            if mean is not None and taken > left_out:
                mean.update_parameters(model)
            if taken in measured:
                result = _result(model, mean)
                points.append(Point(taken, _score(result, table), epsilons[taken]))
            show(taken, points[-1])
    except KeyboardInterrupt:
        if points[-1].step < taken:
            result = _result(model, mean)
            points.append(Point(taken, _score(result, table), epsilons[taken]))
    seconds = time.perf_counter() - start
    return Run(model=_result(model, mean), points=tuple(points), seconds=seconds)


def _result(model: nn.Module, mean: AveragedModel | None) -> nn.Module:
    """Return the mean of the models averaged so far, or else the latest one."""
    if mean is None or not int(mean.n_averaged):
        return model
    averaged: nn.Module = mean.module
    return averaged


@torch.no_grad()
def _score(model: nn.Module, table: Table) -> float:
    """Return the score on the held-out rows; NaN if there are none."""
    if table.test is None:
        return float("nan")
    x, y_N = table.test.tensors
    return table.problem.score(model(x), y_N)


def optimizer_for(model: nn.Module, setup: Setup) -> Optimizer:
    """Return the optimizer of torch that the options name.

    Raises:
        InputError: If torch has none of that name, or it refuses the model.
    """
    kinds = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer)
    }
    del kinds["optimizer"]  # The abstract base.
    name = setup.optimizer.lower()
    if name not in kinds:
        raise InputError(
            f"--optimizer {setup.optimizer!r} is not in torch.optim, which has"
            f" {', '.join(sorted(kinds))}"
        )
    options: dict[str, Any] = {}
    if setup.learning_rate is not None:
        options["lr"] = setup.learning_rate
    if name == "sgd":
        options["momentum"] = _MOMENTUM
    try:
        return kinds[name](model.parameters(), **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"--optimizer {setup.optimizer}: {error}") from error
