"""One batch computed again, with every unit's losses multiplied by a power of two.

What belongs to one unit alone is multiplied by the same power to the last bit, since
rounding commutes with powers of two: norms by its square, and a weighted sum in which
the powers are divided out does not change at all. Example: unit 0 has the gradient 3
and unit 1 the gradient 5; with powers 2 and 8 they are 6 and 40, their squared norms
36 = 4 * 9 and 1600 = 64 * 25. A hook that adds a tenth of unit 1's gradient to unit 0's
leaves 3.5, and 6 + 4 = 10 under the powers, where 7 is expected.

Where a number underflowed before it was multiplied, another one may be rounded the
other way: a few roundings are let pass.

Shapes: ``U`` units, ``G`` groups of parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

import torch
from torch import Tensor

from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._isolation.powers import powers, private_generator, slack


__all__ = ("Coded", "Pass", "Trial")

# Runs the backward pass with each unit's losses multiplied by a factor.
Pass = Callable[[Tensor], PerSampleGradients]

_ONE_POWER: Final = 3
_ROUNDINGS: Final = 8  # That may go the other way after an underflow.
_FEWEST: Final = 1 << 16  # Roundings of the smallest number that a norm may have.


@final
class Trial:
    """Powers of two for the units of one batch, and what is compared of it.

    Args:
        parameters: What the gradients are of.
        groups: The group of each, as they are clipped.
        num_units: How many units there are.
        narrowest: The dtype of the graph that underflows first.
        loss_scale: What gradients are divided by.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        groups: Sequence[int],
        *,
        num_units: int,
        device: torch.device,
        narrowest: torch.dtype,
        loss_scale: float,
    ) -> None:
        self.parameters = parameters
        self.groups = groups
        self.num_elements = sum(parameter.numel() for parameter in parameters)
        self._most = powers(narrowest) - 1
        generator = private_generator(device)
        # Example: 4 units may get the exponents 3, 0, 15, 3. Units 0 and 3 could not be
        # told apart in this trial, which happens to one pair in 16.
        self._exponent_U = torch.randint(
            powers(narrowest), (num_units,), device=device, generator=generator
        ).double()
        self._none_U = torch.zeros_like(self._exponent_U)
        self._everyone_U = torch.ones_like(self._exponent_U, dtype=torch.bool)
        self._generator = generator
        # Below the smallest number digits are lost, which no multiplication gives back.
        self.slack = slack(narrowest) / loss_scale
        # An accelerator adds in no fixed order, and half precision underflows.
        self.is_exact = device.type == "cpu" and narrowest != torch.float16

    def plain(self, run: Pass) -> "Coded":
        """Run a pass without powers."""
        return Coded(self, run(self._none_U.exp2()), self._none_U, self._everyone_U)

    def by_powers(self, run: Pass) -> "Coded":
        """Run a pass in which every unit's losses have a power of two of its own."""
        gradients = run(self._exponent_U.exp2())
        return Coded(self, gradients, self._exponent_U, self._everyone_U)

    def by_one_power(self, run: Pass) -> Iterator["Coded"]:
        """Run passes in which all losses have the same power, to see if they are linear.

        A small one, which leaves no range, and the largest that any unit may have.
        """
        for power in sorted({_ONE_POWER, self._most}):
            exponent_U = self._none_U + power
            yield Coded(self, run(exponent_U.exp2()), exponent_U, self._everyone_U)

    def by_halves(self, run: Pass) -> Iterator["Coded"]:
        """Run two passes, in each of which one half of the units is left as it is."""
        # Example: units 0 and 2 as they are, with 1 and 3 multiplied by random powers;
        # then the other way round. Whatever changes in the half that was left came from
        # the other.
        number_U = torch.rand(
            len(self._none_U), device=self._none_U.device, generator=self._generator
        )
        one_half_U = number_U < 0.5  # noqa: PLR2004 -- a half
        for is_kept_U in (one_half_U, ~one_half_U):
            exponent_U = torch.where(is_kept_U, self._none_U, self._exponent_U)
            yield Coded(self, run(exponent_U.exp2()), self._none_U, is_kept_U)


