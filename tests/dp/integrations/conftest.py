"""A small private script, and a witness of what its inner optimizer really does."""

import warnings
from dataclasses import dataclass, field
from functools import cache

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from dp import DPOptimizer, PoissonLoader, PoissonSampling, PrivacyPlan
from dp.accounting import epsilon


with warnings.catch_warnings():
    # ignite imports ZeroRedundancyOptimizer, which is compiled by an older way.
    warnings.filterwarnings("ignore", "`torch.jit.* is dep", DeprecationWarning)
    import ignite.handlers  # noqa: F401 -- so that it warns here, and only here


@dataclass
class Witness:
    """The rate and the spread of the gradient of every step the inner optimizer took.

    Read off the weights before and after, so it is the rate that was used, whatever
    any wrapper says.
    """

    rates: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, inner):
        witness, before = cls(), []

        def parameters():
            return [p for g in inner.param_groups for p in g["params"]]

        def remember(*_):
            before[:] = [p.detach().clone() for p in parameters()]

        def compare(*_):
            old = torch.cat([p.flatten() for p in before])
            new = torch.cat([p.detach().flatten() for p in parameters()])
            gradient = torch.cat([p.grad.flatten() for p in parameters()])
            witness.rates.append(((old - new) / gradient).nanmedian().item())
            witness.spreads.append(gradient.std().item())

        inner.register_step_pre_hook(remember)
        inner.register_step_post_hook(compare)
        return witness


@cache
def epsilon_by_dp_accounting(plan, steps):
    if plan.steps_per_pass is not None:  # It has no event for random allocation.
        return epsilon(
            plan.releases(steps),
            delta=plan.target_delta,
            neighboring_relation=plan.neighboring_relation,
        ).epsilon
    event = dp_accounting.PoissonSampledDpEvent(
        plan.sampling.sampling_probability,
        dp_accounting.GaussianDpEvent(plan.noise_multiplier),
    )
    return min(
        accountant().compose(event, steps).get_epsilon(plan.target_delta)
        for accountant in (PLDAccountant, RdpAccountant)
    )


@dataclass
class Script:
    """A classifier of 650 weights, its plan, loader and private optimizer."""

    model: nn.Module
    data: TensorDataset
    plan: PrivacyPlan
    loader: PoissonLoader
    optimizer: DPOptimizer
    witness: Witness

    def losses(self, batch):
        x, y = batch
        return cross_entropy(self.model(x), y, reduction="none")

    def update_without_noise(self, batch, lr):
        """Algorithm 1 of Abadi et al., by a loop over the examples."""
        parameters = list(self.model.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for x, y in zip(*batch, strict=True):
            loss = self.losses((x[None], y[None])).sum()
            grads = torch.autograd.grad(loss, parameters)
            norm = torch.cat([g.flatten() for g in grads]).norm()
            factor = min(1.0, self.plan.max_grad_norm / norm.item())
            for part, grad in zip(total, grads, strict=True):
                part.add_(grad, alpha=factor)
        scale = lr / self.plan.expected_batch_size
        return torch.cat([-scale * part.flatten() for part in total])

    def inner_rate(self):
        return self.optimizer.original_optimizer.param_groups[0]["lr"]

    def weights(self):
        return torch.cat(
            [p.detach().flatten().clone() for p in self.model.parameters()]
        )

    def assert_private(self, *, steps, rates=None):
        """Every step was noised as planned, charged once, and used the rate given."""
        plan, ledger = self.plan, self.optimizer.ledger
        stddev = plan.noise_multiplier * plan.max_grad_norm / plan.expected_batch_size
        assert len(self.witness.rates) == ledger.steps == steps
        # 650 coordinates: a spread 20 % off is beyond seven standard errors.
        assert self.witness.spreads == pytest.approx([stddev] * steps, rel=0.2)
        if rates is not None:
            assert self.witness.rates == pytest.approx(rates, rel=1e-3)
        assert self.optimizer.spent().epsilon == pytest.approx(
            epsilon_by_dp_accounting(plan, steps), rel=1e-2
        )


@pytest.fixture
def witness_of():
    """Watch an inner optimizer's steps."""
    return Witness.of


@pytest.fixture
def make_script():
    """Build a script; its noise is large, so that its spread can be told."""

    def make(inner=torch.optim.SGD, *, lr=0.1, num_examples=40, **changes):
        torch.manual_seed(0)
        model = nn.Linear(64, 10)
        data = TensorDataset(
            torch.randn(num_examples, 64), torch.randint(10, (num_examples,))
        )
        numbers = {
            "sampling": PoissonSampling(sampling_probability=0.5),
            "noise_multiplier": 10.0,
            "max_grad_norm": 1.0,
            "expected_batch_size": 20.0,
            "steps": 6,
            "target_delta": 1e-5,
        }
        plan = PrivacyPlan(**{**numbers, **changes})
        loader = plan.loader(data)
        optimizer = inner(model.parameters(), lr=lr)
        private = DPOptimizer(optimizer, plan=plan, loader=loader)
        return Script(model, data, plan, loader, private, Witness.of(optimizer))

    return make
