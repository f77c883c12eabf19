"""What autograd's nodes are called and keep, as this version of torch has it.

Node names and what a node saved for its backward are torch's own business, without a
promise. Everything that is read of them is named here or in a rule, and looked up in
the running torch when :mod:`dp.per_sample` is imported.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import checkpoint

from dp.exceptions import UnsupportedOperationError
from dp.per_sample._compile_backend import applied


__all__ = (
    "Node",
    "by_input",
    "check",
    "check_has_shape",
    "edge_shape",
    "is_checkpointed",
    "is_nested",
    "is_number",
    "leaf",
    "materialized",
    "name_of",
    "nested_error",
    "output_shape",
    "output_shapes",
    "run_backward",
    "saved",
    "signed",
    "size",
)

Node = Any  # torch.autograd.graph.Node has no types for its attributes.
Example = Callable[[], Tensor]

_WRAPPED: Final = 1 << 64  # Negative axes and indices come back as unsigned numbers.
# Autograd gives numbers a tensor that yields to any other of its kind.
_YIELDS_TO: Final = {torch.float64: torch.float16, torch.int64: torch.int8}


def name_of(node: Node) -> str:
    """Return the name of a node's operation, such as ``AddmmBackward0``."""
    return type(node).__name__


def check_has_shape(node: Node) -> None:
    """Raise if an output of a node is a nested tensor that has no shape at all.

    Raises:
        UnsupportedOperationError: Then.
    """
    if any(output.is_cpp_nested_tensor for output in node._input_metadata):  # noqa: SLF001 -- torch has no public name for it
        raise nested_error(name_of(node))


def is_nested(node: Node) -> bool:
    """Whether an output of a node is a nested tensor, of either layout."""
    return any(output.is_nested_tensor for output in node._input_metadata)  # noqa: SLF001 -- as above


def nested_error(name: str) -> UnsupportedOperationError:
    """Return the refusal of a node of nested tensors."""
    return UnsupportedOperationError(
        f"{name} works on nested tensors, whose rows cannot be told apart; give"
        " padded sequences, or packed ones and their owners as units"
    )


def output_shapes(node: Node) -> list[tuple[int, ...]]:
    """Return the shapes of a node's outputs."""
    metadata = node._input_metadata  # noqa: SLF001 -- torch has no public name for it
    return [tuple(output.shape) for output in metadata]


def output_shape(node: Node, index: int) -> tuple[int, ...]:
    """Return the shape of one of a node's outputs."""
    return tuple(node._input_metadata[index].shape)  # noqa: SLF001 -- as above


def edge_shape(node: Node, index: int) -> tuple[int, ...]:
    """Return the shape of what an input of a node brings, a leaf's too."""
    if node.next_functions or not hasattr(node, "variable"):
        return output_shape(node, index)
    return tuple(node.variable.shape)


