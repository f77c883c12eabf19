"""A backend for ``torch.compile`` that keeps autograd's graph readable.

A compiled function is one node of the graph. It shows neither where parameters are
used nor whether examples are mixed before they are. So the graph that Dynamo captured
is split: operations that meet a parameter run eagerly, and the stretches between them
are compiled, as functions without parameters:

    linear -> [gelu, dropout, add] -> layer norm -> linear -> [...] -> losses
    eager      compiled               eager         eager     compiled

Whether a value counts as weights or as data decides only what is compiled. If that is
guessed wrong, parameters reach a compiled node, and the walk over the graph refuses it.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, Final, final

import torch
import torch._functorch.config
from torch import Tensor, fx
from torch.fx.passes.split_module import split_module

from dp import _tuning


__all__ = ("applied", "compile_backend", "is_compiled", "is_opaque")

_MARK: Final = "dp.per_sample"  # In the metadata of nodes that this backend made.
_VIEWS: Final = frozenset(
    [
        "chunk",
        "contiguous",
        "expand",
        "flatten",
        "getitem",
        "permute",
        "reshape",
        "select",
        "split",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
    ]
)


def compile_backend(
    graph: fx.GraphModule, inputs: Sequence[Any], *, inner: str = "inductor"
) -> Callable[..., Any]:
    """Compile a model so that its per-example gradients can still be computed.

    Pass it to ``torch.compile``::

        model = torch.compile(model, backend=dp.compile_backend)

    Operations on parameters run eagerly; those between them are compiled. Without
    gradients, as in evaluation, everything is compiled.

    Guarantees:
        * Per-example gradients, and refusals because examples are mixed, are the same
          as without compilation.
        * One compilation serves batches of all sizes but 0 and 1, which have one each.

    Args:
        graph: The graph that Dynamo captured.
        inputs: The inputs it was captured with.
        inner: The name of the backend that compiles the parts; choose another with
            ``functools.partial``.
    """
    from torch._dynamo import lookup_backend  # noqa: PLC0415 -- two seconds

    compiler = lookup_backend(inner)
    if not torch.is_grad_enabled():
        return compiler(graph, list(inputs))
    # The probe runs backward several times. This is read when it runs, too, so that
    # it cannot be set for these functions only.
    torch._functorch.config.donated_buffer = False  # noqa: SLF001 -- torch's own remedy
    in_order = any(map(_has_effect, graph.graph.nodes))
    stages = _Stages(in_order=in_order).of(graph)
    parts = split_module(
        graph,
        graph,
        stages.__getitem__,
        keep_original_order=in_order,
        tuple_return=True,
    )
    for name in sorted(parts.meta["partition_names"]):
        part = parts.get_submodule(name)
        is_compiled_stage = int(name.rpartition("_")[2]) % 2 == 1
        if is_compiled_stage and isinstance(part, fx.GraphModule) and _pays(part):
            examples = [_input(n) for n in part.graph.find_nodes(op="placeholder")]
            parts.add_submodule(name, _Region(compiler(part, examples)))
    return parts


def is_opaque(name: str) -> bool:
    """Whether nodes of this name are compiled functions."""
    return name.startswith("CompiledFunction")


def is_compiled(node: Any) -> bool:
    """Whether a compiled function was made by this backend."""
    return bool(node.metadata.get(_MARK))


def applied(node: Any, grads: Sequence[Tensor | None]) -> Any:
    """Return what a node makes of the gradients of its outputs."""
    if not is_opaque(type(node).__name__):
        return node.apply(*grads)
    answers: list[Any] = []
    _retaining(lambda: answers.append(node.apply(*grads)))
    return answers[0]


def _retaining(call: Callable[[], None]) -> None:
    """Make *call* as in a backward pass that retains its graph.

    A compiled function drops what it saved unless the pass that it runs in retains the
    graph. Below a private loss that is the pass of a trainer's ``loss.backward()``.
    """
    with torch.enable_grad():
        anchor: Tensor = _Retained.apply(torch.zeros((), requires_grad=True), call)  # type: ignore[no-untyped-call]  # torch has no types
    torch.autograd.backward(anchor, retain_graph=True)


class _Retained(torch.autograd.Function):
    """Make a call where autograd comes by."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        ctx.call()
        return None, None


@final
class _Region(torch.nn.Module):
    """A compiled part that marks its nodes in autograd's graph."""

    def __init__(self, compiled: Callable[..., Sequence[Any]]) -> None:
        super().__init__()
        self._compiled = compiled

    def forward(self, *inputs: Any) -> Sequence[Any]:
        outputs = self._compiled(*inputs)
        before = {x.grad_fn for x in inputs if isinstance(x, Tensor)}
        for output in outputs:
            node: Any = output.grad_fn if isinstance(output, Tensor) else None
            # An output that is a view of another one has its own nodes on top.
            while node is not None and node not in before:
                if is_opaque(type(node).__name__):
                    node.metadata[_MARK] = True
                    break
                node = node.next_functions[0][0]
        return outputs


