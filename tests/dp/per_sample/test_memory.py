"""What gradients are held in: the memory that the backward pass frees, and little more."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dp._mechanism.sums import Sums
from dp.per_sample import Engine
from dp.per_sample._graph.kept_memory import freed_before
from dp.per_sample._graph.nodes import name_of
from dp.per_sample._parts.convolution import ConvolutionGrads
from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._rules.context import MemoryBudget


B = 5


def nodes_of(losses):
    """Return the nodes of a chain of operations, inputs before outputs."""
    nodes, node = [], losses.grad_fn
    while node is not None:
        nodes.append(node)
        node = next((n for n, _ in node.next_functions if n is not None), None)
    return nodes[::-1]


def freed(losses, operation, parameters=()):
    """Return the bytes that are freed before each node of a kind, losses first."""
    nodes = nodes_of(losses)
    uses = [node for node in nodes if name_of(node) == operation]
    by_node = freed_before(nodes, uses, parameters)
    return [by_node[node] for node in reversed(uses)]


def test_a_tensor_that_several_nodes_keep_is_freed_once_with_the_last_of_them():
    """ReLU keeps its result, and so does the layer that reads it."""
    x = torch.randn(B, 4, requires_grad=True)
    w, v = torch.randn(4, 8), torch.randn(8, 3)
    losses = (x.mm(w).relu() @ v).exp().sum(1)

    # Before the second product the result of exp, of 3 numbers an example; before the
    # first that of ReLU, of 8; what is there from the beginning is nobody's to free.
    expected = [B * 3 * 4, B * 8 * 4]
    assert freed(losses, "MmBackward0") == expected


def test_parameters_and_what_hooks_packed_take_no_memory_that_is_freed():
    """A checkpoint keeps nothing, and weights stay."""
    x = torch.randn(B, 4, requires_grad=True)
    w = torch.randn(3, 4, requires_grad=True)
    packed = checkpoint(lambda x: x.exp().exp(), x.sin(), use_reentrant=False)
    losses = packed.mm(w.T).sum(1)

    # What meets the weight; not the weight, of which the product keeps a view.
    assert freed(losses, "SinBackward0", [w]) == [B * 4 * 4]


class Doubled(torch.autograd.Function):
    """A custom function, which keeps its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(_ctx, grad):
        return 2 * grad


def test_what_custom_functions_keep_is_counted_unless_hooks_packed_it():
    """Reading what hooks packed would unpack it, on a device that was to be relieved."""
    x = torch.randn(B, 4, requires_grad=True)
    assert freed(Doubled.apply(x.sinh()).sum(1), "SinhBackward0") == [B * 4 * 4]
    unpacked = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: one, lambda one: unpacked.append(one) or one
    ):
        losses = Doubled.apply(x.sinh()).sum(1)
    assert freed(losses, "SinhBackward0") == [0]
    assert not unpacked


def test_a_budget_counts_what_has_to_be_held_although_there_is_no_room():
    """It is made up for by what is freed later, before anything else may be held."""
    budget = MemoryBudget(10)
    budget.hold(30)
    budget.credit(25)
    assert not budget.try_reserve(6)
    assert budget.try_reserve(5)


def test_gradients_are_freed_one_by_one_as_they_are_added_up():
    """Sums take the place of what they are made of: memory is not needed for both."""
    model = nn.Sequential(nn.Linear(80, 80), nn.Tanh(), nn.Linear(80, 80))
    parameters = [*model.parameters()]
    losses = model(torch.randn(B, 80)).sum(1)
    gradients = Engine().gradients(losses, parameters)
    del losses
    held = [
        weakref.ref(part.right)
        for parts in gradients._parts.values()
        for part in parts
        if isinstance(part, FactoredGrads)
    ]
    gradients.squared_norms([0] * 4)
    alive = []
    add = FactoredGrads.add_weighted_sum

    def counted(self, *args, **kwargs):
        alive.append(sum(one() is not None for one in held))
        return add(self, *args, **kwargs)

    FactoredGrads.add_weighted_sum = counted
    try:
        Sums(parameters).add(gradients, torch.ones(1, B), [0] * 4)
    finally:
        FactoredGrads.add_weighted_sum = add
    assert len(held) == 2
    assert alive == [2, 1]
    assert not any(one() is not None for one in held)


def test_windows_of_a_convolution_are_there_a_chunk_at_a_time(monkeypatch):
    """Those of a whole batch take many times as much as its images."""
    layer = nn.Conv2d(64, 64, 3, padding=1)
    images, grads = torch.randn(2, B, 1, 64, 32, 32)
    part = ConvolutionGrads(
        inputs=images,
        grads=grads,
        kernel=layer.weight,
        stride=[1, 1],
        padding=[1, 1],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
    )
    seen: list[weakref.ref] = []
    at_once: list[int] = []
    product = ConvolutionGrads._product

    def noted(self, examples):
        made = product(self, examples)
        seen.append(weakref.ref(made.right))
        at_once.append(sum(one() is not None for one in seen))
        return made

    monkeypatch.setattr(ConvolutionGrads, "_product", noted)
    whole = part.gradients(slice(None))

    assert len(whole) == B == len(seen)
    assert max(at_once) == 1


class Products(TorchDispatchMode):
    """Counts batched matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.bmm.default
        return function(*args, **kwargs or {})


def test_gram_matrices_of_one_input_are_computed_once_and_let_go():
    """Queries, keys and values have one input: its matrices serve three norms."""
    layers = nn.ModuleList(nn.Linear(96, 80) for _ in range(3))
    parameters = [*layers.parameters()]
    x = torch.randn(B, 6, 96)
    losses = sum(layer(x).sin().sum((1, 2)) for layer in layers)
    gradients = Engine().gradients(losses, parameters)
    groups = [number // 2 for number in range(6)]
    with Products() as products:
        norms_GB = gradients.squared_norms(groups)

    assert products.count == 1 + 3
    (part,) = gradients._parts[0]
    assert part.grams[0]._product is None
    for group, layer in enumerate(layers):
        alone = layer(x).sin().sum((1, 2))
        expected_B = Engine().gradients(alone, [*layer.parameters()])
        assert torch.equal(norms_GB[group], expected_B.squared_norms([0, 0])[0])
