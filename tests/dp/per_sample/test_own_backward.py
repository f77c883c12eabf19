"""An operation without a rule says itself whose its rows are.

Shapes: ``U`` units, ``N`` rows.
"""

import pytest
import torch

from dp.exceptions import SampleMixingError
from dp.per_sample import Engine
from dp.per_sample._isolation.own_backward import _NOTHING_SAID, _said, owners_of_inputs
from dp.per_sample._isolation.owners import MIXED, NOBODY


class Mapped(torch.autograd.Function):
    """Any function of the gradient as a backward."""

    @staticmethod
    def forward(ctx, x, mapped):
        ctx.mapped = mapped
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return ctx.mapped(grad), None


class Halves(torch.autograd.Function):
    """Two outputs, the second of the rows from the middle on."""

    @staticmethod
    def forward(_ctx, x):
        half = len(x) // 2
        return x[:half] * 1, x[half:] * 1

    @staticmethod
    def backward(_ctx, one, other):
        return torch.cat([one, other])


def asked(mapped, rows, num_units, *, dtype=torch.float32, columns=3):
    """Return the owners that a custom function's input has, row by row."""
    torch.manual_seed(0)
    x = torch.randn(len(rows), columns, dtype=dtype, requires_grad=True)
    node = Mapped.apply(x * 1, mapped).grad_fn
    (found,) = owners_of_inputs(node, [rows[:, None]], [x.shape], num_units)
    return found.expand(x.shape)


