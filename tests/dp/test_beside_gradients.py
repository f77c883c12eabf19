"""What leaves a batch beside the private gradients is told once, and certified."""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

import dp
from dp import DPOptimizer
from dp.optimizer._beside import look_beside


@pytest.fixture
def make_optimizer(make_plan):
    def make(*modules, **more):
        plan = make_plan(sampling=dp.Unamplified(), expected_batch_size=40.0)
        parameters = [p for module in modules for p in module.parameters()]
        return DPOptimizer(torch.optim.SGD(parameters, lr=0.1), plan=plan, **more)

    return make


def step(optimizer, losses):
    optimizer.backward(losses)
    optimizer.step()


def assumptions(optimizer):
    return " ".join(optimizer.certificate().assumptions)


@pytest.mark.parametrize("later", [False, True])
def test_rows_that_a_forward_pass_writes_are_told(make_optimizer, later):
    """``max_norm`` shortens the rows of the tokens in the batch, without noise.

    Before the first step, all weights may be written: by loading, or by a broadcast.
    """
    table, head = nn.Embedding(100, 8, max_norm=1.0), nn.Linear(8, 1, bias=False)
    optimizer = make_optimizer(table, head)

    def losses():
        return head(table(torch.randint(0, 50, (10, 5))).mean(1)).squeeze(1)

    if later:
        with torch.no_grad():
            table.weight.div_(table.weight.norm(dim=1, keepdim=True))
            head.weight.mul_(1.0)
        step(optimizer, losses())
        assert "written to" not in assumptions(optimizer)
        with torch.no_grad():
            table.weight.mul_(3.0)
    with pytest.warns(UserWarning, match="written to before backward"):
        optimizer.backward(losses())
    optimizer.step()
    step(optimizer, losses())  # Told once: another warning would raise here.

    assert "written to between steps" in assumptions(optimizer)


@pytest.mark.parametrize("assigns", [False, True])
def test_writes_through_data_are_told_after_the_first_update(make_optimizer, assigns):
    """No version is raised: all bits are compared after updates 1, 2, 4, 8 and so on."""
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    x = torch.randn(8, 4)
    for _ in range(3):
        step(optimizer, model(x).squeeze(1))
    raw = 0.1 * x.mean(0)
    if assigns:
        model.weight.data = model.weight.data - raw
    else:
        model.weight.data.sub_(raw)
    step(optimizer, model(x).squeeze(1))  # The third update: nothing is compared.
    model.weight.data.sub_(raw)

    with pytest.warns(UserWarning, match="written to before backward"):
        optimizer.backward(model(x).squeeze(1))
    assert "written to between steps" in assumptions(optimizer)


def test_weights_that_were_put_back_were_not_written(make_optimizer):
    """As where averaged weights stand in while a model is evaluated."""
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    x = torch.randn(8, 4)
    for _ in range(4):
        step(optimizer, model(x).squeeze(1))
        kept = model.weight.data
        model.weight.data = torch.zeros(1, 4)
        model.weight.data = kept

    assert "written to" not in assumptions(optimizer)


def test_writes_of_the_optimizer_and_of_loading_are_its_own(make_optimizer):
    """Updates, a second private optimizer with this ledger, and states that are loaded."""
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    x = torch.randn(8, 4)
    for _ in range(3):
        step(optimizer, model(x).squeeze(1))
    other = make_optimizer(model, continue_from=optimizer)
    step(other, model(x).squeeze(1))
    step(optimizer, model(x).squeeze(1))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    step(optimizer, model(x).squeeze(1))
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    model.load_state_dict(state[0])
    step(optimizer, model(x).squeeze(1))

    assert "written to" not in assumptions(optimizer)


class Lookahead(torch.optim.Optimizer):
    """A layer around an optimizer that writes to weights after every step."""

    def __init__(self, base):
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups
        self.base = base

    def step(self, closure=None):
        loss = self.base.step(closure)
        shrink(self)
        return loss


def shrink(optimizer, *_):
    with torch.no_grad():
        for group in optimizer.param_groups:
            torch._foreach_mul_(group["params"], 0.9)


@pytest.mark.parametrize("where", ["step", "hook of the layer", "own hook"])
def test_what_a_layer_writes_in_its_own_step_is_an_update(make_optimizer, where):
    """Averages and clamps of released weights are no writes of the forward pass."""
    table, head = nn.Embedding(100, 8, max_norm=1e-3), nn.Linear(8, 1, bias=False)
    optimizer = make_optimizer(table, head)
    around = optimizer
    if where == "own hook":
        optimizer.register_step_post_hook(shrink)
    else:
        around = Lookahead(optimizer)
    if where == "hook of the layer":
        around.register_step_post_hook(shrink)

    def losses(tokens):
        return head(tokens.mean(1)).squeeze(1)

    for _ in range(3):
        optimizer.backward(losses(table.weight[torch.randint(0, 50, (10, 5))]))
        around.step()
    assert "written to" not in assumptions(optimizer)

    # What is written after that step is told as before.
    with pytest.warns(UserWarning, match="written to before backward"):
        optimizer.backward(losses(table(torch.randint(0, 50, (10, 5)))))


