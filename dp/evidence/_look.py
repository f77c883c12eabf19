"""One look at a loss function: evaluate it again in other company, and compare.

Half of the examples give their places to copies of one of the other half, whose losses
must stay as they were. Copies of one move a mean by as much as examples differ,
whatever their number; a permutation would leave every symmetric statistic as it is.
What any single example of a half keeps as it is, such as a maximum or "is there one with
this label?", changes where one example is left, among copies of itself.

Shapes: ``B`` losses.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any, Final, Literal, final

import numpy as np
import torch
from torch import Tensor

from dp.evidence._company import Company
from dp.evidence._comparison import differ_throughout, nearly_same, same_losses
from dp.evidence._exchange import copied
from dp.evidence._gradients import verdict_of_gradients
from dp.evidence._looking import apart
from dp.evidence._named_values import Values, tensors_of
from dp.evidence._program_state import Picture, ProgramState
from dp.evidence._random_state import RandomState
from dp.evidence._rounding import rounding_error
from dp.evidence._verdicts import Verdict, worst


__all__ = ("Followed", "Look")

Followed = Literal["data", "numbers"]
"""What losses follow that is not in their batch."""

_FEWEST: Final = 2
_ASKED_AGAIN: Final = 3
_ALONE: Final = 4  # Examples that are evaluated alone.
_CARRIED: Final = 3  # Evaluations to ask whether state carries data on.


@final
class Look:
    """The evaluations of one function from one state, inside of its excursion.

    Args:
        function: The loss function.
        company: Its batch.
        state: The program as it was before *function* ran.
        after: The picture of it, and its generators, after that.
        losses: What it returned; None if it is to be evaluated from *state* first.
        in_step: Make as many evaluations whatever is seen, so that collectives of
            several ranks meet.
        silenced: Called for contexts to evaluate it in.
        earlier: Another batch, for one with a single example; None if there is none.
    """

    def __init__(
        self,
        function: Callable[[Any], Tensor],
        company: Company,
        state: ProgramState,
        after: tuple[Picture, RandomState],
        losses: Tensor | None = None,
        *,
        in_step: bool = False,
        silenced: Sequence[Callable[[], AbstractContextManager[None]]] = (),
        earlier: Any = None,
    ) -> None:
        self._function = function
        self._company = company
        self._state = state
        self._in_step = in_step
        self._silenced = silenced
        self._earlier = earlier
        self._whole = list(range(company.num_rows))
        self._left: Picture = []  # By the last evaluation.
        self._unchanged: Tensor | None = None
        self._needs_autograd = False
        self.written: list[str] = []
        """Buffers that were seen to hold data of the batch."""
        self._after, self._draws = after
        if losses is None:
            losses = self._unchanged = self._again(self._whole)
            self._after, self._draws = self._left, state.random.now()
        self._losses = losses.detach().flatten()

    def verdict(self, *, both_halves: bool, one_alone: bool = False) -> Verdict:
        """Return what becomes of the losses when other examples are exchanged.

        Args:
            both_halves: Exchange the other half of the examples too, which finds what
                depends on one single example.
            one_alone: Exchange all but one as well, which finds what any of several
                examples keeps as it is.
        """
        num_halves = 1 + both_halves
        if self._in_step:
            return self._verdict_in_step(num_halves, one_alone=one_alone)
        if self._company.num_units < _FEWEST:
            return self._of_one()
        verdicts = self._of_exchanges(num_halves, one_alone=one_alone)
        return worst(verdicts)

    def _of_exchanges(self, num_halves: int, *, one_alone: bool) -> list[Verdict]:
        exchanges = [*islice(self._company.halves(), num_halves)]
        if one_alone:
            exchanges.append(self._company.alone())
        return [self._of_exchange(order, stays_B) for order, stays_B in exchanges]

    def _verdict_in_step(self, num_halves: int, *, one_alone: bool) -> Verdict:
        """Return the verdict, after as many evaluations as every other rank makes.

        What is carried from batch to batch is asked for where both halves are exchanged:
        whether the state differs may do so from rank to rank.
        """
        self._unchanged = self._again(self._whole)
        asks_if_carried = num_halves > 1
        if self._company.num_units < _FEWEST:
            self._idle(num_halves + one_alone + _CARRIED * asks_if_carried)
            return "too few"
        verdicts = self._of_exchanges(num_halves, one_alone=one_alone)
        if asks_if_carried:
            verdicts.append(self._if_carried(self._left))
        return worst(verdicts)

    def _of_one(self) -> Verdict:
        """Return whether state carries data on, where an example has no company.

        No other can change its loss but one of an earlier part of the run: parts of one
        example each may still keep a running mean.
        """
        if self._earlier is None:
            return "too few"
        try:
            self._again(self._whole, lambda _: copied(self._earlier))
        except Exception:  # noqa: BLE001 -- it was another function's
            return "too few"
        differences = self._state.differing(self._after, self._left)
        verdict = self._if_carried(self._left) if differences.anywhere else "alone"
        return "too few" if verdict == "alone" else verdict

    def _idle(self, number: int) -> None:
        """Evaluate the batch so often as other ranks do that have more examples."""
        for _ in range(number):
            self._again(self._whole)

    def _of_exchange(self, order: Sequence[int], stays_B: Tensor) -> Verdict:
        stays_B = stays_B.to(self._losses.device)
        exchanged_B, left = self._again(order), self._left
        differences = self._state.differing(self._after, left)
        self.written = differences.buffers
        if not same_losses(self._losses, exchanged_B, stays_B):
            return self._cause(order, exchanged_B, stays_B)
        if differences.anywhere and not self._in_step:
            return self._if_carried(left)
        return "alone"

    def _cause(
        self, order: Sequence[int], exchanged_B: Tensor, stays_B: Tensor
    ) -> Verdict:
        """Return why losses that should stay did not; other causes are likelier."""
        # Data that draw another number of random numbers shift all that come after.
        same_draws = self._state.random.now().equals(self._draws)
        if self._unchanged is None:
            self._unchanged = self._again(self._whole)
        unchanged_B = self._unchanged
        compared = unchanged_B, exchanged_B, stays_B
        if same_losses(*compared):
            return self._as_in_training(order, stays_B)
        if self._in_step:
            repeats = same_losses(unchanged_B, self._losses)
            is_near = not self._company.keeps_shapes and nearly_same(*compared)
            return "mixed" if repeats and same_draws and not is_near else "unclear"
        if not self._repeats(unchanged_B, order, exchanged_B) or not same_draws:
            return "unclear"
        if any(
            same_losses(unchanged_B, self._again(order, way), stays_B)
            for way in self._company.ways[1:]
        ):
            return "alone"  # The first axis was not the examples'.
        if self._is_of_mode(order, stays_B) or self._is_rounding(*compared):
            return "alone"
        return "mixed" if self._draws_as_many() else "unclear"

    def _as_in_training(self, order: Sequence[int], stays_B: Tensor) -> Verdict:
        """Return the verdict with autograd on, if its being off made the difference.

        Another kernel may have computed the losses; or the function asks whether
        gradients are enabled, and mixes only then.
        """
        if self._in_step:  # Further evaluations would be this rank's alone.
            return "alone"
        if self._needs_autograd:
            return "unclear"  # It was on: the function does not repeat itself.
        self._needs_autograd, self._unchanged = True, None
        return self._of_exchange(order, stays_B)

    def _is_of_mode(self, order: Sequence[int], stays_B: Tensor) -> bool:
        """Whether losses stay the same with autograd on, as in training.

        Without it a `TransformerEncoder` in eval() takes a path of its own if the masks
        of all examples permit it.
        """
        unchanged_B = self._again(self._whole, autograd=True)
        exchanged_B = self._again(order, autograd=True)
        return same_losses(unchanged_B, exchanged_B, stays_B)

    def _is_rounding(
        self, unchanged_B: Tensor, exchanged_B: Tensor, stays_B: Tensor
    ) -> bool:
        """Whether losses differ by no more than the order of sums may move them."""
        # Example: graphs of other sizes take the others' places, and large terms cancel.
        if not nearly_same(unchanged_B, exchanged_B, stays_B):
            return False
        error_B = rounding_error(partial(self._again, self._whole), unchanged_B)
        return same_losses(unchanged_B, exchanged_B, stays_B, error_B)

    def _repeats(
        self, unchanged_B: Tensor, order: Sequence[int], exchanged_B: Tensor
    ) -> bool:
        """Whether the same evaluations give the same losses.

        A counter out of reach may have moved on between two evaluations.
        """
        return (
            same_losses(unchanged_B, self._losses)
            or same_losses(unchanged_B, self._again(self._whole))
        ) and same_losses(exchanged_B, self._again(order))

    def _draws_as_many(self) -> bool:
        """Whether the number of random draws does not depend on the data.

        Draws by rejection can shift and still end in the same state: ask repeatedly.
        """
        for _ in range(_ASKED_AGAIN):
            order, _stays = next(self._company.halves())
            self._again(order)
            if not self._state.random.now().equals(self._draws):
                return False
        return True

    def _if_carried(self, left: Picture) -> Verdict:
        """Compare the losses of the batch after itself with those after another."""
        # Example: a running mean of the data. From what the real batch left, its losses
        # are one thing; from what an exchanged batch left, another.
        own_B = self._again(self._whole, picture=self._after)
        other_B = self._again(self._whole, picture=left)
        is_same = same_losses(own_B, other_B)
        if is_same and not self._in_step:
            return "alone"
        again_B = self._again(self._whole, picture=self._after)
        if is_same:
            return "alone"
        return "carried" if same_losses(own_B, again_B) else "unclear"

    def verdict_of_gradients(self, num_exchanges: int, *, asks_size: bool) -> Verdict:
        """Return what becomes of gradients, where losses were seen to stay.

        Not asked of sharded weights, whose backward pass leaves gradients behind.

        Args:
            num_exchanges: 2 to exchange a half and all but one, 1 for one of these.
            asks_size: Whether to compare with half of the batch as well.
        """
        modules = self._state.reach.modules
        if any(hasattr(p, "placements") for m in modules for p in m.parameters()):
            return "alone"
        # Another size would draw other numbers.
        draws = not self._draws.equals(self._state.random)
        return verdict_of_gradients(
            partial(self._again, autograd=True, keeps_graph=True),
            self._of_exchange,
            self._company,
            num_exchanges=num_exchanges,
            in_step=self._in_step,
            asks_size=asks_size and not draws,
        )

    def follows(self, data: Values, numbers: Values) -> Followed | None:
        """Return whether losses are others with what stood in some places before.

        Args:
            data: Tensors and arrays that changed since the evaluation before.
            numbers: Numbers, which are mostly those of a schedule.
        """
        if self._follows(data):
            return "data"
        return "numbers" if self._follows(numbers) else None

    def _follows(self, earlier: Values) -> bool:
        if not earlier or self._in_step:
            return False
        if self._unchanged is None:
            self._unchanged = self._again(self._whole)
        try:
            picture = self._state.with_values(earlier)
            losses_B = self._again(self._whole, picture=picture)
        except Exception:  # noqa: BLE001 -- as of another size of batch: it was read
            return True
        return not same_losses(self._unchanged, losses_B)

    def depends_on_size(self) -> bool | None:
        """Whether every loss is another one alone, or in a smaller batch.

        Returns:
            None if that cannot be compared.
        """
        company, reach = self._company, self._state.reach
        rows_are_losses = np.array_equal(company.unit_of_row, company.unit_of_loss)
        is_certain = rows_are_losses and len(company.ways) == 1
        if reach.is_compiled or not (is_certain or self._in_step):
            return None
        try:
            if self._in_step:
                return self._depends_in_step(is_certain=is_certain)
            for evaluate in (False, True):
                self._again(self._whole, evaluate=evaluate)
                # Another size would draw other numbers.
                if self._state.random.now().equals(self._state.random):
                    return all(  # As training does, too, with autograd on.
                        self._differs_in_size(evaluate=evaluate, autograd=autograd)
                        for autograd in (False, True)
                    )
        except Exception:  # noqa: BLE001 -- a model need not take one example
            return None
        return None

    def _depends_in_step(self, *, is_certain: bool) -> bool | None:
        """Return the same after as many evaluations as every other rank makes.

        In training mode, and without autograd: what a rank's draws permit is its own.
        """
        self._again(self._whole)
        as_many_draws = self._state.random.now().equals(self._state.random)
        if len(self._whole) < _FEWEST:
            self._idle(2 + _ALONE)
            return None
        differs = self._differs_in_size(evaluate=False, autograd=False)
        return differs if is_certain and as_many_draws else None

    def _differs_in_size(self, *, evaluate: bool, autograd: bool) -> bool:
        again = partial(self._again, evaluate=evaluate, autograd=autograd)
        whole_B = again(self._whole)
        # A few examples alone, and half of the batch: a loss that is divided by the
        # number of examples changes in both.
        few = self._whole[:: max(1, len(self._whole) // _ALONE)][:_ALONE]
        alone_B = torch.cat([again([row]) for row in few])
        self._idle(self._in_step * (_ALONE - len(few)))
        half = self._whole[: (len(self._whole) + 1) // 2]
        half_B = again(half)
        return differ_throughout(whole_B[few], alone_B) or (
            differ_throughout(whole_B[half], half_B)
        )

    def _again(
        self,
        order: Sequence[int],
        way: Callable[[Sequence[int]], Any] | None = None,
        *,
        picture: Picture | None = None,
        evaluate: bool = False,
        autograd: bool = False,
        inside: AbstractContextManager[Any] | None = None,
        keeps_graph: bool = False,
    ) -> Tensor:
        """Return the losses of rows in *order*, from *picture* or the first state."""
        batch = (way or self._company.ways[0])(order)
        self._state.rewind(picture)
        self._state.exchange(tensors_of(batch))
        if evaluate:
            for module in self._state.reach.modules:
                module.training = False
        asks_autograd = autograd or self._needs_autograd
        try:
            with apart(self._silenced, inside), torch.set_grad_enabled(asks_autograd):
                losses = self._function(batch)
        except RuntimeError:
            if asks_autograd:
                raise
            # A gradient penalty or an attack on the inputs differentiates by itself.
            self._needs_autograd = True
            return self._again(order, way, picture=picture, evaluate=evaluate)
        self._left = self._state.picture()
        losses = self._company.in_places(losses.flatten(), order)
        return losses if keeps_graph else losses.detach()
