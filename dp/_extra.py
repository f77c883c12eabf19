"""What the extra of the distribution brings, and what to say where it is missing.

The distribution installs ``forwarding`` alone; ``dp`` needs more.
"""

from typing import Final


__all__ = ("missing",)

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


def missing(what: str, error: ModuleNotFoundError) -> str | None:
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
