"""That every check of an argument tells its name and its value."""

import math

import pytest

from dp import _checks


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (_checks.positive, [1, 1e-300, 5.5]),
        (_checks.non_negative, [0, 0.0, 3]),
        (_checks.probability, [1, 1e-9, 0.5]),
        (_checks.open_unit, [1e-12, 0.999]),
        (_checks.count, [1, 7]),
    ],
)
def test_good_values_pass_unchanged(check, good):
    """The value comes back, as a number."""
    assert [check(x=value) for value in good] == good


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (_checks.positive, [0, -1, math.inf, math.nan, "1", None, True]),
        (_checks.non_negative, [-1e-9, math.inf, math.nan, "1", None, False]),
        (_checks.probability, [0, 1.0001, math.nan, "1", None, True]),
        (_checks.open_unit, [0, 1, math.nan, "1", None]),
        (_checks.count, [0, -1, 1.0, "1", None, True]),
    ],
)
def test_bad_values_are_named(check, bad):
    """The name of the argument, what it must be, and what it was."""
    for value in bad:
        with pytest.raises(ValueError, match="x must be") as refused:
            check(x=value)
        assert str(refused.value).endswith(f"got {value!r}")
