"""Inspect a model, its loss and a batch before anything private is trained."""

from dp.checking._check import check
from dp.checking._report import CheckReport, Problem


__all__ = ("CheckReport", "Problem", "check")
