"""One look at a loss function: evaluate it again in other company, and compare.

Half of the examples give their places to copies of one of the other half, whose losses
must stay as they were. Copies of one move a mean by as much as examples differ,
whatever their number; a permutation would leave every symmetric statistic as it is.

Shapes: ``B`` losses.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp.evidence._comparison import differ_throughout, same_losses
from dp.evidence._looking import look
from dp.evidence._program_state import Picture, ProgramState


__all__ = ("Company", "Look", "Verdict")

Verdict = Literal["alone", "mixed", "carried", "unclear", "too few"]
"""What a look saw.

``"alone"``: no loss changed with other examples. ``"mixed"``: one did. ``"carried"``:
one changed with the examples of an earlier evaluation. ``"unclear"``: the function does
not repeat itself, draws random numbers by what its data are, or failed. ``"too few"``:
there was one example, and nobody to exchange.
"""

_FEWEST: Final = 2
_ASKED_AGAIN: Final = 3
_ALONE: Final = 4  # Examples that are evaluated alone.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """A batch whose examples can be exchanged.

    Attributes:
        unit_of_row: The unit of privacy of each of its rows.
        unit_of_loss: That of each loss of the function.
        ways: Ways to make the batch that has at position i the row ``order[i]``: the
            likeliest first, and others if the axis of the examples is uncertain.
    """

    unit_of_row: NDArray[np.int64]
    unit_of_loss: NDArray[np.int64]
    ways: Sequence[Callable[[Sequence[int]], Any]]

    @property
    def num_rows(self) -> int:
        """How many rows the batch has."""
        return len(self.unit_of_row)

    def halves(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield an order of rows, and which losses must not change; two times.

        Each half of the units gives its places away once.
        """
        # Never from the generators that a look puts back.
        rng = np.random.default_rng(secrets.randbits(128))
        units = np.unique(self.unit_of_row)
        rng.shuffle(units)
        middle = (len(units) + 1) // 2
        for stays in (units[:middle], units[middle:]):
            stays_row = np.isin(self.unit_of_row, stays)
            donor = rng.choice(np.flatnonzero(stays_row))
            order = np.where(stays_row, np.arange(self.num_rows), donor)
            stays_loss = np.isin(self.unit_of_loss, stays)
            yield order.tolist(), torch.from_numpy(stays_loss)


