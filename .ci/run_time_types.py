"""The run-time type checker of the test run: beartype, which here takes an int for a float."""

from beartype import BeartypeConf, beartype


__all__ = ("checked",)

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
