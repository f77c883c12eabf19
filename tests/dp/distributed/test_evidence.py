"""Ranks evaluate loss functions again at the same steps, and as often."""

import pytest

from dp.evidence import num_due

from .test_training import agree, alone, union


__all__ = ("alone",)  # A fixture.


@pytest.mark.parametrize("kind", ["plain", "ddp", "fsdp", "fsdp_kept"])
@pytest.mark.usefixtures("device")
def test_ranks_look_together_and_train_as_they_would(ranks, alone, kind):
    """Whatever they drew: forward passes of a sharded model need all of them."""
    results = ranks("ranks_evidence:train", kind=kind)

    assert agree(results, alone.train_alone(union(results)))
    assert all(r["looked_at"] == results[0]["looked_at"] for r in results)
    assert set(results[0]["looked_at"]) >= {0, 1, 2}
    for result in results:
        record = result["record"]
        assert record["looks"] == num_due(result["segment"], 6)
        assert record["evaluated"] == record["steps"] == 6
        assert not record["inconclusive"]


def test_parts_of_the_first_steps_are_looked_at_on_every_rank(ranks):
    """Before ranks share the id that later steps follow from."""
    results = ranks("ranks_evidence:train", kind="fsdp", num_parts=2, num_steps=2)

    assert all(r["looked_at"] == results[0]["looked_at"] for r in results)
    assert len(results[0]["looked_at"]) > 2 * 2


def test_a_loss_that_uses_its_batch_is_refused_on_every_rank(ranks):
    """Without a collective more than the others make."""
    assert all(
        "of an example changed" in said for said in ranks("ranks_evidence:mixed")
    )


@pytest.mark.parametrize("kind", ["plain", "ddp", "ddp_unused", "ddp_views"])
def test_gradients_that_follow_a_batch_are_refused_on_every_rank(ranks, kind):
    """With as many backward passes as the others make."""
    assert all(
        "the gradient of an example changed" in said
        for said in ranks("ranks_evidence:steered", kind=kind)
    )


@pytest.mark.parametrize("kind", ["plain", "fsdp"])
def test_a_surprise_of_one_rank_is_looked_at_by_all(ranks, kind):
    """In the step after it: a forward pass of a sharded model needs all of them."""
    results = ranks("ranks_evidence:surprised", kind=kind)

    assert results[0] == results[1]
    assert results[0].count(5) >= 7
