"""The numbers of a run on a table, from public ones alone.

All are fixed before anything is released: no noise multiplier, number of steps or
sampling probability depends on what a statistic says. So the releases compose as any
fixed sequence does.

The constants were chosen by simulation on six tables (see the page on tables), which is
no use of anybody's data but theirs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from dp._typing import NeighboringRelation, TabularModel
from dp.accounting import Release
from dp.calibration import calibrate_noise_multiplier
from dp.plan import PrivacyPlan
from dp.sampling import PoissonSampling, Unamplified


__all__ = ("Recipe", "Shape", "Shares", "Target")

HIDDEN: Final = 32
_MOST_NOISE_OF_A_CELL: Final = 0.04  # Over the rows: what the share is chosen for.
_LEAST_SHARE: Final = 0.1
_LARGEST_SHARE: Final = 0.4
_MOST_NOISE_OF_A_MEAN: Final = 0.05
_SIGNAL_FOR_MLP: Final = 300.0
_ROWS_IN_A_BATCH: Final = 5000.0
_FEWEST_STEPS: Final = 80
_MOST_STEPS: Final = 1000
_STEPS_PER_TRAVEL: Final = 5
_MOST_TRAVEL: Final = 5000.0
# A linear regression starts at the mean, and its noise weighs more than the start.
_AVERAGED_SHARE: Final = 0.5
_AVERAGED_SHARE_OF_REGRESSION: Final = 0.75
_MOMENTUM_GAIN: Final = 10.0  # 1 / (1 - momentum), at 0.9.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a run may cost.

    Attributes:
        epsilon: The epsilon of everything together.
        delta: The delta it is for.
        relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one row is, in words.
        group_size: How many units may differ at once.
    """

    epsilon: float
    delta: float
    relation: NeighboringRelation
    unit_of_privacy: str
    group_size: int = 1

    def noise_multiplier(
        self, *, q: float, steps: int, other_releases: Sequence[Release] = ()
    ) -> float:
        """Return the least noise of *steps* releases beside others."""
        return calibrate_noise_multiplier(
            target_epsilon=self.epsilon,
            target_delta=self.delta,
            sampling_probability=q,
            steps=steps,
            neighboring_relation=self.relation,
            other_releases=other_releases,
            group_size=self.group_size,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The public size of a table.

    Attributes:
        num_units: How many units of privacy are trained on.
        num_measured: How many columns the statistics are about, the target of a
            regression among them; 0 for no statistic.
        num_features: How many features there are, as far as that is public.
        num_outputs: How many numbers the model returns.
        is_regression: Whether the target is a number.
    """

    num_units: int
    num_measured: int
    num_features: int
    num_outputs: int
    is_regression: bool

    def num_parameters(self, model: TabularModel) -> int:
        """Return how many parameters a model would have."""
        if model == "linear":
            return (self.num_features + 1) * self.num_outputs
        return HIDDEN * (self.num_features + 1) + (HIDDEN + 1) * self.num_outputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How a budget is shared between the statistics and the training.

    Gaussian releases with noise multipliers ``s`` on all rows cost as one with
    ``1/s^2`` summed up, so that this sum, mu^2, is what is shared.

    Attributes:
        histogram: The noise multiplier of the histogram.
        moments: That of the moments; None if rows are too few for them to say anything.
        training: What is left of mu for the training.
        is_measured: Whether there is any statistic.
    """

    histogram: float
    moments: float | None
    training: float
    is_measured: bool

    @classmethod
    def of(cls, shape: Shape, target: Target) -> "Shares":
        """Return the shares for a table and a budget."""
        # Example: a noise multiplier of 2 alone is mu = 0.5. With a share of 0.2 the
        # histogram has 1 / (0.5 sqrt(0.2)) = 4.5, or with the moments 6.3 each, and
        # 0.45 is left.
        mu = 1 / target.noise_multiplier(q=1.0, steps=1)
        if not shape.num_measured:
            return cls(histogram=math.inf, moments=None, training=mu, is_measured=False)
        aim = shape.num_measured / (_MOST_NOISE_OF_A_CELL * mu * shape.num_units) ** 2
        share = min(_LARGEST_SHARE, max(_LEAST_SHARE, aim))
        half = 1 / (mu * math.sqrt(share / 2))
        noise_of_a_mean = half * math.sqrt(1.25 * shape.num_measured) / shape.num_units
        pays = noise_of_a_mean < _MOST_NOISE_OF_A_MEAN
        return cls(
            histogram=half if pays else 1 / (mu * math.sqrt(share)),
            moments=half if pays else None,
            training=mu * math.sqrt(1 - share),
            is_measured=True,
        )

    @property
    def releases(self) -> tuple[Release, ...]:
        """What the statistics will release."""
        if not self.is_measured:
            return ()
        return tuple(
            Release(sampling_probability=1.0, noise_multiplier=sigma, count=1)
            for sigma in (self.histogram, self.moments)
            if sigma is not None
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a table is trained on.

    Attributes:
        model: The kind of model.
        steps: How many steps.
        learning_rate: For SGD with momentum 0.9.
        sampling_probability: Of a unit to be in a batch; 1 trains on all at every step.
        averaged_share: The share of the steps, counted from the last, of whose weights
            the model is the mean.
        shares: How the budget is shared.
    """

    model: TabularModel
    steps: int
    learning_rate: float
    sampling_probability: float
    averaged_share: float
    shares: Shares

    @classmethod
    def of(
        cls,
        shape: Shape,
        target: Target,
        *,
        model: TabularModel | None = None,
        steps: int | None = None,
        sampling_probability: float | None = None,
    ) -> "Recipe":
        """Return the recipe for a table and a budget; what is given stays as it is."""
        shares = Shares.of(shape, target)

        def signal(kind: TabularModel) -> float:
            size = shape.num_parameters(kind)
            return shares.training * shape.num_units / math.sqrt(size)

        if model is None:
            # A gradient of length 1 an example, summed, over the noise of all
            # parameters together: too many parameters drown in it.
            model = "mlp" if signal("mlp") >= _SIGNAL_FOR_MLP else "linear"
        gain, least = (5.0, 40.0) if shape.is_regression else (12.0, 100.0)
        travel = min(_MOST_TRAVEL, max(least, gain * signal(model)))
        if steps is None:
            planned = int(travel / _STEPS_PER_TRAVEL)
            steps = min(_MOST_STEPS, max(_FEWEST_STEPS, planned))
        if sampling_probability is None:
            sampling_probability = min(1.0, _ROWS_IN_A_BATCH / shape.num_units)
        return cls(
            model=model,
            steps=steps,
            learning_rate=travel / (_MOMENTUM_GAIN * steps),
            sampling_probability=sampling_probability,
            averaged_share=_AVERAGED_SHARE_OF_REGRESSION
            if shape.is_regression and model == "linear"
            else _AVERAGED_SHARE,
            shares=shares,
        )

    def plan(
        self,
        shape: Shape,
        target: Target,
        *,
        max_grad_norm: float,
        has_units: bool = False,
    ) -> PrivacyPlan:
        """Return the plan of the training, which keeps the target with the statistics.

        Units of several rows are drawn by a loader, which knows whose each row is, even
        if all of them are drawn in every step.

        Its own target is what the training alone costs, so that its ledger lets it spend
        nothing of what the statistics did.
        """
        q = self.sampling_probability
        plan = PrivacyPlan(
            sampling=Unamplified()
            if q == 1 and not has_units
            else PoissonSampling(sampling_probability=q),
            noise_multiplier=target.noise_multiplier(
                q=q, steps=self.steps, other_releases=self.shares.releases
            ),
            max_grad_norm=max_grad_norm,
            expected_batch_size=q * shape.num_units,
            steps=self.steps,
            target_delta=target.delta,
            neighboring_relation=target.relation,
            unit_of_privacy=target.unit_of_privacy,
            group_size=target.group_size,
        )
        alone = target.epsilon if not self.shares.releases else plan.guarantee().epsilon
        return replace(plan, target_epsilon=alone)
