"""Gradients that are clipped and noised on the scales of an adaptive optimizer."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp.exceptions import UnsupportedOperationError
from dp.optimizer._second_moments import scaling_of
from dp.per_sample import Engine


ADAPTIVE = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)


class Net(nn.Module):
    """Layers of every kind: positions, a table that is tied, a norm, a convolution."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.tokens = nn.Linear(5, 6)
        self.conv = nn.Conv1d(6, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 3)
        self.third = nn.Linear(3, 3)
        self.last = nn.Linear(3, 5)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, ids):
        h = torch.tanh(self.tokens(self.table(ids))).mT
        h = self.norm(self.conv(h).mean(-1))
        h = self.third(torch.tanh(self.second(torch.tanh(self.first(h)))))
        return (self.last(h) @ self.table.weight.T).square().mean(-1)


def by_loop(model, ids, scales):
    """The squared norms of scaled gradients, an example at a time."""
    norms = []
    for one in ids:
        loss = model(one[None]).sum()
        grads = torch.autograd.grad(
            loss, list(model.parameters()), allow_unused=True, materialize_grads=True
        )
        scaled = [(g * s).square().sum() for g, s in zip(grads, scales, strict=True)]
        norms.append(torch.stack(scaled).sum())
    return torch.stack(norms)


@pytest.mark.parametrize("loss_scale", [1.0, 4.0])
def test_norms_of_scaled_gradients_are_those_of_the_loop(loss_scale):
    """Factored, batched, tied, materialized and unused; never smaller in float32."""
    model = Net()
    parameters = list(model.parameters())
    scales = [torch.rand_like(p) * 10 for p in parameters]
    ids = torch.randint(0, 7, (9, 4))
    expected_B = by_loop(model, ids, scales)

    gradients = Engine().gradients(model(ids), parameters, loss_scale=loss_scale)
    norms_GB = gradients.squared_norms([0] * len(parameters), scales)

    torch.testing.assert_close(norms_GB[0], expected_B, rtol=1e-4, atol=0)


class Residual(nn.Module):
    """A norm and two products, as deep models repeat them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).tanh())


@pytest.mark.parametrize("positions", [(), (5,)], ids=str)
def test_scaled_norms_of_layers_that_are_served_as_one(positions):
    """Each layer has rows of its own in the part that holds all of them."""
    body = nn.Sequential(*[Residual() for _ in range(5)])
    parameters = list(body.parameters())
    scales = [torch.rand_like(p) * 10 for p in parameters]
    x = torch.randn(9, *positions, 4)

    def model(x):
        return body(x).square().flatten(1).sum(1)

    losses = model(x)
    expected = []
    for one in x:
        grads = torch.autograd.grad(model(one[None]).sum(), parameters)
        scaled = [(g * s).square().sum() for g, s in zip(grads, scales, strict=True)]
        expected.append(torch.stack(scaled).sum())

    engine = Engine()
    engine.gradients(model(x), parameters)  # Graphs are served so once they are known.
    gradients = engine.gradients(losses, parameters)
    norms_GB = gradients.squared_norms([0] * len(parameters), scales)

    torch.testing.assert_close(norms_GB[0], torch.stack(expected), rtol=1e-4, atol=0)


def test_scaled_norms_keep_to_their_groups():
    """Each group has the norm of its own parameters."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    parameters = list(model.parameters())
    scales = [torch.rand_like(p) for p in parameters]
    x = torch.randn(5, 3)

    gradients = Engine().gradients(model(x).squeeze(1), parameters)
    apart_GB = gradients.squared_norms([0, 1, 0, 1], scales)
    joint_GB = gradients.squared_norms([0, 0, 0, 0], scales)

    torch.testing.assert_close(apart_GB.sum(0), joint_GB[0])


def test_a_chunk_of_examples_is_as_good_as_all(monkeypatch):
    """Where few gradients fit into memory at once."""
    model = Net()
    parameters = list(model.parameters())
    scales = [torch.rand_like(p) for p in parameters]
    ids = torch.randint(0, 7, (9, 4))
    gradients = Engine().gradients(model(ids), parameters)
    whole = gradients.squared_norms([0] * len(parameters), scales)

    monkeypatch.setattr("dp._tuning.CHUNK_BYTES", {"cpu": 300})

    chunked = gradients.squared_norms([0] * len(parameters), scales)
    torch.testing.assert_close(chunked, whole)


