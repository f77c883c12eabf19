"""The owners of a node's inputs, found by its own backward.

An operation without a rule (a custom function, a compiled part, a write into a view)
is asked itself: its backward alone is run on random gradients, once as they are and
once for every digit of the units' numbers, where the rows of a unit are multiplied by
two to the power of its digit. Rounding commutes with powers of two, so what belongs to
one unit is multiplied by the same power *to the last bit*, and shows whose it is.

A last pass with powers that were drawn at random is compared with what was found. A
backward that is not linear, such as one that clamps gradients, fails it; it is asked
again with NaN for the gradients of half of the units at a time, which reaches what
depends on them.

Shapes: ``U`` units.
"""

from collections.abc import Sequence
from typing import Final, final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Node, run_backward
from dp.per_sample._isolation.owner_moves import broadcast_from
from dp.per_sample._isolation.owners import MIXED, NOBODY, shortened
from dp.per_sample._isolation.powers import powers, private_generator, slack
from dp.per_sample._isolation.static_rules import Answers, Shapes


__all__ = ("owners_of_inputs",)

_NOTHING_SAID: Final = -3  # Of an element that is NaN whoever's gradients are sent.

_Grads = Sequence[Tensor | None]


def owners_of_inputs(
    node: Node, rows: Sequence[Tensor | None], shapes: Shapes, num_units: int
) -> Answers:
    """Return the owners of a node's inputs, from those of all of its outputs."""
    if any(bool((one == MIXED).any()) for one in rows if one is not None):
        return [None] * len(shapes)
    asked = _Asked(node, rows, num_units)
    owners = asked.by_powers()
    if owners is None:
        owners = asked.by_halves()
    return [
        None if s is None else _of_shape(one, s, rows[0])
        for one, s in zip(owners, shapes, strict=True)
    ]


