"""That columns become features one row at a time, and what noisy counts say of them."""

import math
from datetime import date, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from dp.noise._gaussian import witnessed
from dp.tables import (
    Declared,
    Encoder,
    Feature,
    Parsing,
    ScaledTarget,
    Shares,
    Statistics,
    Values,
    fit_encoder,
)
from dp.tables._histogram import histogram, summarize
from dp.tables._moments import moments, refined
from dp.tables._values import CELLS, FIRST_BUCKET, NO_VALUE, bucket_of


def values(*texts, kind="auto", **parsing):
    return Parsing(**parsing).column(texts, np.arange(len(texts)), kind)


def of_numbers(numbers):
    numbers = np.array(numbers, dtype=np.float64)
    return Values(numbers, np.full(len(numbers), -1))


def summary_of(column, stddev=0.5):
    """Summarize exact counts, as if their noise had been small."""
    (counts,) = histogram([column], [1]).sums.numpy()
    return summarize(counts, stddev)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5.0),
        ("-.5e1", -5.0),
        (" 7 ", 7.0),
        ("+1E+3", 1000.0),
        ("5.", 5.0),
        ("1e999", np.finfo(np.float64).max),
        ("2000-01-03", 2.0),
        ("2000-01-01T12:00", 0.5),
        ("2000-01-01 12:00:00+12:00", 0.0),
    ],
)
def test_numbers_and_dates_are_numbers(text, number):
    """A date is the days since the year 2000, a number too large the largest."""
    column = values(text)

    assert column.numbers.tolist() == [number]
    assert column.buckets.tolist() == [-1]
    assert not column.gaps.any()


@pytest.mark.parametrize("text", ["", " ", "NA", "?", "nan", "NULL", "None"])
def test_what_marks_no_value_is_none(text):
    """In a cell of its own, which is neither a number's nor a text's."""
    for kind in ("auto", "text", "date"):
        column = values(text, kind=kind)

        assert column.gaps.all()
        assert column.cells.tolist() == [NO_VALUE]


@pytest.mark.parametrize("text", ["PhD", "inf", "1_000", "2000-13-01", "1,5", "0x10"])
def test_everything_else_is_a_text(text):
    """In the bucket of its hash, with or without spaces around it."""
    column = values(text, f" {text} ")

    assert np.isnan(column.numbers).all()
    assert set(column.cells) == {FIRST_BUCKET + bucket_of(text)}
    assert 0 <= bucket_of(text) < CELLS - FIRST_BUCKET


def test_what_is_declared_decides_how_a_text_is_read():
    """Codes are texts, dates may have a format, and numbers a decimal comma."""
    assert values("5", kind="text").buckets.tolist() == [bucket_of("5")]
    assert values("2000-01-02", kind="date").numbers.tolist() == [1.0]
    assert values("no date", kind="date").gaps.all()
    german = {"date_format": "%d.%m.%Y", "decimal": ","}
    assert values("03.01.2000", kind="date", **german).numbers.tolist() == [2.0]
    assert values("2000-01-03", kind="date", **german).gaps.all()
    assert values("1,5", **german).numbers.tolist() == [1.5]


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_lies_in_one_cell(number):
    """Which is a power of two, a sign, or zero: the same for all of its neighbours."""
    (cell,) = of_numbers([number]).cells
    below, above = of_numbers([number, number]).cells

    assert 0 <= cell < NO_VALUE
    assert cell == below == above


def test_a_summary_finds_place_and_spread():
    """To about the width of a cell, with a stray value far away left out."""
    rng = np.random.default_rng(0)
    found = summary_of(of_numbers([*rng.normal(3.0, 1.0, 1000), 1e9]), stddev=3.0)

    assert found.has_numbers
    assert found.was_found
    assert not found.has_gaps
    assert not found.is_mostly_zero
    assert abs(found.centre - 3.0) < 0.3
    assert 0.7 < found.scale < 1.6


def test_a_summary_finds_gaps_texts_and_zeros():
    """Each needs to stand out from the noise, and none does in a column of names."""
    mixed = summary_of(values(*["7"] * 30, *[""] * 20, *["low"] * 20), stddev=2.0)
    zeros = summary_of(of_numbers([0.0] * 90 + [5e4] * 3), stddev=2.0)
    names = summary_of(values(*(f"name {i}" for i in range(50))), stddev=2.0)
    texts = summary_of(values(*["low"] * 30, *["high"] * 20), stddev=2.0)

    assert mixed.has_gaps
    assert mixed.buckets == (bucket_of("low"),)
    assert mixed.has_numbers
    assert zeros.is_mostly_zero
    assert not names.buckets
    assert not names.was_found
    assert set(texts.buckets) == {bucket_of("low"), bucket_of("high")}
    assert not texts.has_numbers


def test_a_column_of_nothing_is_scaled_all_the_same():
    """Counts below zero, as noise makes them, give a scale above zero."""
    found = summarize(np.full(CELLS, -5.0), 1.0)

    assert found.scale > 0
    assert not found.was_found


def test_moments_see_a_spread_that_cells_cannot():
    """Years, all of which lie between two powers of two."""
    years = np.random.default_rng(0).normal(2010, 8, 5000)
    rough = summary_of(of_numbers(years))
    (sums,) = moments([years], [rough.centre], [rough.scale]).sums.numpy()
    about = {"num_rows": 5000, "centre": rough.centre, "scale": rough.scale}
    centre, scale, is_measured = refined(sums, stddev=0.1, **about)
    _, least, is_hidden = refined(np.array([0.0, -5000.0]), stddev=100.0, **about)

    assert rough.scale > 100
    assert abs(centre - 2010) < 1
    assert abs(scale / 8 - 1) < 0.1
    assert is_measured
    assert least > 0
    assert not is_hidden


