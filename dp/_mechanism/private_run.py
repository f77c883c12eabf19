"""The stages, numbers and state of one private run.

What is done with them is :mod:`dp._mechanism.mechanism`'s business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dp._mechanism.batch import PendingBatch
from dp._mechanism.beside import Beside
from dp._mechanism.changed_options import ChangedOptions
from dp._mechanism.consensus import Consensus
from dp._mechanism.correlated import Recursion, recursion_of
from dp._mechanism.current_values import CurrentValues, ScheduledClipping
from dp._mechanism.norm_count import NormCount
from dp._mechanism.paid_for import Account
from dp._mechanism.row_map import RowMap
from dp._mechanism.step_state import StepState
from dp._mechanism.witness import ReleaseWitness
from dp.clipping import Clipping
from dp.evidence import Watch
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.per_sample import Declared, Engine
from dp.plan import PrivacyPlan
from dp.sampling import TicketedLoader


__all__ = ("PrivateRun",)


@dataclass(slots=True, kw_only=True)
class PrivateRun:
    """What decides the releases of a run, and where the run stands.

    ``noise_multiplier`` and ``max_grad_norm`` are those of the next release: the
    plan's for its step, unless assigned. Deleting one returns to the plan. What finds the
    scales of gradients, ``scaling``, is set by the optimizer before each use.
    ``released_stddev`` is that of the noise on the last gradient that was released.
    """

    plan: PrivacyPlan
    clipping: Clipping
    noise: GaussianNoise
    ledger: Ledger
    loader: TicketedLoader | None
    public: tuple[Declared, ...] = ()
    engine: Engine = field(init=False)
    consensus: Consensus = field(default_factory=Consensus)
    watch: Watch = field(default_factory=Watch)
    step: StepState = field(default_factory=StepState)
    assigned: dict[str, float] = field(default_factory=dict)
    has_warned: bool = field(default=False, init=False)
    public_reasons: dict[str, str] = field(default_factory=dict)
    account: Account = field(init=False)
    recursion: Recursion | None = field(init=False)
    beside: Beside = field(default_factory=Beside, init=False)
    options: ChangedOptions = field(default_factory=ChangedOptions, init=False)
    values: CurrentValues = field(init=False)
    effective_clipping: Clipping = field(init=False)
    count: NormCount = field(init=False)
    row_map: RowMap = field(init=False)
    witness: ReleaseWitness = field(init=False)
    scaling: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = field(
        default=None, init=False
    )
    released_stddev: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.values = CurrentValues(
            plan=self.plan,
            ledger=self.ledger,
            assigned=self.assigned,
            public=self.public_reasons,
        )
        self.account = Account(self.ledger)
        self.effective_clipping = ScheduledClipping(self.clipping, self.values)
        self.count = NormCount(self.clipping)
        self.row_map = RowMap(self.clipping)
        self.engine = Engine(public=self.public)
        self.witness = ReleaseWitness(
            self.plan, self.clipping, self.ledger, self.engine
        )
        self.recursion = recursion_of(self.plan)
        if self.noise.seed is not None and self.loader is not None:
            self.loader.use_debugging_seed(self.noise.seed)
        self.note_debugging()

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the next noise over ``max_grad_norm``."""
        return self.values.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        self.values.assign("noise_multiplier", value)

    @noise_multiplier.deleter
    def noise_multiplier(self) -> None:
        self.values.reset("noise_multiplier")

    @property
    def max_grad_norm(self) -> float:
        """L2 norm to which each gradient of the next batch is clipped."""
        return self.values.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        self.values.assign("max_grad_norm", value)

    @max_grad_norm.deleter
    def max_grad_norm(self) -> None:
        self.values.reset("max_grad_norm")

    @property
    def pending(self) -> PendingBatch | None:
        """The batch whose clipped sums accumulate, if there is one."""
        return self.step.batch

    def attach(self, loader: TicketedLoader) -> None:
        """Take tickets from *loader* from now on."""
        self.step.drop()
        self.loader = loader
        if self.noise.seed is not None:
            loader.use_debugging_seed(self.noise.seed)
        self.note_debugging()

    def note_debugging(self) -> None:
        """Tell the ledger of noise or batches that anyone can repeat."""
        of_loader = None if self.loader is None else self.loader.debug_seed
        if self.noise.seed is not None or of_loader is not None:
            self.ledger.note_debugging_seed()
