"""The rule of an LSTM layer that oneDNN runs as one operation.

That is ``nn.LSTM`` in single precision on a CPU. Elsewhere, and for ``nn.GRU`` and
``nn.RNN``, torch runs every step as operations that have rules of their own.

The rule takes the gradients of the outputs back through time itself (Hochreiter and
Schmidhuber, 1997; Gers et al., 2000, for the forget gate), and adds up those of the
inputs, so that oneDNN's own backward, which finds the weights' gradients besides, is
left out. Every weight is then one matrix product over all steps:

    gates = x @ w_ih.T + h_before @ w_hh.T + biases

oneDNN keeps the gates in a workspace, whose form is its own business. So they are read
there only if the outputs follow from them, at every step and every unit of this very
batch; otherwise they are computed again from the inputs and the hidden states.

Shapes: ``T`` steps, ``N`` sequences, one or more of each of ``B`` examples, ``I``
inputs, ``H`` hidden units, ``G = 4 * H`` gates.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import leaf
from dp.per_sample._parts.part import MaterializedGrads, wide
from dp.per_sample._rules.context import (
    Grads,
    Parts,
    Rule,
    RuleContext,
    reduce_broadcast,
)


__all__ = ("RECURRENT_RULES",)

_W_IH, _W_HH, _B_IH, _B_HH, _HX, _CX = range(1, 7)
_SEQUENCES: Final = -2  # The axis of outputs [T, N, H] and of states [N, H].
_LSTM: Final = 2  # As torch numbers the kinds of layers.
_LINE: Final = 16  # Numbers of four bytes in a cache line.
_TOLERANCE: Final = 1e-4  # Of outputs between -1 and 1; oneDNN's tanh errs by 1e-6.


def _lstm(context: RuleContext, grads: Grads) -> Parts:
    # Any output that matters will do: examples lie alike in all of them.
    context = replace(context, layouts={0: next(iter(context.layouts.values()))})
    inputs_TNI, hidden_TNH = (
        _by_step(context, wide(context.saved(name))) for name in ("input", "result0")
    )
    # Step t starts from the output of step t - 1, and step 0 from the given state.
    before_TNH = torch.cat([wide(context.saved("hx_"))[None], hidden_TNH[:-1]])
    w_ih, w_hh = (wide(context.saved(f"weight{i}")) for i in range(2))
    states = _States.kept(context, hidden_TNH)
    if states is None:
        # [T, N, I] @ [I, G] and [T, N, H] @ [H, G]: all steps at once, since hidden
        # states are known by now.
        inputs_TNG = inputs_TNI @ w_ih.mT
        inputs_TNG += before_TNH @ w_hh.mT
        gates_TNG = _activated(inputs_TNG + _bias(context))
        states = _States.of(gates_TNG, wide(context.saved("cx_")))
    back_TNG, d_hx, d_cx = _through_time(
        states,
        w_hh,
        [*(None if grad is None else wide(grad) for grad in grads), None, None],
        reverse=context.saved("reverse"),
    )
    if context.input_grad is not None:
        context.input_grad += _by_step(context, back_TNG @ w_ih)
    # The gradients of the gates' inputs are what every weight and bias is multiplied
    # by: those of w_ih, [G, I] for each example, are back.T @ inputs over its steps.
    parts = Parts()
    rows = context.rows(back_TNG)
    for position, other in ((_W_IH, inputs_TNI), (_W_HH, before_TNH)):
        if position in context.operands:
            parts[position] = context.product(rows, context.rows(other))
    biases = {_B_IH, _B_HH} & context.operands.keys()
    if biases:  # Both are added to the same gates.
        parts |= dict.fromkeys(biases, MaterializedGrads(rows.sum(1)))
    for position, grad in ((_HX, d_hx), (_CX, d_cx)):
        if position in context.operands:
            parts[position] = reduce_broadcast(context, position, grad)
    return parts


def _by_step(context: RuleContext, tensor: Tensor) -> Tensor:
    """Return the steps in the order in which the layer computes them."""
    return tensor.flip(0) if context.saved("reverse") else tensor


@final
class _States(NamedTuple):
    """The gates of all steps, and the cells that they lead to.

    Attributes:
        gates: [T, N, G] activated gates: input, forget, cell and output.
        before: [T, N, H] the cells before each step.
        tanh: [T, N, H] the hyperbolic tangent of the cells after it.
    """

    gates: Tensor
    before: Tensor
    tanh: Tensor

    @classmethod
    def of(cls, gates_TNG: Tensor, cell_NH: Tensor) -> "_States":
        """Return the states that gates lead to: c = f * c_before + i * g."""
        i, f, g, _ = gates_TNG.chunk(4, -1)
        cells_TNH = cell_NH.new_empty(len(f) + 1, *cell_NH.shape)
        cell, *cells = cells_TNH.unbind()
        cell.copy_(cell_NH)
        for new, forget, after in zip((i * g).unbind(), f.unbind(), cells, strict=True):
            cell = torch.addcmul(new, forget, cell, out=after)
        return cls(gates_TNG, cells_TNH[:-1], cells_TNH[1:].tanh())

    @classmethod
    def kept(cls, context: RuleContext, hidden_TNH: Tensor) -> "_States | None":
        """Return the states by the gates that oneDNN kept; None if they cannot be read.

        A row of gates is as long as its 4 * H numbers in whole cache lines, and one
        line longer where that would be a multiple of 1024 bytes.
        """
        T, N, H = hidden_TNH.shape
        # Example: H = 50 has 200 numbers, 208 in whole lines. H = 64 has 256, which is
        # 1024 bytes, so a line more: 272.
        length = -(-4 * H // _LINE) * _LINE
        length += _LINE if length % (16 * _LINE) == 0 else 0
        workspace = context.saved("result3")
        num_bytes = T * N * length * hidden_TNH.itemsize
        if hidden_TNH.dtype != torch.float32 or workspace.numel() < num_bytes:
            return None
        rows = workspace.flatten()[:num_bytes].view(torch.float32).view(T, N, length)
        states = cls.of(rows[..., : 4 * H], wide(context.saved("cx_")))
        output_TNH = states.gates[..., 3 * H :] * states.tanh
        # NaN is no small difference: gates are then computed again.
        error = (output_TNH - hidden_TNH).abs_().max()
        return states if bool(error <= _TOLERANCE) else None


def _bias(context: RuleContext) -> Tensor | float:
    if not context.saved("has_biases"):
        return 0.0
    return wide(context.saved("weight2")) + wide(context.saved("weight3"))


def _activated(gates_TNG: Tensor) -> Tensor:
    """Return the gates, given their inputs."""
    i, f, g, o = gates_TNG.chunk(4, -1)
    return torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1)


def _through_time(
    states: _States, w_hh: Tensor, grads: Grads, *, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the gates' inputs, and those of the first states.

    Args:
        states: The gates and the cells, step by step.
        w_hh: The weights from hidden units to gates.
        grads: The gradients of the outputs, the last hidden state and the last state
            of the cells.
        reverse: Whether the outputs are in the reverse order of the steps.
    """
    _, f, _, _ = states.gates.chunk(4, -1)
    factors_TNG, to_cell_TNH = _factors(states)
    outputs, *last = grads
    zeros_NH = torch.zeros_like(states.before[0])
    d_h, d_c = (zeros_NH if grad is None else grad for grad in last[:2])
    # What the losses take of each output, in the order in which they were computed.
    taken = [zeros_NH] * len(f) if outputs is None else [*outputs.unbind()]
    taken = taken[::-1] if reverse else taken
    d_h = d_h + taken[-1]
    back_TNG = torch.empty_like(factors_TNG)
    # Cut into steps at once: as many calls one by one take longer.
    steps = zip(
        # What goes to the output before; to that before the first one, nothing is added.
        [zeros_NH, *taken[:-1]],
        *(x.unbind() for x in (factors_TNG, to_cell_TNH, f, back_TNG)),
        strict=True,
    )
    for d_before, by_gate, to_cell, forget, back in [*steps][::-1]:
        d_c = torch.addcmul(d_c, d_h, to_cell)
        # Side by side first: one product of whole rows is faster than two of parts.
        torch.mul(torch.cat([d_c, d_c, d_c, d_h], -1), by_gate, out=back)
        # [N, G] @ [G, H]; the cell goes back through the forget gate alone.
        d_h, d_c = torch.addmm(d_before, back, w_hh), d_c * forget
    return back_TNG, d_h, d_c