def materialized(node: Node, grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the gradients of a node's outputs, with zeros for those that are None."""
    return [
        torch.zeros(tuple(output.shape), dtype=output.dtype, device=output.device)
        if grad is None
        else grad
        for grad, output in zip(grads, node._input_metadata, strict=True)  # noqa: SLF001
    ]


def by_input(node: Node, returned: Any) -> list[Any]:
    """Return what a custom function found of its arguments, by inputs of its node.

    Numbers and other arguments without a graph are no inputs of the node.
    """
    # Example: apply(x, 3, w), all of whose tensors have a graph, returns (gx, None, gw)
    # for the two inputs x and w; here (gx, gw). If x has no graph, (None, gw).
    answers = returned if isinstance(returned, tuple) else (returned,)
    needed = [i for i, is_needed in enumerate(node.needs_input_grad) if is_needed]
    inputs = [
        i for i, (child, _) in enumerate(node.next_functions) if child is not None
    ]
    argument_of = dict(zip(inputs, needed, strict=True))
    return [
        answers[argument_of[i]] if i in argument_of else None
        for i in range(len(node.next_functions))
    ]


def run_backward(node: Node, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Run a node's own backward, without the rest of the graph and without hooks."""
    # The node of a custom function cannot be called. Its ``apply`` runs the user's
    # backward, which wants a gradient for every output and answers for every argument.
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return by_input(node, applied(node, materialized(node, grads)))
    result: Any = node(*grads)
    return result if isinstance(result, tuple) else (result,)


def signed(number: int) -> int:
    """Return a saved axis or index as it was given."""
    # x[:, -1] keeps the index 2**64 - 1, and the padding index of an embedding that has
    # none comes back as that, too.
    return number - _WRAPPED if number >= _WRAPPED // 2 else number


def saved(node: Node, name: str) -> Any:
    """Return what *node* kept under *name* for its backward, without its graph."""
    value = getattr(node, f"_saved_{name}")
    if not isinstance(value, Tensor):
        return value
    if is_checkpointed(node, name):
        _give_back(getattr(node, f"_raw_saved_{name}"), value)
    # A saved parameter comes with its graph, which what is computed here must not
    # extend.
    return value.detach()


def is_checkpointed(node: Node, name: str) -> bool:
    """Whether a saved tensor would have to be computed again."""
    raw = getattr(node, f"_raw_saved_{name}")
    hook = getattr(raw, "unpack_hook", None)
    return hook is not None and isinstance(raw.data, checkpoint._Holder)  # noqa: SLF001


def is_number(constant: Tensor) -> bool:
    """Whether a saved tensor stands for a Python number."""
    other = _YIELDS_TO.get(constant.dtype)
    if constant.dim() or other is None:
        return False
    # Example: x * 3 keeps an int64 tensor that yields to int8, since torch promotes a
    # number by its kind alone; torch.tensor(3), which may be a count over the batch,
    # does not.
    yields = torch.zeros((), dtype=other, device=constant.device)
    return torch.result_type(constant, yields) == other


def size(shape: Sequence[int]) -> int:
    """Return how many elements a shape has."""
    return math.prod(shape)


def _give_back(raw: Any, value: Tensor) -> None:
    """Let the node read a checkpointed tensor, which may be read once, again."""
    holder = raw.data
    task = torch._C._current_graph_task_id()  # noqa: SLF001 -- as torch.utils.checkpoint
    # Outside of a backward pass a checkpoint computes its part again at every look.
    # During one it gives each tensor once, and raises CheckpointError the second time:
    # the node itself would find its own tensor gone.
    if task == -1 or holder.handles.get(task, 0) is not None:
        return
    (frame,) = (
        cell.cell_contents
        for cell in raw.unpack_hook.__closure__
        if isinstance(cell.cell_contents, checkpoint._CheckpointFrame)  # noqa: SLF001
    )
    handle = checkpoint._Handle()  # noqa: SLF001
    frame.recomputed[task][handle] = value
    holder.handles[task] = handle


def check(name: str, example: Example | None, reads: Iterable[str]) -> str | None:
    """Return what torch lacks of a node, or None if it is as expected.

    Args:
        name: Torch's name for it.
        example: Makes such a node; None if only another device has it.
        reads: What it keeps for its backward.
    """
    if example is None:
        torch_c: Any = torch._C  # noqa: SLF001 -- where the classes of nodes are
        return _missing(name, getattr(torch_c._functions, name, None), reads)  # noqa: SLF001
    with torch.device("cpu"), torch.inference_mode(mode=False), torch.enable_grad():
        node: Node = example().grad_fn
    while node is not None and name_of(node) != name:
        node = node.next_functions[0][0] if node.next_functions else None
    return _missing(name, node, reads)


def _missing(name: str, of: Any, reads: Iterable[str]) -> str | None:
    if of is None:
        return name
    missing = [field for field in reads if not hasattr(of, f"_saved_{field}")]
    return f"{name}._saved_{missing[0]}" if missing else None


def leaf(*shape: int) -> Tensor:
    """Return a leaf of a graph, for examples of operations."""
    # Whatever the defaults are where dp is imported: not every operation takes float64.
    return torch.ones(shape, dtype=torch.float32, device="cpu", requires_grad=True)