def make_run(make_plan, *, inner=torch.optim.Adam, lr=0.01, rule=None, **changes):
    plan = make_plan(**changes)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    data = TensorDataset(torch.randn(20, 3), torch.randn(20))
    loader = plan.loader(data)
    clipping = dp.ScaledClipping(max_grad_norm=plan.max_grad_norm_at(0))
    optimizer = dp.DPOptimizer(
        inner(model.parameters(), lr=lr),
        plan=plan,
        loader=loader,
        clipping=clipping if rule is None else rule,
    )
    return model, loader, optimizer


@pytest.mark.parametrize("inner", ADAPTIVE)
def test_without_noise_and_clipping_steps_are_the_optimizers_own(make_plan, inner):
    """Scales are multiplied and divided out again."""
    model, loader, optimizer = make_run(
        make_plan, inner=inner, noise_multiplier=0.0, max_grad_norm=1e15
    )
    twin = copy.deepcopy(model)
    plain = inner(twin.parameters(), lr=0.01)

    for (x, y), _ in zip(loader, range(6), strict=False):
        optimizer.backward((model(x) - y).square())
        optimizer.step()
        plain.zero_grad()
        ((twin(x) - y).square().sum() / 10).backward()
        plain.step()

    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_example_moves_the_scaled_sum_by_the_clipping_norm(make_plan):
    """What was released, scaled again, is as long as C allows and no longer."""
    model, loader, optimizer = make_run(
        make_plan,
        noise_multiplier=0.0,
        max_grad_norm=5.0,
        rule=dp.ScaledClipping(max_grad_norm=5.0, stability=1e-3),
    )
    batches = iter(loader)
    for _ in range(3):
        x, y = next(batches)
        optimizer.backward((model(x) - y).square())
        optimizer.step()
    clipping = optimizer.mechanism.clipping
    find = scaling_of(clipping, optimizer.original_optimizer)
    scales = [s.clone() for s in find(list(model.parameters()))]
    x, y = next(batches)

    optimizer.backward((model(x) - y).square())
    optimizer.step()

    grads = [p.grad * s for p, s in zip(model.parameters(), scales, strict=True)]
    length = torch.stack([g.square().sum() for g in grads]).sum().sqrt().item()
    assert 0 < length <= 5.0 * len(x) / 10 * (1 + 1e-5)
    flat = torch.cat([s.flatten() for s in scales])
    assert flat.max() > 1.01 * flat.min()  # The scales are no single number.


def test_noise_is_divided_by_the_scales(make_plan, decisions):
    """20 000 coordinates at each of two scales: a standard error of 0.5 %.

    False alarms: 1e-15.
    """
    plan = make_plan(sampling=dp.Unamplified(), noise_multiplier=2.0)
    wide = nn.Parameter(torch.zeros(40_000))
    adam = torch.optim.Adam([wide])
    rule = dp.ScaledClipping(max_grad_norm=1.0, stability=1e-12)
    optimizer = dp.DPOptimizer(adam, plan=plan, clipping=rule)
    moments = torch.cat([torch.full((20_000,), 4.0), torch.full((20_000,), 0.25)])
    adam.state[wide] = {
        "step": torch.tensor(1000.0),
        "exp_avg": torch.zeros(40_000),
        "exp_avg_sq": moments * (1 - 0.999**1000),
    }

    optimizer.backward((wide * 0).sum().expand(5) + 0.0)
    optimizer.step()

    for part, scale in ((wide.grad[:20_000], 1 / 2), (wide.grad[20_000:], 2.0)):
        stddev = part.std().item() * 10.0 * scale
        assert not decisions.differs("scale", stddev, 2.0, rel=0.04)


def test_scales_stay_those_that_gradients_were_clipped_with(make_plan):
    """Whoever writes to the optimizer's state between backward and step."""
    model, loader, optimizer = make_run(make_plan, noise_multiplier=0.0)
    batches = iter(loader)
    x, y = next(batches)
    optimizer.backward((model(x) - y).square())
    optimizer.step()
    x, y = next(batches)
    optimizer.backward((model(x) - y).square())
    scales = [s.clone() for s in optimizer.mechanism.pending.scales]

    for state in optimizer.state.values():
        state["exp_avg_sq"].mul_(1e6)
    optimizer.step()

    grads = [p.grad * s for p, s in zip(model.parameters(), scales, strict=True)]
    length = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert length <= len(x) / 10 * (1 + 1e-5)


