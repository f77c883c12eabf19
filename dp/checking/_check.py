"""The checks, in the order in which their problems would show.

Shapes: ``B`` examples in a batch.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dp import _checks
from dp.checking._batches import common_size, some_of
from dp.checking._isolation import Comparison
from dp.checking._report import CheckReport, Problem
from dp.checking._trial import Trial, unchanged
from dp.evidence import remember_check
from dp.exceptions import (
    SampleMixingError,
    UnsupportedOperationError,
    WrongGradientError,
)
from dp.per_sample import Engine


__all__ = ("check",)

_FEWEST: Final = 2
_NARROW: Final = (torch.float16, torch.bfloat16)
_SHOWN: Final = 8  # Names in a list, before "and n more".
_Take = Callable[[Any, Sequence[int]], Any]


def check(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    *,
    take: _Take | None = None,
    num_compared: int = 8,
) -> CheckReport:
    """Report everything about a model and a loss that would break privacy or the run.

    >>> model = torch.nn.Linear(3, 1)
    >>> def loss_fn(model, batch):
    ...     x, y = batch
    ...     return (model(x).squeeze(1) - y).square()
    >>> print(check(model, loss_fn, (torch.randn(4, 3), torch.randn(4))))
    dp.check: nothing found (4 examples compared)

    Examples that are mixed are looked for in two ways: by the probe of gradients that
    every private step makes, and by comparing an example's gradient in the batch with
    its gradient alone and among copies of itself. The second sees what the probe
    cannot: numbers computed from the batch that carry no gradient, such as the sum of
    class weights that a mean is divided by.

    Guarantees:
        * Parameters, buffers, gradients, training modes and the generators of torch,
          numpy and random are afterwards what they were.

    Args:
        model: The model, in the mode in which it will be trained.
        loss_fn: Called as ``loss_fn(model, batch)``; returns one loss an example.
        batch: A few examples, at least two: a tensor, or tensors in lists, tuples,
            mappings or dataclasses.
        take: Called as ``take(batch, positions)``; returns the batch of those
            examples. If None, the first axis as long as the batch is the examples'.
        num_compared: How many examples to compare at most; each costs a backward pass
            over the batch and two of its own.

    Raises:
        ValueError: If the batch holds fewer than two examples.

    References:
        Opacus' validator knows modules; what is looked for here are the effects.
    """
    _checks.count(num_compared=num_compared)
    trial = Trial(model, loss_fn)
    # The check looks for what is not finite itself: torch would raise at the first one.
    with unchanged(trial), torch.autograd.set_detect_anomaly(False):
        losses_B = trial.losses(batch)
        changed, unusable = trial.changed(), _unusable(trial, losses_B)
        if unusable:
            return CheckReport(problems=(unusable,), num_compared=0)
        num_examples = len(losses_B)

        def taken(positions: Sequence[int]) -> Any:
            if take is not None:
                return take(batch, positions)
            return some_of(batch, positions, num_examples=num_examples)

        unusable = _of_another_axis(trial, batch, taken, num_examples)
        if unusable:
            return CheckReport(problems=(unusable,), num_compared=0)
        comparison = _comparison(
            trial,
            batch,
            losses_B,
            taken,
            num_compared=num_compared,
            has_take=take is not None,
        )
        problems = [
            *_about_state(changed),
            *_about_numbers(trial, losses_B),
            *_about_engine(trial, trial.losses(batch)),
            *_about_reach(trial, trial.losses(batch)),
            *comparison.problems(),
            *_about_emptiness(trial, taken),
        ]
    report = CheckReport(
        problems=tuple(problems), num_compared=len(comparison.positions)
    )
    if report.ok:
        remember_check(trial.parameters)
    return report


def _unusable(trial: Trial, losses_B: object) -> Problem | None:
    """Return the reason why nothing else can be checked, if there is one."""
    if not trial.parameters:
        return Problem(
            severity="error",
            name="nothing to train",
            detail="no parameter of the model requires gradients",
            remedy="call requires_grad_(True) on what is to be trained",
        )
    complex_ones = [
        name
        for name, p in trial.model.named_parameters()
        if p.requires_grad and p.is_complex()
    ]
    if complex_ones:
        return Problem(
            severity="error",
            name="complex parameters",
            detail=f"{_listed(complex_ones)} are complex; noise is for real numbers",
            remedy="store them as pairs of real numbers, as torch.view_as_real does",
        )
    if not isinstance(losses_B, Tensor):
        shape = f"a {type(losses_B).__name__}"
    elif losses_B.dim() != 1 or not losses_B.is_floating_point():
        shape = f"{losses_B.dtype} of shape {tuple(losses_B.shape)}"
    elif losses_B.grad_fn is None:
        shape = "a vector that does not depend on any parameter of the model"
    elif len(losses_B) < _FEWEST:
        raise ValueError(
            f"batch must hold at least {_FEWEST} examples to see whether they are"
            f" mixed, got {len(losses_B)}"
        )
    else:
        return None
    return Problem(
        severity="error",
        name="losses",
        detail=f"the loss function returns {shape}, not one loss an example",
        remedy="return a vector with the graph of the model that it is given:"
        " reduction='none', then sum or average over each example's own terms",
    )


def _of_another_axis(
    trial: Trial, batch: Any, taken: Callable[[Sequence[int]], Any], num_examples: int
) -> Problem | None:
    """Return what is wrong if the losses are not the examples': half, half as many."""
    half = num_examples // 2
    try:
        losses = trial.losses(taken(range(half)))
        is_by_example = losses.shape == (half,)
    except Exception:  # noqa: BLE001 -- it may take no other number of examples
        is_by_example = common_size(batch) in (None, num_examples)
    if is_by_example:
        return None
    return Problem(
        severity="error",
        name="losses",
        detail=f"there are {num_examples} losses, but they are not the examples': half"
        " of the examples do not have half of the losses",
        remedy="reduce over each example's own terms only, never over the examples'"
        " axis; if examples lie along another axis, pass take=",
    )


