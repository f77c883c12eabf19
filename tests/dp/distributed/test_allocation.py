"""Random allocation on several ranks: each example once a pass, one charge for all."""

import pytest


def test_ranks_share_every_pass_and_charge_it_once(ranks):
    """Together they have each example once a pass; ledgers and models stay equal."""
    results = ranks("ranks_allocation:training")

    for number in range(5):
        rows = sorted(i for passes, _, _ in results for i in passes[number])
        assert rows == list(range(23))
    states = [state for _, state, _ in results]
    assert states == [states[0]] * ranks.size
    ((charge,),) = states[0]["segments"].values()
    assert (charge["count"], charge["steps_per_pass"]) == (20, 4)
    weights = [weights for _, _, weights in results]
    assert weights == [weights[0]] * ranks.size


def test_a_rank_that_begins_another_pass_is_noticed(ranks):
    """Before anything of that step is released or charged."""
    for name, message, charged in ranks("ranks_allocation:one_rank_begins_anew"):
        assert name == "RanksDivergedError"
        assert message.startswith("the batch differs between rank 0 and rank")
        assert charged == 0


def test_the_batches_of_a_pass_add_up_to_all_examples(ranks):
    """At fixed weights and without noise, each example's clipped gradient counts once."""
    for of_pass, of_all in ranks("ranks_allocation:without_noise"):
        assert of_pass == pytest.approx(of_all, rel=1e-5)
