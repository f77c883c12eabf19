"""Read a CSV file, every value by itself.

Errors name the file, the column and the kind of fault, and no value of a row: what a
program prints ends in logs. Where there is no header, the first row is data, too.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from dp.cli._errors import InputError
from dp.tables import Parsing, Values, no_value_marks
from dp.tables._parsing import Kind


__all__ = ("CsvFile", "Layout", "missing_package", "one_of", "read_csv")

_FEWEST_NAMES_LIKE_DATA: Final = 2
_READERS: Final = {  # Of pandas, for tables that are no text.
    ".xls": "read_excel",
    ".xlsx": "read_excel",
    ".parquet": "read_parquet",
    ".feather": "read_feather",
    ".json": "read_json",
}

_Frame = Any  # pandas is optional, and its types are too wide to check against.
_Codes = NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a CSV file is written.

    Attributes:
        sep: What separates columns: one character; a backslash and a t are a tab.
        encoding: The encoding of its text.
        has_header: Whether the first row holds names; if not, columns are "1", "2"...
        parsing: How values are written.
    """

    sep: str = ","
    encoding: str = "utf-8"
    has_header: bool = True
    parsing: Parsing = field(default_factory=Parsing)

    def __post_init__(self) -> None:
        decimal = self.parsing.decimal
        if len(self.separator) != 1:
            raise InputError(
                f"--sep must be one character, or \\t for a tab, got {self.sep!r}"
            )
        if len(decimal) != 1:
            raise InputError(f"--decimal must be one character, got {decimal!r}")
        if decimal == self.separator:
            raise InputError(
                f"--decimal {decimal!r} also separates columns; state another --sep,"
                " such as ';'"
            )

    @property
    def separator(self) -> str:
        """What separates columns, as a character."""
        return "\t" if self.sep == "\\t" else self.sep


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """A CSV file that was read.

    Attributes:
        path: Where it is.
        layout: How it is written.
        names: The names of its columns.
        frame: The columns, as pandas inferred them.
    """

    path: Path
    layout: Layout
    names: tuple[str, ...]
    frame: _Frame

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.frame)

    def columns(self, kinds: Mapping[str, Kind]) -> dict[str, Values]:
        """Return the values of columns by name, each read as its kind.

        A column of nothing but numbers was read as such, which is the same as reading
        each of its texts, and ten times as fast.
        """
        quick = {
            name: numbers
            for name, kind in kinds.items()
            if kind == "auto" and (numbers := self._numbers(name)) is not None
        }
        texts = self._texts([name for name in kinds if name not in quick])
        parsing = self.layout.parsing
        return {
            name: Values(quick[name], np.full(len(self), -1, dtype=np.int64))
            if name in quick
            else parsing.column(*texts[name], kind)
            for name, kind in kinds.items()
        }

    def labels(self, name: str) -> tuple[list[str], _Codes]:
        """Return every different text of a column, and which each row has; -1 for none."""
        texts, codes_N = self._texts([name])[name]
        stripped = [text.strip() for text in texts]
        kept = sorted({text for text in stripped if text not in no_value_marks()})
        numbers = {text: number for number, text in enumerate(kept)}
        renumbered = np.array([numbers.get(text, -1) for text in stripped] + [-1])
        return kept, renumbered[codes_N]

    def _numbers(self, name: str) -> NDArray[np.float64] | None:
        column = self.frame[name]
        if column.dtype.kind not in "iuf":
            return None
        numbers: NDArray[np.float64] = column.to_numpy(dtype=np.float64)
        return None if np.isinf(numbers).any() else numbers

    def _texts(self, names: Sequence[str]) -> dict[str, tuple[list[str], _Codes]]:
        """Return the texts of columns, read again as they are written."""
        import pandas as pd  # noqa: PLC0415 -- an optional dependency

        if not names:
            return {}
        places = [self.names.index(name) for name in names]
        frame = _frame(self.path, self.layout, usecols=places, dtype=str)
        texts: dict[str, tuple[list[str], _Codes]] = {}
        for index, place in enumerate(sorted(places)):  # In the file's order.
            codes_N, different = pd.factorize(frame.iloc[:, index])
            codes_N = np.asarray(codes_N, dtype=np.int64)
            texts[self.names[place]] = [str(text) for text in different], codes_N
        return texts


def read_csv(path: Path, layout: Layout, *, known: str) -> CsvFile:
    """Return the file at *path*.

    Args:
        path: Where it is.
        layout: How it is written.
        known: What could be named instead, for the error if there is no such file.

    Raises:
        InputError: If it cannot be read.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}; {known}")
    reader = _READERS.get(path.suffix.lower())
    if reader is not None:
        raise InputError(
            f"{path} is no CSV file; write one from it, such as by"
            f" pandas.{reader}(...).to_csv(..., index=False)"
        )
    marks = sorted(no_value_marks())
    frame = _frame(path, layout, na_values=marks, low_memory=False)
    if frame.empty:
        raise InputError(f"{path} has a header and no rows")
    if layout.has_header:
        names = tuple(map(str, frame.columns))
        _check_header(path, names, frame)
    else:
        names = tuple(str(number + 1) for number in range(frame.shape[1]))
        frame.columns = names
    return CsvFile(path=path, layout=layout, names=names, frame=frame)


def _frame(path: Path, layout: Layout, **options: Any) -> _Frame:
    try:
        import pandas as pd  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise missing_package("pandas", error) from error
    try:
        with warnings.catch_warnings():
            # Rows that are longer than the header would be cut with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=layout.separator,
                encoding=layout.encoding,
                decimal=layout.parsing.decimal,
                header=0 if layout.has_header else None,
                keep_default_na=False,
                index_col=False,
                **options,
            )
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty") from error
    except LookupError as error:
        raise InputError(f"--encoding {layout.encoding!r} is not known") from error
    except UnicodeError as error:
        raise InputError(
            f"{path} is not written in {layout.encoding}; state its --encoding, such as"
            " latin-1"
        ) from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise InputError(
            f"{path} cannot be read as CSV: a row has more columns than the first one,"
            f" or a quote is not closed (columns are separated by {layout.sep!r};"
            " --sep says otherwise)"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{path} cannot be read as CSV: {reason}") from error


def _check_header(path: Path, names: Sequence[str], frame: _Frame) -> None:
    """Raise if the first row looks like data, whose values must not be shown."""
    like_data = sum(
        _is_number(name)
        or name.startswith("Unnamed:")
        or bool((frame.iloc[:, place] == name).any())
        for place, name in enumerate(names)
    )
    if like_data >= max(_FEWEST_NAMES_LIKE_DATA, len(names) / 2):
        raise InputError(
            f"the first row of {path} looks like data, not like the names of columns;"
            " with --no-header columns are called 1, 2, 3 and so on. If these are the"
            " names, rename them"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def one_of(names: Sequence[str], *, at_most: int = 8) -> str:
    """Return the first few names, and the last one, which a target often is."""
    if len(names) <= at_most:
        return ", ".join(names)
    return ", ".join([*names[: at_most - 1], "...", names[-1]])


def missing_package(package: str, error: ImportError) -> InputError:
    """Return that an optional dependency is missing, and what brings it."""
    return InputError(
        f"this data needs {package}, which is not installed ({error});"
        " pip install 'forwarding[demo]'"
    )
