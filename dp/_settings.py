"""The noise multiplier and the clipping norm of the next release, in one place.

They come from the plan, step by step, unless they were assigned. Whoever clips, adds
noise or charges the ledger reads them here, when it does so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from jaxtyping import Float
from torch import Tensor

from dp import _checks
from dp._typing import NeighboringRelation
from dp.clipping import Clipping
from dp.ledger import Ledger
from dp.plan import PrivacyPlan


__all__ = ("ScheduledClipping", "Settings")


@final
@dataclass(slots=True, kw_only=True)
class Settings:
    """What holds for the next release of a run."""

    plan: PrivacyPlan
    ledger: Ledger
    assigned: dict[str, float] = field(default_factory=dict)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over ``max_grad_norm``."""
        planned = self.plan.noise_multiplier_at(self.ledger.steps)
        return self.assigned.get("noise_multiplier", planned)

    @property
    def max_grad_norm(self) -> float:
        """L2 norm to which each example's gradient is clipped."""
        planned = self.plan.max_grad_norm_at(self.ledger.steps)
        return self.assigned.get("max_grad_norm", planned)

    def assign(self, name: str, value: float) -> None:
        """Let *value* hold from now on, whatever the plan says."""
        check = _checks.positive if name == "max_grad_norm" else _checks.non_negative
        self.assigned[name] = check(**{name: value})

    def withdraw(self, name: str) -> None:
        """Follow the plan again."""
        self.assigned.pop(name, None)


@final
@dataclass(frozen=True, slots=True)
class ScheduledClipping(Clipping):
    """A rule whose bound is the current clipping norm.

    Clipping ``g / r`` to ``C`` and multiplying by ``r`` clips ``g`` to ``r C``, whatever
    the rule is: the factor is the rule's for ``norm / r``.
    """

    rule: Clipping
    settings: Settings

    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return the rule's groups."""
        return self.rule.group_of(parameters)

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return the rule's factors, at the current clipping norm."""
        ratio = self._ratio()
        return self.rule.factors(norms_GB if ratio == 1 else norms_GB / ratio)

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return the rule's sensitivity, at the current clipping norm."""
        return self._ratio() * self.rule.sensitivity(relation)

    def _ratio(self) -> float:
        bound = self.rule.sensitivity("add_or_remove_one")
        return self.settings.max_grad_norm / bound
