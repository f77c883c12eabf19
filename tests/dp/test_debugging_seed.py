"""That a run with a debugging seed can be repeated, and says everywhere what it is not."""

import copy
import json
import math
import pickle

import pytest
import torch
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, GaussianNoise
from dp.ledger import Ledger


def run_of(make_plan, noise, *, steps=6):
    """Train a linear model from the same weights on the same data."""
    torch.manual_seed(3)
    model = torch.nn.Linear(50, 1)
    data = TensorDataset(torch.randn(40, 50), torch.randn(40))
    plan = make_plan(steps=steps)
    loader = plan.loader(data)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan, loader=loader, noise=noise)
    sizes = []
    for x, y in loader:
        sizes.append(len(x))
        optimizer.backward((model(x).squeeze(1) - y).square())
        optimizer.step()
    return model.weight.detach().clone(), sizes, optimizer


def debugging(seed=7):
    return GaussianNoise(rng="debug", seed=seed)


@pytest.mark.slow
def test_a_seed_gives_the_same_run_twice(make_plan):
    """Its batches and its noise; another seed another run, and no seed none twice."""
    first, second, other = (
        run_of(make_plan, noise) for noise in (debugging(), debugging(), debugging(8))
    )

    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
    assert not torch.equal(first[0], other[0])
    secret = [run_of(make_plan, GaussianNoise())[0] for _ in range(2)]
    assert not torch.equal(*secret)


@pytest.mark.statistical
def test_the_noise_of_a_seed_is_the_same_mechanism(decisions):
    """Of the stated scale, and new in every call: 20 000 draws, false alarms 5e-15."""
    noise, (one, two) = debugging(), torch.zeros(2, 20_000)
    noise.add_([one], stddev=3.0)
    noise.add_([two], stddev=3.0)

    assert not decisions.differs("scale", float(one.std()), 3.0, rel=0.04)
    assert not torch.equal(one, two)
    assert noise.granularity(stddev=1.0) == GaussianNoise().granularity(stddev=1.0)


def test_threads_do_not_change_the_noise():
    """A large tensor is drawn by one, whatever torch was told."""
    drawn = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            sums = torch.zeros(1 << 22)
            debugging().add_([sums], stddev=1.0)
            drawn.append(sums)
    finally:
        torch.set_num_threads(threads)

    assert torch.equal(*drawn)


@pytest.mark.slow
def test_it_says_everywhere_that_nothing_is_private(make_plan, tmp_path):
    """In ledger, certificate, its picture, states and every repr; steps go on."""
    _, _, optimizer = run_of(make_plan, debugging())
    document = optimizer.certificate()
    document.write(tmp_path)

    assert optimizer.ledger.steps == 6
    assert optimizer.spent().epsilon == optimizer.guarantee().epsilon == math.inf
    assert optimizer.spent().accountant == "NOT PRIVATE"
    for shown in (optimizer, optimizer.ledger, optimizer.mechanism.noise):
        assert "NOT PRIVATE" in repr(shown)
    assert "NOT PRIVATE: noise came from a debugging seed" in document.to_text()
    assert document.epsilon == document.delta_error == math.inf
    assert dp.verify(tmp_path / "certificate.json", quick=True).ok
    (run,) = document.runs
    assert run.rng == "debug"
    assert repr(Ledger(make_plan())) == "<Ledger: 0 of 20 steps>"


def test_what_goes_on_from_it_is_not_private_either(make_plan, make_run):
    """With noise that cannot be repeated the earlier steps stay what they were."""
    _, _, optimizer = run_of(make_plan, debugging(), steps=20)
    copies = (
        copy.deepcopy(optimizer.ledger),
        pickle.loads(pickle.dumps(optimizer.ledger)),  # noqa: S301 -- our own
    )
    resumed = Ledger(make_plan())
    resumed.load_state_dict(json.loads(json.dumps(optimizer.ledger.state_dict())))

    for ledger in (*copies, resumed):
        assert ledger.spent().epsilon == math.inf
        assert "NOT PRIVATE" in repr(ledger)
    assert make_run().optimizer.spent().epsilon == 0


def test_a_certificate_of_such_noise_alone_is_not_private(make_plan):
    """Also of a ledger that knows nothing of it."""
    noise = debugging()
    document = dp.Certificate.of(Ledger(make_plan()), noise=noise, num_parameters=1)

    assert document.epsilon == math.inf
    assert noise.description in document.to_text()
    assert not document.is_private


def test_an_end_by_mixing_outweighs_a_seed(make_plan):
    """A run that only debugs goes on; one whose examples were mixed does not."""
    ledger = Ledger(make_plan())
    ledger.note_debugging_seed()
    assert not ledger.is_exhausted
    ledger.fail("examples were mixed")
    ledger.note_debugging_seed()

    assert ledger.failure == "examples were mixed"
    assert ledger.is_exhausted


def test_batches_of_a_seed_are_private_to_no_other_optimizer(make_plan):
    """Amplification by sampling needs coins that nobody can repeat."""
    _, _, debugged = run_of(make_plan, debugging())
    loader = debugged.mechanism.loader
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=0.1)
    other = DPOptimizer(sgd, plan=debugged.plan, loader=loader)

    assert loader.debug_seed == 7
    assert other.spent().epsilon == math.inf


def test_a_loader_that_is_attached_is_seeded_too(make_plan, make_run):
    """As after unpickling, when the optimizer had none."""
    run = make_run()
    debugged = pickle.loads(pickle.dumps(run_of(make_plan, debugging())[2]))  # noqa: S301 -- our own
    debugged.attach(run.loader)

    assert run.loader.debug_seed == 7


@pytest.mark.parametrize(
    "arguments", [{"rng": "debug"}, {"seed": 1}, {"rng": "fast", "seed": 1}]
)
def test_a_seed_is_for_debugging_alone(arguments):
    """And debugging needs one, so that nobody believes to be repeatable."""
    with pytest.raises(ValueError, match="noise that protects anything has no seed"):
        GaussianNoise(**arguments)


def test_a_copy_begins_with_the_seed_again():
    """It is the same source, from the start."""
    noise = debugging()
    first, second = torch.zeros(2, 100)
    noise.add_([first], stddev=1.0)
    copied = pickle.loads(pickle.dumps(noise))  # noqa: S301 -- our own
    copied.add_([second], stddev=1.0)

    assert copied.seed == 7
    assert torch.equal(first, second)
