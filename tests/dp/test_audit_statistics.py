"""That tests of an audit say nothing where there is nothing to see."""

from types import SimpleNamespace

import numpy as np

from dp.audit import _conformance, _statistics


def test_sizes_without_a_choice_are_as_they_should_be():
    """All of a row is in its only cell."""
    assert _statistics.sizes_p(np.array([[4], [7]])) == 1.0


def test_a_rate_of_nothing_seen_may_be_0():
    assert _statistics.lower_limit(0, 20, alpha=0.01) == 0.0
    assert 0 < _statistics.lower_limit(1, 20, alpha=0.01) < 1 / 20


def test_nothing_is_said_of_contributions_where_no_record_was_drawn():
    nothing = np.zeros((3, 5))
    empty = SimpleNamespace(contributions=lambda: nothing, signal=lambda: nothing)

    assert [*_conformance._about_clipping(empty)] == []


def test_nothing_is_said_of_draws_where_nothing_is_claimed():
    """Every record is in every batch, or probabilities differ from step to step."""
    everyone = np.ones(5, bool)
    for of_steps in ([[1.0], [1.0]], [[0.1], [0.2]]):
        run = SimpleNamespace(
            steps_per_pass=None,
            bands=None,
            sampling_probabilities=lambda q=of_steps: np.array(q),
        )
        assert [*_conformance._about_sampling(run, run, everyone)] == []
