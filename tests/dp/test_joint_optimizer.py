"""That several optimizers are one: one release, one state, the same updates."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import LBFGS, SGD, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from dp import DPOptimizer, JointOptimizer, PrivacyError, UnsupportedOperationError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))

    def matrices(self):
        return [p for p in self.parameters() if p.dim() == 2]

    def others(self):
        return [p for p in self.parameters() if p.dim() != 2]


def parts_of(net):
    return Muon(net.matrices(), lr=0.02), AdamW(net.others(), lr=0.01)


def joined(net):
    return JointOptimizer(*parts_of(net))


def private(net, plan, loader=None):
    return DPOptimizer(joined(net), plan=plan, loader=loader)


def set_gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.fixture
def nets():
    torch.manual_seed(1)
    net = Net()
    return net, copy.deepcopy(net)


def assert_equal(net, other):
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_step_is_every_optimizers_step(nets):
    """The same gradients move the same weights, with momentum."""
    net, other = nets
    joint, parts = joined(net), parts_of(other)
    for seed in range(3):
        set_gradients(net, seed)
        set_gradients(other, seed)
        joint.step()
        for part in parts:
            part.step()

    assert_equal(net, other)
    joint.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_one_release_serves_all(nets, make_plan):
    """Charged once, clipped as one gradient, with noise on every parameter."""
    net, _ = nets
    plan = make_plan(noise_multiplier=0.0, max_grad_norm=1e-3, expected_batch_size=1.0)
    data = torch.utils.data.TensorDataset(torch.randn(20, 6))
    loader = plan.loader(data)
    optimizer = private(net, plan, loader)
    before = copy.deepcopy(net)
    (x,) = next(iter(loader))
    optimizer.backward(1e3 * net(x).square().sum(1)[:1].repeat(1))
    optimizer.mechanism.pending.num_samples = len(x)  # One example gave all of it.
    optimizer.step()
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()

    assert optimizer.ledger.steps == 1
    assert 0.99e-3 < norm <= 1e-3
    for p, q in zip(net.parameters(), before.parameters(), strict=True):
        assert not torch.equal(p, q)


def test_groups_and_state_are_those_of_the_optimizers(nets):
    """Read, written and replaced through the joint one."""
    net, _ = nets
    joint = joined(net)
    muon, adamw = joint.optimizers
    set_gradients(net, 0)
    joint.step()

    assert [id(g) for g in joint.param_groups] == [
        id(g) for o in (muon, adamw) for g in o.param_groups
    ]
    joint.param_groups[1]["lr"] = 0.5
    assert adamw.param_groups[0]["lr"] == 0.5
    joint.param_groups = [dict(group) for group in joint.param_groups]
    assert muon.param_groups[0] is joint.param_groups[0]
    with pytest.raises(ValueError, match="1 parameter groups were assigned"):
        joint.param_groups = joint.param_groups[:1]
    assert len(joint.state) == 4
    assert set(joint.state) == set(net.parameters())
    bias = net.a.bias
    assert joint.state[bias] is adamw.state[bias]
    del joint.state[bias]
    assert bias not in adamw.state
    joint.state[bias] = {"step": 3}
    assert adamw.state[bias] == {"step": 3}
    with pytest.raises(KeyError):
        joint.state[torch.zeros(1)]
    assert "step" in repr(joint.state)
    assert "momentum" not in joint.defaults
    assert joint.defaults["lr"] == 0.02
    assert repr(joint).startswith("JointOptimizer of Muon (")


def test_a_state_is_one_optimizers_and_loads_with_weights_only(nets):
    """Numbered through; training goes on as if it had not been interrupted."""
    net, other = nets
    joint = joined(net)
    set_gradients(net, 0)
    joint.step()
    file = io.BytesIO()
    torch.save(joint.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sorted(state["state"]) == [0, 1, 2, 3]
    assert [g["params"] for g in state["param_groups"]] == [[0, 1], [2, 3]]

    resumed = joined(other)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(state)
    for each, optimizer in ((net, joint), (other, resumed)):
        set_gradients(each, 1)
        optimizer.step()
    assert_equal(net, other)
    with pytest.raises(ValueError, match="join the same optimizers"):
        JointOptimizer(SGD(net.others(), lr=1.0)).load_state_dict(state)


def test_private_checkpoints_carry_the_ledger(nets, make_plan):
    """By torch's own recipe too, which flattens nothing and fills an empty state."""
    net, other = nets
    plan = make_plan(steps=4)
    data = torch.utils.data.TensorDataset(torch.randn(20, 6))
    loader = plan.loader(data)
    optimizer = private(net, plan, loader)
    for _, (x,) in zip(range(2), loader, strict=False):
        optimizer.backward(net(x).square().sum(1))
        optimizer.step()
    resumed = private(other, plan, plan.loader(data))
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.ledger.steps == 2
    third = private(again := Net(), plan, plan.loader(data))
    saved = get_optimizer_state_dict(net, optimizer)
    set_optimizer_state_dict(again, third, saved)

    assert third.ledger.steps == 2
    assert torch.equal(
        third.state[again.a.bias]["exp_avg"], optimizer.state[net.a.bias]["exp_avg"]
    )


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_are_whole(nets, copied):
    """With their parameters and states, and hooks of their own."""
    net, _ = nets
    joint = joined(net)
    set_gradients(net, 0)
    joint.step()
    joint.register_step_post_hook(lambda *_: pytest.fail("a hook was copied"))
    twin = copied(joint)
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    twin.step()

    assert len(twin.state) == 4
    assert set(twin.state).isdisjoint(joint.state)


