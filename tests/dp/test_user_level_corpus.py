"""The language model of ``docs/examples`` is trained at user level, as it says."""

import runpy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import dp


EXAMPLE = Path(__file__).parents[2] / "docs/examples/user_level_corpus.py"
C = 0.5


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


def clipped_by_loop(losses_of, model, users_lines):
    """Return the sum over users of their whole gradient, clipped to C."""
    parameters, total = [*model.parameters()], 0
    for lines in users_lines:
        grads = torch.autograd.grad(losses_of(model, lines).sum(), parameters)
        gradient = torch.cat([grad.flatten() for grad in grads])
        total = total + gradient * (C / gradient.norm()).clamp(max=1)
    return total


@pytest.mark.slow
def test_sums_are_those_of_a_loop_over_users(example):
    """Every user's gradient is of all their lines, and clipped once: to 1e-7."""
    corpus = example["make_corpus"](20)
    numbers = torch.arange(len(corpus.lines))
    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.5),
        noise_multiplier=0.0,
        max_grad_norm=C,
        expected_batch_size=10,
        steps=4,
        target_delta=1e-4,
        unit_of_privacy="one value of user_id",
    )
    dataset = TensorDataset(corpus.lines, numbers)
    loader = plan.loader(dataset, units=corpus.user_of_line, max_per_unit=10)
    model = example["CharacterModel"](16).double()
    optimizer = dp.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, loader=loader
    )
    num_users = 0
    for lines, numbers_B in loader:
        users = [corpus.user_of_line[number] for number in numbers_B]
        of_users = [
            lines[[user == other for other in users]] for user in dict.fromkeys(users)
        ]
        expected = clipped_by_loop(example["losses_of"], model, of_users)
        optimizer.backward(example["losses_of"](model, lines))
        sums = torch.cat(
            [s.flatten() for s in optimizer.mechanism.pending.sums.of_parameters()]
        )

        torch.testing.assert_close(sums, expected, rtol=1e-7, atol=1e-9)
        assert max(Counter(users).values()) <= 10
        optimizer.step()
        num_users += len(of_users)
    assert num_users > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_the_example_runs_and_its_certificate_names_the_unit(example, capsys):
    """The unit of privacy is a value of the user's id, and epsilon is on target."""
    certificate = example["main"](num_users=40, steps=5)

    assert certificate.unit_of_privacy == "one value of user_id"
    assert 5.9 < certificate.epsilon <= 6.0
    assert "nats for each character" in capsys.readouterr().out
