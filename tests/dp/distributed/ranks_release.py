"""What a release is made of, seen from every rank; and builds of it that are broken."""

from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import ranks_training
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from dp import DPOptimizer, GaussianNoise, Unamplified
from dp.distributed import Exchange
from dp.ledger import Ledger
from dp.per_sample import PerSampleGradients
from dp.per_sample._isolation.verification import Verifier


@contextmanager
def noise_on_no_rank():
    with patch.object(GaussianNoise, "add_", lambda _self, _sums, *, stddev: stddev):
        yield


@contextmanager
def noise_on_every_rank():
    """Each rank noises its own sums before they are added up."""
    make = Exchange.__init__

    def noisy(self, world, sums, shardings, *, buffers):
        GaussianNoise().add_(sums, stddev=1.5 * 0.8)
        make(self, world, sums, shardings, buffers=buffers)

    with patch.object(Exchange, "__init__", noisy), noise_on_no_rank():
        yield


@contextmanager
def noise_scaled(power):
    add = GaussianNoise.add_
    factor = distributed.get_world_size() ** power

    def scaled(self, sums, *, stddev):
        add(self, sums, stddev=stddev * factor)
        return stddev

    with patch.object(GaussianNoise, "add_", scaled):
        yield


@contextmanager
def equal_noise_streams():
    """Every rank draws from one key."""
    with patch("dp._keystream.os.urandom", bytes):
        yield


@contextmanager
def local_norm_only():
    """Norms are taken over the parameters whose turn is this rank's."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    norms = PerSampleGradients.squared_norms

    def local(self, group_of, scales=()):
        parts = {i: p for i, p in self._parts.items() if i % size == rank}
        whole = self._parts, self._small
        self._parts, self._small = parts, self._small & parts.keys()
        try:
            return norms(self, group_of, scales)
        finally:
            self._parts, self._small = whole

    # A verification would notice first that norms and sums are not of one gradient.
    unverified = patch.object(Verifier, "is_due", lambda _self: False)
    with patch.object(PerSampleGradients, "squared_norms", local), unverified:
        yield


@contextmanager
def a_ledger_for_each_rank():
    with patch.object(Ledger, "use_segment", lambda _self, _segment: None):
        yield


BROKEN = {
    None: nullcontext,
    "a ledger for each rank": a_ledger_for_each_rank,
    "equal noise streams": equal_noise_streams,
    "local norm only": local_norm_only,
    "noise / sqrt W": lambda: noise_scaled(-0.5),
    "noise / W": lambda: noise_scaled(-1),
    "noise * sqrt W": lambda: noise_scaled(0.5),
    "noise on every rank": noise_on_every_rank,
    "noise on no rank": noise_on_no_rank,
}


def train(broken=None, **changes):
    with BROKEN[broken]():
        return ranks_training.train(**changes)


class Wide(nn.Module):
    """Parameters whose gradients are zero, so that noise alone is released."""

    def __init__(self, num_elements):
        super().__init__()
        self.reached = nn.Linear(1, 7)
        self.noise = nn.Parameter(torch.zeros(num_elements - 15))
        self.other = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.reached(x) * 0


def noise(broken=None, *, num_elements=20_000, kind="plain", num_steps=2):
    """Release nothing but noise; return it in units of what it should be."""
    plan = ranks_training.plan_of(
        sampling=Unamplified(), noise_multiplier=1.5, max_grad_norm=0.8
    )
    torch.manual_seed(0)  # As on the other ranks.
    model = Wide(num_elements)
    if kind == "fsdp":
        model = fully_shard(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = DPOptimizer(sgd, plan=plan)
    scale = 1.5 * 0.8 / plan.expected_batch_size
    steps = []
    with BROKEN[broken]():
        for _ in range(num_steps):
            optimizer.backward(model(torch.ones(3, 1)).sum(1))
            optimizer.step()
            grads = [p.grad for p in model.parameters()]
            whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
            steps.append(torch.cat([g.flatten() for g in whole]).div(scale).numpy())
    return steps


def calls(**changes):
    """Train one step; return the collectives it took, and the bytes this rank sent."""
    counted = []

    def counting(name):
        call = getattr(distributed, name)

        def counted_call(output, source, *args, **kwargs):
            counted.append((name, source.nbytes))
            return call(output, source, *args, **kwargs)

        return patch.object(distributed, name, counted_call)

    with counting("all_to_all_single"), counting("all_gather_single"):
        ranks_training.train(num_steps=3, **changes)
    return counted


def reductions_by_ddp():
    """Train a DDP model; return how many buckets DDP itself reduced."""
    reduced = []
    model, optimizer, loader = ranks_training.run_of("ddp")
    model.register_comm_hook(None, lambda _state, bucket: reduced.append(bucket))
    for i, batch in enumerate(loader):
        with model.no_sync() if i % 2 else nullcontext():
            optimizer.backward(ranks_training.losses_of(model, batch))
        optimizer.step()
    return len(reduced), optimizer.ledger.steps


def exchange(sizes, *, bucket_bytes, trades_rows=True):
    """Add up known sums, each element noised by adding 1; return the results."""
    from dp.distributed import World  # noqa: PLC0415 -- as every rank does

    rank = distributed.get_rank()
    sums = [torch.full((n,), 10.0**rank) for n in sizes]
    module = "dp.distributed._exchange"
    with (
        patch("dp._tuning.BUCKET_BYTES", bucket_bytes),
        patch(f"{module}._trades_rows", lambda _device: trades_rows),
    ):
        exchange = Exchange(World.current(), sums, [None] * len(sums))
        for share in exchange:
            for part in share:
                part.add_(1)
            exchange.start_all_gather()
        return [result.tolist() for result in exchange.results()]
