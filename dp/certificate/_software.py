"""The versions of the code that made a statement."""

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from forwarding import __version__


__all__ = ("software", "version_of_accountants")


@cache
def _source_sha256() -> str:
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def software() -> dict[str, str]:
    """Return versions, and the hash of the source of ``dp`` as it is installed."""
    return {
        "forwarding": __version__,
        "dp source sha256": _source_sha256(),
        "dp-accounting": version_of_accountants(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def version_of_accountants() -> str:
    """Return the version of ``dp_accounting``."""
    return version("dp-accounting")
