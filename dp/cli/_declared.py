"""What the user declares of columns: their ranges, levels and kinds, all public."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from dp.cli._errors import InputError
from dp.cli._read import CsvFile, Layout, one_of, read_csv
from dp.exceptions import did_you_mean
from dp.tables import Declared


__all__ = ("Declarations", "columns_of", "declared_columns")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Declarations:
    """The options that say what columns hold.

    Attributes:
        ranges: A CSV file of ``column,low,high``.
        levels: A CSV file of ``column,level``, one row a level.
        categorical: Columns that hold categories, even where they look like numbers.
        dates: Columns that hold dates, whose month and weekday matter too.
    """

    ranges: Path | None = None
    levels: Path | None = None
    categorical: Sequence[str] = ()
    dates: Sequence[str] = ()


def columns_of(file: CsvFile, option: str, given: Sequence[str]) -> list[str]:
    """Return the columns that an option names, one by one or with commas between.

    Raises:
        InputError: If there is no such column.
    """
    names: list[str] = []
    for text in given:
        names.extend([text] if text in file.names else text.split(","))
    for name in names:
        if name not in file.names:
            raise InputError(
                f"{option} {name!r} is no column of {file.path}, which has"
                f" {one_of(file.names)}{_hint(name, file)}"
            )
    return list(dict.fromkeys(names))


def _hint(name: str, file: CsvFile) -> str:
    """Return what may have gone wrong where a column was not found."""
    if len(file.names) == 1:
        return (
            f"; it has a single column, if {file.layout.sep!r} separates them (--sep says"
            " otherwise)"
        )
    return did_you_mean(name, file.names)


def declared_columns(
    file: CsvFile, names: Sequence[str], declarations: Declarations
) -> dict[str, Declared]:
    """Return what is declared of each of the columns *names*.

    Raises:
        InputError: If a declaration is no such thing, or two contradict each other.
    """
    declared = {name: Declared() for name in names}
    facts = [
        *(
            ("--categorical", name, Declared(kind="text"))
            for name in columns_of(file, "--categorical", declarations.categorical)
        ),
        *(
            ("--dates", name, Declared(kind="date"))
            for name in columns_of(file, "--dates", declarations.dates)
        ),
        *_ranges(file, declarations.ranges),
        *_levels(file, declarations.levels),
    ]
    for option, name, fact in facts:
        if name not in declared:
            continue  # The target of a classification, or a column that is left out.
        known = declared[name]
        is_first = known == Declared()
        declared[name] = fact if is_first else _merged(known, fact, option, name)
    return declared


def _merged(known: Declared, fact: Declared, option: str, name: str) -> Declared:
    """Return both facts about a column: levels of categories, or a range of dates."""
    if known.kind == "text" and fact.levels:
        return fact
    if known.kind == "date" and fact.range is not None:
        return replace(fact, kind="date")
    raise InputError(
        f"{option} says of column {name!r} what contradicts another option; declare it"
        " once"
    )


def _ranges(file: CsvFile, path: Path | None) -> list[tuple[str, str, Declared]]:
    if path is None:
        return []
    table = _read(path, ("column", "low", "high"), file.layout)
    names, codes_N = table.labels("column")
    numbers = table.columns({"low": "auto", "high": "auto"})
    facts: list[tuple[str, str, Declared]] = []
    for code, low, high in zip(
        codes_N, numbers["low"].numbers, numbers["high"].numbers, strict=True
    ):
        name = names[code] if code >= 0 else ""
        columns_of(file, "--ranges", [name])
        if np.isnan(low) or np.isnan(high):
            raise InputError(f"the range of {name!r} in {path} is not numeric")
        if not low < high:
            raise InputError(f"the range of {name!r} in {path} has low >= high")
        facts.append(("--ranges", name, Declared(range=(float(low), float(high)))))
    return facts


def _levels(file: CsvFile, path: Path | None) -> list[tuple[str, str, Declared]]:
    if path is None:
        return []
    table = _read(path, ("column", "level"), file.layout)
    names, names_N = table.labels("column")
    levels, levels_N = table.labels("level")
    listed: dict[str, list[str]] = {}
    for name, level in zip(names_N, levels_N, strict=True):
        if level >= 0:
            listed.setdefault(names[name] if name >= 0 else "", []).append(
                levels[level]
            )
    for name in listed:
        columns_of(file, "--levels", [name])
    return [
        ("--levels", name, Declared(kind="text", levels=tuple(dict.fromkeys(of_it))))
        for name, of_it in listed.items()
    ]


def _read(path: Path, names: Sequence[str], layout: Layout) -> CsvFile:
    """Read a file of declarations, in the layout of the data but for its header."""
    shape = ",".join(names)
    with_header = replace(layout, has_header=True)
    table = read_csv(path, with_header, known=f"it is a CSV file of {shape}")
    for name in names:
        if name not in table.names:
            raise InputError(f"{path} has no column {name!r}: it needs {shape}")
    return table
