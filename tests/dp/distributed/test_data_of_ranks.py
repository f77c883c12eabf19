"""Ranks share a dataset, or have parts of it that have nothing in common."""

import pytest

from dp.distributed._world import _comparable


SEEN = {"RanksDivergedError": 0, None: 1}


@pytest.mark.parametrize("seeded", [False, True])
def test_random_splits_of_augmented_data_have_to_be_the_same(ranks, seeded):
    """Drawn from two splits, an example is in the batches of both ranks."""
    for name, message, charged in ranks("ranks_data:split_at_random", seeded=seeded):
        assert name == (None if seeded else "RanksDivergedError")
        assert seeded or message.startswith("the dataset differs")
        assert charged == SEEN[name]


@pytest.mark.parametrize("seeded", [False, True])
def test_rows_that_ranks_shuffle_in_place_have_to_stay_the_same(ranks, seeded):
    """In two orders, every n-th row of one rank is a row of another rank, too."""
    for errors, charged in ranks("ranks_data:shuffled_in_place", seeded=seeded):
        (first, _), (second, message) = errors
        assert first is None
        assert second == (None if seeded else "RanksDivergedError")
        assert seeded or message.startswith("the dataset differs")
        assert charged == 1 + seeded


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_random_augmentation_is_no_difference(ranks, probability):
    """Though an image may be mirrored twice on one rank, and never on another."""
    for steps in ranks("ranks_data:augmented", probability=probability, times=15):
        assert steps == [(None, "", 1)] * 15


def test_what_one_rank_finds_random_is_compared_on_none(ranks):
    """An augmentation that is rare may not show in the readings of another."""
    for result in ranks("ranks_data:mirrored_on_one_rank"):
        assert result == (None, "", 1)


@pytest.mark.parametrize("how", ["padded", "users on both"])
def test_parts_that_have_data_in_common_are_refused(ranks, how):
    """A repeated row, or a unit with rows on two ranks, would count twice."""
    for name, message, charged in ranks("ranks_data:part", how=how):
        assert (name, charged) == ("RanksDivergedError", 0)
        assert "have examples or units in common" in message


@pytest.mark.parametrize("how", ["apart", "of their own", "users apart"])
def test_parts_with_nothing_in_common_are_trained_on(ranks, how):
    """The twin: also where the same rows of other data are taken."""
    for result in ranks("ranks_data:part", how=how):
        assert result == (None, "", 1)


@pytest.mark.parametrize("again", [False, True])
def test_batches_from_before_the_ranks_joined_are_refused(unjoined_ranks, again):
    """Each rank drew them from all examples."""
    for name, message, charged in unjoined_ranks("ranks_data:joined_late", again=again):
        assert (name, charged) == ((None, 1) if again else ("SamplingMismatchError", 0))
        assert again or "before all 2 processes had joined" in message


def test_a_rule_that_prints_as_its_address_is_the_same_on_all_ranks(ranks):
    """Its class is compared."""
    for result in ranks("ranks_data:ruled_by_an_own_class"):
        assert result == (None, "", 1)


@pytest.mark.parametrize(
    ("samples", "compared"),
    [
        ([["a", "b"], ["a", "c"]], [[2, 2], ["a", "a"], ["b", "c"]]),
        ([["a", None], ["a", "c"]], [[2, 2], ["a", "a"]]),
        ([["a", "b"], [None]], []),
    ],
)
def test_what_is_random_on_a_rank_is_not_compared(samples, compared):
    """One part of the examples, or all of them."""
    assert [*_comparable(samples)] == compared
