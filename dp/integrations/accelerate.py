"""Private training in a Hugging Face Accelerate script.

Three lines of a script change: the optimizer is wrapped, ``prepare`` is ours, and the
loss is a function that returns a vector::

    def loss_fn(batch):
        x, y = batch
        return cross_entropy(model(x), y, reduction="none")

    optimizer = dp.DPOptimizer(AdamW(...), plan=plan, loader=loader)
    model, optimizer, loader = prepare(accelerator, model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(private_loss(loss_fn, optimizer, batch))
            optimizer.step()
            optimizer.zero_grad()

``accelerator.save_state`` and ``load_state`` carry the ledger with the optimizer.
``accelerator.clip_grad_norm_`` finds no gradient to clip: each example's is clipped at
the plan's ``max_grad_norm``, and there is none before ``step``.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast, final, overload

from accelerate.utils import send_to_device
from torch import Tensor
from torch.optim import Optimizer

from dp._mechanism.changed_options import warn_of_metric_schedulers
from dp.evidence import LossFunction
from dp.evidence._watch import NO_BATCH
from dp.exceptions import SamplingMismatchError
from dp.integrations._buffers import keep_buffers_apart
from dp.integrations._unwrapping import require_private_optimizer
from dp.micro_batches import MicroBatches
from dp.optimizer import DPOptimizer
from dp.sampling import TicketedLoader


__all__ = (
    "AcceleratedLoader",
    "prepare",
    "private_loss",
    "private_optimizer",
)


def prepare(accelerator: Any, *objects: Any) -> Any:
    """Return *objects* as ``accelerator.prepare`` does, private loaders included.

    Accelerate passes a :class:`~dp.sampling.PoissonLoader` on as it is, for it would rebuild
    it without tickets. Here it becomes an :class:`AcceleratedLoader`. A scheduler that
    follows a metric causes a warning: epsilon does not cover what its rate reveals.

    Args:
        accelerator: The ``Accelerator`` of the script.
        objects: Models, optimizers, schedulers and loaders, in any order.

    Returns:
        The prepared objects, in the same order; one alone if there was one.
    """
    return prepare_by(accelerator.prepare, accelerator, *objects)


def prepare_by(
    prepare: Callable[..., Any], accelerator: Any, *objects: Any, **kwargs: Any
) -> Any:
    """Return *objects* as :func:`prepare` does, the others by a function of accelerate's."""
    warn_of_metric_schedulers(objects)
    loaders = {
        position: AcceleratedLoader(item, accelerator)
        for position, item in enumerate(objects)
        if isinstance(item, TicketedLoader)
    }
    others = [item for item in objects if not isinstance(item, TicketedLoader)]
    made = prepare(*others, **kwargs) if others else ()
    prepared = iter([made] if len(others) == 1 else made)
    results = tuple(
        loaders[position] if position in loaders else next(prepared)
        for position in range(len(objects))
    )
    for result in results:
        keep_buffers_apart(result)
    return results[0] if len(results) == 1 else results


@overload
def private_loss(losses: LossFunction, optimizer: Optimizer, batch: Any) -> Tensor: ...


@overload
def private_loss(losses: Tensor, optimizer: Optimizer) -> Tensor: ...


def private_loss(
    losses: LossFunction | Tensor, optimizer: Optimizer, batch: Any = NO_BATCH
) -> Tensor:
    """Return the loss to give to ``accelerator.backward``.

    See :meth:`dp.DPOptimizer.private_loss`: the ``gradient_accumulation_steps`` that
    accelerate divides by are divided out again, for the sum of clipped gradients is
    divided by the plan's expected batch size, once.

    Args:
        losses: A function that returns one loss an example of *batch*, or these losses.
        optimizer: The optimizer, prepared or not.
        batch: What the function is called with.

    Raises:
        TypeError: If there is no DPOptimizer in *optimizer*.
        ValueError: If the losses are not a vector of floating-point numbers.
        SampleMixingError: If one example's loss depends on another example.
    """
    private = require_private_optimizer(optimizer)
    if isinstance(losses, Tensor) and batch is NO_BATCH:
        return private.private_loss(losses)
    return private.private_loss(cast("LossFunction", losses), batch)


def private_optimizer(optimizer: Optimizer) -> DPOptimizer:
    """Return the DPOptimizer in a prepared optimizer: what was spent, its certificate.

    Raises:
        TypeError: If there is none.
    """
    return require_private_optimizer(optimizer)


@final
class AcceleratedLoader:
    """Yield the batches of a private loader where and as an accelerator wants them.

    On its device, and each in as many parts as it accumulates, so that
    ``accelerator.accumulate`` steps once a draw. Of an accelerator that ``dp.private``
    made private there are none beyond the budget, so that a finished run that is
    resumed has no steps left to take.

    Args:
        loader: The loader that the optimizer takes its tickets from.
        accelerator: The ``Accelerator`` of the script, whose package has no types.
    """

    def __init__(self, loader: TicketedLoader, accelerator: Any) -> None:
        self.loader = loader
        self._accelerator = accelerator

    @property
    def dataset(self) -> Any:
        """The dataset that the loader draws from."""
        return self.loader.dataset

    @property
    def sampler(self) -> NoReturn:
        """Refuse what ``skip_first_batches`` would rebuild the loader from."""
        raise SamplingMismatchError(
            "the batches of a private loader cannot be taken out of it or skipped, for"
            " their tickets would be lost; after a resume every draw is a new one, so"
            " iterate over the loader itself for the steps that are left"
        )

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[Any]:
        self._accelerator.step = 0  # A pass may have been left within a batch.
        if self._is_over():
            return
        for batch in self._batches():
            if self._accelerator.device_placement:
                yield send_to_device(batch, self._accelerator.device)
            else:
                yield batch
            if self._is_over():
                return

    def _is_over(self) -> bool:
        private = getattr(self._accelerator, "private_optimizer", None)
        return isinstance(private, DPOptimizer) and private.ledger.is_exhausted

    def _batches(self) -> MicroBatches | TicketedLoader:
        parts = self._accelerator.gradient_accumulation_steps
        return self.loader if parts == 1 else MicroBatches(self.loader, per_step=parts)