class _Kind(Enum):
    """What a value was computed from."""

    CONSTANT = auto()
    WEIGHTS = auto()  # Parameters, and perhaps constants.
    DATA = auto()


@final
class _Stages:
    """Assign the operations of a graph to stages, alternately eager and compiled.

    Args:
        in_order: Whether operations must keep their order, since some have effects.
    """

    def __init__(self, *, in_order: bool) -> None:
        self._in_order = in_order
        self._kinds: dict[fx.Node, _Kind] = {}
        self._stage_of: dict[fx.Node, int] = {}
        self._contexts = 0  # Entered and not yet left.

    def of(self, graph: fx.GraphModule) -> dict[fx.Node, int]:
        """Return the stage of every node: even to run eagerly, odd to compile."""
        # Example: linear - gelu - dropout - linear. The first linear meets a parameter:
        # stage 0, eager. Gelu and dropout may be compiled: 1, odd. The second linear is
        # 2, and all that follows until the next parameter is 3.
        latest = 0
        for node in graph.graph.nodes:
            self._kinds[node] = self._kind(node)
            before = [self._stage_of[other] for other in node.all_input_nodes]
            stage = max(before, default=0)
            if self._in_order:
                stage = max(stage, latest)
            if node.op in ("placeholder", "get_attr"):
                stage = 0
            elif not _follows(node) and stage % 2 != self._may_be_compiled(node):
                stage += 1
            self._stage_of[node] = stage
            latest = max(latest, stage)
        return self._stage_of

    def _kind(self, node: fx.Node) -> _Kind:
        value = _value(node)
        if node.op == "placeholder" and isinstance(value, Tensor):
            return _kind_of_input(node, value)
        # Of data and weights it is data; of weights and constants, as of a scaled
        # weight, it is weights.
        kinds = {self._kinds[other] for other in node.all_input_nodes}
        if _Kind.DATA in kinds:
            return _Kind.DATA
        return _Kind.WEIGHTS if _Kind.WEIGHTS in kinds else _Kind.CONSTANT

    def _may_be_compiled(self, node: fx.Node) -> bool:
        # Inside no_grad or autocast nothing is compiled: a part would not know of the
        # context.
        entered = _enters(node)
        self._contexts += entered
        if entered or self._contexts or not any(True for _ in _tensors(_value(node))):
            return False
        others = node.all_input_nodes
        if any(self._kinds[other] is _Kind.WEIGHTS for other in others):
            return False
        return not (_is_changed(node, *others) or _may_hide_a_count(others))


def _kind_of_input(node: fx.Node, value: Tensor) -> _Kind:
    if value.requires_grad and value.is_leaf:
        return _Kind.WEIGHTS
    # Dynamo names buffers after their place in the module.
    is_state = isinstance(value, torch.nn.Parameter) or "_buffers_" in node.name
    return _Kind.CONSTANT if is_state else _Kind.DATA


def _value(node: fx.Node) -> Any:
    return node.meta.get("example_value")


def _input(node: fx.Node) -> Any:
    """Return an example input of a part, detached so that it is a leaf."""
    value = _value(node)
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _follows(node: fx.Node) -> bool:
    """Whether a node only picks one of several results, or returns them."""
    if node.op == "output":
        return True
    is_pick = node.target is operator.getitem
    return is_pick and not isinstance(_value(node.all_input_nodes[0]), Tensor)


def _has_effect(node: fx.Node) -> bool:
    return _enters(node) != 0 or _is_changed(node)


def _enters(node: fx.Node) -> int:
    """Return 1 for a node that enters a context of torch, -1 for one that leaves it."""
    name = getattr(node.target, "__name__", "")
    if name == "_set_grad_enabled":
        return -1 if node.args[0] else 1
    return {"_enter_autocast": 1, "_exit_autocast": -1}.get(name, 0)


def _is_changed(*nodes: fx.Node) -> bool:
    """Whether tensors of these nodes were written to, at any time."""
    return any(x._version > 0 for n in nodes for x in _tensors(_value(n)))  # noqa: SLF001


def _may_hide_a_count(nodes: Sequence[fx.Node]) -> bool:
    """Whether a one-element tensor without a graph meets tensors that have one.

    It may be a count over the batch. Run eagerly, it is a factor of a product that the
    walk sees and checks.
    """
    tensors = [x for node in nodes for x in _tensors(_value(node))]
    single = [x for x in tensors if not x.requires_grad and x.numel() == 1]
    return bool(single) and len(single) < len(tensors)


def _pays(part: fx.GraphModule) -> bool:
    """Whether a part has enough operations to be worth compiling."""
    names = [
        getattr(node.target, "__name__", node.target)
        for node in part.graph.nodes
        if node.op.startswith("call")
    ]
    return (
        sum(name not in _VIEWS for name in names) >= _tuning.FEWEST_COMPILED_OPERATIONS
    )
