"""What leaves a batch beside the private gradients is told once, and certified."""

import copy
import warnings

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
            optimizer.mechanism.beside,
            layer(torch.randn(8, 4)).sum(1),
            parameters,
            owned=(layer.weight, layer.bias),
            ledger_of=lambda _: optimizer.ledger,
            ledger=optimizer.ledger,
        )
        assert ("neither was looked at" in assumptions(optimizer)) == is_said
