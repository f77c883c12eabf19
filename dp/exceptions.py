"""Errors raised by :mod:`dp`, each a :class:`PrivacyError`, and its warning."""

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import Final, ParamSpec, TypeVar


__all__ = (
    "BudgetExhaustedError",
    "EvidenceWarning",
    "LedgerError",
    "PrivacyError",
    "RankFailedError",
    "RanksDivergedError",
    "SampleMixingError",
    "SamplingMismatchError",
    "UnsupportedOperationError",
    "WrongGradientError",
    "WrongNoiseError",
    "WrongReleaseError",
    "did_you_mean",
    "missing_extra",
    "tells_near_names",
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What the extra of the distribution brings, which installs forwarding alone.
_BROUGHT: Final = frozenset(
    {
        "cryptography",
        "dp_accounting",
        "jaxtyping",
        "matplotlib",
        "mpmath",
        "numpy",
        "rich",
        "scipy",
        "torch",
        "typer",
    }
)


class PrivacyError(Exception):
    """A privacy guarantee cannot be kept, so the operation was refused."""


class SampleMixingError(PrivacyError, ValueError):
    """One example's loss depends on another example of the batch.

    Attributes:
        began_earlier: Whether batches before this one, which were released, may have
            been mixed as well: it was found by a check that is not made at every step,
            or by comparison with an earlier batch.
    """

    began_earlier: bool = False


class WrongGradientError(PrivacyError, RuntimeError):
    """A gradient is not the one that torch's own backward pass finds.

    Either a rule by which this package finds the gradients of single examples errs for
    the model at hand, or a backward pass gives other results when it is run again.

    Attributes:
        began_earlier: Whether batches before this one, which were released, may have
            had wrong gradients as well.
    """

    began_earlier: bool = False


class WrongNoiseError(PrivacyError, RuntimeError):
    """An element of a release did not get the noise that its random bits say.

    It was found by a check that is not made at every release, so earlier ones may have
    had wrong noise as well.
    """


class WrongReleaseError(PrivacyError, RuntimeError):
    """A release is not the clipped sum and the noise that were charged.

    It was found by a check that is not made at every release, before the optimizer saw
    this one; earlier ones may have been wrong as well.
    """


class SamplingMismatchError(PrivacyError, RuntimeError):
    """A step does not match the batch that the sampling scheme drew for it."""


class BudgetExhaustedError(PrivacyError, RuntimeError):
    """The next step would spend more than the plan allows; it was not taken."""


class LedgerError(PrivacyError, ValueError):
    """A ledger is missing, damaged, or belongs to another run."""


class UnsupportedOperationError(PrivacyError, TypeError):
    """No per-sample gradient can be had for an operation, model or optimizer."""


class RanksDivergedError(PrivacyError, RuntimeError):
    """Processes that train together differ in something that must be equal."""


class RankFailedError(PrivacyError, RuntimeError):
    """Another process raised, died, or did not come to a step in time."""


class EvidenceWarning(UserWarning):
    """It could not be seen that one example's loss depends on that example alone."""


def missing_extra(what: str, error: ModuleNotFoundError) -> str | None:
    """Return what to do about an import that failed; None if no extra brings it.

    Args:
        what: What was imported.
        error: Why that failed.
    """
    if error.name is None or error.name.partition(".")[0] not in _BROUGHT:
        return None
    return (
        f"{what} needs {error.name}, which the extra of this package brings:"
        " pip install 'forwarding[dp]'"
    )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question to put behind a name that is not one of *names*, if one is near.

    >>> did_you_mean("poison", ["poisson", "allocation"])
    "; did you mean 'poisson'?"
    >>> did_you_mean("eps", ["epochs", "epsilon"])
    "; did you mean 'epsilon'?"
    >>> did_you_mean("uniform", ["poisson", "allocation"])
    ''
    """
    from difflib import get_close_matches  # noqa: PLC0415 -- no program that works needs it

    names = list(names)
    begun = [other for other in names if name and other.startswith(name)]
    near = begun or get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def tells_near_names(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let *function* answer a misspelt keyword with the one that was probably meant."""
    known = signature(function).parameters

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{checked.__name__}() got an unexpected keyword argument {name!r}"
                    f"{did_you_mean(name, known)}"
                )
        return function(*args, **kwargs)

    return checked
