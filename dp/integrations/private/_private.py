"""The one line: which adapter makes a trainer private."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from dp._reports import shown
from dp.exceptions import tells_near_names
from dp.integrations.private._request import Request
from dp.sampling._units import Units


if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("private",)

_Trainer = TypeVar("_Trainer")

# By the package and name of a class, so that no framework is imported for another one.
_ADAPTERS: Final = {
    ("transformers", "Trainer"): "_trainer",
    ("lightning", "Trainer"): "_lightning",
    ("pytorch_lightning", "Trainer"): "_lightning",
    ("accelerate", "Accelerator"): "_accelerate",
}


@tells_near_names
def private(
    trainer: _Trainer,
    *,
    epsilon: float,
    delta: float,
    dataset_size: int,
    units: str | Units | None = None,
    max_per_unit: int | None = None,
    max_grad_norm: float | None = None,
    epochs: float | None = None,
) -> _Trainer:
    """Make a trainer differentially private, by its own arguments, and return it.

    *trainer* itself becomes private, under every name it has: whoever holds it cannot
    train without privacy by mistake. Batch size, number of steps and clipping norm are
    the trainer's own, so that the plan needs only what it does not know::

        trainer = dp.private(trainer, epsilon=3, delta=1e-6, dataset_size=50_000)
        trainer.train()

    What is made private, and how:

    * A Hugging Face ``Trainer``, and TRL's ``SFTTrainer`` and ``DPOTrainer``: as
      :class:`dp.integrations.transformers.PrivateTrainer`, of which it becomes one.
      Before the first step :func:`dp.check` looks at four examples; at the end the
      certificate, the plan and a verification are written to ``output_dir/privacy``,
      and the model card has a section about them.
    * A Lightning ``Trainer``: ``fit(module, loader)`` plans by the loader's batch
      size. ``training_step`` has to return one loss an example.
    * An accelerate ``Accelerator``: ``prepare`` wraps the optimizer and the loader,
      and ``backward`` takes one loss an example. The loop says how often it passes over
      the data by *epochs*.

    Guarantees:
        * What is trained keeps (*epsilon*, *delta*) under ``"add_or_remove_one"``,
          with the assumptions that the certificate states; the run ends at its budget.
        * Arguments and methods of the trainer that are known to break a private run, or
          to have no effect on it, are refused by name, before anything is changed.

    Args:
        trainer: The trainer, built as for training without privacy.
        epsilon: The epsilon that the whole run may cost at most.
        delta: The delta it is for; well below ``1 / dataset_size``.
        dataset_size: How many rows the training data hold, or how many units where
            *units* groups them. A public number that the caller states, exact or not:
            the sampling probability and the number of steps follow from it, so it must
            not be one that is secret. The number of rows is never read off the data.
        units: The column that says whose each row is, such as ``"user_id"``: all rows
            of one value are drawn together and clipped as one. For Lightning and
            accelerate also one value a row. By default each row is a unit.
        max_per_unit: The most rows of a unit in a batch; None for no limit.
        max_grad_norm: The clipping norm; None for the trainer's own, 1 if it has none.
        epochs: How often each unit is drawn on average; for an ``Accelerator``, which
            does not know it, and for nothing else.

    Raises:
        TypeError: If *trainer* is of no framework that is known, or is private already.
        ValueError: If a number is out of range, if no noise keeps the target, if
            *units* names no column, or if an argument of the trainer contradicts.
        UnsupportedOperationError: If the trainer does what cannot be made private, such
            as packing several texts into one row.
    """
    request = Request(
        epsilon=epsilon,
        delta=delta,
        dataset_size=dataset_size,
        units=units,
        max_per_unit=max_per_unit,
        max_grad_norm=max_grad_norm,
        epochs=epochs,
    )
    name = _adapter_of(trainer)
    if (epochs is None) is (name == "_accelerate"):
        raise ValueError(
            f"epochs={shown(epochs)}: an Accelerator does not know how often its loop passes"
            " over the data, so it has to be told, and a Trainer knows; pass epochs= for"
            " an Accelerator, and only for one"
        )
    adapter = import_module(f"dp.integrations.private.{name}")
    make_private = cast("Callable[[Any, Request], None]", adapter.make_private)
    make_private(trainer, request)
    return trainer


def _adapter_of(trainer: object) -> str:
    """Return the module that makes *trainer* private.

    Raises:
        TypeError: If there is none, or if the trainer is private already.
    """
    for kind in type(trainer).__mro__:
        package = kind.__module__.partition(".")[0]
        if package == "dp":
            raise TypeError(
                f"{type(trainer).__name__} is private already; pass a trainer that is"
                " not, or train with this one"
            )
        if (package, kind.__name__) in _ADAPTERS:
            return _ADAPTERS[package, kind.__name__]
    raise TypeError(
        f"dp.private takes a Trainer of transformers, TRL or Lightning, or an Accelerator"
        f" of accelerate, got {type(trainer).__name__}; in a loop of your own, wrap the"
        " optimizer: dp.DPOptimizer(optimizer, plan=plan, loader=plan.loader(dataset))"
    )
