"""What certificates say besides charges outlives the optimizer that saw it."""

import copy
import itertools
import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, LedgerError
from dp.ledger import Ledger
from dp.ledger._remarks import Remarks
from dp.noise import GaussianNoise


RATES = "Learning rates and other options of the optimizer that changed between steps"
WRITTEN = "Parameters that were written to between steps"


@pytest.fixture
def optimizer_of(make_plan):
    """Return an optimizer of so many numbers, on data of its own."""

    def optimizer_of(num_parameters=3, plan=None, **options):
        plan = make_plan() if plan is None else plan
        data = TensorDataset(torch.randn(20, 3))
        return DPOptimizer(
            torch.optim.SGD([nn.Parameter(torch.zeros(num_parameters))], lr=0.1),
            plan=plan,
            loader=plan.loader(data),
            **options,
        )

    return optimizer_of


def train(optimizer, *, lr=0.1, writes=False):
    """Take three steps, at rates that change if *lr* is another one."""
    (weight,) = optimizer.param_groups[0]["params"]
    for rate, (x,) in zip((0.1, lr, lr), optimizer.mechanism.loader, strict=False):
        optimizer.param_groups[0]["lr"] = rate
        if writes and rate == lr:
            with torch.no_grad():
                weight.mul_(0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That it was written to.
            optimizer.backward(lambda x: (x * weight.sum()).square().sum(1), x)
        optimizer.step()


def through_state(optimizer, optimizer_of):
    resumed = optimizer_of()
    state = optimizer.state_dict()
    state["param_groups"][0]["params"] = [0]
    resumed.load_state_dict({**state, "state": {}})
    return resumed


WAYS = {
    "state": through_state,
    "copy": lambda optimizer, _: copy.deepcopy(optimizer),
    "pickle": lambda optimizer, _: pickle.loads(pickle.dumps(optimizer)),  # noqa: S301 -- our own
    "shared": lambda optimizer, optimizer_of: optimizer_of(continue_from=optimizer),
    "larger plan": lambda optimizer, optimizer_of: optimizer_of(
        plan=replace(optimizer.plan, steps=40), continue_from=optimizer
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_others_saw_of_earlier_steps_is_stated(optimizer_of, way):
    """A resume, a copy and a shared ledger: each certificate covers their steps, too."""
    optimizer = optimizer_of()
    train(optimizer, lr=0.2, writes=True)
    certificate = WAYS[way](optimizer, optimizer_of).certificate()
    said = " ".join(certificate.assumptions)

    assert RATES in said
    assert WRITTEN in said
    assert dp.verify(certificate, quick=True).ok
    assert RATES not in " ".join(optimizer_of().certificate().assumptions)


@pytest.mark.parametrize("way", WAYS)
def test_noise_of_earlier_steps_is_stated_as_it_was(optimizer_of, way):
    """The weakest source counts, and the most numbers that one release noised."""
    optimizer = optimizer_of(num_parameters=50, noise=GaussianNoise(rng="fast"))
    train(optimizer)
    later = WAYS[way](optimizer, optimizer_of)
    later.mechanism.noise = GaussianNoise()
    certificate = later.certificate()
    (run,) = certificate.runs

    assert run.rng == "fast"
    assert "NOT cryptographic" in run.noise
    assert run.num_parameters == 50
    assert certificate.delta_error == math.inf
    assert dp.verify(certificate, quick=True).ok


def test_debugging_noise_of_earlier_steps_is_stated_as_such(optimizer_of):
    """As a failure is: it has no other source, either."""
    optimizer = optimizer_of(noise=GaussianNoise(rng="debug", seed=1))
    train(optimizer)
    (run,) = through_state(optimizer, optimizer_of).certificate().runs

    assert run.rng == "debug"
    assert run.noise.startswith("NOT PRIVATE")


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_documents_of_the_same_charges_are_composed_as_all_of_them_say(
    make_plan, order
):
    """Whichever comes first keeps the charges, and says what the others say of them."""
    ledger = Ledger(make_plan())
    ledger.reserve(sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=1.0)
    about = {"num_parameters": 3, "private_data_touches": ()}
    plain = dp.Certificate.of(ledger, noise=GaussianNoise(), **about)
    fast = dp.Certificate.of(ledger, noise=GaussianNoise(rng="fast"), **about)
    ledger.declare_public(["basis"])
    large = dp.Certificate.of(
        ledger, noise=GaussianNoise(), **about | {"num_parameters": 50}
    )
    documents = plain, fast, large
    (run,) = dp.compose(*(documents[i] for i in order)).runs

    assert (run.rng, run.noise) == ("fast", GaussianNoise(rng="fast").description)
    assert run.num_parameters == 50
    assert run.declared_public == ("basis",)


def test_documents_of_other_charges_say_nothing_of_these(make_plan):
    """A run with weak noise makes that of another no weaker."""
    runs = []
    for rng in ("os", "fast"):
        ledger = Ledger(make_plan())
        ledger.reserve(
            sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=1.0
        )
        noise = GaussianNoise(rng=rng)
        runs.append(dp.Certificate.of(ledger, noise=noise, num_parameters=3))

    assert [run.rng for run in dp.compose(*runs).runs] == ["os", "fast"]


@pytest.mark.parametrize(
    "remarks",
    [
        "none",
        {"rng": "good"},
        {"num_parameters": -1},
        {"num_parameters": "3"},
        {"assumptions": "one"},
        {"assumptions": [1]},
    ],
    ids=str,
)
def test_damaged_remarks_are_refused(make_plan, remarks):
    """Nothing of the state is loaded."""
    ledger = Ledger(make_plan())
    ledger.remark(Remarks(assumptions=("It is so.",)))

    with pytest.raises(LedgerError, match="damaged"):
        ledger.load_state_dict({**ledger.state_dict(), "remarks": remarks})
    assert ledger.remarks.assumptions == ("It is so.",)


def test_a_state_without_remarks_is_that_of_an_ordinary_run(make_plan):
    """It reads as those that were written before there were any."""
    state = Ledger(make_plan()).state_dict()

    assert "remarks" not in state
    assert Remarks.of_state(state) == Remarks()
