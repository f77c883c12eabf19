"""Verify the gradients of units, at steps that nobody can foresee.

Owners follow from the graph. Hooks that change gradients are not on the graph, a rule
of gradients may err, a rule of owners may be wrong, and what was remembered of a graph
may not fit. So, at the first steps and then at random ones, the computation is done
again in two other ways, and compared with norms and sums as they are clipped and
released:

* with the losses of every unit multiplied by a power of two (:mod:`.trial`): what
  changes by another unit's power is mixed, to the last bit;
* by torch's own backward pass (:mod:`.reference`), to which no rule, owner or cache of
  this package contributes: the sums of that other pass must be torch's, and the norm of
  a unit that is chosen at random may not be smaller than its gradient's.

Why both are needed: powers of two see any mixing of gradients, however small, but
neither activations of another unit nor a norm that is too small, which scale as they
should. The ordinary pass sees these, but sees nothing that is smaller than rounding.

What slips through between two verifications: a hook that begins to mix, or a rule that
is wrong for the graph at hand, until the next one; on average after 128 passes. What is
wrong in some passes only, or in the norms of a share of the units, is met as often as
it occurs: a norm that is too small for a share ``s`` of the units is missed by one
verification with probability ``1 - s``. A single pair of units that is mixed is missed
by the powers of one verification with probability 1 / 16, which is that of equal powers.

Some backward passes are not linear, as by a hook that clamps gradients: multiplying
all losses by 8, and by the largest power, shows it once. They are verified by halves from then on: the powers of
one half of the units may not change anything of the other half, which misses a single
pair every other time; and torch's own sums are compared for weights 0 and 1 alone.

Shapes: ``U`` units.
"""

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp.exceptions import SampleMixingError, WrongGradientError
from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._graph.nodes import name_of
from dp.per_sample._graph.uses import Graph, shapes_of
from dp.per_sample._isolation.reference import Reference
from dp.per_sample._isolation.rounding import coarsest, sure_of
from dp.per_sample._isolation.trial import Coded, Trial
from dp.per_sample._passes import Passes


__all__ = ("Verification", "Verifier")

