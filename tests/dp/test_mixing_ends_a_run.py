"""What happens when examples turn out to be mixed after something was released."""

import math
from unittest.mock import patch

import pytest
import torch
from torch import nn

import dp
from dp import (
    DPOptimizer,
    LedgerError,
    SampleMixingError,
    Unamplified,
    WrongGradientError,
    WrongNoiseError,
)
from dp.noise._host.lattice import Lattice
from dp.per_sample import PerSampleGradients
from dp.per_sample._row_layers import OuterProducts


class MixesLater(nn.Module):
    """A model that subtracts a batch mean from its second pass on."""

    def __init__(self, first=1):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.num_clean = first

    def forward(self, x):
        self.num_clean -= 1
        y = self.linear(x).squeeze(1)
        return y if self.num_clean >= 0 else y - y.mean()


def run_of(make_plan, first):
    plan = make_plan(sampling=Unamplified(), noise_multiplier=1.0)
    model = MixesLater(first)
    optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), plan=plan)
    return model, optimizer


def step(model, optimizer):
    optimizer.backward(model(torch.randn(8, 3)).square())
    optimizer.step()


@pytest.mark.slow
def test_mixing_that_is_found_after_a_release_ends_the_run(make_plan, tmp_path):
    """The ledger keeps it: later steps raise, and no epsilon holds."""
    model, optimizer = run_of(make_plan, first=1)
    step(model, optimizer)
    with pytest.raises(SampleMixingError) as caught:
        step(model, optimizer)
    certificate = optimizer.certificate()
    certificate.write(tmp_path)

    assert "epsilon is infinite" in caught.value.__notes__[0]
    assert optimizer.spent().epsilon == math.inf
    assert optimizer.ledger.steps == 1
    assert not certificate.is_private
    assert set(certificate.epsilon_of_groups.values()) == {math.inf}
    assert "NOT PRIVATE: examples were mixed" in certificate.to_text()
    assert dp.verify(tmp_path / "certificate.json").ok
    model.num_clean = 10
    optimizer.backward(model(torch.randn(8, 3)).square())
    with pytest.raises(LedgerError, match="examples were mixed"):
        optimizer.step()


def test_before_the_first_release_it_can_be_mended(make_plan):
    """Nothing was released, so nothing has to be taken back."""
    model, optimizer = run_of(make_plan, first=0)
    with pytest.raises(SampleMixingError) as caught:
        step(model, optimizer)
    model.num_clean = 10
    step(model, optimizer)

    assert not hasattr(caught.value, "__notes__")
    assert math.isfinite(optimizer.spent().epsilon)


def test_a_failure_goes_with_a_checkpoint(make_plan):
    """A run that goes on from it is as unbounded."""
    model, optimizer = run_of(make_plan, first=1)
    step(model, optimizer)
    with pytest.raises(SampleMixingError):
        step(model, optimizer)
    _, resumed = run_of(make_plan, first=10)
    resumed.load_state_dict(optimizer.state_dict())

    assert resumed.spent().epsilon == math.inf


def test_a_wrong_gradient_that_is_found_after_a_release_ends_the_run(make_plan):
    """Norms that were too small before bounded nothing."""
    model, optimizer = run_of(make_plan, first=10)
    step(model, optimizer)
    add_squared_norms = OuterProducts.add_squared_norms

    def add_too_little(self, norms, group_of):
        add_squared_norms(self, norms, group_of)
        for norms_B in norms:
            norms_B.div_(100)

    with (
        patch.object(OuterProducts, "add_squared_norms", add_too_little),
        pytest.raises(WrongGradientError, match=r"norm .* is smaller") as caught,
    ):
        step(model, optimizer)

    assert "epsilon is infinite" in caught.value.__notes__[0]
    assert optimizer.spent().epsilon == math.inf
    assert "NOT PRIVATE: a gradient was wrong" in optimizer.certificate().to_text()


def test_wrong_noise_ends_a_run(make_plan, monkeypatch):
    """Nothing of it is released, and no epsilon holds of what was before."""
    model, optimizer = run_of(make_plan, first=10)
    step(model, optimizer)
    before, of = model.linear.weight.clone(), Lattice.of
    monkeypatch.setattr(Lattice, "of", lambda stddev: of(2**20 * stddev))

    with pytest.raises(WrongNoiseError, match="nothing was released"):
        step(model, optimizer)
    assert torch.equal(model.linear.weight, before)
    assert optimizer.spent().epsilon == math.inf
    assert "NOT PRIVATE: noise was wrong" in optimizer.certificate().to_text()


@pytest.mark.parametrize(
    "clipping",
    [
        dp.FlatClipping(max_grad_norm=1.0),
        dp.AutomaticClipping(max_grad_norm=1.0),
        dp.PerLayerClipping(max_grad_norm=1.0),
        dp.PerGroupClipping(group_sizes=(1, 1), max_grad_norms=(0.6, 0.8)),
    ],
    ids=lambda clipping: type(clipping).__name__,
)
def test_the_norms_that_are_verified_are_those_that_are_clipped_by(make_plan, clipping):
    """Each group's, as the clipping rule asks for them."""
    plan = make_plan(sampling=Unamplified(), noise_multiplier=1.0, max_grad_norm=1.0)
    model = MixesLater(10)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, clipping=clipping
    )
    norms = PerSampleGradients.squared_norms

    def smaller(self, group_of):
        asked.append([*group_of])
        norms_GB = norms(self, group_of)
        return torch.cat([norms_GB[:-1], norms_GB[-1:] / 2])

    asked = []
    with (
        patch.object(PerSampleGradients, "squared_norms", smaller),
        pytest.raises(WrongGradientError, match=r"norm .* is smaller"),
    ):
        step(model, optimizer)
    assert asked[-1] == [*clipping.group_of([*model.parameters()])]


def test_a_failed_run_fails_what_it_is_composed_with(make_plan):
    """Also where another certificate has all of its charges."""
    model, optimizer = run_of(make_plan, first=1)
    step(model, optimizer)
    before = optimizer.certificate()
    with pytest.raises(SampleMixingError):
        step(model, optimizer)
    both = dp.compose(before, optimizer.certificate())

    assert math.isfinite(before.epsilon)
    assert both.epsilon == math.inf
    assert both.steps == 1