def test_a_refused_step_leaves_sums_as_they_were(make_plan):
    """Scaled twice, they would have another sensitivity."""
    model, loader, optimizer = make_run(make_plan, noise_multiplier=0.0)
    x, y = next(iter(loader))
    optimizer.backward((model(x) - y).square())
    before = [t.clone() for t in optimizer.mechanism.pending.sums.of_parameters()]
    optimizer.ledger.fail("a test")

    with pytest.raises(dp.LedgerError):
        optimizer.step()

    after = optimizer.mechanism.pending.sums.of_parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_empty_batch_is_noised_on_the_scales(make_plan):
    """A step without an example is noise of the same shape as any other."""
    _, loader, optimizer = make_run(
        make_plan, sampling=dp.PoissonSampling(sampling_probability=1e-9)
    )
    next(iter(loader))

    optimizer.step()

    assert optimizer.ledger.steps == 1


@pytest.mark.parametrize(
    "inner", [torch.optim.SGD, torch.optim.Adadelta, torch.optim.Adamax]
)
def test_optimizers_without_known_second_moments_are_refused(make_plan, inner):
    """By name, before anything is wrapped."""
    with pytest.raises(UnsupportedOperationError, match=inner.__name__):
        make_run(make_plan, inner=inner)


def test_noise_that_is_correlated_between_other_scales_is_refused(make_plan):
    """Sums of several steps are combined there, each of which was scaled anew."""
    sampling = dp.CyclicPoisson(sampling_probability=0.25, bands=4)
    noise = dp.BandedNoise.square_root(4)

    with pytest.raises(ValueError, match="correlates the noise of 4 steps"):
        make_run(make_plan, sampling=sampling, correlation=noise)


def test_subclasses_are_refused_as_their_state_may_mean_something_else(make_plan):
    """Whatever they call it."""

    class Adam8(torch.optim.Adam):
        pass

    with pytest.raises(UnsupportedOperationError, match="Adam8 keeps none"):
        make_run(make_plan, inner=Adam8)


def test_complex_parameters_are_refused(make_plan):
    """Their moments are of real and imaginary parts."""
    plan = make_plan(sampling=dp.Unamplified())
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    adam = torch.optim.Adam([parameter])
    rule = dp.ScaledClipping(max_grad_norm=1.0)
    optimizer = dp.DPOptimizer(adam, plan=plan, clipping=rule)

    with pytest.raises(UnsupportedOperationError, match="is complex"):
        optimizer.backward(parameter.abs().sum().expand(3) + 0.0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"stability": 0.0}, "stability"),
        ({"root_stability": -1.0}, "root_stability"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, named):
    """By name, where the rule is made."""
    with pytest.raises(ValueError, match=named):
        dp.ScaledClipping(**{"max_grad_norm": 1.0, **wrong})


def test_the_rule_clips_as_flat_clipping_does():
    """Norms of scaled gradients become factors as others do."""
    rule = dp.ScaledClipping(max_grad_norm=2.0)
    flat = dp.FlatClipping(max_grad_norm=2.0)
    norms = torch.tensor([[0.0, 1.0, 4.0, math.inf]])

    assert torch.equal(rule.factors(norms), flat.factors(norms))
    assert rule.sensitivity("replace_one") == 4.0
    assert rule.group_of([torch.zeros(1)] * 3) == [0, 0, 0]


@pytest.mark.slow
def test_a_replay_holds(make_plan):
    """One record moves scaled sums by C at most."""
    data = [torch.randn(4) for _ in range(30)]
    plan = make_plan(expected_batch_size=15.0, steps=6)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))

    def train(model, dataset):
        loader = plan.loader(dataset)
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        rule = dp.ScaledClipping(max_grad_norm=1.0)
        optimizer = dp.DPOptimizer(adam, plan=plan, loader=loader, clipping=rule)
        for batch in loader:
            optimizer.backward(model, batch)
            optimizer.step()

    report = dp.audit.replay(train, model, data)

    assert report.ok, report.to_text()
    with pytest.raises(UnsupportedOperationError, match="ScaledClipping"):
        dp.audit.conformance(train, num_records=1000)
