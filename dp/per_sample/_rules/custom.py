"""Gradient rules that users register for their own autograd functions.

Shapes: ``B`` examples.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from dp.exceptions import UnsupportedOperationError
from dp.per_sample._graph.nodes import Node, by_input, leaf, materialized, output_shape
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._rules.context import Grads, Parts, Rule, RuleContext
from dp.per_sample._rules.fallback import by_node


__all__ = ("custom_rule", "rule_for")

PerExample = Callable[..., "Tensor | tuple[Tensor | None, ...] | None"]
_Given = TypeVar("_Given", bound=PerExample)

_RULES: Final[dict[type[Any], Rule]] = {}  # By the type of the function's nodes.


def rule_for(function: type[Any]) -> Callable[[_Given], _Given]:
    """Register a gradient rule for a custom autograd function, as a decorator.

    >>> import torch
    >>> from dp.per_sample import rule_for
    >>> class Scale(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x, w):
    ...         ctx.save_for_backward(x, w)
    ...         return x * w
    ...
    ...     @staticmethod
    ...     def backward(ctx, grad):
    ...         x, w = ctx.saved_tensors
    ...         return grad * w, (grad * x).sum(0)
    >>> @rule_for(Scale)
    ... def scale(ctx, grad):
    ...     x, w = ctx.saved_tensors
    ...     return None, grad * x

    The rule is called like ``backward`` and returns as many values. For an argument
    that is a parameter, or computed from parameters, the value holds each example's
    gradient: the argument's shape, with the examples in front. Other values are
    ignored.

    Guarantees:
        * The first gradients of a rule are compared with the exact ones, from one
          backward of the function for each example.
        * Where the examples are not on the first axis of every output, one row each,
          the rule is not used; the function's backward is run for each example.

    Args:
        function: The function. An earlier rule for it is replaced.

    Raises:
        TypeError: If *function* is no subclass of ``torch.autograd.Function``.
        UnsupportedOperationError: Later, from ``backward``, if the rule returns
            gradients of another shape, or wrong gradients.
    """
    if not (isinstance(function, type) and issubclass(function, Function)):
        raise TypeError(
            f"function must be a subclass of torch.autograd.Function, got {function!r};"
            " torch's own operations need no rule"
        )
    node_type = function._backward_cls  # noqa: SLF001 -- torch has no public name

    def registered(per_example: _Given) -> _Given:
        _RULES[node_type] = Rule(
            parts=_Checked(function.__name__, per_example),
            reads=(),
            example=partial(leaf, 1),
            applies=_has_a_row_an_example,
            takes_all=True,
            waits=True,
        )
        return per_example

    return registered


def custom_rule(node: Node) -> Rule | None:
    """Return the rule that was registered for a node's function, if any."""
    return _RULES.get(type(node))


class _Checked:
    """A user's rule, compared with the function itself at its first use."""

    def __init__(self, name: str, per_example: PerExample) -> None:
        self._name = name
        self._per_example = per_example
        self._is_checked = False

    def __call__(self, context: RuleContext, grads: Grads) -> Parts:
        node = context.use.node
        # Outputs behind the last one that matters have no gradient: zeros, as in
        # autograd.
        missing = len(node._input_metadata) - len(grads)  # noqa: SLF001 -- see _nodes
        of_inputs = by_input(
            node,
            self._per_example(node, *materialized(node, [*grads, *[None] * missing])),
        )
        parts = {
            i: self._checked_shape(context, i, of_inputs[i]) for i in context.operands
        }
        # Once the pass is over (Rule.waits), so that the function's own backward can be
        # run.
        if not self._is_checked:
            self._is_checked = self._agrees(parts, by_node(context, grads))
        return dict(parts)

    def _checked_shape(
        self, context: RuleContext, position: int, grads: Tensor | None
    ) -> MaterializedGrads:
        shape = (context.num_samples, *context.operands[position].shape)
        if grads is None or tuple(grads.shape) != shape:
            got = None if grads is None else tuple(grads.shape)
            raise UnsupportedOperationError(
                f"the rule for {self._name} must return each example's gradient, of"
                f" shape {shape}, for a parameter of shape {shape[1:]}; got {got}"
            )
        return MaterializedGrads(grads.detach())

    def _agrees(self, parts: dict[int, MaterializedGrads], exact: Parts) -> bool:
        """Raise if gradients differ; return whether there was anything to compare."""
        sizes = []
        for position, part in parts.items():
            true = exact[position].gradients(slice(None))
            error = float((part.gradients(slice(None)) - true).norm())
            sizes.append(float(true.norm()))
            if error > sizes[-1] * torch.finfo(part.grads_BP.dtype).eps ** 0.5:
                raise UnsupportedOperationError(
                    f"the rule for {self._name} errs by {error:.2g} in gradients of norm"
                    f" {sizes[-1]:.2g}, compared with one backward of the function for each"
                    " example; correct the rule or remove it: the function also works"
                    " without one"
                )
        # Gradients of zero agree with anything, so the next ones are compared again.
        return all(0 < size < math.inf for size in sizes)


def _has_a_row_an_example(context: RuleContext) -> bool:
    if context.num_samples == 1:
        return all(
            output_shape(context.use.node, i)[:1] == (1,) for i in context.layouts
        )
    return all(
        layout.axis == -len(shape) and shape[0] == context.num_samples
        for i, layout in context.layouts.items()
        for shape in [output_shape(context.use.node, i)]
    )