# Of halves, when a backward pass that is not linear is met: a pair that is mixed is
# missed with probability 1e-3.
# One round misses a pair if both are in one half, or else have equal powers: 1/2 + 1/2
# * 1/16 = 0.53, and 0.53**11 is 1e-3.
_FIRST_ROUNDS: Final = 11
# How many terms matrix_exp adds up depends on it; logcumsumexp takes its logarithm.
_ROUNDING_BY_LENGTH: Final = frozenset(
    {"LinalgMatrixExpBackward0", "LogcumsumexpBackward0"}
)
_OTHER_SUM: Final = (
    "the sum of gradients of parameters of shape {} is not the one that torch's own"
    " backward pass finds"
)
_SMALLER_NORM: Final = (
    "the norm of a gradient of parameters of shape {} is smaller than that of the"
    " gradient that torch's own backward pass finds"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How often gradients are verified by further backward passes.

    A verification takes 1.3 to 2.4 steps more than a step, so that one in 128 makes
    training 1 to 2 % slower.

    Attributes:
        first: The number of verifications before passes are chosen at random: the first
            passes of a run are all verified.
        every: After these, one in so many is, at random. 1 verifies every pass.

    Raises:
        ValueError: If a number is out of range.
    """

    first: int = 3
    every: int = 128

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
        self._num_verified = 0
        self._has_warned = False
        self._is_linear: bool | None = None  # None until it was looked at.

    def is_due(self) -> bool:
        """Whether the next backward pass is to be verified; counts it."""
        self._num_passes += 1
        # Drawn by the operating system, at every pass anew: no count that a hook could
        # follow tells which pass is verified.
        is_first = self._num_verified < self._settings.first
        return is_first or secrets.randbelow(self._settings.every) == 0

    @property
    def is_linear(self) -> bool:
        """Whether no pass was seen that is not linear in what losses are weighted by."""
        return self._is_linear is not False

    def verified(
        self, passes: Passes, *, keep_graph: bool = False
    ) -> PerSampleGradients:
        """Return the gradients of the private pass, once it is verified.

        Args:
            passes: The passes of the batch; the private one is run last.
            keep_graph: Whether that one keeps the graph, too.

        Raises:
            SampleMixingError: If units do not stay apart.
            WrongGradientError: If norms or sums are not those of torch's own pass.
        """
        # All of these passes keep the graph; dropout and the like are not drawn again,
        # since only the backward pass is repeated.
        trial = _trial(passes)
        coded = self._coded(trial, passes)
        # What torch's own pass is compared with: every unit's gradient, by powers of two
        # that are divided out or, where these would make another pass of it, plain.
        whole = coded[0] if self._is_linear else trial.plain(passes.scaled)
        lengths_U = torch.linalg.vector_norm(whole.norms(), dim=0)
        reference = _reference(
            passes, lengths_U if self._is_linear else None, in_parts=self._is_first()
        )
        wrong, unsure = self._compared(reference, whole)
        if self._is_linear:
            whole.keep_sums(reference.weight_U, reference.sums)
        del whole
        # As a rule it frees the graph, so everything else comes before.
        gradients = passes.last(keep_graph=keep_graph)
        # Mixing comes first: it is the cause where sums or norms differ as well.
        for one in coded:
            where = one.differs(gradients)
            if where:
                raise self._mixing(where)
        if wrong:
            raise self._wrong(wrong)
        self._warn(unsure)
        # Where a gradient is not finite, torch's sum is not either, and shows nothing:
        # then the pass does not count as one of the first.
        self._num_verified += reference.is_comparable
        return gradients

    def _is_first(self) -> bool:
        """Whether this is one of the first verifications, which look at more."""
        return self._num_verified < max(self._settings.first, 1)

    def _coded(self, trial: Trial, passes: Passes) -> Sequence[Coded]:
        """Run passes with powers of two."""
        rounds = 1
        ones_U = torch.ones_like(passes.factors)
        if self._is_linear is not False and _may_round_otherwise(passes.known.graph):
            self._is_linear, rounds = False, _FIRST_ROUNDS
        if self._is_linear is None:
            # A hook that clamps gradients to [-1, 1] makes 8 * g another gradient than
            # 8 times that of g, for every unit alone: not linear, and not mixed either.
            plain, self._is_linear = passes.scaled(ones_U), True
            for one_power in trial.by_one_power(passes.scaled):
                one_power.keep_sums(ones_U)
                self._is_linear &= one_power.differs(plain) is None
            del plain
            rounds = _FIRST_ROUNDS
        if self._is_linear:
            return [trial.by_powers(passes.scaled)]
        halves = []
        for _ in range(rounds):
            for half in trial.by_halves(passes.scaled):
                half.keep_sums(ones_U)  # And no gradients: there are many halves.
                halves.append(half)
        return halves

    def _compared(self, reference: Reference, whole: Coded) -> tuple[str, list[Tensor]]:
        """Return what differs from torch's own pass, and of which parameters it may.

        Both are empty if nothing does by more than rounding.
        """
        if not reference.is_comparable:
            return "", []
        sums = reference.sums_that_differ(whole)
        norms = reference.norms_too_small(whole)
        wrong = ""
        if sums.wrong:
            wrong = _OTHER_SUM.format(shapes_of(sums.wrong))
        elif norms.wrong:
            wrong = _SMALLER_NORM.format(shapes_of(norms.wrong))
        return wrong, [*sums.unsure, *norms.unsure]

    def _warn(self, unsure: Sequence[Tensor]) -> None:
        """Say once of which parameters nothing could be verified."""
        shapes = shapes_of(unsure)
        if unsure and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"gradients of parameters of shape {shapes} could not be verified: torch"
                " adds them up in 16 bits, and finds others. Run a step of the same model"
                " in float32 to have the rules for it verified",
                stacklevel=9,
            )

    def _wrong(self, what: str) -> WrongGradientError:
        error = WrongGradientError(
            f"{what}, so clipping would not bound what one example contributes. A custom"
            " function or a hook may give other results when it is run again: make it"
            " repeatable. If there is none, a rule of this package is wrong for the"
            " model: please report it with the model's operations"
        )
        error.began_earlier = self._num_passes > 1
        return error

    def _mixing(self, where: str) -> SampleMixingError:
        error = SampleMixingError(
            "examples are mixed: multiplying the losses of some by powers of two changed"
            f" the gradients of others, of {where}. No operation of the graph does it;"
            " a hook on a tensor or a module may, or a custom function whose backward"
            " gives other results when it is run again, as may a checkpoint whose part"
            " writes to buffers. Remove hooks that look at a whole batch of gradients,"
            " clip by DPOptimizer alone, and checkpoint no such part"
        )
        error.began_earlier = self._num_passes > 1
        return error


def _may_round_otherwise(graph: Graph) -> bool:
    """Whether some gradients are not rounded alike whatever they are multiplied with.

    How many terms the backward of ``matrix_exp`` adds up depends on the length of the
    gradient, unless the matrix is longer, as at the start of a training it may be.
    """
    operands = [operand for use in graph.uses for operand in use.operands.values()]
    pending = [operand.edge[0] for operand in operands if operand.chain is None]
    seen = {None, *pending}  # None in place of an input without a graph.
    for node in pending:  # Which grows meanwhile.
        new = {child for child, _ in node.next_functions} - seen
        seen |= new
        pending.extend(new)
    return any(
        name_of(node) in _ROUNDING_BY_LENGTH for node in (*graph.nodes, *pending)
    )


def _trial(passes: Passes) -> Trial:
    """Draw powers of two for a batch."""
    return Trial(
        passes.parameters,
        passes.groups,
        num_units=passes.whose.num_units,
        device=passes.losses.device,
        narrowest=passes.known.plan.narrowest,
        loss_scale=passes.loss_scale,
    )


def _reference(
    passes: Passes, lengths_U: Tensor | None, *, in_parts: bool
) -> Reference:
    """Run torch's own backward pass."""
    plan, parameters = passes.known.plan, passes.parameters
    device = passes.losses.device
    of_dtypes = max([plan.coarsest, *(torch.finfo(p.dtype).eps for p in parameters)])
    is_narrow = of_dtypes > torch.finfo(torch.float32).eps
    graph = passes.known.graph
    return Reference(
        passes.ordinary,
        parameters,
        passes.groups,
        sure=sure_of(graph, parameters) if is_narrow else [True] * len(parameters),
        num_units=passes.whose.num_units,
        device=device,
        narrowest=plan.narrowest,
        result_eps=coarsest(of_dtypes, device),
        loss_scale=passes.loss_scale,
        lengths_U=lengths_U,
        in_parts=in_parts,
    )
