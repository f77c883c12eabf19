"""Ranks that differ, raise, stall or die: a named error, and no charge is lost."""

import pytest


@pytest.mark.parametrize(
    "what",
    [
        "the batch",
        "the clipping norm",
        "the dataset",
        "the ledger",
        "the noise",
        "the parameters' values",
        "the plan",
    ],
)
def test_ranks_that_differ_are_told_in_what(ranks, what):
    """All ranks raise the same error, and none is charged for the step."""
    results = ranks("ranks_failures:differing", what=what)

    for name, message, charged in results:
        assert name == "RanksDivergedError"
        assert message.startswith(f"{what} differs between rank 0 and rank")
        assert charged == 0


def test_ranks_may_have_seen_other_things(ranks):
    """What a rank has to say of its losses and weights stops no other rank."""
    for name, message, charged in ranks("ranks_failures:remarked"):
        assert (name, message, charged) == (None, "", 1)


@pytest.mark.parametrize("same", [True, False])
def test_shards_that_hold_the_same_data_are_refused(ranks, same):
    """An example that two ranks draw would count twice; nothing is charged."""
    results = ranks("ranks_failures:sharded", same=same)

    for name, message, charged in results:
        assert name == ("RanksDivergedError" if same else None)
        assert ("have examples or units in common" in message) == same
        assert charged == (0 if same else 1)


def test_an_error_on_one_rank_stops_all_at_once(ranks):
    """The others need not wait for the timeout, and nothing is charged."""
    *others, last = ranks("ranks_failures:raising_on_the_last_rank")

    assert last[0] == "SamplingMismatchError"
    for name, message, charged, seconds in others:
        assert name == "RankFailedError"
        assert f"rank {ranks.size - 1} of {ranks.size} raised" in message
        assert charged == 0
        assert seconds < 10


def test_after_an_error_on_one_rank_all_can_go_on(ranks):
    """The step that failed was taken by none, so it may be taken again by all."""
    assert ranks("ranks_failures:after_an_error_all_go_on") == [1] * ranks.size


def test_what_ranks_charge_alone_adds_up(ranks):
    """After they part, their ledgers do not pass for one another's."""
    results = ranks("ranks_failures:alone_after_training_together")

    segments = [set(r["segments"]) for r in results]
    assert [len(s) for s in segments] == [2] * ranks.size
    assert len(set.intersection(*segments)) == 1
    assert len(set.union(*segments)) == 1 + ranks.size


@pytest.mark.parametrize(("what", "num_ids"), [("loader", 1), ("state", 2)])
def test_ranks_agree_anew_after_something_was_replaced(ranks, what, num_ids):
    """A loaded state is a fork, under a new id that all ranks share."""
    results = ranks("ranks_failures:replaced_after_a_step", what=what)

    assert results == [results[0]] * ranks.size
    ledger, found = results[0]
    assert (len(ledger["segments"]), found) == (num_ids, num_ids)


@pytest.mark.parametrize(
    ("where", "charged"),
    [("before", 1), ("in the exchange", 2), ("before it publishes", 2)],
)
def test_a_rank_that_dies_is_named_and_no_charge_is_lost(doomed_ranks, where, charged):
    """Whoever noticed has charged for all that may have been released."""
    doomed_ranks.start("ranks_failures:dying", where=where)

    ok, result = doomed_ranks.result(0)
    doomed_ranks.is_sound = False
    assert ok, result
    name, message, steps = result
    assert name == "RankFailedError"
    assert "another process died" in message
    assert steps == charged


def test_a_rank_that_does_not_come_is_named_within_the_timeout(doomed_ranks):
    """The group's timeout is 3 s here."""
    doomed_ranks.start("ranks_failures:stalling", seconds=5)

    ok, result = doomed_ranks.result(0)
    doomed_ranks.is_sound = False
    assert ok, result
    name, _, steps, seconds = result
    assert (name, steps) == ("RankFailedError", 1)
    assert seconds < 4.5


def test_a_rank_that_skips_empty_batches_is_noticed(doomed_ranks):
    """It falls out of step: the ranks find themselves at different batches, or alone."""
    results = doomed_ranks("ranks_failures:skipping_empty_batches")

    doomed_ranks.is_sound = False
    assert {name for name, _ in results} <= {"RanksDivergedError", "RankFailedError"}, (
        results
    )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("fsdp1", "FullyShardedDataParallel"),
        ("replicated", "is a DTensor with placements"),
        ("tensor parallel", "tensor, sequence and pipeline parallelism"),
        ("on one rank", "on a mesh of 1 of"),
    ],
)
def test_other_ways_of_spreading_parameters_are_refused(ranks, how, words):
    """Named when the optimizer is made, with what to use instead."""
    for name, message in ranks("ranks_failures:spread_otherwise", how=how):
        assert name == "UnsupportedOperationError"
        assert words in message
        assert "fully_shard" in message
