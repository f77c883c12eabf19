"""Every rule of owners against the truth: a node's own backward, one unit at a time.

Sound: an element that a unit's gradient reaches is that unit's, or mixed; never
nobody's and never another's. Tight: where a table says so, what one unit alone reaches
is not mixed.

Shapes: ``U`` units.
"""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.utils.rnn import pack_padded_sequence

from dp.per_sample._graph.nodes import edge_shape, name_of, output_shape
from dp.per_sample._isolation.following import _answers
from dp.per_sample._isolation.owners import MIXED, NOBODY, Owners, regularized
from dp.per_sample._isolation.rule_table import (
    Kind,
    arguments_reader,
    rule_for_owners,
)


U = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta"),
]


def leaf(*shape, **options):
    return torch.randn(shape, requires_grad=True, **options) * 1


def mask(*shape):
    return torch.rand(*shape) < 0.5


def numbers(high, *shape):
    return torch.randint(high, shape)


def sparse(*shape):
    return (torch.rand(*shape) < 0.2).float().to_sparse()


def lstm(output):
    out = torch.nn.LSTM(4, 5)(leaf(6, 3, 4))
    return out[0] if output == 0 else out[1][output - 1][0]


def packed(x, lengths, **options):
    return pack_padded_sequence(x, torch.tensor(lengths), **options).data


def written(x, y):
    x = x * 1
    x[:, 1:3] = y[:, :2]
    return x