def feature(column, **options):
    return Feature(name="x", **options)(column).tolist()


def test_features_are_bounded():
    """A number is clipped, and 0 where there is none; a text is a one for its bucket."""
    column = values("5", "-1e300", "", "low")
    low = (bucket_of("low"),)

    assert feature(column, has_numbers=True, centre=3.0, scale=2.0) == [
        *([1.0], [-3.0], [0.0], [0.0])
    ]
    assert feature(column, has_gaps=True, buckets=low) == [
        *([0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    ]
    assert Feature(name="x")(column).shape == (4, 0)


@given(day=st.dates())
def test_a_date_has_a_month_and_a_weekday(day):
    """As the calendar has them; a missing date has neither."""
    row, gap = feature(
        values(day.isoformat(), "", kind="date"), kind="date", has_calendar=True
    )

    assert row.index(1.0) == day.month - 1
    assert row[12:].index(1.0) == day.weekday()
    assert sum(row) == 2
    assert not any(gap)


def test_time_of_day_does_not_change_the_weekday():
    """Not in the evening, and not before the year 2000."""
    for days in (-1, 0, 400):
        at = date(2000, 1, 1) + timedelta(days)
        (row,) = feature(
            values(f"{at}T23:00", kind="date"), kind="date", has_calendar=True
        )

        assert row[12:].index(1.0) == at.weekday()


def test_an_encoder_survives_being_written(tmp_path):
    """As plain types that torch loads without pickled classes."""
    encoder = Encoder(
        features=(
            Feature(name="a", has_numbers=True, centre=1.0, scale=2.0),
            Feature(name="b", kind="text", buckets=(3, 5), has_gaps=True),
        )
    )
    torch.save(encoder.to_dict(), tmp_path / "encoder.pt")
    read = Encoder.from_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))

    assert read == encoder


def test_a_target_is_scaled_and_clipped():
    """And a missing one stays missing."""
    scaled = ScaledTarget.of_range(0.0, 6.0)
    x = scaled(torch.tensor([3.0, 4.0, 1e30, math.nan], dtype=torch.float64))

    assert x.tolist()[:3] == [0.0, 1.0, 3.0]
    assert x[3].isnan()


def without_noise(add, sums):
    """Let a release be charged, and take its noise away again."""
    exact = [tensor.clone() for tensor in sums]
    used = add()
    for tensor, before in zip(sums, exact, strict=True):
        tensor.copy_(before)
    return used


@pytest.fixture
def fit():
    """Fit an encoder as if noise had been 0; return it and what was released."""

    def fit(columns, declared, target=None, *, histogram=1e-3, moments=1e-6):
        shares = Shares(
            histogram=histogram, moments=moments, training=1.0, is_measured=True
        )
        statistics = Statistics(
            target_delta=1e-5,
            neighboring_relation="zero_out",
            unit_of_privacy="one row",
        )
        with witnessed(without_noise):
            fitted = fit_encoder(
                columns, declared, target, shares=shares, statistics=statistics
            )
        return fitted, statistics.releases()

    return fit


def test_what_is_declared_is_not_measured(fit):
    """Neither ranges nor levels cost anything; other columns are in both statistics."""
    columns = {
        "range": of_numbers([0.0, 10.0, 20.0]),
        "level": values("a", "b", "c", kind="text"),
        "found": of_numbers([5.0, 6.0, 7.0]),
    }
    declared = {
        "range": Declared(range=(0.0, 10.0)),
        "level": Declared(kind="text", levels=("b", "a")),
        "found": Declared(),
    }
    fitted, releases = fit(columns, declared)
    x = fitted.encoder(columns)
    alone, none = fit({n: columns[n] for n in ("range", "level")}, declared)

    assert len(releases) == 2
    assert not none
    assert x[:, 0].tolist() == [-3.0, 3.0, 3.0]
    assert x[:, 1:3].sum(dim=1).tolist() == [1.0, 1.0, 0.0]
    assert x[:, 3].mean().abs() < 1e-5
    assert [f.name for f in fitted.encoder.features] == list(columns)
    assert fitted.target is alone.target is None


def test_the_target_of_a_regression_is_measured_with_the_columns(fit):
    """As one column more; by the histogram alone where moments would say nothing."""
    target = of_numbers(np.linspace(100, 120, 50))
    columns = {
        "x": of_numbers(np.linspace(0, 1, 50)),
        "name": values(*map(str, "ab" * 25)),
    }
    declared = dict.fromkeys(columns, Declared())
    fine, two = fit(columns, declared, target)
    rough, one = fit(columns, declared, target, moments=None)

    assert (len(two), len(one)) == (2, 1)
    assert abs(fine.target.centre - 110) < 0.1
    assert abs(rough.target.centre - 110) < 40
    assert not fine.unseen


def test_a_column_that_is_never_alike_is_told(fit):
    """Names and ids; their name is public, and what is in them is not said."""
    columns = {
        "id": values(*(f"id {i}" for i in range(40))),
        "mostly zero": of_numbers([0.0] * 36 + [9.0] * 4),
        "day": values(*["2020-02-29"] * 40, kind="date"),
    }
    declared = {**dict.fromkeys(columns, Declared()), "day": Declared(kind="date")}
    fitted, _ = fit(columns, declared, histogram=1.0, moments=None)
    x = fitted.encoder(columns)

    assert fitted.unseen == ("id",)
    assert Declared(kind="date").num_features == 20
    assert x.shape[1] >= 20
    assert fitted.encoder.features[1].factor == pytest.approx(1 / 6)
    assert x.abs().max() <= 3