@final
class Coded:
    """Norms and weighted sums of a pass with powers of two, which are divided out.

    Args:
        trial: Of which batch.
        gradients: What the pass found.
        exponent_U: What the compared units' losses were multiplied with, as a power.
        compared_U: Which units are compared.
    """

    def __init__(
        self,
        trial: Trial,
        gradients: PerSampleGradients,
        exponent_U: Tensor,
        compared_U: Tensor,
    ) -> None:
        self._trial = trial
        self._gradients: PerSampleGradients | None = gradients
        self._exponent_U = exponent_U
        self._norms_GU = gradients.squared_norms(trial.groups)
        # What overflowed by its power says nothing.
        self._compared_U = compared_U & self._norms_GU.isfinite().all(0)
        self._weight_U = torch.zeros_like(exponent_U)
        self._sums: list[Tensor] = []

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the norms, in which sums are added up too."""
        return self._norms_GU.dtype

    def norms(self) -> Tensor:
        """Return [G, U] the norms of every unit's gradient."""
        # Divided out exactly: a power of two changes no digit of a number that is
        # normal.
        return self._norms_GU.double().sqrt() * (-self._exponent_U).exp2()

    def sums(self, *weights_U: Tensor) -> list[Tensor]:
        """Return every parameter's sum of weighted gradients, added up in turn.

        Args:
            weights_U: Weights. Several are added as the parts of a batch are.
        """
        assert self._gradients is not None  # noqa: S101 -- see keep_sums
        return _sums(
            self._trial,
            self._gradients,
            *((weight_U * (-self._exponent_U).exp2()) for weight_U in weights_U),
        )

    def keep_sums(self, weight_U: Tensor, sums: list[Tensor] | None = None) -> None:
        """Let go of the gradients, but for the compared units' weighted sums.

        Args:
            weight_U: The weights.
            sums: The sums, if they are known already.
        """
        # What is not compared, as an overflow, gets no weight, and is in no sum.
        self._weight_U = torch.where(self._compared_U, weight_U, 0.0)
        self._sums = self.sums(self._weight_U) if sums is None else sums
        self._gradients = None

    def differs(self, plain: PerSampleGradients) -> str | None:
        """Return where another pass, without powers, has other results; None if nowhere."""
        norms_GU = plain.squared_norms(self._trial.groups)
        lengths_U = norms_GU.double().sum(0).sqrt()
        # No sum can be longer than this: it is what an error is measured against. The
        # sum itself may be short, where gradients cancel.
        size = (self._weight_U.abs() * lengths_U)[self._compared_U].sum()
        sums = _sums(self._trial, plain, self._weight_U) if self._sums else []
        shapes = [
            str(tuple(one.shape))
            for one, other in zip(self._sums, sums, strict=True)
            if not self._are_close(one, other, size)
        ]
        if shapes:
            return "parameters of shape " + ", ".join(dict.fromkeys(shapes))
        return None if self._have_norms(norms_GU) else "some parameters, by their norms"

    def _are_close(self, one: Tensor, other: Tensor, size: Tensor) -> bool:
        if torch.equal(one, other):
            return True
        difference = (one - other).abs()
        if bool((difference <= self._trial.slack).all()):
            return True
        return float(difference.norm()) <= self._roughness(one.dtype) * float(size)

    def _roughness(self, dtype: torch.dtype) -> float:
        """Return the relative error that is let pass."""
        eps = float(torch.finfo(dtype).eps)
        # In float32 1e-6, or 3.5e-4 where atomics add in another order each time: half
        # of the digits.
        return _ROUNDINGS * eps if self._trial.is_exact else eps**0.5

    def _have_norms(self, norms_GU: Tensor) -> bool:
        """Whether squared norms are multiplied by the squares of the powers."""
        # Three ways to be right: equal bits; close but for roundings and squares that
        # underflowed; or close in the norms themselves, where gradients did.
        expected_GU = norms_GU * (2 * self._exponent_U).exp2()
        actual_GU = self._norms_GU
        smallest = torch.finfo(norms_GU.dtype).tiny * torch.finfo(norms_GU.dtype).eps
        elements = max(self._trial.num_elements, _FEWEST)
        underflow_U = smallest * elements * (2 * self._exponent_U).exp2()
        slack_GU = underflow_U + self._roughness(norms_GU.dtype) * expected_GU
        root_U = self._trial.slack * self._exponent_U.exp2()
        close_GU = (
            (expected_GU == actual_GU)
            | ((expected_GU - actual_GU).abs() <= slack_GU)
            | ((expected_GU.sqrt() - actual_GU.sqrt()).abs() <= root_U)
        )
        return bool((close_GU | ~self._compared_U).all())


def _sums(
    trial: Trial, gradients: PerSampleGradients, *weights_U: Tensor
) -> list[Tensor]:
    like_GU = gradients.squared_norms(trial.groups)
    sums = [
        torch.empty_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for p in trial.parameters
    ]
    for number, weight_U in enumerate(weights_U):
        # One weight for a unit in all groups: [U] as [G, U].
        factors_GU = weight_U.expand_as(like_GU).to(like_GU.dtype)
        gradients.add_weighted_sum(factors_GU, trial.groups, sums, beta=int(number > 0))
    return sums
