"""Certificates as JSON: strict, with a checksum of everything else in it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from dp.exceptions import LedgerError
from dp.plan import PrivacyPlan


__all__ = ("checksum_holds", "dumps", "loads", "sha256")

_FORMAT: Final = "forwarding-dp-certificate/3"
_TUPLES: Final = ("assumptions", "not_covered", "private_data_touches")
_FLOATS: Final = (
    "delta_error",
    "epsilon",
    "epsilon_pld",
    "epsilon_rdp",
    "epsilon_unamplified",
)


def sha256(body: Any) -> str:
    """Return the hash of a value as JSON with sorted keys and no spaces."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(certificate: Any) -> str:
    """Return a certificate as JSON; an infinite number is ``"inf"``."""
    body = {"format": _FORMAT, **_encoded(certificate)}
    body["checksum"] = sha256(body)
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def loads(text: str) -> dict[str, Any]:
    """Return the fields of a certificate, runs still in plain types.

    Raises:
        LedgerError: If it is in another format.
        ValueError, TypeError, KeyError, AttributeError: If it is no certificate.
    """
    body: dict[str, Any] = json.loads(text)
    if body.pop("format") != _FORMAT:
        raise LedgerError(f"the certificate is not in the format {_FORMAT!r}")
    del body["checksum"]
    for name in _TUPLES:
        body[name] = None if body[name] is None else tuple(body[name])
    for name in _FLOATS:
        body[name] = None if body[name] is None else float(body[name])
    body["intervals"] = {
        str(name): float(width) for name, width in body["intervals"].items()
    }
    body["epsilon_of_groups"] = {
        int(size): float(spent) for size, spent in body["epsilon_of_groups"].items()
    }
    return body


def checksum_holds(text: str) -> bool:
    """Whether the document is the one that was written."""
    body = json.loads(text)
    stated = body.pop("checksum")
    return bool(sha256(body) == stated)


def _encoded(value: Any) -> Any:
    if isinstance(value, PrivacyPlan):
        return value.to_dict()
    if is_dataclass(value):
        return {f.name: _encoded(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value
