"""Tensors that the caller declares public: who declared what is stated, and kept."""

import pytest
import torch
from torch import nn

import dp


def make_model():
    """Return a linear model whose weight is computed with a fixed basis."""
    model = nn.Module()
    model.register_buffer("basis", torch.eye(3)[:2])
    model.coordinates = nn.Parameter(torch.ones(4, 2))
    return model


@pytest.fixture
def model():
    return make_model()


def private(model, **options):
    sgd = torch.optim.SGD([model.coordinates], lr=0.1)
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=4.0,
        max_grad_norm=1.0,
        expected_batch_size=5.0,
        steps=3,
        target_delta=1e-5,
    )
    return dp.DPOptimizer(sgd, plan=plan, **options)


def take_step(optimizer, model):
    weight = model.coordinates @ model.basis
    optimizer.backward((torch.ones(5, 3) @ weight.T).square().sum(1))
    optimizer.step()


@pytest.mark.parametrize(
    ("declare", "stated"),
    [
        (lambda m: m.buffers(), "tensor 0: float32 of shape (2, 3)"),
        (lambda m: dict(m.named_buffers()), "basis: float32 of shape (2, 3)"),
    ],
    ids=["tensors", "names"],
)
def test_the_certificate_states_what_was_declared(model, declare, stated):
    """By its name, where the caller gave one."""
    optimizer = private(model, public=declare(model))
    take_step(optimizer, model)
    certificate = optimizer.certificate()

    assert certificate.runs[0].declared_public == (stated,)
    assert stated in certificate.to_text()
    assert dp.verify(certificate, quick=True).ok


def test_what_a_function_computes_is_public_as_it_is_at_the_step():
    """Constants that follow from the parameters change with them."""

    def norms_of(model):
        return [(model.coordinates @ model.basis).norm(dim=1, keepdim=True)]

    def take_steps(optimizer, model):
        for _ in range(3):
            weight = model.coordinates @ model.basis
            scaled = weight / norms_of(model)[0].detach()
            optimizer.backward((torch.randn(5, 3) @ scaled.T).square().sum(1))
            optimizer.step()

    model, other = make_model(), make_model()
    public = {"basis": model.basis, "norms": lambda: norms_of(model)}
    optimizer = private(model, public=public)
    take_steps(optimizer, model)
    stated = optimizer.certificate().runs[0].declared_public

    assert stated[1] == "norms: computed by a function at every step"
    with pytest.raises(dp.SampleMixingError, match="not the same in every batch"):
        take_steps(private(other, public={"basis": other.basis}), other)


def test_a_resumed_run_states_what_was_declared_before(model):
    """Weights that were trained with a declaration do not lose it in a checkpoint."""
    first = private(model, public={"basis": model.basis})
    take_step(first, model)
    resumed = private(model)
    resumed.load_state_dict(first.state_dict())

    (run,) = resumed.certificate().runs
    assert run.declared_public == ("basis: float32 of shape (2, 3)",)


@pytest.mark.parametrize(
    ("public", "told"),
    [
        (torch.ones(2, 3), r"public=\[tensor\]"),
        ([3.0], r"public\['tensor 0'\] must be a tensor, got float"),
        ({"scale": 3.0}, r"public\['scale'\] must be a tensor, got float"),
    ],
    ids=["a tensor", "numbers", "named numbers"],
)
def test_only_tensors_can_be_declared(model, public, told):
    """A number in the program needs no declaration."""
    with pytest.raises(TypeError, match=told):
        private(model, public=public)
