"""The training loop, with privacy and without.

Everything that is shown while it runs is measured on held-out rows, never on the
rows that privacy protects.

Shapes: ``B`` rows in a batch, ``N`` held-out rows.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.optim import Optimizer

from dp.accounting import epsilon_curve
from dp.certificate import Certificate
from dp.cli._errors import InputError
from dp.cli._input import Table
from dp.cli._processes import add_up_gradients
from dp.noise import GaussianNoise
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan, plan_for
from dp.sampling import PoissonLoader


__all__ = (
    "Point",
    "Run",
    "Settings",
    "optimizer_for",
    "plan_of",
    "train_openly",
    "train_privately",
)

_NUM_POINTS: Final = 20
_LEARNING_RATES: Final = {"sgd": 0.25}  # Others: what torch has as a default.
_MOMENTUM: Final = 0.9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of ``train``."""

    epsilon: float
    delta: float
    steps: int
    batch_size: float | None
    max_grad_norm: float
    lr: float | None
    optimizer: str
    group_size: int = 1
    debug_seed: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Point:
    """The model after some steps: loss and accuracy on held-out rows, and epsilon."""

    step: int
    loss: float
    accuracy: float
    epsilon: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: what was measured along it, and how long its steps took."""

    points: tuple[Point, ...]
    seconds: float


Shown = Callable[[int, Point], None]
"""Called after every step, with the latest point that was measured."""


def plan_of(settings: Settings, table: Table) -> PrivacyPlan:
    """Return the plan of a private run on *table*, whose size is public.

    Raises:
        InputError: If the options contradict the table.
        ValueError: If a number is out of range.
    """
    num_rows = len(table.train)
    if settings.delta >= 1 / num_rows:
        raise InputError(
            f"--delta must be below one over the {num_rows} rows, {1 / num_rows:.3g},"
            f" got {settings.delta:g}: a larger one would permit publishing a row outright"
        )
    batch_size = settings.batch_size or num_rows / 4
    if batch_size > num_rows:
        raise InputError(
            f"--batch-size must be at most the {num_rows} rows that are trained on,"
            f" got {batch_size:g}"
        )
    return plan_for(
        target_epsilon=settings.epsilon,
        target_delta=settings.delta,
        sampling_probability=batch_size / num_rows,
        steps=settings.steps,
        expected_batch_size=batch_size,
        max_grad_norm=settings.max_grad_norm,
        # The number of rows is public, so neighbours have the same number.
        neighboring_relation="zero_out",
        unit_of_privacy=table.unit,
        group_size=settings.group_size,
    )


def train_privately(
    model: nn.Module,
    table: Table,
    *,
    plan: PrivacyPlan,
    settings: Settings,
    show: Shown,
) -> tuple[Run, Certificate]:
    """Train a copy of *model* as the plan says; return the run and what it cost.

    An interrupt ends the training. The certificate then claims the epsilon of the whole
    plan, since the accuracy that was shown may have decided the end.
    """
    model = copy.deepcopy(model)
    loader = plan.loader(table.train)
    seed = settings.debug_seed
    optimizer = DPOptimizer(
        optimizer_for(model, settings),
        plan=plan,
        loader=loader,
        noise=None if seed is None else GaussianNoise(rng="debug", seed=seed),
    )

    def losses(batch: Any) -> Tensor:
        x, y_B = batch
        return F.cross_entropy(model(x), y_B, reduction="none")

    def step(batch: Any) -> None:
        optimizer.backward(losses, batch)
        optimizer.step()

    curve = (
        epsilon_curve(
            plan.releases(plan.steps),
            delta=plan.target_delta,
            neighboring_relation=plan.neighboring_relation,
            group_size=plan.group_size,
        )
        if seed is None
        else (float("inf"),) * (plan.steps + 1)
    )
    start = time.perf_counter()
    points = tuple(_points(loader, step, model, table, epsilons=curve, show=show))
    seconds = time.perf_counter() - start
    certificate = optimizer.certificate(
        assumptions=(
            (
                f"The number of rows ({len(table.train)}) and of classes"
                f" ({table.num_classes}) is public, and features were scaled by"
                " constants that are."
            ),
            (
                "Accuracy was measured on rows that were not trained on, and that this"
                " certificate does not cover."
            ),
        )
    )
    return Run(points=points, seconds=seconds), certificate


def train_openly(
    model: nn.Module,
    table: Table,
    *,
    plan: PrivacyPlan,
    settings: Settings,
    show: Shown,
) -> Run:
    """Train a copy of *model* on batches drawn the same way, without privacy."""
    model = copy.deepcopy(model)
    loader = PoissonLoader(
        table.train,
        sampling_probability=plan.sampling_probability,
        steps=plan.steps,
    )
    optimizer = optimizer_for(model, settings)

    def step(batch: Any) -> None:
        x, y_B = batch
        optimizer.zero_grad()
        losses_B = F.cross_entropy(model(x), y_B, reduction="none")
        (losses_B.sum() / plan.expected_batch_size).backward()
        add_up_gradients(model)
        optimizer.step()

    never_private = (float("inf"),) * (plan.steps + 1)
    start = time.perf_counter()
    points = tuple(
        _points(loader, step, model, table, epsilons=never_private, show=show)
    )
    return Run(points=points, seconds=time.perf_counter() - start)


def _points(
    loader: PoissonLoader,
    step: Callable[[Any], None],
    model: nn.Module,
    table: Table,
    *,
    epsilons: tuple[float, ...],
    show: Shown,
) -> Iterator[Point]:
    """Take every step; yield about twenty points, the first and the last included."""
    num_steps = len(epsilons) - 1
    measured = {round(num_steps * i / _NUM_POINTS) for i in range(_NUM_POINTS + 1)}
    point = Point(0, *_measure(model, table), epsilons[0])
    taken = 0
    yield point
    try:
        for batch in loader:
            step(batch)
            taken += 1
            if taken in measured:
                point = Point(taken, *_measure(model, table), epsilons[taken])
                yield point
            show(taken, point)
    except KeyboardInterrupt:
        if point.step < taken:
            yield Point(taken, *_measure(model, table), epsilons[taken])


@torch.no_grad()
def _measure(model: nn.Module, table: Table) -> tuple[float, float]:
    """Mean loss and accuracy on the held-out rows."""
    x, y_N = table.test.tensors
    logits = model(x)
    accuracy = (logits.argmax(dim=1) == y_N).to(torch.float64).mean()
    return float(F.cross_entropy(logits, y_N)), float(accuracy)


def optimizer_for(model: nn.Module, settings: Settings) -> Optimizer:
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
    name = settings.optimizer.lower()
    if name not in kinds:
        raise InputError(
            f"--optimizer {settings.optimizer!r} is not in torch.optim, which has"
            f" {', '.join(sorted(kinds))}"
        )
    options: dict[str, Any] = {}
    lr = settings.lr or _LEARNING_RATES.get(name)
    if lr is not None:
        options["lr"] = lr
    if name == "sgd":
        options["momentum"] = _MOMENTUM
    try:
        return kinds[name](model.parameters(), **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"--optimizer {settings.optimizer}: {error}") from error
