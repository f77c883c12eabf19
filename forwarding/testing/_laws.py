"""All laws, in the order of the reports."""

from collections.abc import Collection, Mapping

from forwarding.testing._behaviour import BEHAVIOUR
from forwarding.testing._law import Law
from forwarding.testing._lens import LENS
from forwarding.testing._life import LIFE
from forwarding.testing._methods import METHODS
from forwarding.testing._structure import STRUCTURE


__all__ = ("LAWS", "known_laws")

LAWS: Mapping[str, Law] = {
    law.name: law for law in (*LENS, *STRUCTURE, *BEHAVIOUR, *METHODS, *LIFE)
}


def known_laws(waive: Collection[str]) -> frozenset[str]:
    """Return ``waive`` as a set, if every name in it is the name of a law."""
    if isinstance(waive, str):
        raise ValueError(f"waive must be a collection of names, got {waive!r}")  # noqa: TRY004  # a str is one
    strangers = sorted(set(waive) - LAWS.keys())
    if strangers:
        raise ValueError(f"waive names {strangers}; the laws are {', '.join(LAWS)}")
    return frozenset(waive)