@final
class Look:
    """The evaluations of one function from one state.

    Args:
        function: The loss function.
        company: Its batch.
        state: The program as it was before *function* ran.
        losses: What it returned; None if it is to be evaluated from *state* first.
        silenced: Contexts to enter while it is evaluated again.
    """

    def __init__(
        self,
        function: Callable[[Any], Tensor],
        company: Company,
        state: ProgramState,
        losses: Tensor | None = None,
        *,
        silenced: Sequence[Callable[[], Any]] = (),
    ) -> None:
        self._function = function
        self._company = company
        self._state = state
        self._silenced = silenced
        self._whole = list(range(company.num_rows))
        self._after = state.picture()
        self._random_after = state.random.now()
        self._left: Picture = []
        self._same_draws = True
        self._unchanged: Tensor | None = None
        if losses is None:
            self._random_after = state.random
            losses = self._again(self._whole)
            self._after, self._random_after = self._left, self._random_left
            self._unchanged = losses
        self._losses = losses.detach().flatten()
        self.written: list[str] = []
        """Buffers that were seen to hold data of the batch."""

    def verdict(self, *, both_halves: bool, in_step: bool = False) -> Verdict:
        """Return what becomes of the losses when other examples are exchanged.

        Args:
            both_halves: Exchange the other half of the examples too, which finds what
                depends on one single example.
            in_step: Make the same number of evaluations whatever is seen, so that
                collectives of several ranks meet.
        """
        if len(np.unique(self._company.unit_of_row)) < _FEWEST:
            for _ in range(2 * in_step):
                self._again(self._whole)
            return "too few"
        if in_step:
            self._unchanged = self._again(self._whole)
        for order, stays in self._company.halves():
            verdict = self._of_exchange(order, stays.to(self._losses.device))
            if verdict != "alone" or not both_halves:
                return verdict
        return "alone"

    def _of_exchange(self, order: Sequence[int], stays_B: Tensor) -> Verdict:
        exchanged_B = self._again(order)
        differences = self._state.differing(self._after, self._left)
        self.written = differences.buffers
        if not same_losses(self._losses, exchanged_B, stays_B):
            return self._cause(order, exchanged_B, stays_B)
        if differences.anywhere:
            return self._if_carried(self._left)
        return "alone"

    def _cause(
        self, order: Sequence[int], exchanged_B: Tensor, stays_B: Tensor
    ) -> Verdict:
        """Return why losses that should stay did not; other causes are likelier."""
        same_draws = self._same_draws
        if self._unchanged is None:
            self._unchanged = self._again(self._whole)
        unchanged_B = self._unchanged
        if same_losses(unchanged_B, exchanged_B, stays_B):
            return "alone"  # Autograd, off in both, makes the difference.
        if not same_losses(unchanged_B, self._losses) and not (
            same_losses(unchanged_B, self._again(self._whole))
        ):
            return "unclear"
        for way in self._company.ways[1:]:
            if same_losses(unchanged_B, self._again(order, way), stays_B):
                return "alone"  # The first axis was not the examples'.
        # A counter out of reach may have moved on between two evaluations.
        if not same_losses(exchanged_B, self._again(order), stays_B):
            return "unclear"
        # Draws by rejection can shift and still end in the same state.
        halves = [self._company.halves() for _ in range(_ASKED_AGAIN)]
        for orders in halves:
            if same_draws:
                self._again(next(orders)[0])
                same_draws = self._same_draws
        return "mixed" if same_draws else "unclear"

    def _if_carried(self, left: Picture) -> Verdict:
        """Compare the losses of the batch after itself with those after another."""
        own_B = self._again(self._whole, picture=self._after)
        other_B = self._again(self._whole, picture=left)
        return "alone" if same_losses(own_B, other_B) else "carried"

    def depends_on_size(self) -> bool | None:
        """Whether every loss is another one alone, or in a smaller batch.

        Returns:
            None if that cannot be compared.
        """
        company, reach = self._company, self._state.reach
        rows_are_losses = np.array_equal(company.unit_of_row, company.unit_of_loss)
        is_certain = rows_are_losses and len(company.ways) == 1
        if not is_certain or reach.is_compiled or not self._whole:
            return None
        modes = [(module, module.training) for module in reach.modules]
        try:
            for evaluate in (False, True):
                for module, training in modes:
                    module.training = training and not evaluate
                whole_B, draws = self._in_this_mode(self._whole)
                if not draws:  # Another size would draw other numbers.
                    return self._differs_in_size(whole_B)
        except Exception:  # noqa: BLE001 -- a model need not take one example
            return None
        finally:
            for module, training in modes:
                module.training = training
        return None

    def _differs_in_size(self, whole_B: Tensor) -> bool:
        few = self._whole[:: max(1, len(self._whole) // _ALONE)][:_ALONE]
        alone_B = torch.cat([self._in_this_mode([row])[0] for row in few])
        half = self._whole[: (len(self._whole) + 1) // 2]
        half_B, _ = self._in_this_mode(half)
        return differ_throughout(whole_B[few], alone_B) or (
            differ_throughout(whole_B[half], half_B)
        )

    def _in_this_mode(self, rows: Sequence[int]) -> tuple[Tensor, bool]:
        """Return the losses of some rows, and whether random numbers were drawn."""
        now = self._state.picture(in_full=True)
        losses = self._again(rows, picture=now)
        return losses, not self._random_left.equals(self._state.random)

    def _again(
        self,
        order: Sequence[int],
        way: Callable[[Sequence[int]], Any] | None = None,
        picture: Picture | None = None,
    ) -> Tensor:
        """Evaluate the function on rows in *order*, from the state before it ran."""
        picture = self._state.before if picture is None else picture
        batch = (way or self._company.ways[0])(order)
        with self._state.rewound(picture), self._quietly():
            losses = self._function(batch)
            self._left = self._state.picture()
            self._random_left = self._state.random.now()
        self._same_draws = self._random_left.equals(self._random_after)
        return losses.detach().flatten()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        with ExitStack() as stack:
            for silence in self._silenced:
                stack.enter_context(silence())
            stack.enter_context(look())
            stack.enter_context(torch.no_grad())
            # A weight that is cast under no_grad stays cached, without its gradient.
            was_enabled = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(False)
            stack.callback(torch.set_autocast_cache_enabled, was_enabled)
            yield
