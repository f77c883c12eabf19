"""Correlated noise on several ranks: one recursion, and one charge for all."""

import math

import pytest

import dp


def test_ranks_take_turns_together_and_charge_a_round_once(ranks):
    """Each has its share of each group; ledgers and models stay equal."""
    results = ranks("ranks_correlated:training")

    for seen, _, _ in results:
        for first, again in zip(seen, seen[4:], strict=False):
            assert sorted(first) == sorted(again)  # Every coin wins: q is 1 / 4.
    rows = sorted(i for seen, _, _ in results for step in seen[:4] for i in step)
    assert rows == list(range(23))
    states = [state for _, state, _ in results]
    assert states == [states[0]] * ranks.size
    ((charge,),) = states[0]["segments"].values()
    assert (charge["count"], charge["bands"]) == (20, 4)
    weights = [weights for _, _, weights in results]
    assert weights == [weights[0]] * ranks.size


def test_the_batches_of_a_round_add_up_to_all_examples(ranks):
    """At fixed weights and without noise, whatever the recursion adds and takes."""
    for of_round, of_all in ranks("ranks_correlated:without_noise"):
        assert of_round == pytest.approx(of_all, rel=1e-4, abs=1e-6)


def test_prefix_sums_have_the_error_of_one_rank(ranks):
    """Shares of the totals keep their own recursions.

    False alarms: below 1e-6 of 20 steps of some 80 coordinates; independent noise has
    half as much error again.
    """
    error = dp.BandedNoise.optimal(4, steps=20).prefix_error(20)

    for squares, number in ranks("ranks_correlated:prefix_error"):
        assert 0.75 * error < math.sqrt(squares / number) < 1.3 * error


def test_a_rank_that_begins_another_iteration_is_noticed(ranks):
    """Before anything of that step is released or charged."""
    for name, message, charged in ranks("ranks_correlated:one_rank_begins_anew"):
        assert name == "RanksDivergedError"
        assert message.startswith("the batch differs between rank 0 and rank")
        assert charged == 0
