"""What of a batch may leave beside the gradients, as far as an optimizer can see.

Weights that another optimizer trains on the same losses, and weights that a forward pass
writes to, get no noise. Neither is refused, for both have harmless forms: a body that
was left trainable and is trained by nobody, weights that are clamped after a step. Each
is told once, and named in the certificate.
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Final

from torch import Tensor, nn

from dp._mechanism import likely_causes
from dp._mechanism.beside import Beside
from dp._mechanism.changed_options import CHANGED
from dp._mechanism.mechanism import Mechanism
from dp.distributed import any_sharded
from dp.ledger import Ledger
from dp.ledger._remarks import Remarks, weakest
from dp.optimizer._adapts import num_noised


__all__ = ("look_beside", "remark", "sentences")

_OTHERS: Final = (
    "Parameters that take part in the losses and are in no group of this optimizer were"
    " trained by nobody, or by an optimizer whose cost is added to this."
)
_WRITTEN: Final = (
    "Parameters that were written to between steps were so without private data."
)
_LEFT_OUT: Final = (
    "Batches that were drawn and not released were left out for public reasons: neither"
    " what was in them nor their losses decided it."
)
_LACKING: Final = (
    "Units that were drawn and had no loss had none by themselves, whatever the others"
    " were, and each loss was named as of the unit that its row was drawn with."
)
_SHARDED: Final = (
    "Sharded parameters were changed by steps alone, and no optimizer whose cost is not"
    " added trained other parameters on the same losses; neither was looked at."
)
_COMPARED: Final = (
    "Releases that were not compared with their charge and with torch's own sums were"
    " made as those that were: the first three, and one in 512 at random."
)
_UNCOMPARED: Final = (
    "Releases were made as they were charged where none was compared with its charge and"
    " with torch's own sums: none is of several ranks, of parameters that are sharded or on"
    " a GPU, with correlated noise, or under a clipping rule that counts or scales."
)


def look_beside(
    mechanism: Mechanism,
    losses: Tensor,
    parameters: Sequence[Tensor],
    *,
    owned: Sequence[Tensor],
    ledger_of: Callable[[Tensor], Ledger | None],
) -> None:
    """Warn, once each, of weights that may learn without noise, and of hooks on them.

    Args:
        mechanism: That of the optimizer, which knows what was seen before.
        losses: The losses of a batch, with their graph.
        parameters: What the optimizer trains.
        owned: What is in its groups, also what is frozen.
        ledger_of: Returns the ledger of the private optimizer of a parameter, if any.
    """
    beside = mechanism.beside
    # Shards are gathered into other tensors, which FSDP writes to and which graphs have.
    if any_sharded(parameters):
        beside.is_blind = True
        return
    if beside.was_written(parameters):
        warnings.warn(
            "a private parameter was written to before backward by something other than its"
            " optimizer. If the forward pass did, as Embedding(max_norm="
            "...) does, what it wrote tells of the examples of the batch and has no"
            " noise: bound the rows where they are used instead. Weights that follow"
            " from released ones, as by a clamp after step, are fine",
            stacklevel=5,
        )
    if beside.takes_earlier_grads(parameters):
        likely_causes.warn_of_other_gradients()
    leaves = beside.leaves(losses)
    if not leaves:
        return
    ours = {*map(id, owned)}
    others = [
        leaf
        for leaf in leaves
        if isinstance(leaf, nn.Parameter)
        and id(leaf) not in ours
        and ledger_of(leaf) is not mechanism.ledger
    ]
    _tell_of_hooks(beside, [leaf for leaf in leaves if id(leaf) in ours])
    # Losses that none of ours takes part in are refused, with a reason of their own.
    takes_part = any(id(leaf) in ours for leaf in leaves)
    if others and takes_part and not beside.has_others:
        beside.has_others = True
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""  # noqa: PLR2004
        warnings.warn(
            f"parameters of shape {shapes}{more} take part in the losses and are in no"
            " group of this private optimizer. If another optimizer trains them on"
            " private data, its cost is not in this ledger: put them into one optimizer,"
            " or share the ledger of a private one (continue_from=). If nothing trains"
            " them, call requires_grad_(False) on them",
            stacklevel=5,
        )


def _tell_of_hooks(beside: Beside, parameters: Sequence[Tensor]) -> None:
    """Warn, once, of hooks that a plain backward would call with a gradient."""
    # By torch's own names; both are None until the first hook is registered.
    hooked = [
        parameter
        for parameter in parameters
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # noqa: SLF001 -- no public list
    ]
    if hooked and not beside.has_hooks:
        beside.has_hooks = True
        warnings.warn(
            f"a hook is registered on a parameter of shape {tuple(hooked[0].shape)}, and"
            " is not called: what it would see are gradients before clipping and noise."
            " Where it changes a gradient, as by a mask, change the private one, in a"
            " hook of the wrapped optimizer:"
            " original_optimizer.register_step_pre_hook(...)",
            stacklevel=6,
        )


def sentences(mechanism: Mechanism, *, is_over: bool = True) -> tuple[str, ...]:
    """Return what a certificate has to assume of what was seen.

    Args:
        mechanism: What released the steps.
        is_over: Whether no step is waited for that might still be compared.
    """
    beside, witness = mechanism.beside, mechanism.witness
    has_ended = beside.has_updated if is_over else not witness.is_due
    is_needed = (
        beside.has_others,
        beside.has_writes,
        beside.has_left_out,
        beside.lacks_units,
        beside.is_blind,
        witness.has_compared,
        has_ended and not witness.has_compared,
    )
    said = (_OTHERS, _WRITTEN, _LEFT_OUT, _LACKING, _SHARDED, _COMPARED, _UNCOMPARED)
    return tuple(compress(said, is_needed))


def remark(mechanism: Mechanism, parameters: Sequence[Tensor]) -> None:
    """Tell the ledger what certificates of its charges have to say of a step.

    Whoever resumes the run, or shares the ledger, did not see this step.

    Args:
        mechanism: What released the step.
        parameters: What is in the groups of its optimizer.
    """
    known, rng = mechanism.ledger.remarks, mechanism.noise.rng
    num_parameters = num_noised(mechanism.clipping, parameters)
    assumptions = (
        *sentences(mechanism, is_over=False),
        *((CHANGED,) if mechanism.options.have_changed else ()),
        *mechanism.watch.assumed(),
    )
    # At every step, and news only at the first of them, as a rule.
    if (
        num_parameters > known.num_parameters
        or weakest(known.rng, rng) != known.rng
        or not {*assumptions} <= {*known.assumptions}
    ):
        mechanism.ledger.remark(
            Remarks(assumptions=assumptions, rng=rng, num_parameters=num_parameters)
        )