def _factors(states: _States) -> tuple[Tensor, Tensor]:
    """Return what gradients are multiplied with on their way back, for all steps.

    Only the products with them go step by step. A gate s = sigmoid(x) has the
    derivative s * (1 - s), and tanh has 1 - tanh * tanh.

    Returns:
        [T, N, G] from a cell to the inputs of its input, forget and cell gates, and
        from an output to the input of its gate; [T, N, H] from an output to the cell.
    """
    i, _, g, o = states.gates.chunk(4, -1)
    factors_TNG = states.gates.addcmul(states.gates, states.gates, value=-1)
    to_i, to_f, to_g, to_o = factors_TNG.chunk(4, -1)
    to_i.mul_(g)
    to_f.mul_(states.before)
    torch.addcmul(i, i * g, g, value=-1, out=to_g)
    to_o.mul_(states.tanh)
    to_cell_TNH = o.addcmul(o * states.tanh, states.tanh, value=-1)
    return factors_TNG, to_cell_TNH


def _is_along_sequences(context: RuleContext) -> bool:
    if (
        0 in context.operands
        or context.saved("mode") != _LSTM
        or context.saved("batch_sizes")
    ):
        return False
    if context.num_samples == 1:
        return True
    layouts = {*context.layouts.values()}
    return len(layouts) == 1 and layouts.pop().axis == _SEQUENCES


def _example() -> Tensor:
    outputs: Tensor = torch.mkldnn_rnn_layer(
        leaf(1, 1, 1),
        *(leaf(4, 1), leaf(4, 1), leaf(4), leaf(4), leaf(1, 1), leaf(1, 1)),
        reverse=False,
        batch_sizes=[],
        mode=_LSTM,
        hidden_size=1,
        num_layers=1,
        has_biases=True,
        bidirectional=False,
        batch_first=False,
        train=True,
    )[0]
    return outputs


def _table() -> Mapping[str, Rule]:
    try:
        _example()
    except RuntimeError:  # Where oneDNN is missing, torch does not use it either.
        return {}
    return {
        "MkldnnRnnLayerBackward0": Rule(
            parts=_lstm,
            reads=(
                "input",
                "result0",
                "result3",
                "hx_",
                "cx_",
                "weight0",
                "weight1",
                "weight2",
                "weight3",
                "has_biases",
                "reverse",
                "mode",
                "batch_sizes",
            ),
            example=_example,
            applies=_is_along_sequences,
            takes_all=True,
            takes_over=True,
        )
    }


RECURRENT_RULES: Final = _table()