@final
class _Asked:
    """A node's backward, on gradients that tell whose they are."""

    def __init__(
        self, node: Node, rows: Sequence[Tensor | None], num_units: int
    ) -> None:
        self._node = node
        self._rows = rows
        self._num_units = num_units
        self._random = _random_gradients(node, rows)
        kept = [grad for grad in self._random if grad is not None]
        self._device = kept[0].device
        self._base = min(powers(grad.dtype) for grad in kept)
        self._reference = self._answers(self._random)

    def by_powers(self) -> Answers | None:
        """Read every element's owner digit by digit; None if it is not confirmed."""
        unit_U = torch.arange(self._num_units, device=self._device)
        # 256 units in base 16 have two digits, so two passes beside the plain one. One
        # unit has a pass as well, or nothing would be confirmed.
        passes, place = [], 1
        while place == 1 or place < self._num_units:
            passes.append(self._scaled(unit_U // place % self._base))
            place *= self._base
        owners = [
            None if one is None else _decoded(one, scaled, self._base, self._num_units)
            for one, *scaled in zip(self._reference, *passes, strict=True)
        ]
        return owners if self._is_confirmed(owners) else None

    def _is_confirmed(self, owners: Answers) -> bool:
        """Whether powers of two that nobody could foresee come out as they should."""
        generator = private_generator(self._device)
        exponent_U = torch.randint(  # Not 0, which what does not follow would fit.
            1,
            self._base,
            (self._num_units,),
            device=self._device,
            generator=generator,
        )
        for one, owner, scaled in zip(
            self._reference, owners, self._scaled(exponent_U), strict=True
        ):
            if one is None or owner is None or scaled is None:
                continue
            # Example: unit 37 was found to own an element, and gets the power 2**9 in
            # this pass: its gradient has to be 512 times as large, to the last bit.
            power = torch.exp2(exponent_U[owner.clamp(min=0)].to(one.dtype))
            off = (one * power - scaled).abs()
            is_close = off <= slack(one.dtype) * 2.0**self._base
            is_right = is_close | one.isnan()
            if not bool((is_right & (owner != MIXED)).all()):
                return False
        return True

    def by_halves(self) -> Answers:
        """See what NaN reaches from half of the units, then from the others.

        Any two units differ in a bit of their numbers. What is reached from units that
        have the bit, and from units that have not, depends on two.
        """
        # Example: 5 units have 3 bits. Unit 4 is reached by NaN from the units with the
        # highest bit alone, and from those without each of the others: 1 0 0.
        unit_U = torch.arange(self._num_units, device=self._device)
        halves = [
            (self._spoiled(bit_U == 1), self._spoiled(bit_U == 0))
            for bit in range(max(1, (self._num_units - 1).bit_length()))
            for bit_U in [unit_U >> bit & 1]
        ]
        return [
            None
            if one is None
            else _by_bits(one, [(a[i], b[i]) for a, b in halves], self._num_units)
            for i, one in enumerate(self._reference)
        ]

    def _scaled(self, exponent_U: Tensor) -> Answers:
        """Return the answers for gradients multiplied by each unit's power of two."""
        grads = [
            None
            if grad is None or rows is None
            else grad * torch.exp2(exponent_U[rows.clamp(min=0)].to(grad.real.dtype))
            for grad, rows in zip(self._random, self._rows, strict=True)
        ]
        return self._answers(grads)

    def _spoiled(self, spoiled_U: Tensor) -> Answers:
        """Return the answers where the gradients of some units are NaN."""
        grads = [
            None
            if grad is None or rows is None
            else grad.masked_fill(spoiled_U[rows.clamp(min=0)] & (rows >= 0), torch.nan)
            for grad, rows in zip(self._random, self._rows, strict=True)
        ]
        return self._answers(grads)

    def _answers(self, grads: _Grads) -> Answers:
        # A complex gradient by its length, which is scaled as its parts are.
        with torch.no_grad():
            gradients = run_backward(self._node, grads)
        return [
            grad.abs() if grad is not None and grad.is_complex() else grad
            for grad in gradients
        ]


def _random_gradients(node: Node, rows: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return gradients that cancel nowhere by chance, 0 where they are nobody's."""
    grads: list[Tensor | None] = []
    for one, output in zip(rows, node._input_metadata, strict=True):  # noqa: SLF001 -- see _graph.nodes
        if one is None:
            grads.append(None)
            continue
        grad = torch.randn(
            tuple(output.shape),
            dtype=output.dtype,
            device=output.device,
            generator=private_generator(output.device),
        )
        # Away from 0, so that no row is lost by a small number.
        grad = grad + torch.where(grad.real < 0, -1, 1).to(grad.dtype)
        grads.append(grad.masked_fill(one == NOBODY, 0))
    return grads


def _decoded(
    reference: Tensor, scaled: Sequence[Tensor | None], base: int, num_units: int
) -> Tensor:
    """Read the digits of every element's owner."""
    owner = torch.zeros_like(reference, dtype=torch.long)
    is_mixed, place = torch.zeros_like(owner, dtype=torch.bool), 1
    for one in scaled:
        ratio = torch.zeros_like(reference) if one is None else one / reference
        mantissa, exponent = torch.frexp(ratio)
        digit = exponent.long() - 1  # A power of two is 0.5 * 2**(k + 1).
        is_mixed |= (mantissa != 0.5) | (digit < 0) | (digit >= base)  # noqa: PLR2004 -- as said
        # Example: base 16, unit 37 = 2 * 16 + 5: the first pass multiplies its rows by 2**5, the
        # second by 2**2, and the ratios to the plain pass are read as 5 and 2.
        owner += digit.clamp(0, base - 1) * place
        place *= base
    return _marked(reference, owner, is_mixed, num_units)


def _by_bits(
    reference: Tensor,
    halves: Sequence[tuple[Tensor | None, Tensor | None]],
    num_units: int,
) -> Tensor:
    """Read the bits of every element's owner."""
    owner = torch.zeros_like(reference, dtype=torch.long)
    is_mixed = torch.zeros_like(owner, dtype=torch.bool)
    for bit, answers in enumerate(halves):
        # NaN from the units with the bit reached it, or from those without, or both, or none.
        with_bit, without = (
            torch.zeros_like(is_mixed) if one is None else one != reference
            for one in answers  # NaN is equal to nothing.
        )
        is_mixed |= with_bit == without  # Both, or neither: nobody's number, but not 0.
        owner += with_bit.long() << bit
    return _marked(reference, owner, is_mixed, num_units)


def _marked(
    reference: Tensor, owner: Tensor, is_mixed: Tensor, num_units: int
) -> Tensor:
    """Return owners, or NOBODY where nothing flows, or what says nothing by NaN."""
    owner = owner.masked_fill(is_mixed | (owner >= num_units), MIXED)
    owner = owner.masked_fill(reference == 0, NOBODY)
    return owner.masked_fill(reference.isnan(), _NOTHING_SAID)


def _of_shape(
    owner: Tensor | None, shape: Sequence[int], given: Tensor | None
) -> Tensor:
    """Return owners of an input's shape; nobody's if the backward gave no gradient."""
    if owner is None:
        return torch.full([1] * len(shape), NOBODY)
    owner = broadcast_from(_said(owner, given), shape)
    for axis, length in enumerate(owner.shape):
        if length > 1:  # What is nobody's is 0, and may count as anybody's.
            highest = owner.amax(axis, keepdim=True)
            if bool(((owner == highest) | (owner == NOBODY)).all()):
                owner = highest
    return shortened(owner, range(len(shape)))


def _said(owner: Tensor, given: Tensor | None) -> Tensor:
    """Return owners where NaN said nothing: as in the output, if rows stay in place."""
    is_silent = owner == _NOTHING_SAID
    if not bool(is_silent.any()):
        return owner
    # Example: a division by zero makes element 3 NaN whoever's gradients are sent. If
    # all others stay where they were in the output, so does this one; if not, it may be
    # anyone's.
    if given is None or not _spreads_over(given, owner):
        return owner.masked_fill(is_silent, MIXED)
    stays = (owner == given) | (owner == NOBODY) | is_silent
    return torch.where(is_silent, given if bool(stays.all()) else MIXED, owner)


def _spreads_over(given: Tensor, owner: Tensor) -> bool:
    """Whether an output's owners broadcast to an input, so that rows may stay in place."""
    return given.dim() == owner.dim() and all(
        n in (1, m) for n, m in zip(given.shape, owner.shape, strict=True)
    )
