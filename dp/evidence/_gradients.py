"""Whether gradients stay with other examples in the batch, as losses do.

Losses show what is computed forwards. What a backward pass multiplies with can be a
number of the batch all the same: in a hook on a tensor or module, in the backward of a
custom function, in a term that is detached (``x.detach() + w * (x - x.detach())``), or
in hooks that pack what autograd saves by one scale for a whole tensor. All of these are
linear in the gradient, so that no power of two shows them, and torch's own backward
pass has them, too.

So a random combination of the losses that stay is differentiated in both batches.

Shapes: ``B`` losses.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from dp.evidence._company import Company
from dp.evidence._comparison import same_losses
from dp.evidence._verdicts import Verdict, worst
from dp.per_sample._graph.nodes import name_of
from dp.per_sample._isolation.ordinary_pass import ordinary_sums


__all__ = ("verdict_of_gradients",)

_Way = Callable[[Sequence[int]], Any]
_Again = Callable[..., Tensor]

_TOLERANCE: Final = 2.0**-9  # Of the norm of a parameter's gradient.
_TOLERANCE_OF_16_BITS: Final = 2.0**-4
_ACROSS_SIZES: Final = 0.1
_SHARE: Final = 2.0**-3  # Of the norm of all; what is smaller counts as so large.
_FEWEST: Final = 2
_CAST: Final = "ToCopyBackward0"  # As of autocast: to 16 bits, as a rule.


def verdict_of_gradients(
    again: _Again,
    of_exchange: Callable[[Sequence[int], Tensor], Verdict],
    company: Company,
    *,
    num_exchanges: int,
    in_step: bool,
    asks_size: bool,
) -> Verdict:
    """Return what becomes of gradients when other examples are exchanged.

    Args:
        again: Evaluates the losses of rows in an order, with their graph.
        of_exchange: Returns what becomes of the losses.
        company: The batch.
        num_exchanges: 2 to exchange a half and all but one, 1 for one of these.
        in_step: Make as many evaluations and backward passes whatever is seen, so that
            collectives of several ranks meet.
        asks_size: Whether to compare with half of the batch as well; not in step.
    """
    nobody = torch.zeros(len(company.unit_of_loss), dtype=torch.bool)
    exchanges = [([*range(company.num_rows)], nobody)] * 2
    if company.num_units >= _FEWEST:
        # A number of one example shows where it is among those that give their places
        # away: of a half it may not be, and where one is left it nearly always is. Where
        # one is left, what is done to some examples only shows if it is one of them.
        exchanges = [next(company.halves()), company.alone()]
    of: Callable[..., Verdict] = _in_step if in_step else _by_itself
    verdicts: list[Verdict] = [
        of(again, of_exchange, company.ways, order, stays_B)
        for order, stays_B in secrets.SystemRandom().sample(exchanges, num_exchanges)
    ]
    is_alone = worst(verdicts) == "alone"
    if is_alone and asks_size and not in_step and _follow_size(again, company.num_rows):
        return "sized gradients"
    return worst(verdicts)


def _by_itself(
    again: _Again,
    of_exchange: Callable[[Sequence[int], Tensor], Verdict],
    ways: Sequence[_Way],
    order: Sequence[int],
    stays_B: Tensor,
) -> Verdict:
    """Return what becomes of losses and gradients in an exchange, of one process."""
    whole, weights_B = range(len(order)), _weights(stays_B)
    losses_B = again(whole)
    unchanged, losses_B = _gradients(losses_B, weights_B), losses_B.detach()
    exchanged_B = again(order, ways[0])
    if not same_losses(losses_B, exchanged_B.detach(), stays_B):
        # Whose losses change, as where data decide what is drawn, is not compared.
        verdict = of_exchange(order, stays_B)
        if verdict != "alone":
            return verdict
    exchanged = _gradients(exchanged_B, weights_B)
    del exchanged_B  # And its graph.
    if _is_same(unchanged, exchanged) or any(
        _is_same(unchanged, _gradients(again(order, way), weights_B))
        for way in ways[1:]
    ):
        return "alone"
    # Only what repeats itself says something of the examples.
    repeats = _is_same(unchanged, _gradients(again(whole), weights_B)) and (
        _is_same(exchanged, _gradients(again(order), weights_B))
    )
    return "steered" if repeats else "unclear"


def _in_step(
    again: _Again,
    of_exchange: Callable[[Sequence[int], Tensor], Verdict],
    _ways: Sequence[_Way],
    order: Sequence[int],
    stays_B: Tensor,
) -> Verdict:
    """Return the same, after as many evaluations as every other rank makes."""
    verdict = of_exchange(order, stays_B)
    orders = [range(len(order)), order] * 2
    weights_B = _weights(stays_B)
    unchanged, exchanged, *again_both = [
        _gradients(again(o), weights_B) for o in orders
    ]
    if verdict != "alone" or _is_same(unchanged, exchanged):
        return verdict
    pairs = zip((unchanged, exchanged), again_both, strict=True)
    return "steered" if all(_is_same(one, other) for one, other in pairs) else "unclear"


def _follow_size(again: _Again, num_rows: int) -> bool:
    """Whether gradients are others in half of the batch, by a tenth at least."""
    half = range((num_rows + 1) // 2)
    weights_B = _weights(torch.arange(num_rows) < len(half))
    in_whole = _gradients(again(range(num_rows)), weights_B)
    in_half = _gradients(again(half), weights_B[: len(half)])
    return not _is_same(in_whole, in_half, _ACROSS_SIZES)


def _weights(stays_B: Tensor) -> Tensor:
    """Return random weights of the losses that stay, and zero for the others."""
    # A generator of its own: those that functions draw from are left alone.
    generator = torch.Generator()
    generator.seed()
    drawn_B = torch.rand(len(stays_B), generator=generator, dtype=torch.float64)
    signs_B = torch.randint(2, (len(stays_B),), generator=generator) * 2 - 1
    return (1 + drawn_B) * signs_B * stays_B


@final
@dataclass(frozen=True, slots=True)
class _Gradients:
    """The gradient of each parameter, by its id, and whether 16 bits rounded it."""

    of: Mapping[int, Tensor]
    is_narrow: bool = False


def _gradients(losses_B: Tensor, weights_B: Tensor) -> _Gradients:
    """Return the gradients of a combination of losses."""
    parameters, is_narrow = _parameters(losses_B)
    if not parameters or len(weights_B) != len(losses_B):
        return _Gradients({})
    # What does not stay is left out, and gets zeros: zero times infinity is NaN.
    stays_B = weights_B.nonzero()[:, 0].to(losses_B.device)
    seeds = weights_B.to(losses_B.device, losses_B.dtype)[stays_B]
    sums = ordinary_sums(losses_B[stays_B], parameters, seeds)
    # On the host: two of each are kept, and an accelerator may have no room for them.
    of = {id(p): total.cpu() for p, total in zip(parameters, sums, strict=True)}
    return _Gradients(of, is_narrow)


def _parameters(losses_B: Tensor) -> tuple[list[Tensor], bool]:
    """Return the parameters that take part, and whether something has 16 bits."""
    pending = [] if losses_B.grad_fn is None else [losses_B.grad_fn]
    seen, found = {*pending}, {}
    is_narrow = losses_B.dtype.itemsize < torch.float32.itemsize
    for node in pending:  # Which grows meanwhile.
        is_narrow |= name_of(node) == _CAST
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            found[id(variable)] = variable
        new = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= new
        pending.extend(new)
    return [*found.values()], is_narrow


def _is_same(
    left: _Gradients, right: _Gradients, tolerance: float | None = None
) -> bool:
    """Whether gradients are equal up to rounding, or not finite, so not comparable."""
    none = torch.zeros(())
    pairs = [
        (left.of.get(name, none).double(), right.of.get(name, none).double())
        for name in left.of.keys() | right.of.keys()
    ]
    apart = [float((one - other).norm()) for one, other in pairs]
    sizes = [max(float(one.norm()), float(other.norm())) for one, other in pairs]
    if not all(map(math.isfinite, apart)):
        return True
    if tolerance is None:
        tolerance = _TOLERANCE_OF_16_BITS if left.is_narrow else _TOLERANCE
    # A hook changes the gradients of what lies before it alone, which may be few; what
    # is small beside all others is rounding.
    least = _SHARE * math.hypot(*sizes)
    return all(
        difference <= tolerance * max(size, least)
        for difference, size in zip(apart, sizes, strict=True)
    )
