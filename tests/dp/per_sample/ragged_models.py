"""Models whose units lie along no axis: each returns losses, and the unit of each.

Shapes: ``U`` units, ``R`` rows, ``D`` features.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention


U, D = 5, 4


def lengths(longest=7):
    return torch.randint(1, longest, (U,))


def owners_of(lengths_U):
    return torch.repeat_interleave(torch.arange(U), lengths_U)


def by_unit(values, owner_R, num_units=U):
    return values.new_zeros(num_units, *values.shape[1:]).index_add(0, owner_R, values)


class Users(nn.Module):
    """Several losses for each unit, in any order."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(D, 6), nn.LayerNorm(6), nn.PReLU(), nn.Linear(6, 3)
        )

    def forward(self):
        owner_R = owners_of(lengths())[torch.randperm(1)]
        owner_R = torch.cat([owner_R, torch.randint(U, (11,))])
        return self.body(torch.randn(len(owner_R), D)).square().sum(1), owner_R


class PackedTokens(nn.Module):
    """Sequences behind one another, without padding."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 80), nn.Linear(80, 6)
        self.rms = nn.RMSNorm(6)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self):
        owner_R = owners_of(lengths())
        h = self.tokens(torch.randint(9, owner_R.shape))
        h = h + self.down(F.gelu(self.up(self.norm(h))))
        h = self.rms(h) * self.scale
        return by_unit(h, owner_R).sin().sum(1), torch.arange(U)


class PackedBatch(nn.Module):
    """Documents packed into the rows of a batch: owners differ along two axes."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.shift = nn.Parameter(torch.randn(6))
        self.factor = nn.Parameter(torch.randn(1, 1, 6))
        self.table = nn.Parameter(torch.randn(9, 6))
        self.layer = nn.Linear(6, 6)

    def forward(self):
        owner_BT = torch.randint(U, (3, 8))
        tokens_BT = torch.randint(9, (3, 8))
        h = self.tokens(tokens_BT) + self.table[tokens_BT]
        h = self.norm(h) + self.rms(h) / self.factor
        h = self.layer(h * self.factor - self.shift)
        return by_unit(h.flatten(0, 1), owner_BT.flatten()).sin().sum(1), torch.arange(
            U
        )


class Graphs(nn.Module):
    """Disjoint graphs in one batch, messages by index_add and by a sparse product."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(D, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self):
        sizes_U = lengths()
        graph_N = owners_of(sizes_U)
        start_U = sizes_U.cumsum(0) - sizes_U
        src_E = torch.arange(len(graph_N)).repeat(2)
        within_E = torch.randint(1 << 20, src_E.shape) % sizes_U[graph_N[src_E]]
        dst_E = start_U[graph_N[src_E]] + within_E
        h = self.first(torch.randn(len(graph_N), D))
        h = F.relu(h + torch.zeros_like(h).index_add(0, dst_E, h[src_E]))
        edges = torch.stack([dst_E, src_E])
        size = (len(graph_N),) * 2
        weights_E = torch.ones(len(src_E))
        adjacency = torch.sparse_coo_tensor(
            edges, weights_E, size, check_invariants=True
        )
        h = torch.sparse.mm(adjacency, self.second(h))
        return self.head(by_unit(h, graph_N)).square().sum(1), torch.arange(U)


class Experts(nn.Module):
    """Every token is routed to one of several experts; one may get none."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.Linear(8, D)) for _ in range(4)
        )

    def forward(self):
        rows = torch.randn(U, 3, D).flatten(0, 1)
        weight, chosen = self.gate(rows).softmax(1)[:, :3].max(1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(rows[mine]) * weight[mine, None])
        return (rows + out).view(U, 3, D).sin().sum((1, 2)), torch.arange(U)


class PackedRecurrence(nn.Module):
    """A packed recurrent layer; torch sorts its sequences by length."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(D, 3, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self):
        packed = nn.utils.rnn.pack_padded_sequence(
            torch.randn(U, 6, D), lengths(), batch_first=True, enforce_sorted=False
        )
        out = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return out[0].square().sum((1, 2)), torch.arange(U)


class Loop(nn.Module):
    """One forward pass an example, stacked."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 3))
        self.row = nn.Parameter(torch.randn(3, 2))

    def forward(self):
        losses = [
            (self.layers(torch.randn(length, D)) @ self.row).square().sum()
            + (self.layers(torch.randn(D)) @ self.row).sin().sum()
            for length in lengths().tolist()
        ]
        return torch.stack(losses), torch.arange(U)


