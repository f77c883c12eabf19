"""A plan: public numbers, and what follows from them.

A :class:`PrivacyPlan` holds nothing that depends on the data: no dataset size, no
realised batch size, no random state. Whatever is derived from it is public too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, final, get_args

from torch.utils.data import Dataset

from dp import _checks
from dp._reports import Described
from dp._typing import Assignment, NeighboringRelation
from dp.accounting import Guarantee, Query, Release, Risk, Truncation, epsilon
from dp.accounting._renyi import check_filter, filter_guarantee
from dp.accounting._risk import risk_of_guarantee
from dp.comparison import (
    check_queries,
)
from dp.noise import BandedNoise
from dp.sampling import (
    CyclicPoisson,
    DisjointBatches,
    Passes,
    PoissonLoader,
    RandomAllocation,
    Scheme,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.sampling._loader_of import loader_of
from dp.sampling._refused_arguments import reject_plan_arguments
from dp.sampling._units import ONE_EXAMPLE, Units, check_units
from dp.schedule import Schedule, runs_of, value_at, values_of


__all__ = ("PrivacyPlan",)

_VERSION: Final = 2  # Of plans in plain types.
_KINDS: Final = get_args(Scheme)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan(Described):
    """The plan of a private run, in public numbers only.

    Args:
        sampling: How batches are drawn.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``
            (sigma), or a schedule of it. At 0 nothing is private, and every epsilon
            is infinite.
        max_grad_norm: L2 norm to which each example's gradient is clipped (C), or a
            schedule of it. It scales the noise, and does not affect epsilon.
        expected_batch_size: What noisy sums are divided by: a constant that the user
            declares, not the size of any batch.
        steps: How many steps the run may take (T).
        target_delta: The delta at which epsilon is stated.
        target_epsilon: The epsilon that must not be exceeded; None if the steps alone
            bound the run.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one example holds, in words. With ``"one value of
            user_id"`` a unit may have several rows, and has to be given for each.
        group_size: How many units may differ at once, as the examples of a person who
            has at most so many; epsilon covers all of them together.
        renyi_order: The order of a Renyi filter, which permits noise below the plan's,
            chosen from what was released, until the target epsilon is spent. Epsilon
            is then some 5 to 20 % larger for the same noise. None for noise that is
            the plan's, or more.
        correlation: How the noise of a step is correlated with that of steps before it,
            so that sums of steps have less of it; None for independent noise. Needs
            :class:`~dp.sampling.CyclicPoisson` sampling of at least as many bands.
        compared: What :func:`plan_for` compared to choose how batches are drawn, one
            sentence each.
        queries: What :class:`dp.query.Queries` may ask about the same data, each once.
            They are part of every epsilon of the run, asked or not.

    Raises:
        ValueError: If a number is out of range, if the relation is unknown, if it
            keeps the number of examples private where batches are truncated or cut by
            position, or if passes are combined with what no bound is proven for.
    """

    sampling: Scheme
    noise_multiplier: float | Schedule
    max_grad_norm: float | Schedule
    expected_batch_size: float
    steps: int
    target_delta: float
    target_epsilon: float | None = None
    neighboring_relation: NeighboringRelation = "add_or_remove_one"
    unit_of_privacy: str = ONE_EXAMPLE
    group_size: int = 1
    renyi_order: float | None = None
    correlation: BandedNoise | None = None
    compared: tuple[str, ...] = ()
    queries: tuple[Query, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, _KINDS):
            raise TypeError(
                "sampling must be PoissonSampling(...), RandomAllocation(...),"
                " DisjointBatches(...), TruncatedPoissonSampling(...) or Unamplified(),"
                f" got {_checks.shown(self.sampling)}"
            )
        for value in values_of(self.noise_multiplier):
            _checks.non_negative(noise_multiplier=value)
        for value in values_of(self.max_grad_norm):
            _checks.clipping_norm(max_grad_norm=value)
        _checks.positive(expected_batch_size=self.expected_batch_size)
        _checks.count(steps=self.steps)
        group_size = _checks.count(group_size=self.group_size)
        _checks.open_unit(target_delta=self.target_delta)
        if self.target_epsilon is not None:
            _checks.positive(target_epsilon=self.target_epsilon)
        _checks.relation(
            neighboring_relation=self.neighboring_relation,
            truncated=self.truncation is not None,
            allocated=isinstance(self.sampling, RandomAllocation),
            by_position=self.disjoint == "position",
        )
        _check_whole_charges(self, group_size)
        if self.renyi_order is not None:
            check_filter(
                self.renyi_order,
                self.neighboring_relation,
                truncated=self.truncation is not None,
                group_size=group_size,
            )
        check_queries(self.queries, renyi_order=self.renyi_order)
        if not self.unit_of_privacy.strip():
            raise ValueError("unit_of_privacy must say whose data one example holds")
        _checks.small_delta(self.target_delta, num_examples=_num_examples(self))

    @property
    def sampling_probability(self) -> float:
        """Probability that an example is in a batch; 1 claims no amplification."""
        if isinstance(self.sampling, Unamplified | DisjointBatches):
            return 1.0
        return self.sampling.sampling_probability

    @property
    def truncation(self) -> Truncation | None:
        """How oversized batches are truncated; None if they are not."""
        if not isinstance(self.sampling, TruncatedPoissonSampling):
            return None
        return Truncation(
            max_batch_size=self.sampling.max_batch_size,
            dataset_size=self.sampling.dataset_size,
        )

    @property
    def steps_per_pass(self) -> int | None:
        """Steps of a pass, where each example is in one of them; None with samples."""
        if not isinstance(self.sampling, Passes):
            return None
        return self.sampling.steps_per_pass

    @property
    def bands(self) -> int | None:
        """Steps of a round by cyclic Poisson sampling; None with other sampling."""
        return self.sampling.bands if isinstance(self.sampling, CyclicPoisson) else None

    @property
    def disjoint(self) -> Assignment | None:
        """How disjoint batches are assigned; None with other sampling."""
        if not isinstance(self.sampling, DisjointBatches):
            return None
        return self.sampling.assigned_by

    def noise_multiplier_at(self, step: int) -> float:
        """Return the noise multiplier of a step, which counts from 0."""
        return value_at(self.noise_multiplier, step)

    def max_grad_norm_at(self, step: int) -> float:
        """Return the clipping norm of a step, which counts from 0."""
        return value_at(self.max_grad_norm, step)

    def releases(self, num_steps: int) -> tuple[Release, ...]:
        """Return what the first *num_steps* steps of the plan release.

        A part of a pass, or of a round by cyclic Poisson sampling, costs as much as all
        of it.
        """
        return tuple(
            Release(
                sampling_probability=self.sampling_probability,
                noise_multiplier=noise_multiplier,
                count=count,
                truncation=self.truncation,
                steps_per_pass=self.steps_per_pass,
                disjoint=self.disjoint,
                bands=self.bands,
            )
            for count, noise_multiplier in runs_of(self.noise_multiplier, num_steps)
        )

    @property
    def query_releases(self) -> tuple[Release, ...]:
        """What the planned queries release."""
        return tuple(query.release for query in self.queries)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in plain types, as JSON has them."""
        numbers: dict[str, Any] = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in {"sampling", "compared", "correlation", "queries"}
        }
        for name, value in numbers.items():
            if isinstance(value, Schedule):
                numbers[name] = [list(phase) for phase in value.phases]
        scheme = {"kind": type(self.sampling).__name__, **asdict(self.sampling)}
        if self.correlation is not None:
            numbers["correlation"] = list(self.correlation.coefficients)
        compared = {"compared": list(self.compared)} if self.compared else {}
        queries = {"queries": [asdict(q) for q in self.queries]} if self.queries else {}
        about = {**numbers, **compared, **queries}
        return {"version": _VERSION, "sampling": scheme, **about}

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> "PrivacyPlan":
        """Return the plan that :meth:`to_dict` wrote.

        Plans that say no version are of the first, which knew fewer numbers.

        Raises:
            ValueError, TypeError, KeyError: If it is none, or of a later version.
        """
        version = plan.get("version", 1)
        if version not in {1, _VERSION}:
            raise ValueError(
                f"the plan is of version {version!r}, and this release of dp reads 1"
                f" and {_VERSION}: a later release wrote it, which can load it"
            )
        scheme = dict(plan["sampling"])
        kinds = {kind.__name__: kind for kind in _KINDS}
        numbers: dict[str, Any] = {
            name: Schedule(tuple((steps, x) for steps, x in value))
            if isinstance(value, Sequence) and not isinstance(value, str)
            else value
            for name, value in plan.items()
            if name not in {"sampling", "version", "compared", "correlation", "queries"}
        }
        if "correlation" in plan:
            numbers["correlation"] = BandedNoise(tuple(plan["correlation"]))
        return cls(
            sampling=kinds[scheme.pop("kind")](**scheme),
            compared=tuple(plan.get("compared", ())),
            queries=tuple(Query(**query) for query in plan.get("queries", ())),
            **numbers,
        )

    def guarantee(self) -> Guarantee:
        """Return the (epsilon, delta) after all steps of the plan.

        Under a Renyi filter it is that of the filter, which noise that is chosen during
        the run can use up: the target, or without one what the steps as planned cost.
        """
        if self.renyi_order is not None:
            return filter_guarantee(
                self.releases(self.steps),
                order=self.renyi_order,
                target_epsilon=self.target_epsilon,
                delta=self.target_delta,
                relation=self.neighboring_relation,
            )
        return epsilon(
            (*self.releases(self.steps), *self.query_releases),
            delta=self.target_delta,
            neighboring_relation=self.neighboring_relation,
            group_size=self.group_size,
        )

    def risk(self) -> Risk:
        """Return what all steps of the plan let anyone find out about one unit.

        Under a Renyi filter, what the filter allows.
        """
        return risk_of_guarantee(
            self.guarantee(),
            [*self.releases(self.steps), *self.query_releases],
            order=self.renyi_order,
        )

    def loader(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        units: Units | None = None,
        max_per_unit: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        empty_batch: Any = None,
        sharded: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        **refused: Any,
    ) -> PoissonLoader:
        """Return the loader of the plan's batches; one iteration is the whole run.

        With *units*, such as the user of every row, whole units are drawn and each is
        clipped once; at most *max_per_unit* of its rows are in a batch. The plan has
        to say what a unit is: ``unit_of_privacy="one value of user_id"``.

        Of several processes, each gets its share of every batch.
        Build a :class:`dp.sampling.PoissonLoader`, a
        :class:`dp.sampling.AllocationLoader` or a :class:`dp.sampling.DisjointLoader`
        for torch's rarer options, or for shorter iterations.

        Raises:
            TypeError: If the plan claims no amplification, so that any loader serves, or
                if an argument would take the choice of batches away from it.
            ValueError: If the plan is for another number of examples, or if it says
                that a unit is one example where *units* groups them.
        """
        if isinstance(self.sampling, Unamplified):
            raise TypeError(
                "the plan is Unamplified, so its batches are the caller's: use"
                " dp.UnamplifiedLoader(dataset, batch_size=...), or any torch DataLoader"
            )
        reject_plan_arguments(refused)
        check_units(self.unit_of_privacy, has_units=units is not None)
        loader = loader_of(
            self.sampling,
            dataset,
            steps=self.steps,
            units=units,
            max_per_unit=max_per_unit,
            collate_fn=collate_fn,
            empty_batch=empty_batch,
            sharded=sharded,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
        if loader.sampling != self.sampling:
            raise ValueError(
                f"the plan is for {self.sampling!r}, but with this dataset the loader"
                f" draws by {loader.sampling!r}; plan for its number of examples"
            )
        return loader


def _check_whole_charges(plan: PrivacyPlan, group_size: int) -> None:
    """Raise if a plan asks for what is not proven where several steps have one charge."""
    if isinstance(plan.sampling, CyclicPoisson | Passes):
        plan.sampling.check_plan(
            steps=plan.steps,
            group_size=group_size,
            renyi_order=plan.renyi_order,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
        )
    if plan.correlation is not None:
        plan.correlation.check_distance(plan.bands)


def _num_examples(plan: PrivacyPlan) -> float:
    """Return how many examples a plan is about, as its public numbers say.

    The expected size of a batch may be a divisor of another kind; examples without
    sampling are at least one batch.
    """
    if isinstance(plan.sampling, TruncatedPoissonSampling):
        return plan.sampling.dataset_size
    batches = plan.steps_per_pass if plan.disjoint else 1
    return plan.expected_batch_size * (batches or 1) / plan.sampling_probability