X = (4, 6, 8)
OPERATIONS = {
    "add": lambda: leaf(*X) + leaf(*X),
    "add a row to a square": lambda: leaf(8, 8) + leaf(8),
    "add a row": lambda: leaf(*X) + leaf(8),
    "add a column": lambda: leaf(*X) + leaf(4, 1, 1),
    "multiply": lambda: leaf(*X) * leaf(6, 1),
    "divide": lambda: leaf(*X) / leaf(*X).exp(),
    "tanh": lambda: leaf(*X).tanh(),
    "gelu": lambda: F.gelu(leaf(*X)),
    "clamp": lambda: leaf(*X).clamp(min=0),
    "clamp by tensors": lambda: leaf(*X).clamp(min=leaf(8), max=leaf(4, 1, 1) + 9),
    "pow": lambda: leaf(*X).pow(2),
    "where": lambda: torch.where(mask(4, 6, 1), leaf(*X), leaf(*X)),
    "masked_fill": lambda: leaf(*X).masked_fill(mask(4, 6, 1), 0),
    "dropout": lambda: F.dropout(leaf(*X), 0.5),
    "to": lambda: leaf(*X).to(torch.bfloat16),
    "prelu": lambda: F.prelu(leaf(*X), leaf(6)),
    "tril": lambda: leaf(*X).tril(),
    "mse": lambda: F.mse_loss(leaf(*X), leaf(*X), reduction="none"),
    "mse of all": lambda: F.mse_loss(leaf(*X), leaf(*X)),
    "bce": lambda: F.binary_cross_entropy_with_logits(
        leaf(*X), torch.rand(X), reduction="none"
    ),
    "view": lambda: leaf(*X).reshape(24, 8),
    "view last": lambda: leaf(*X).reshape(4, 48),
    "view apart": lambda: leaf(*X).reshape(2, 2, 6, 8),
    "view middle": lambda: leaf(*X).view(4, 2, 3, 8),
    "view across": lambda: leaf(*X).reshape(3, 8, 8),
    "flatten": lambda: leaf(*X).flatten(),
    "unflatten": lambda: leaf(24, 8).view(4, 6, 8),
    "nothing": lambda: leaf(0, 6).view(0, 2, 3),
    "permute": lambda: leaf(*X).permute(2, 0, 1),
    "transpose": lambda: leaf(*X).transpose(0, 1),
    "t": lambda: leaf(24, 8).t(),
    "expand": lambda: leaf(4, 1, 8).expand(4, 6, 8),
    "expand new": lambda: leaf(6, 8).expand(4, 6, 8),
    "unsqueeze": lambda: leaf(*X).unsqueeze(1),
    "squeeze": lambda: leaf(1, 4, 1).squeeze(),
    "squeeze one": lambda: leaf(1, 4).squeeze(0),
    "sum": lambda: leaf(*X).sum(),
    "sum of one axis": lambda: leaf(*X).sum(1),
    "sum of two axes": lambda: leaf(*X).sum((0, 2)),
    "sum kept": lambda: leaf(*X).sum(1, keepdim=True),
    "mean": lambda: leaf(*X).mean(2),
    "mean of all": lambda: leaf(*X).mean(),
    "amax": lambda: leaf(*X).amax(1),
    "max of all": lambda: leaf(*X).max(),
    "max": lambda: leaf(*X).max(1)[0],
    "min": lambda: leaf(*X).min(0)[0],
    "median": lambda: leaf(*X).median(0)[0],
    "kthvalue": lambda: leaf(*X).kthvalue(2, 1)[0],
    "var": lambda: leaf(*X).var(1),
    "std": lambda: leaf(*X).std(0),
    "std of all": lambda: leaf(*X).std(),
    "var_mean": lambda: torch.var_mean(leaf(*X), 1)[1],
    "norm": lambda: leaf(*X).norm(dim=2),
    "norm of all": lambda: leaf(*X).norm(),
    "vector_norm": lambda: torch.linalg.vector_norm(leaf(*X), dim=(0, 2)),
    "logsumexp": lambda: leaf(*X).logsumexp(1),
    "prod": lambda: leaf(*X).prod(2),
    "prod of the batch": lambda: leaf(*X).prod(0),
    "prod of all": lambda: leaf(4, 3).prod(),
    "cumsum": lambda: leaf(*X).cumsum(1),
    "cumprod": lambda: leaf(*X).cumprod(1),
    "softmax": lambda: leaf(*X).softmax(2),
    "log_softmax": lambda: leaf(*X).log_softmax(0),
    "glu": lambda: F.glu(leaf(*X), 1),
    "sort": lambda: leaf(*X).sort(1)[0],
    "sort the batch": lambda: leaf(*X).sort(0)[0],
    "topk": lambda: leaf(*X).topk(2, 2)[0],
    "mm": lambda: leaf(24, 8) @ leaf(8, 3),
    "mm of a sparse one": lambda: sparse(5, 24) @ leaf(24, 8),
    "mm of a compressed one": lambda: sparse(5, 24).to_sparse_csr() @ leaf(24, 8),
    "sparse.mm": lambda: torch.sparse.mm(sparse(5, 24), leaf(24, 8)),
    "addmm": lambda: torch.addmm(leaf(3), leaf(24, 8), leaf(8, 3)),
    "bmm": lambda: torch.bmm(leaf(*X), leaf(4, 8, 5)),
    "baddbmm": lambda: torch.baddbmm(leaf(4, 6, 5), leaf(*X), leaf(4, 8, 5)),
    "mv": lambda: leaf(24, 8) @ leaf(8),
    "dot": lambda: leaf(8) @ leaf(8),
    "einsum": lambda: torch.einsum("bij,bkj->bik", leaf(*X), leaf(*X)),
    "cdist": lambda: torch.cdist(leaf(*X), leaf(4, 5, 8)),
    "conv1d": lambda: F.conv1d(leaf(*X), leaf(3, 6, 3)),
    "conv2d": lambda: F.conv2d(leaf(4, 3, 6, 6), leaf(2, 3, 3, 3), leaf(2)),
    "max_pool2d": lambda: F.max_pool2d(leaf(4, 3, 6, 6), 2),
    "avg_pool2d": lambda: F.avg_pool2d(leaf(4, 3, 6, 6), 2),
    "adaptive_avg_pool2d": lambda: F.adaptive_avg_pool2d(leaf(4, 3, 6, 6), 2),
    "interpolate": lambda: F.interpolate(leaf(4, 3, 6, 6), scale_factor=2),
    "grid_sample": lambda: F.grid_sample(
        leaf(4, 3, 6, 6), leaf(4, 2, 2, 2), align_corners=False
    ),
    "layer_norm": lambda: F.layer_norm(leaf(*X), (8,), leaf(8), leaf(8)),
    "layer_norm of two axes": lambda: F.layer_norm(leaf(*X), (6, 8)),
    "group_norm": lambda: F.group_norm(leaf(*X), 2, leaf(6), leaf(6)),
    "rms_norm": lambda: F.rms_norm(leaf(*X), (8,), leaf(8)),
    "batch_norm": lambda: F.batch_norm(leaf(*X), None, None, training=True),
    "frozen batch_norm": lambda: F.batch_norm(
        leaf(*X), torch.zeros(6), torch.ones(6), leaf(6), leaf(6)
    ),
    "attention": lambda: F.scaled_dot_product_attention(
        leaf(2, 3, 5, 8), leaf(2, 3, 5, 8), leaf(2, 3, 5, 8)
    ),
    "lstm": lambda: lstm(0),
    "lstm's state": lambda: lstm(1),
    "lstm's cell": lambda: lstm(2),
    "nll": lambda: F.nll_loss(leaf(4, 5), numbers(5, 4), reduction="none"),
    "nll of images": lambda: F.nll_loss(
        leaf(4, 5, 2, 3), numbers(5, 4, 2, 3), reduction="none"
    ),
    "nll of all": lambda: F.nll_loss(leaf(4, 5), numbers(5, 4)),
    "ctc": lambda: F.ctc_loss(
        leaf(6, 4, 5).log_softmax(2),
        numbers(4, 4, 2) + 1,
        torch.full((4,), 6),
        torch.full((4,), 2),
        reduction="none",
    ),
    "slice": lambda: leaf(*X)[:, 1:4],
    "slice in steps": lambda: leaf(*X)[1:4:2],
    "select": lambda: leaf(*X)[1],
    "select the last": lambda: leaf(*X)[:, -1],
    "split": lambda: leaf(*X).split(4, 1)[1],
    "split_with_sizes": lambda: leaf(*X).split([1, 3], 0)[1],
    "chunk": lambda: leaf(*X).chunk(2, 0)[1],
    "unbind": lambda: leaf(*X).unbind(0)[2],
    "cat": lambda: torch.cat([leaf(*X), leaf(2, 6, 8)], 0),
    "cat of features": lambda: torch.cat([leaf(*X), leaf(*X)], 1),
    "cat with data": lambda: torch.cat([leaf(*X), torch.randn(2, 6, 8)], 0),
    "cat between data": lambda: torch.cat(
        [torch.randn(2, 6, 8), leaf(*X), torch.randn(1, 6, 8), leaf(*X)], 0
    ),
    "stack": lambda: torch.stack([leaf(*X), torch.randn(X), leaf(*X)], 1),
    "repeat": lambda: leaf(*X).repeat(2, 1, 3),
    "repeat on a new axis": lambda: leaf(*X).repeat(2, 1, 1, 1),
    "flip": lambda: leaf(*X).flip(0),
    "roll": lambda: leaf(*X).roll(1, 0),
    "roll of all": lambda: leaf(*X).roll(2),
    "pad": lambda: F.pad(leaf(*X), (1, 1, 2, 0)),
    "pad the batch": lambda: F.pad(leaf(*X), (0, 0, 0, 0, 1, 2)),
    "cut": lambda: F.pad(leaf(*X), (0, 0, 0, 0, -1, 0)),
    "pad by reflection": lambda: F.pad(leaf(*X), (1, 2), mode="reflect"),
    "pad rows by reflection": lambda: F.pad(leaf(6, 8), (1, 2), mode="reflect"),
    "pad images by reflection": lambda: F.pad(leaf(*X), (1, 2, 0, 1), mode="reflect"),
    "pad a batch of images by the edge": lambda: F.pad(
        leaf(2, *X), (1, 2, 0, 1), mode="replicate"
    ),
    "pad volumes by the edge": lambda: F.pad(
        leaf(2, 3, *X), (1, 2, 0, 1, 1, 1), mode="replicate"
    ),
    "index": lambda: leaf(*X)[numbers(4, 7)],
    "index two axes": lambda: leaf(*X)[numbers(4, 7), numbers(6, 7)],
    "index by a mask": lambda: leaf(*X)[mask(4, 6)],
    "index by a mask of rows": lambda: leaf(*X)[mask(4)],
    "index features": lambda: leaf(*X)[:, numbers(6, 7)],
    "index by a table": lambda: leaf(*X)[:, numbers(6, 2, 2)],
    "index from the end": lambda: leaf(*X)[torch.tensor([-1, 0])],
    "index axes apart": lambda: leaf(*X)[numbers(4, 7), :, numbers(8, 7)],
    "index nothing": lambda: leaf(*X)[numbers(4, 0)],
    "index_select": lambda: leaf(*X).index_select(1, numbers(6, 5)),
    "gather": lambda: leaf(*X).gather(1, numbers(6, 4, 5, 8)),
    "gather of few": lambda: leaf(24, 8).gather(1, numbers(8, 7, 2)),
    "embedding": lambda: F.embedding(numbers(4, 3, 2), leaf(4, 8)),
    "embedding_bag": lambda: F.embedding_bag(
        numbers(4, 7), leaf(4, 8), torch.tensor([0, 3])
    ),
    "index_add": lambda: leaf(*X).index_add(0, numbers(4, 7), leaf(7, 6, 8)),
    "index_add features": lambda: leaf(*X).index_add(1, numbers(6, 7), leaf(4, 7, 8)),
    "index_copy": lambda: leaf(*X).index_copy(0, torch.tensor([0, 2]), leaf(2, 6, 8)),
    "index_fill": lambda: leaf(*X).index_fill(0, numbers(4, 2), 0.0),
    "index_reduce": lambda: leaf(*X).index_reduce(
        0, numbers(4, 7), leaf(7, 6, 8), "amax"
    ),
    "scatter_add": lambda: leaf(24, 8).scatter_add(
        0, numbers(24, 7, 1).expand(7, 8), leaf(7, 8)
    ),
    "scatter": lambda: leaf(24, 8).scatter(
        0, torch.randperm(24)[:7, None].expand(7, 8), leaf(7, 8)
    ),
    "scatter of few": lambda: leaf(24, 8).scatter_add(0, numbers(24, 7, 4), leaf(9, 8)),
    "scatter_reduce": lambda: leaf(24, 8).scatter_reduce(
        0, numbers(24, 7, 8), leaf(7, 8), "sum"
    ),
    "index_put": lambda: leaf(24, 8).index_put((torch.arange(3),), leaf(3, 8)),
    "index_put and add": lambda: leaf(24, 8).index_put(
        (numbers(24, 7),), leaf(7, 8), accumulate=True
    ),
    "masked_scatter": lambda: torch.zeros(4, 6).masked_scatter(mask(4, 6), leaf(24)),
    "masked_select": lambda: leaf(4, 6, 8).masked_select(mask(4, 6, 1)),
    "masked_select of a row": lambda: leaf(6).masked_select(mask(4, 6)),
    "index_put of data": lambda: leaf(24, 8).index_put(
        (torch.arange(3),), torch.randn(3, 8)
    ),
    "masked_scatter of data": lambda: leaf(4, 6).masked_scatter(
        mask(4, 6), torch.randn(24)
    ),
    "scatter of a number": lambda: leaf(24, 8).scatter(0, numbers(24, 7, 8), 1.0),
    "gather of a number": lambda: leaf().gather(0, torch.tensor(0)),
    "index_select of a number": lambda: leaf().index_select(0, torch.tensor([0])),
    "index_add of numbers": lambda: leaf().index_add(0, torch.tensor(0), leaf()),
    "pack": lambda: packed(leaf(3, 5, 2), [5, 3, 1], batch_first=True),
    "pack steps first": lambda: packed(leaf(5, 3, 2), [5, 3, 3]),
    "pack what is longer": lambda: packed(leaf(6, 3, 2), [4, 4, 1]),
    "pack numbers": lambda: packed(leaf(5, 3), [5, 3, 1]),
    "write": lambda: written(leaf(*X), leaf(*X)),
    "diagonal": lambda: leaf(*X).diagonal(dim1=0, dim2=1),
    "unfold": lambda: leaf(*X).unfold(1, 3, 1),
    "unfold images": lambda: F.unfold(leaf(4, 3, 6, 6), 2),
    "as_strided": lambda: leaf(4, 6).as_strided((6, 4), (1, 6)),
    "as_strided that overlaps": lambda: leaf(4, 6).as_strided((5, 6), (4, 1)),
    "rot90": lambda: leaf(*X).rot90(),
    "pixel_shuffle": lambda: F.pixel_shuffle(leaf(4, 8, 2, 3), 2),
    "real": lambda: torch.view_as_real(leaf(*X, dtype=torch.complex64)),
    "complex": lambda: torch.view_as_complex(leaf(4, 6, 2)),
    "abs of complex": lambda: leaf(*X, dtype=torch.complex64).abs(),
    "polar": lambda: torch.polar(leaf(*X).exp(), leaf(*X)),
    "fft": lambda: torch.fft.fft(leaf(*X, dtype=torch.complex64), dim=1),
    "rfft": lambda: torch.fft.rfft(leaf(*X), dim=1),
    "irfft": lambda: torch.fft.irfft(torch.fft.rfft(leaf(*X), dim=1), dim=1),
    "gradient of tanh": lambda: torch.autograd.grad(
        (x := leaf(*X)).tanh().sum(), x, create_graph=True
    )[0],
}
# What several units' structure mixes, though only one's numbers reach it: a selection
# by value, rows of a sum that no gradient comes from, axes that are coupled as a whole.
LOOSE = {
    "attention",
    "frozen batch_norm",
    "glu",
    "group_norm",
    "layer_norm",
    "lstm",
    "mm of a compressed one",
    "mm of a sparse one",
    "sparse.mm",
    "unfold images",
    "as_strided that overlaps",
    "cumprod",
    "cumsum",
    "embedding_bag",
    "index_reduce",
    "kthvalue",
    "max",
    "median",
    "min",
    "sort",
    "sort the batch",
    "topk",
    "max of all",
    "scatter",
    "index_put",
    "index_copy",
    "tril",
    "masked_scatter",
    "pad a batch of images by the edge",
    "pad by reflection",
    "pad images by reflection",
    "pad rows by reflection",
    "pad volumes by the edge",
    "max_pool2d",
    "interpolate",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "grid_sample",
    "ctc",
}