@pytest.mark.slow
def test_schedulers_drive_every_optimizer(nets, make_plan):
    """One factor for all, or one a group; what only some can cycle is refused by torch."""
    net, _ = nets
    plan = make_plan()
    loader = plan.loader(torch.utils.data.TensorDataset(torch.randn(20, 6)))
    optimizer = private(net, plan, loader)
    scheduler = LambdaLR(optimizer, [lambda step: 0.5**step, lambda step: 0.1**step])
    for _, (x,) in zip(range(2), loader, strict=False):
        optimizer.backward(net(x).square().sum(1))
        optimizer.step()
        scheduler.step()

    muon, adamw = optimizer.original_optimizer.optimizers
    assert muon.param_groups[0]["lr"] == pytest.approx(0.02 / 4)
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.01 / 100)
    with pytest.raises(ValueError, match="must support momentum"):
        OneCycleLR(joined(Net()), max_lr=0.1, total_steps=10)


def test_hooks_fire_once(nets):
    """Global ones for the joint step, and each optimizer's own."""
    net, _ = nets
    joint = joined(net)
    seen = []
    handle = register_optimizer_step_post_hook(
        lambda o, *_: seen.append(type(o).__name__)
    )
    joint.optimizers[0].register_step_post_hook(lambda *_: seen.append("own"))
    for register, name in (
        (joint.register_state_dict_pre_hook, "before saving"),
        (joint.register_load_state_dict_post_hook, "after loading"),
    ):
        register(lambda *_, name=name: seen.append(name))
    joint.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    joint.register_load_state_dict_pre_hook(lambda _, state: state)
    try:
        set_gradients(net, 0)
        joint.step()
    finally:
        handle.remove()
    state = joint.state_dict()
    joint.load_state_dict(state)

    assert state["more"] == 1
    assert seen == ["own", "JointOptimizer", "before saving", "after loading"]


def test_a_closure_is_evaluated_once(nets):
    """Before the first of them, with gradients."""
    net, _ = nets
    joint = joined(net)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        set_gradients(net, 0)
        return 7.0

    with torch.no_grad():
        assert joint.step(closure) == 7.0
    assert calls == [True]


def test_its_optimizers_cannot_step_around_privacy(nets, make_plan):
    """Each of them alone would apply whatever gradient it finds."""
    net, _ = nets
    plan = make_plan()
    loader = plan.loader(torch.utils.data.TensorDataset(torch.randn(20, 6)))
    optimizer = private(net, plan, loader)

    for part in optimizer.original_optimizer.optimizers:
        with pytest.raises(PrivacyError, match="without clipping"):
            part.step()
    with pytest.raises(UnsupportedOperationError, match="does not say whose"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_what_cannot_be_joined_is_refused(nets, make_plan):
    """By name, with the remedy."""
    net, _ = nets
    sgd = SGD(net.others(), lr=0.1)

    with pytest.raises(ValueError, match="needs an optimizer"):
        JointOptimizer()
    with pytest.raises(TypeError, match="pass them one by one"):
        JointOptimizer([sgd])
    with pytest.raises(ValueError, match="optimizers at 0 and 1"):
        JointOptimizer(sgd, SGD(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="join them first"):
        DPOptimizer([sgd], plan=make_plan())
    with pytest.raises(UnsupportedOperationError, match="LBFGS cannot be made private"):
        DPOptimizer(JointOptimizer(sgd, LBFGS(net.matrices())), plan=make_plan())


def test_private_optimizers_are_not_joined_in_another(make_run, make_plan):
    """Noise would be added twice."""
    run = make_run()

    with pytest.raises(TypeError, match="is a DPOptimizer already"):
        DPOptimizer(JointOptimizer(run.optimizer), plan=make_plan(), loader=run.loader)


class Lars(Optimizer):
    """A layer that edits gradients before the step of what it wraps."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)
        return self.inner.step()


def test_a_layer_around_that_edits_gradients_is_told_of(make_run):
    """It sees none, so its scaling would do nothing; inside it works."""
    run = make_run()
    layer = Lars(run.optimizer)
    batches = iter(run.loader)
    run.optimizer.backward(run.losses(next(batches)))
    with (
        pytest.warns(UserWarning, match="read or edited between backward and step"),
        pytest.warns(UserWarning, match=r"DPOptimizer\(Lars\(inner\), plan="),
    ):
        layer.step()
    run.optimizer.backward(run.losses(next(batches)))
    layer.step()  # Told once.

    assert run.optimizer.ledger.steps == 2
