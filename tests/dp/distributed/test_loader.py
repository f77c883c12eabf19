"""Which rank has which examples, told without other processes."""

from copy import deepcopy
from unittest.mock import patch

import pytest

from dp import PoissonLoader


def drawn_by(rank, size, *, num_examples, sharded=False):
    with patch("dp.sampling._loader.rank_and_size", lambda: (rank, size)):
        loader = PoissonLoader(
            range(num_examples), sampling_probability=1.0, steps=1, sharded=sharded
        )
        (batch,) = loader
        return batch.tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 256])
def test_every_example_belongs_to_exactly_one_rank(size):
    """Also where the number of ranks divides nothing, or exceeds the dataset."""
    drawn = [drawn_by(rank, size, num_examples=23) for rank in range(size)]

    assert sorted(i for indices in drawn for i in indices) == list(range(23))


def test_a_dataset_that_is_a_share_already_is_drawn_from_as_a_whole():
    """Each rank has a dataset of its own."""
    assert drawn_by(1, 2, num_examples=5, sharded=True) == [0, 1, 2, 3, 4]


def test_the_ranks_are_asked_when_a_pass_begins():
    """A process group may be made after the loader, as Lightning does."""
    loader = PoissonLoader(range(4), sampling_probability=1.0, steps=1)
    with patch("dp.sampling._loader.rank_and_size", lambda: (1, 2)):
        (batch,) = loader

    assert batch.tolist() == [1, 3]


def test_tickets_are_counted_by_loader_and_not_by_process():
    """Ranks compare where they are, whatever other loaders they have."""
    one, other = (
        PoissonLoader(range(4), sampling_probability=0.5, steps=2) for _ in range(2)
    )
    list(one)
    list(other)
    list(other)

    assert one.ticket.ordinal == 1
    assert other.ticket.ordinal == 3
    assert deepcopy(other).ticket is None