def some_owners(shape):
    """Return random owners: along some axes or none, sorted or not, some nobody's."""
    kept = [n if torch.rand(()) < 0.45 else 1 for n in shape]
    rows = torch.randint(-1 if torch.rand(()) < 0.3 else 0, U, kept)
    if shape and torch.rand(()) < 0.5:  # As batches have them.
        axis = int(torch.randint(len(shape), ()))
        sizes = [-1 if k == axis else 1 for k in range(len(shape))]
        rows = (torch.arange(shape[axis]) * U // max(shape[axis], 1)).view(sizes)
    return regularized(Owners.irregular(rows), shape, U)


def reached(node, index, rows):
    """Return by input how many units reach an element, and the last that does."""
    outputs = node._input_metadata
    found = None
    for unit in range(U):
        grads = [None] * len(outputs)
        random = torch.randn(tuple(outputs[index].shape), dtype=outputs[index].dtype)
        grads[index] = torch.where(rows == unit, random, torch.zeros_like(random))
        answers = node(*grads)
        answers = answers if isinstance(answers, tuple) else (answers,)
        if found is None:
            found = [
                None
                if a is None
                else (torch.zeros(a.shape), torch.full(a.shape, float(NOBODY)))
                for a in answers
            ]
        for answer, one in zip(answers, found, strict=True):
            if answer is not None:
                one[0].add_(answer != 0)
                one[1][answer != 0] = unit
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_rule_gives_an_element_to_a_wrong_unit(name):
    """An element that a unit's gradient reaches is that unit's, or mixed."""
    loose = 0
    for seed in range(12):
        torch.manual_seed(seed)
        output = OPERATIONS[name]()
        node, index = output.grad_fn, output.output_nr
        for _ in range(4):
            owners = some_owners(tuple(output.shape))
            given = [None] * len(node._input_metadata)
            given[index] = owners
            edges = node.next_functions
            shapes = [None if c is None else edge_shape(c, i) for c, i in edges]
            answers, _ = _answers(node, given, shapes, U)
            rows = owners.as_rows(output.dim(), U)
            truth = reached(node, index, rows)
            for shape, answer, true in zip(shapes, answers, truth, strict=True):
                if shape is None or true is None or true[0].shape != torch.Size(shape):
                    continue  # Autograd sums over what was spread by itself.
                mine = answer.as_rows(len(shape), U).expand(shape)
                count, last = true
                right = (count == 0) | (mine == MIXED) | ((count == 1) & (mine == last))

                assert right.all(), (owners, answer)
                loose += int(((mine == MIXED) & (count < 2)).sum())
    assert loose == 0 or name in LOOSE


@pytest.mark.parametrize("name", OPERATIONS)
def test_integers_say_the_same_as_rows(name):
    """Regular owners are followed in integers to where tensors would be followed."""
    torch.manual_seed(0)
    output = OPERATIONS[name]()
    node, index = output.grad_fn, output.output_nr
    edges = node.next_functions
    shapes = [None if c is None else edge_shape(c, i) for c, i in edges]
    for axis, length in enumerate(output.shape):
        for outer in range(1, length + 1):
            units = 2
            if length % (outer * units):
                continue
            owners = Owners.regular(axis, outer, length // (outer * units))
            given = [None] * len(node._input_metadata)
            given[index] = owners
            by_integers, _ = _answers(node, given, shapes, units)
            given[index] = Owners.irregular(owners.as_rows(output.dim(), units))
            by_rows, _ = _answers(node, given, shapes, units)
            for one, other, shape in zip(by_integers, by_rows, shapes, strict=True):
                if shape is None:
                    continue
                left, right = (
                    o.as_rows(len(shape), units).expand(shape) for o in (one, other)
                )

                # Of a few rows in which units meet, integers may say it of all. Of
                # a loose rule, rows may say it where integers know better.
                is_safe = (left == right) | (right == NOBODY) | (left == MIXED)

                assert is_safe.all() or name in LOOSE
                assert (right == MIXED).any() or not (left == MIXED).any()


class Recorded:
    """A node that notes what is read of it."""

    def __init__(self, node):
        self.__dict__.update(node=node, read=set())

    def __getattr__(self, name):
        if name.startswith("_saved_"):
            self.read.add(name.removeprefix("_saved_"))
        return getattr(self.node, name)


@pytest.mark.parametrize("name", OPERATIONS)
def test_static_rules_read_only_what_a_known_graph_is_compared_by(name):
    """A rule that read anything else would be trusted for a batch where it differs."""
    torch.manual_seed(0)
    output = OPERATIONS[name]()
    node, index = output.grad_fn, output.output_nr
    rule = rule_for_owners(node)
    shapes = [None if c is None else edge_shape(c, i) for c, i in node.next_functions]
    if rule.kind is not Kind.STATIC or rule.is_asked:
        return
    recorded = Recorded(node)
    for axis in range(output.dim()):
        rows = torch.arange(output.shape[axis]).view(
            [-1 if k == axis else 1 for k in range(output.dim())]
        )
        if rule.of_output is not None:
            rule.of_output(recorded, rows, shapes, index)
        else:
            rule.rows(recorded, rows, shapes)
        if rule.integers is not None:
            rule.integers(recorded, Owners.regular(axis), shapes)

    assert recorded.read <= {*rule.reads}
    assert not recorded.read or arguments_reader(node) is not None


def test_the_table_knows_the_operations_of_ordinary_models():
    """What has no rule is asked at every step, which takes longer."""
    nodes = {name: OPERATIONS[name]().grad_fn for name in OPERATIONS}
    asked = {
        name
        for name, node in nodes.items()
        if rule_for_owners(node).kind is Kind.UNKNOWN
    }

    assert asked == {"embedding_bag", "index_fill", "write"}
    assert name_of(nodes["mm"]) == "MmBackward0"
    assert math.prod(output_shape(nodes["mm"], 0)) == 72
