"""Verify that units stay apart, to the last bit, at steps that nobody can foresee.

Owners follow from the graph. Hooks that change gradients are not on the graph, a rule
of gradients may read another unit's rows, and a rule of owners may be wrong. So, at the
first steps and then at random ones, the whole computation is done once more with the
losses of every unit multiplied by a power of two that the operating system draws. What
belongs to one unit alone is multiplied by the same power to the last bit, since
rounding commutes with powers of two: norms by its square, and a weighted sum in which
the powers are divided out does not change at all. (Where a number underflowed before it
was multiplied, another one may be rounded the other way: a few roundings are let pass.) Both are compared, as the rules
compute them: what is verified is what is clipped and released. On an accelerator,
whose kernels may add in any order, and where a graph has float16, which underflows,
they are compared within the root of float32's rounding.

What slips through between two verifications: a hook, or a rule that is wrong for the
graph at hand, mixes units until the next one; on average after 32 backward passes. A
single pair of units is missed by one verification with probability 1 / 16, which is
that of equal powers.

Some backward passes are not linear, as by a hook that clamps gradients: multiplying
all losses by 8 shows it once. They are verified by halves from then on: the powers of
one half of the units may not change anything of the other half, which misses a single
pair every other time.

Shapes: ``U`` units, ``P`` parameters.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp.exceptions import SampleMixingError
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._isolation.own_backward import powers, private_generator, slack


__all__ = ("Verification", "Verifier")

# Runs the backward pass with each unit's losses multiplied by a factor.
_Pass = Callable[[Tensor], PerSampleGradients]

_ONE_POWER: Final = 3
_ONE_WITH_SUMS: Final = 4  # Of verifications after the first.
# Of halves, when a backward pass that is not linear is met: a pair that is mixed is
# missed with probability 1e-3.
_FIRST_ROUNDS: Final = 11
_ROUNDINGS: Final = 8  # That may go the other way after an underflow.
_FEWEST: Final = 1 << 16  # Roundings of the smallest number that a norm may have.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How often the isolation of units is verified by a second backward pass.

    A verification takes about as long as the backward pass itself. It compares the
    norms of all units; the first ones, and one in four after these, compare weighted
    sums as well.

    Attributes:
        first: The number of backward passes that are all verified.
        every: After these, one in so many is, at random. 1 verifies every pass.

    Raises:
        ValueError: If a number is out of range.
    """

    first: int = 3
    every: int = 32

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"first must be >= 0, got {self.first!r}")
        if self.every < 1:
            raise ValueError(
                f"every must be >= 1, got {self.every!r}; 1 verifies every pass"
            )


@final
class Verifier:
    """Verify backward passes, when it is their turn.

    Args:
        settings: How often.
    """

    def __init__(self, settings: Verification) -> None:
        self._settings = settings
        self._num_passes = 0
        self._is_linear: bool | None = None  # None until it was looked at.

    def is_due(self) -> bool:
        """Whether the next backward pass is to be verified; counts it."""
        self._num_passes += 1
        is_first = self._num_passes <= self._settings.first
        return is_first or secrets.randbelow(self._settings.every) == 0

    def compares_sums(self) -> bool:
        """Whether this verification compares sums too, and not norms alone.

        Sums are the larger part of its time, and only a wrong rule of gradients could
        mix units in sums and not in norms.
        """
        is_first = self._num_passes <= max(self._settings.first, 1)
        return is_first or secrets.randbelow(_ONE_WITH_SUMS) == 0

    def verified(
        self, run: _Pass, last: Callable[[], PerSampleGradients], trial: "Trial"
    ) -> PerSampleGradients:
        """Return the gradients of the private pass, once it is verified.

        Args:
            run: A pass that keeps the graph, by the factor of each unit's losses.
            last: The private pass, which frees it.
            trial: What is compared.

        Raises:
            SampleMixingError: If units do not stay apart.
        """
        rounds = 1
        if self._is_linear is None:
            plain = run(torch.ones_like(trial.scale_U))
            self._is_linear = not trial.by_one_power(run).differs(plain)
            rounds = _FIRST_ROUNDS
        compared = (
            [trial.by_powers(run)]
            if self._is_linear
            else [coded for _ in range(rounds) for coded in trial.by_halves(run)]
        )
        gradients = last()
        for coded in compared:
            found = coded.differs(gradients)
            if found:
                raise self._mixing(found)
        return gradients

    def _mixing(self, where: str) -> SampleMixingError:
        error = SampleMixingError(
            "examples are mixed: multiplying the losses of some by powers of two changed"
            f" the gradients of others, of {where}. No operation of the graph does it;"
            " a hook on a tensor or a module may, or a custom function whose backward"
            " gives other results when it is run again. Remove hooks that look at a"
            " whole batch of gradients, and clip by DPOptimizer alone"
        )
        error.began_earlier = self._num_passes > 1
        return error


