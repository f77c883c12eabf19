"""Record one run under replayed coins, release by release, and what it left public."""

import contextlib
import copy
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from dp._keystream import replayed_keys
from dp._mechanism.paid_for import apart
from dp._progress import Bar
from dp.audit._subject import Train, fixed_seeds, hooked
from dp.exceptions import PrivacyError
from dp.noise._gaussian import witnessed
from dp.optimizer import DPOptimizer
from dp.optimizer._guard import private_owner_of
from dp.plan import PrivacyPlan


__all__ = ("Tape", "record")

State = Mapping[str, str]


@final
@dataclass(slots=True)
class Tape:
    """A recording of one run, release by release."""

    follows: "Tape | None"
    optimizers: list[DPOptimizer] = field(default_factory=list)
    sums: list[list[Tensor]] = field(default_factory=list)
    released: list[list[Tensor]] = field(default_factory=list)
    num_sums: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    sensitivities: list[float] = field(default_factory=list)
    output: str = ""
    error: str | None = None

    def sums_of_steps(self) -> list[list[Tensor]]:
        """Return what noise was added to until each step, in one call or several."""
        starts = [0, *self.num_sums]
        return [
            [total for sums in self.sums[start:end] for total in sums]
            for start, end in pairwise(starts)
        ]

    @property
    def plan(self) -> PrivacyPlan:
        """The plan of the optimizer that made the releases."""
        return self.optimizers[0].plan

    def add_noise(self, add: Callable[[], float], sums: Sequence[Tensor]) -> float:
        """Take the sums down and add noise, or what the other run released."""
        number = len(self.sums)
        self.sums.append([s.detach().clone() for s in sums])
        used = add()
        if self.follows is not None and number < len(self.follows.released):
            for mine, theirs in zip(sums, self.follows.released[number], strict=False):
                if mine.shape == theirs.shape:
                    mine.detach().copy_(theirs)
        self.released.append([s.detach().clone() for s in sums])
        return used


def record(
    train: Train,
    model: nn.Module,
    dataset: Dataset[Any],
    bar: Bar,
    *,
    follows: Tape | None = None,
) -> Tape:
    tape = Tape(follows)
    model = copy.deepcopy(model)
    parameters = list(model.parameters())

    def look(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        owns = any(private_owner_of(parameter) is optimizer for parameter in parameters)
        if isinstance(optimizer, DPOptimizer) and owns:
            tape.optimizers.append(optimizer)
            tape.num_sums.append(len(tape.sums))
            tape.states.append(_state(model, optimizer))
            tape.sensitivities.append(_sensitivity(optimizer, len(tape.states) - 1))
            bar.show(len(tape.states), optimizer.plan.steps)

    printed = io.StringIO()
    with (
        fixed_seeds(),
        hooked(look),
        replayed_keys(),
        apart(),
        witnessed(tape.add_noise),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            train(model, dataset)
        except Exception as error:  # noqa: BLE001 -- that it raised is what is compared
            tape.error = f"{type(error).__name__}: {error}"
    tape.output = printed.getvalue()
    if not tape.optimizers and follows is None:
        raise PrivacyError(
            tape.error
            or "no DPOptimizer stepped the model; make one from model.parameters() in"
            " the training function"
        )
    return tape


def _sensitivity(optimizer: DPOptimizer, step: int) -> float:
    """Return what the last release was charged for, or as planned where none was."""
    charged = optimizer.ledger.charges()
    if not charged:
        return optimizer.plan.max_grad_norm_at(step)
    norm, noises = charged[-1].max_grad_norm, charged[-1].noise_beside_count
    return norm if noises is None else norm * noises.sensitivity


def _state(model: nn.Module, optimizer: DPOptimizer) -> State:
    """Return a digest of everything public, by name."""
    found: dict[str, object] = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        found[f"{name}.grad"] = parameter.grad
    inner = optimizer.original_optimizer.state_dict()
    found["param_groups"] = inner["param_groups"]
    found["state"] = inner["state"]
    found["ledger"] = optimizer.ledger.charges()
    return {name: _digest(value) for name, value in found.items()}


def _digest(value: object) -> str:
    file = hashlib.sha256()
    for part in _flat(value):
        file.update(part)
    return file.hexdigest()


def _flat(value: object) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key in value:
            yield repr(key).encode()
            yield from _flat(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield repr(value).encode()