def _comparison(
    trial: Trial,
    batch: Any,
    losses_B: Tensor,
    taken: Callable[[Sequence[int]], Any],
    *,
    num_compared: int,
    has_take: bool,
) -> Comparison:
    """Return the comparison of the examples whose losses are finite, if some are not.

    What is not finite in one row spoils the gradients of all in torch's backward pass.
    """
    finite = losses_B.detach().isfinite().nonzero().flatten().tolist()
    if len(finite) in (len(losses_B), 0, 1):
        finite = list(range(len(losses_B)))
    else:
        batch = taken(finite)
    return Comparison(
        trial=trial,
        batch=batch,
        num_examples=len(finite),
        taken=lambda positions: taken([finite[i] for i in positions]),
        positions=_spread(len(finite), num_compared),
        has_take=has_take,
    )


def _spread(num_examples: int, at_most: int) -> list[int]:
    """Return up to *at_most* positions, from the first to the last."""
    number = min(num_examples, at_most)
    return [i * (num_examples - 1) // max(1, number - 1) for i in range(number)]


def _about_state(changed: Sequence[str]) -> Iterator[Problem]:
    if changed:
        yield Problem(
            severity="error",
            name="state changed by the forward pass",
            detail=f"{_listed(changed)} changed: they hold numbers of private data,"
            " are saved with the model, and get no noise",
            remedy="use GroupNorm or LayerNorm for BatchNorm,"
            " track_running_stats=False for InstanceNorm, or call eval() on the modules"
            " that keep statistics",
        )


def _about_numbers(trial: Trial, losses_B: Tensor) -> Iterator[Problem]:
    named = [(n, p) for n, p in trial.model.named_parameters() if p.requires_grad]
    narrow = [name for name, p in named if p.dtype in _NARROW]
    if narrow or losses_B.dtype in _NARROW:
        what = _listed(narrow) if narrow else "the vector of losses"
        yield Problem(
            severity="warning",
            name="low precision",
            detail=f"{what} have 16 bits: gradients are rounded before they are"
            " clipped, and updates below 1/256 of a weight vanish",
            remedy="keep parameters and losses in float32 and compute in bfloat16 by"
            " torch.autocast",
        )
    num_bad = int((~losses_B.detach().isfinite()).sum())
    if num_bad:
        yield Problem(
            severity="warning",
            name="losses that are not finite",
            detail=f"{num_bad} of {len(losses_B)} losses are NaN or infinite; such"
            " examples contribute nothing, and are charged all the same",
            remedy="clean the data, or bound what the loss computes",
        )


def _about_engine(trial: Trial, losses_B: Tensor) -> Iterator[Problem]:
    """Ask for the gradients that a private step would use."""
    problem: Problem | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            Engine().gradients(losses_B, trial.parameters)
        except SampleMixingError as error:
            problem = Problem(
                severity="error",
                name="examples are mixed",
                detail=str(error),
                remedy=_remedy_for_mixing(trial.model),
            )
        except WrongGradientError as error:
            problem = Problem(
                severity="error",
                name="wrong gradients",
                detail=str(error),
                remedy="make custom functions and hooks repeatable",
            )
        except UnsupportedOperationError as error:
            problem = Problem(
                severity="error",
                name="unsupported operation",
                detail=str(error),
                remedy="replace the operation that is named",
            )
    if problem:
        yield problem
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        yield _about_warning(text)


def _about_warning(text: str) -> Problem:
    if "could not be verified" in text:
        return Problem(
            severity="note",
            name="gradients not verified",
            detail=text,
            remedy="check the same model in float32",
        )
    return Problem(
        severity="note",
        name="slow operation",
        detail=text,
        remedy="none is needed; a layer of torch that has a rule is faster",
    )


def _remedy_for_mixing(model: nn.Module) -> str:
    norms = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    if norms:
        return f"replace {_listed(norms)} by GroupNorm, or train them in eval() mode"
    return (
        "let no example's loss depend on another example: no statistics, sums or"
        " comparisons over the batch in the model or in the loss"
    )


def _about_reach(trial: Trial, losses_B: Tensor) -> Iterator[Problem]:
    named = [(n, p) for n, p in trial.model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(
        losses_B.sum(), [p for _, p in named], allow_unused=True
    )
    unused = [name for (name, _), g in zip(named, grads, strict=True) if g is None]
    if unused:
        yield Problem(
            severity="warning",
            name="parameters without gradients",
            detail=f"no loss depends on {_listed(unused)}: they get noise only",
            remedy="call requires_grad_(False) on them, or use them; if other batches"
            " use them, all is well",
        )


def _about_emptiness(
    trial: Trial, taken: Callable[[Sequence[int]], Any]
) -> Iterator[Problem]:
    """Poisson sampling draws empty batches, however rarely."""
    try:
        losses_0 = trial.losses(taken([]))
        reason = "" if losses_0.shape == (0,) else f"shape {tuple(losses_0.shape)}"
    except Exception as error:  # noqa: BLE001 -- whatever the model raises is reported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if reason:
        yield Problem(
            severity="warning",
            name="empty batch",
            detail="Poisson sampling may draw no example, and the loss of an empty"
            f" batch fails ({reason})",
            remedy="pass backward() the loss function and its batch: in a single process"
            " it is not called for an empty one. With finished losses skip the forward"
            " pass and backward(); call step() all the same: it adds noise and is charged",
        )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