@final
class Trial:
    """Powers of two for the units of one batch, and what is compared of it.

    Args:
        parameters: What the gradients are of.
        num_units: How many units there are, two at least.
        narrowest: The dtype of the graph that underflows first.
        loss_scale: What gradients are divided by.
        with_sums: Whether sums are compared, besides norms.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        num_units: int,
        device: torch.device,
        narrowest: torch.dtype,
        loss_scale: float,
        with_sums: bool,
    ) -> None:
        self.parameters = parameters if with_sums else ()
        self.num_parameters = len(parameters)
        self.num_elements = sum(parameter.numel() for parameter in parameters)
        generator = private_generator(device)
        self.exponent_U = torch.randint(
            powers(narrowest), (num_units,), device=device, generator=generator
        ).double()
        self.scale_U = self.exponent_U.exp2()
        self.weight_U = torch.rand(num_units, device=device, generator=generator) + 0.5
        self._generator = generator
        self.slack = slack(narrowest) / loss_scale
        # An accelerator adds in no fixed order, and half precision underflows.
        self.is_exact = device.type == "cpu" and narrowest != torch.float16

    def by_powers(self, run: _Pass) -> "Coded":
        """Run a pass in which every unit's losses have a power of two of its own."""
        everyone_U = torch.ones_like(self.scale_U, dtype=torch.bool)
        return Coded(self, run(self.scale_U), self.exponent_U, everyone_U)

    def by_one_power(self, run: _Pass) -> "Coded":
        """Run a pass in which all losses have the same power, to see if it is linear."""
        everyone_U = torch.ones_like(self.scale_U, dtype=torch.bool)
        exponent_U = torch.full_like(self.exponent_U, _ONE_POWER)
        return Coded(self, run(exponent_U.exp2()), exponent_U, everyone_U)

    def by_halves(self, run: _Pass) -> list["Coded"]:
        """Run two passes, in each of which one half of the units is left as it is."""
        number_U = torch.rand(
            len(self.scale_U), device=self.scale_U.device, generator=self._generator
        )
        one_half_U = number_U < 0.5  # noqa: PLR2004 -- a half
        return [
            Coded(
                self,
                run(torch.where(is_kept_U, 1.0, self.scale_U)),
                torch.zeros_like(self.exponent_U),
                is_kept_U,
            )
            for is_kept_U in (one_half_U, ~one_half_U)
        ]


@final
class Coded:
    """The norms and a weighted sum of a pass with powers of two, to compare with.

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
        self._exponent_U = exponent_U
        self._norms_U = _norms(trial, gradients)
        # What overflowed by its power says nothing.
        self._compared_U = compared_U & self._norms_U.isfinite()
        self._sums = self._weighted(gradients, -exponent_U)

    def differs(self, plain: PerSampleGradients) -> str | None:
        """Return where another pass, without powers, has other results; None if nowhere."""
        sums = self._weighted(plain, torch.zeros_like(self._exponent_U))
        norms_U = _norms(self._trial, plain)
        size = (self._trial.weight_U * norms_U.sqrt())[self._compared_U].sum()
        shapes = [
            str(tuple(parameter.shape))
            for parameter, one, other in zip(
                self._trial.parameters, self._sums, sums, strict=True
            )
            if not self._are_close(one, other, size)
        ]
        if shapes:
            return "parameters of shape " + ", ".join(dict.fromkeys(shapes))
        return None if self._have_norms(norms_U) else "some parameters, by their norms"

    def _weighted(self, gradients: PerSampleGradients, power_U: Tensor) -> list[Tensor]:
        """Return every parameter's sum of the compared units' weighted gradients."""
        weight_U = self._trial.weight_U * power_U.exp2()
        factors_1U = torch.where(self._compared_U, weight_U, 0.0)[None]
        sums = [
            torch.empty_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for p in self._trial.parameters
        ]
        if sums:
            factors_1U = factors_1U.to(self._norms_U.dtype)
            gradients.add_weighted_sum(factors_1U, [0] * len(sums), sums, beta=0)
        return sums

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
        return _ROUNDINGS * eps if self._trial.is_exact else eps**0.5

    def _have_norms(self, norms_U: Tensor) -> bool:
        """Whether squared norms are multiplied by the squares of the powers."""
        expected_U = norms_U * (2 * self._exponent_U).exp2()
        found_U = self._norms_U
        smallest = torch.finfo(norms_U.dtype).tiny * torch.finfo(norms_U.dtype).eps
        elements = max(self._trial.num_elements, _FEWEST)
        slack_U = smallest * elements * (2 * self._exponent_U).exp2()
        root_U = self._trial.slack * self._exponent_U.exp2()
        slack_U += self._roughness(norms_U.dtype) * expected_U
        close_U = (
            (expected_U == found_U)
            | ((expected_U - found_U).abs() <= slack_U)
            | ((expected_U.sqrt() - found_U.sqrt()).abs() <= root_U)
        )
        return bool((close_U | ~self._compared_U).all())


def _norms(trial: Trial, gradients: PerSampleGradients) -> Tensor:
    groups = [0] * trial.num_parameters
    return gradients.squared_norms(groups)[0]
