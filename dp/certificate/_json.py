"""Certificates as JSON: strict, with a checksum of everything else in it."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from dp.exceptions import LedgerError
from dp.ledger._advisories import ADVISORIES
from dp.plan import PrivacyPlan


__all__ = ("checksum_holds", "dumps", "loads", "parse", "sha256")

_FORMAT: Final = "forwarding-dp-certificate/5"
# JSON has no tuples, infinities and whole numbers for keys; fields say what they were.
_RESTORE: Final[Mapping[object, Callable[[Any], Any]]] = {
    float: float,
    float | None: lambda value: None if value is None else float(value),
    tuple[str, ...]: tuple,
    tuple[str, ...] | None: lambda value: None if value is None else tuple(value),
    Mapping[str, float]: lambda rows: {str(k): float(v) for k, v in rows.items()},
    Mapping[int, float]: lambda rows: {int(k): float(v) for k, v in rows.items()},
}


def sha256(body: Any) -> str:
    """Return the hash of a value as JSON with sorted keys and no spaces."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(certificate: Any) -> str:
    """Return a certificate as JSON; an infinite number is ``"inf"``."""
    body = {"format": _FORMAT, **_encoded(certificate)}
    body["checksum"] = sha256(body)
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def loads(text: str, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a certificate, runs still in plain types.

    Args:
        text: The JSON.
        kind: The class whose fields say the types.

    Raises:
        LedgerError: If it is in another format.
        ValueError, TypeError, KeyError, AttributeError: If it is no certificate.
    """
    body: dict[str, Any] = parse(text)
    written = body.pop("format")
    if written != _FORMAT:
        raise LedgerError(
            f"the certificate is in the format {written!r}, and this release of dp reads"
            f" {_FORMAT!r}: verify it with the release that its software names."
            f" Earlier releases had faults that are known by now:"
            f" {', '.join(a.name for a in ADVISORIES)}"
        )
    del body["checksum"]
    for field in fields(kind):
        restore = _RESTORE.get(field.type)
        if restore is not None:
            body[field.name] = restore(body[field.name])
    return body


def parse(text: str) -> Any:
    """Return what JSON says, in plain types.

    Raises:
        LedgerError: If it states a thing twice.
        ValueError: If it is no JSON.
    """
    return json.loads(text, object_pairs_hook=_unrepeated)


def checksum_holds(text: str) -> bool:
    """Whether the document is the one that was written."""
    body = parse(text)
    stated = body.pop("checksum")
    return bool(sha256(body) == stated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, none of whose keys is there twice.

    Of two, a program reads the last one and a person the first.
    """
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise LedgerError(f"the certificate states {name!r} more than once")
    return dict(pairs)


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
