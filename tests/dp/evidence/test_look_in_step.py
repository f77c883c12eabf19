"""A look that several ranks make together tells mixing from other differences."""

import pytest
import torch

from dp.evidence._company import Companies
from dp.evidence._look import Look
from dp.evidence._program_state import ProgramState


def of_another_kernel(batch):
    """What a kernel for inference computes, in which no example sees another."""
    return 2 * batch if torch.is_grad_enabled() else 2 * batch + 0.01


def of_a_mean(batch):
    return batch - batch.mean().detach()


def of_a_number_of_its_own(batch):
    return batch + torch.rand(len(batch), generator=torch.Generator().manual_seed(1))


VERDICTS = {
    of_another_kernel: "alone",
    of_a_mean: "mixed",
    of_a_number_of_its_own: "alone",
}


@pytest.mark.parametrize("function", VERDICTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("both_halves", [False, True])
def test_verdicts_of_ranks_that_look_together(function, both_halves):
    batch_B = torch.randn(8)  # So that no other half has the same mean.
    company = Companies().of(batch_B, num_losses=8, units=None, loader=None, drawn=None)
    state = ProgramState(function)
    losses_B = function(batch_B)
    with state.excursion() as after:
        look = Look(function, company, state, after, losses_B, in_step=True)
        assert look.verdict(both_halves=both_halves) == VERDICTS[function]