def test_before_the_first_update_nothing_belongs_to_one(make_optimizer):
    """A layer whose step leads to no private step hides no write."""
    table, head = nn.Embedding(100, 8), nn.Linear(8, 1, bias=False)
    optimizer = make_optimizer(table, head)
    with torch.no_grad():
        table.weight.mul_(2.0)
    optimizer.mechanism.beside.accept([table.weight])

    with pytest.warns(UserWarning, match="written to before backward"):
        optimizer.backward(
            head(table(torch.randint(0, 50, (10, 5))).mean(1)).squeeze(1)
        )


class Bare(Lookahead):
    """A layer that leaves ``Optimizer.__init__`` out, as timm's does."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.param_groups, self.base = base.param_groups, base
        self.num_steps = 0

    def step(self, closure=None):
        loss = self.base.step(closure)
        self.num_steps += 1
        if self.num_steps % 2 == 0:
            shrink(self)
        return loss


def test_a_layer_that_torch_has_not_hooked_is_hooked(make_optimizer):
    """From its first step on, which is when it is seen."""
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    around = Bare(optimizer)
    for _ in range(5):
        optimizer.backward(model(torch.randn(8, 4)).squeeze(1))
        around.step()

    assert "written to" not in assumptions(optimizer)


def test_weights_that_another_optimizer_may_train_are_told(make_optimizer):
    """Their cost is in no ledger; frozen weights and inputs with gradients are none."""
    body, head = nn.Linear(4, 8), nn.Linear(8, 1)
    optimizer = make_optimizer(head)

    def losses():
        return head(torch.tanh(body(torch.randn(8, 4)))).squeeze(1)

    with pytest.warns(UserWarning, match=r"shape \(8, 4\), \(8,\) take part"):
        optimizer.backward(losses())
    optimizer.step()
    for _ in range(3):  # Looked at again in the second and in the fourth call.
        step(optimizer, losses())

    assert "in no group of this optimizer" in assumptions(optimizer)


def test_many_of_them_are_counted(make_optimizer):
    """The warning stays short."""
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    head = nn.Linear(4, 1)
    optimizer = make_optimizer(head)
    with pytest.warns(UserWarning, match="and 3 more take part"):
        optimizer.backward(head(body(torch.randn(8, 4))).squeeze(1))


@pytest.mark.parametrize("name", ["hook", "post_accumulate_grad_hook"])
def test_hooks_that_are_not_called_are_told(make_optimizer, name):
    """A mask by a hook would freeze nothing, in silence; one that is removed is fine."""
    model, mask = nn.Linear(3, 1), torch.zeros(1, 3)
    optimizer = make_optimizer(model)
    handle = getattr(model.weight, f"register_{name}")(lambda grad: grad * mask)
    with pytest.warns(UserWarning, match=r"hook .* of shape \(1, 3\).* is not called"):
        step(optimizer, model(torch.randn(4, 3)).squeeze(1))
    step(optimizer, model(torch.randn(4, 3)).squeeze(1))  # Told once.

    other = nn.Linear(3, 1)
    handle.remove()
    getattr(other.weight, f"register_{name}")(lambda grad: grad * mask).remove()
    step(make_optimizer(other), other(torch.randn(4, 3)).squeeze(1))


def test_what_is_frozen_or_in_this_ledger_is_fine(make_optimizer):
    """No false alarm: a frozen body, trainable inputs, a shared ledger, a frozen group."""
    body, head = nn.Linear(4, 8), nn.Linear(8, 1)
    first = make_optimizer(body)
    optimizer = make_optimizer(head, continue_from=first)
    x = torch.randn(8, 4, requires_grad=True)

    def losses():
        return head(torch.tanh(body(x))).squeeze(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", dp.EvidenceWarning)
        step(optimizer, losses())
        body.requires_grad_(requires_grad=False)
        step(optimizer, losses())
        head.weight.requires_grad_(requires_grad=False)
        step(optimizer, losses())

    assert "in no group" not in assumptions(optimizer)


def test_losses_that_no_weight_reaches_have_no_leaves(make_optimizer):
    """They are refused as before, by what refuses them."""
    optimizer = make_optimizer(nn.Linear(4, 1))
    with pytest.raises(dp.UnsupportedOperationError, match="takes part in the losses"):
        optimizer.backward(torch.randn(8))


def test_sharded_parameters_are_stated_as_not_looked_at(make_optimizer):
    """FSDP writes to what it gathers, so of shards nothing can be seen."""
    layer = nn.Linear(4, 1)
    optimizer = make_optimizer(layer)
    shard = torch.zeros(1)
    shard.placements = ()
    for parameters, is_said in (([layer.weight], False), ([shard], True)):
        look_beside(
            optimizer.mechanism,
            layer(torch.randn(8, 4)).sum(1),
            parameters,
            owned=(layer.weight, layer.bias),
            ledger_of=lambda _: optimizer.ledger,
        )
        assert ("neither was looked at" in assumptions(optimizer)) == is_said