ROWS = torch.tensor([0, 0, 1, 2, 2, NOBODY, 3])
SWAPPED = torch.tensor([1, 0, 2, 3, 4, 5, 6])
LINEAR = {
    "identity": (lambda g: g, ROWS),
    "scaled": (lambda g: g * 0.3, ROWS),
    "of each column": (lambda g: g * torch.arange(1.0, 4), ROWS),
    "moved": (lambda g: g.flip(0), ROWS.flip(0)),
    "exchanged in a unit": (lambda g: g[SWAPPED], ROWS),
    "gated": (lambda g: g * (torch.arange(3) > 0), ROWS),
    "summed by pairs": (
        lambda g: g + g.roll(1, 0),
        torch.tensor([MIXED, 0, MIXED, MIXED, 2, 2, 3]),
    ),
    "centred": (lambda g: g - g.mean(0), torch.full((7,), MIXED)),
}
NOT_LINEAR = {
    "clamped": (lambda g: g.clamp(-0.1, 0.1), ROWS),
    "signs": (torch.sign, ROWS),
    "clipped by row": (lambda g: g / g.norm(dim=1, keepdim=True), ROWS),
    "clamped and moved": (lambda g: g.clamp(-0.1, 0.1).flip(0), ROWS.flip(0)),
    "normalised": (lambda g: g / g.norm(), torch.full((7,), MIXED)),
    "squared": (lambda g: g * g.abs(), ROWS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", [*LINEAR, *NOT_LINEAR])
def test_owners_are_those_of_the_gradients(name, dtype):
    """Linear or not, closed gates apart: these say nothing, so any owner is right.

    Nor do two numbers of 16 bits that cancel, in one of 200 sums; the row still does: it
    is missed with probability below 1e-6.
    """
    mapped, expected = {**LINEAR, **NOT_LINEAR}[name]
    found = asked(lambda g: mapped(g).to(g.dtype), ROWS, 4, dtype=dtype)
    wanted = expected[:, None].expand(found.shape)
    right = (found == wanted) | (wanted == NOBODY)
    if name in ("gated", "summed by pairs"):
        right |= found == NOBODY
        assert torch.equal((found == MIXED).any(1), expected == MIXED)
    if name in ("centred", "normalised"):
        right = found[ROWS != NOBODY] == MIXED

    assert right.all(), found


@pytest.mark.parametrize("num_units", [2, 16, 17, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_unit_is_told_from_every_other(num_units, dtype):
    """Digit by digit: as many as powers fit into the dtype."""
    rows = torch.randperm(num_units)

    assert torch.equal(asked(lambda g: g, rows, num_units, dtype=dtype)[:, 0], rows)
    assert torch.equal(
        asked(lambda g: g.clamp(-1, 1), rows, num_units, dtype=dtype)[:, 0], rows
    )


def test_rows_that_are_not_finite_are_nobodys():
    """They say nothing; the others are told apart all the same."""

    def spoiled(grad):
        grad = grad.clone()
        grad[1] = torch.nan
        return grad

    found = asked(spoiled, torch.arange(4), 4)
    assert found[[0, 2, 3], 0].tolist() == [0, 2, 3]
    assert found[1, 0].item() in (NOBODY, 1)


@pytest.mark.parametrize(
    "widened", [lambda g: g.flip(0), lambda g: g[:, :1]], ids=["moved", "cut"]
)
def test_rows_that_are_not_finite_and_move_are_mixed(widened):
    """Whose they are is not seen, and nothing is guessed."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, requires_grad=True) * 1

    def spoiled(grad):
        grad = grad.clone()
        grad[1] = torch.nan
        return widened(grad)

    node = Mapped.apply(x, spoiled).grad_fn
    rows = torch.arange(4)[:, None].expand(4, 3)
    (found,) = owners_of_inputs(node, [rows], [(4, 1)], 4)
    assert (found == MIXED).any()


def test_a_backward_without_a_gradient_is_nobodys():
    """In this batch; the next one is asked again."""
    found = asked(lambda _grad: None, torch.arange(4), 4)

    assert (found == NOBODY).all()


def test_what_is_mixed_above_is_mixed_below():
    """No answer is no leave."""
    x = torch.randn(3, 2, requires_grad=True) * 1
    node = Mapped.apply(x, lambda g: g).grad_fn
    rows = torch.tensor([[0], [MIXED], [1]])

    assert owners_of_inputs(node, [rows], [x.shape], 2) == [None]


def test_several_outputs_are_asked_together():
    """One of them may be of no interest."""
    x = torch.randn(4, 2, requires_grad=True) * 1
    node = Halves.apply(x)[0].grad_fn
    rows = torch.arange(2)[:, None]
    (both,) = owners_of_inputs(node, [rows, rows + 2], [x.shape], 4)
    (one,) = owners_of_inputs(node, [None, rows], [x.shape], 2)

    assert both[:, 0].tolist() == [0, 1, 2, 3]
    assert one[2:, 0].tolist() == [0, 1]


def test_complex_gradients_are_told_apart_by_their_size():
    """A power of two multiplies both parts."""
    x = torch.randn(5, 3, dtype=torch.complex64, requires_grad=True) * 1
    node = Mapped.apply(x, lambda g: g.flip(0)).grad_fn
    (found,) = owners_of_inputs(node, [torch.arange(5)[:, None]], [x.shape], 5)

    assert found[:, 0].tolist() == [4, 3, 2, 1, 0]


def test_the_users_random_numbers_are_left_alone():
    """Gradients are drawn by a generator of their own."""
    x = torch.randn(4, 2, requires_grad=True) * 1
    node = Mapped.apply(x, lambda g: g).grad_fn
    state = torch.get_rng_state()
    owners_of_inputs(node, [torch.arange(4)[:, None]], [x.shape], 4)

    assert torch.equal(state, torch.get_rng_state())


def test_a_model_may_clamp_gradients_by_a_function_of_its_own():
    """Examples stay apart, and their gradients are those of a loop."""
    model, x = torch.nn.Linear(3, 2), torch.randn(6, 3)
    parameters = [*model.parameters()]
    engine = Engine()
    for _ in range(3):
        losses = Mapped.apply(model(x), lambda g: g.clamp(-0.1, 0.1)).square().sum(1)
        rows = [
            torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses
        ]
        true = [sum(g.square().sum() for g in row) for row in rows]
        norms = engine.gradients(losses, parameters).squared_norms([0, 0])[0]
        torch.testing.assert_close(norms, torch.stack(true))

    losses = Mapped.apply(model(x), lambda g: g.clamp(-0.1, 0.1).roll(1, 0))
    with pytest.raises(SampleMixingError, match="another order"):
        engine.gradients(losses.square().sum(1), parameters)


@pytest.mark.parametrize(
    "given",
    [None, torch.arange(3), torch.arange(2)[:, None]],
    ids=["no output has owners", "fewer axes", "other lengths"],
)
def test_where_nan_says_nothing_and_rows_moved_units_count_as_mixed(given):
    """In place, an element is the unit's whose the output is there; else nobody knows."""
    owner = torch.tensor([[0, 0], [_NOTHING_SAID, 1], [2, 2]])

    assert _said(owner, torch.arange(3)[:, None]).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert _said(owner, given).tolist() == [[0, 0], [MIXED, 1], [2, 2]]
