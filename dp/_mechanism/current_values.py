"""The noise multiplier and the clipping norm of the next release, in one place.

They come from the plan, step by step, unless they were assigned. Clipping, noise and
the ledger read them here, at the moment of use, so the three cannot disagree.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from jaxtyping import Float
from torch import Tensor

from dp import _checks
from dp._typing import NeighboringRelation
from dp.clipping import Clipping
from dp.exceptions import LedgerError
from dp.ledger import Ledger
from dp.plan import PrivacyPlan
from dp.schedule import Schedule


__all__ = ("CurrentValues", "ScheduledClipping")

_CHECKS: Final[Mapping[str, Callable[..., float]]] = {
    "noise_multiplier": _checks.non_negative,
    "max_grad_norm": _checks.clipping_norm,
}
# Of a plan: what decides the next step, and not only when to stop.
_DECISIVE: Final = (
    "sampling",
    "noise_multiplier",
    "max_grad_norm",
    "expected_batch_size",
    "neighboring_relation",
    "target_delta",
    "renyi_order",
    "correlation",  # Only a plan that has one states it.
)


@final
@dataclass(slots=True, kw_only=True)
class CurrentValues:
    """The noise multiplier and clipping norm in effect for the next release."""

    # Two copies of C are how a schedule comes to clip at one norm and to add noise for
    # another: Opacus' ghost and per-layer clipping under-noise 47 times where a
    # scheduler lowers `optimizer.max_grad_norm`. So there is one place, without a cache.
    plan: PrivacyPlan
    ledger: Ledger
    assigned: dict[str, float] = field(default_factory=dict)
    public: dict[str, str] = field(default_factory=dict)  # Why an assigned one is.

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over ``max_grad_norm``."""
        return self._current("noise_multiplier", self.plan.noise_multiplier)

    @property
    def max_grad_norm(self) -> float:
        """L2 norm to which each example's gradient is clipped."""
        return self._current("max_grad_norm", self.plan.max_grad_norm)

    def _current(self, name: str, planned: float | Schedule) -> float:
        assigned = self.assigned.get(name)
        if assigned is not None:
            return assigned
        # By the number of charged steps, which a restored run goes on with: a schedule
        # does not begin again where a counter of its own would.
        if isinstance(planned, Schedule):
            return planned(self.ledger.steps)
        return planned

    @property
    def reason(self) -> str | None:
        """Why the noise multiplier is public, if it was declared so."""
        return self.public.get("noise_multiplier")

    def assign(self, name: str, value: float) -> None:
        """Let *value* hold from now on, whatever the plan says.

        Raises:
            ValueError: If it is out of range.
            PrivacyError: If it is less noise than planned, without a Renyi filter.
        """
        value = self.checked(name, value)
        # Less noise that is chosen after seeing releases is bounded by no composition
        # of privacy losses (https://arxiv.org/abs/2602.06756), and so is refused here,
        # before any step of it is taken; more is charged as planned.
        if name == "noise_multiplier":
            self.ledger.check_noise(value)
        self.assigned[name] = value
        self.public.pop(name, None)

    def assign_public(self, noise_multiplier: float, *, reason: str) -> None:
        """Let a noise multiplier hold that is public, for *reason*."""
        value = self.checked("noise_multiplier", noise_multiplier)
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(
                f"reason must say why the noise multiplier is public, got {reason!r}:"
                " the certificate prints it"
            )
        # No check against the plan: that the number depends on nothing private is the
        # caller's word, which the certificate prints.
        self.assigned["noise_multiplier"] = value
        self.public["noise_multiplier"] = reason.strip()

    @staticmethod
    def checked(name: str, value: float) -> float:
        """Return *value* if it is in the range of *name*."""
        return _CHECKS[name](**{name: value})

    def state_dict(self) -> dict[str, Any]:
        """Return what was assigned, and the plan, in plain types."""
        plan = self.plan.to_dict()
        decisive = {name: plan[name] for name in _DECISIVE if name in plan}
        state = {"assigned": dict(self.assigned), "plan": decisive}
        return {**state, "public": dict(self.public)} if self.public else state

    def overrides_from(
        self, states: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], dict[str, str]] | None:
        """Return what *states* say was assigned, and why it is public; None if nothing.

        Warns if they were made by another plan, which would go on in its place.

        Raises:
            LedgerError: If it is out of range, or if they do not agree.
        """
        if not states:
            return None
        self._warn_of_another_plan([state.get("plan", {}) for state in states])
        overrides = [
            (dict(s.get("assigned", {})), dict(s.get("public", {}))) for s in states
        ]
        # As torch's distributed checkpoints merge the states of all optimizers into
        # one.
        if any(other != overrides[0] for other in overrides):
            raise LedgerError(
                "several optimizers went into the state, with other numbers assigned:"
                f" {[assigned for assigned, _ in overrides]}; save them one by one"
            )
        assigned, public = overrides[0]
        if not public.keys() <= assigned.keys():
            raise LedgerError(
                "the state gives reasons for numbers that it does not have"
            )
        for name, value in assigned.items():
            try:
                self.checked(name, value)
            except (KeyError, ValueError) as error:
                raise LedgerError(
                    f"the state says that {name}={value!r} was assigned: it is damaged"
                ) from error
        return assigned, public

    def restore(self, assigned: Mapping[str, float], public: Mapping[str, str]) -> None:
        """Let what was assigned hold, and the plan for all else.

        Whether it may is decided at the next release, as of what is assigned now.
        """
        self.assigned.clear()
        self.assigned.update(assigned)
        self.public.clear()
        self.public.update(public)

    def _warn_of_another_plan(self, plans: Sequence[Mapping[str, Any]]) -> None:
        ours = self.state_dict()["plan"]
        for plan in plans:
            differing = [
                f"{name}={plan[name]!r}, now {ours.get(name)!r}"
                for name in _DECISIVE
                if name in plan and plan[name] != ours.get(name)
            ]
            if differing:
                warnings.warn(
                    "the state was saved under another plan ("
                    + "; ".join(differing)
                    + "): steps from now on follow the plan of this optimizer, and"
                    " their cost adds to what was spent. Build it with the old plan to"
                    " go on as before",
                    stacklevel=5,
                )

    def reset(self, name: str) -> None:
        """Follow the plan again."""
        self.assigned.pop(name, None)
        self.public.pop(name, None)


@final
@dataclass(frozen=True, slots=True)
class ScheduledClipping(Clipping):
    """A rule whose bound is the current clipping norm.

    Clipping ``g / r`` to ``C`` and multiplying by ``r`` clips ``g`` to ``r C``, whatever
    the rule is: the factor is the rule's for ``norm / r``.
    """

    rule: Clipping
    values: CurrentValues

    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return the rule's groups."""
        return self.rule.group_of(parameters)

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return the rule's factors, at the current clipping norm."""
        # Example: a rule for C = 1 at a current norm of 0.25. A gradient of length 2 is
        # 8 long to the rule, which answers 1 / 8: it is clipped to 0.25.
        ratio = self._ratio()
        return self.rule.factors(norms_GB if ratio == 1 else norms_GB / ratio)

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return the rule's sensitivity, at the current clipping norm."""
        return self._ratio() * self.rule.sensitivity(relation)

    def _ratio(self) -> float:
        bound = self.rule.sensitivity("add_or_remove_one")
        return self.values.max_grad_norm / bound
