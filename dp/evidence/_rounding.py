"""How far rounding alone moves losses, by Monte Carlo arithmetic.

Another number of rows makes torch choose other kernels, which add up in another order.
Where large terms cancel, as in the square of a difference of large outputs, a loss moves
by far more than its own last digits. So it is computed again from the very same batch,
while every number that enters a product or a sum is changed at random by less than its
own last digit: who is sensitive to that is sensitive to the order of sums.

Shapes: ``B`` losses.

References:
    Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic",
    1997, UCLA Computer Science Department, 970002.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


__all__ = ("rounding_error",)

_NUM_EVALUATIONS: Final = 8

# Operations that add up, by aten's names. Comparisons must see what they always see.
_ADDS_UP: Final = frozenset({
    "_adaptive_avg_pool2d", "_cdist_forward", "_cudnn_rnn", "_embedding_bag",
    "_embedding_bag_forward_only", "_log_softmax", "_native_multi_head_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_softmax",
    "_transformer_encoder_layer_fwd", "addbmm", "addmm", "addmv", "addr", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "baddbmm", "bmm", "convolution", "cumsum", "dot",
    "index_add", "index_put", "linalg_vector_norm", "logsumexp", "mean", "mkldnn_linear",
    "mkldnn_rnn_layer", "mm", "mv", "native_group_norm", "native_layer_norm",
    "scatter_add", "scatter_reduce", "segment_reduce", "sum", "var", "var_mean",
})  # fmt: skip


def rounding_error(again: Callable[..., Tensor], unchanged_B: Tensor) -> Tensor:
    """Return by how much rounding moves each loss, as a root mean square.

    Args:
        again: Returns the losses of one batch, evaluated inside of a context.
        unchanged_B: What it returns outside of any.
    """
    square_B = torch.zeros_like(unchanged_B, dtype=torch.float64)
    for seed in range(_NUM_EVALUATIONS):
        perturbed_B = again(inside=_PerturbedSums(seed))
        square_B += (perturbed_B.double() - unchanged_B.double()).square()
    error_B = (square_B / _NUM_EVALUATIONS).sqrt()
    # The median of all matters: a few evaluations may leave single losses as they are.
    return error_B.clamp(min=error_B.nanmedian())


@final
class _PerturbedSums(TorchDispatchMode):
    """A context in which sums and products get numbers that differ in their last digit.

    Args:
        seed: Of the changes. The generators that functions draw from are left alone.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operation, with other numbers if it adds up."""
        call: Callable[..., Any] = func
        if func.overloadpacket.__name__ in _ADDS_UP:
            args = tree_map_only(Tensor, self._changed, args)
        return call(*args, **(kwargs or {}))

    def _changed(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        generator = self._generators.setdefault(
            tensor.device, torch.Generator(tensor.device).manual_seed(self._seed)
        )
        part = torch.rand(
            tensor.shape,
            generator=generator,
            dtype=tensor.dtype,
            device=tensor.device,
        )
        return tensor * (1 + torch.finfo(tensor.dtype).eps * (2 * part - 1))
