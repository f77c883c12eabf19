"""What warnings and errors about losses say."""

from collections.abc import Mapping
from typing import Final


__all__ = (
    "BESIDE",
    "COMPUTED",
    "FINISHED",
    "FOLLOWED",
    "NO_AXIS",
    "REFUSED",
    "UNCLEAR",
)

FINISHED: Final = (
    "the losses came finished, so what they were computed from cannot be seen: a"
    " statistic of the batch, a BatchNorm in train() or an .item() in them would make"
    " epsilon too low. Pass the function and its batch instead, as in"
    " optimizer.backward(loss_fn, batch), or run dp.check on this model before"
)
UNCLEAR: Final = (
    "whether one example's loss depends on another could not be seen: evaluated again"
    " on the same batch, the loss function returns other losses, draws random numbers"
    " by what its data are, or fails. Let it draw from generators that it names, and"
    " keep what it counts in its modules; or run dp.check on a copy that repeats itself"
)
NO_AXIS: Final = (
    "whether one example's loss depends on another could not be seen: no part of the"
    " batch has an axis as long as its losses, and no loader can collate it anew. Pass"
    " the batch that the loader yielded, or run dp.check(..., take=...) on this model"
)
COMPUTED: Final = (
    "the batch that the loss function is given is not the one that the loader yielded:"
    " its numbers were computed between the two, where nothing can see whether those of"
    " an example are made of that example alone. Give the function the loader's batch,"
    " and standardise, augment and convert inside of it"
)
_MIXED: Final = (
    "the loss of an example changed when other examples of its batch were replaced by"
    " copies of another. Something in the loss function is computed from the whole"
    " batch, if without a gradient: BatchNorm in train(), a mean, a largest value, a"
    " rank or a count of the batch, an .item() of it, or mixup. Compute each example's"
    " loss from that example alone"
)
_CARRIED: Final = (
    "the loss of an example changed with the examples of the batch before it. A buffer,"
    " an attribute or a variable of the loss function carries private data from one"
    " batch to the next, as a running mean does. Keep no state of the data"
)
_SIZES: Final = (
    "the losses of all examples changed when there were fewer of them in the batch."
    " Something in the loss function depends on how many there are: divide no loss by a"
    " size or a count of the batch"
)
_BACKWARDS: Final = (
    " Something that the backward pass multiplies with is computed from the whole batch:"
    " in a hook on a tensor or a module, in the backward of a custom function, in a term"
    " that is detached, or by hooks that compress what autograd saves."
)
_STEERED: Final = (
    "the gradient of an example changed when other examples of its batch were replaced"
    f" by copies of another, though its loss did not.{_BACKWARDS} Compute each example's"
    " gradient from that example alone"
)
_SIZED: Final = (
    "the gradients of examples changed when there were fewer of them in the batch,"
    f" though their losses did not.{_BACKWARDS} Divide no gradient by a size or a count"
    " of the batch"
)
REFUSED: Final[Mapping[str, str]] = {
    "mixed": _MIXED,
    "carried": _CARRIED,
    "sized": _SIZES,
    "steered": _STEERED,
    "sized gradients": _SIZED,
}
"""What is said of what a look saw."""
BESIDE: Final = (
    "the loss function reads what changes from step to step beside its batch: {}. Whether"
    " that is made of private data nothing can see, as of a mean that the training loop"
    " computed. Compute it inside of the function, of the batch that it is given; what is"
    " drawn, planned or released may stay, and the certificate says what it takes it for"
)
FOLLOWED: Final = (
    "What the loss function read beside its batch, and changed between steps, follows from"
    " public facts and released values."
)
