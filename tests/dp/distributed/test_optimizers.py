"""Sharding optimizers and trainers' entry points keep the step of many ranks."""

import pytest
import torch


@pytest.mark.parametrize(
    ("kind", "inner", "entry"),
    [
        ("ddp", "adam", "private_loss"),
        ("fsdp", "adam", "private_loss"),
        ("ddp", "zero", "backward"),
    ],
)
def test_every_combination_takes_the_same_step(ranks, kind, inner, entry):
    """The batch is the whole dataset, so the plain run has the same gradients."""
    found = ranks("ranks_optimizers:train", kind=kind, inner=inner, entry=entry)
    plain = ranks(
        "ranks_optimizers:train", kind="plain", inner="adam", entry="backward"
    )

    for (weights, steps), (expected, _) in zip(found, plain, strict=True):
        torch.testing.assert_close(
            torch.tensor(weights), torch.tensor(expected), rtol=0, atol=1e-8
        )
        assert steps == 3


def test_a_sharding_optimizer_around_private_ones_is_refused(doomed_ranks):
    """Each rank would clip its own shard's gradient, and that is no one's norm."""
    for name, message in doomed_ranks("ranks_optimizers:around"):
        assert name == "UnsupportedOperationError", message
        assert "put it inside" in message