class TwoPasses(nn.Module):
    """Two forward passes over different examples, concatenated."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, 6), nn.LayerNorm(6), nn.Linear(6, 3))

    def forward(self):
        passes = [self.layers(torch.randn(n, 4, D)) for n in (2, U - 2)]
        return torch.cat(passes).square().sum((1, 2)), torch.arange(U)


class Images(nn.Module):
    """Units of several images each, in any order."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.Conv2d(4, 4, 2, groups=2, stride=2),
            nn.InstanceNorm2d(4, affine=True),
            nn.BatchNorm2d(4).eval(),
            nn.ConvTranspose2d(4, 2, 2),
        )

    def forward(self):
        owner_R = torch.randint(U, (9,))
        return self.body(torch.randn(9, 2, 6, 6)).sin().sum((1, 2, 3)), owner_R


class Bags(nn.Module):
    """Bags of words, several for each unit, and a class token for each row."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 6, mode="mean")
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.vector = nn.Parameter(torch.randn(6))

    def forward(self):
        owner_R = torch.randint(U, (8,))
        rows = self.bag(torch.randint(9, (21,)), torch.arange(0, 16, 2))[:, None]
        rows = torch.cat([self.token.expand(8, 1, 6), rows], 1)
        return (rows.sum(1).sin() @ self.vector).square(), owner_R


class Sequences(nn.Module):
    """Users of several sequences, by the layer that oneDNN runs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(D, 3, batch_first=True)

    def forward(self):
        owner_R = torch.randint(U, (7,))
        out, (h, _) = self.layer(torch.randn(7, 4, D))
        return out.square().sum((1, 2)) + h[0].sum(1), owner_R


class Tied(nn.Module):
    """One table for inputs and outputs, and weights that are computed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 6))
        self.a, self.b = (nn.Parameter(torch.randn(6, 2)) for _ in range(2))
        self.v, self.g = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6))

    def forward(self):
        owner_R = owners_of(lengths())
        h = F.embedding(torch.randint(9, owner_R.shape), self.table)
        h = h @ (self.a @ self.b.T) + h @ self.table[:6]
        h = F.linear(h, self.v * (self.g / self.v.norm(dim=1))[:, None])
        return by_unit((h @ self.table.T).sin().sum(1), owner_R), torch.arange(U)


MODELS = {
    "users": Users,
    "packed tokens": PackedTokens,
    "packed batch": PackedBatch,
    "graphs": Graphs,
    "experts": Experts,
    "packed GRU": lambda: PackedRecurrence(nn.GRU),
    "packed LSTM": lambda: PackedRecurrence(nn.LSTM),
    "packed RNN": lambda: PackedRecurrence(nn.RNN),
    "loop": Loop,
    "two passes": TwoPasses,
    "images": Images,
    "bags": Bags,
    "sequences": Sequences,
    "tied": Tied,
}


def assert_as_by_loop(gradients, losses, parameters, units=None):
    """Norms and weighted sums are those of one backward pass a unit."""
    units = torch.arange(len(losses)) if units is None else units
    rows = [
        torch.autograd.grad(
            losses[units == u].sum(),
            parameters,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for u in units.unique()
    ]
    true_U = torch.stack([sum(g.square().sum() for g in of_unit) for of_unit in rows])
    groups = [0] * len(parameters)
    norms_U = gradients.squared_norms(groups)[0]
    torch.testing.assert_close(norms_U, true_U, rtol=1e-9, atol=1e-12)
    weight_U = torch.rand(len(rows))
    sums = [torch.zeros_like(p) for p in parameters]
    gradients.add_weighted_sum(weight_U[None], groups, sums)
    for total, of_parameter in zip(sums, zip(*rows, strict=True), strict=True):
        true = sum(w * g for w, g in zip(weight_U, of_parameter, strict=True))
        torch.testing.assert_close(total, true, rtol=1e-9, atol=1e-11)
