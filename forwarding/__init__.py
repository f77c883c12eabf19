"""Declare which attributes a wrapper forwards to the object it wraps."""

import sys
from typing import TYPE_CHECKING, Any

from forwarding._descriptor import Forwarded, forwarded
from forwarding._dynamic import lazy
from forwarding._inspect import chain, owner_of, unwrap
from forwarding._meta import ForwardingABCMeta, ForwardingMeta
from forwarding._mixin import Forwarding
from forwarding._record import Lens, Spec, forwarded_attributes
from forwarding._targets import target
from forwarding._wrapper import SlottedWrapper, Wrapper
from forwarding.exceptions import ForwardingError, TargetMissingError


if TYPE_CHECKING:
    from forwarding._coverage import Coverage, coverage
    from forwarding._module import ModuleForwarding
    from forwarding._preserved import preserved
    from forwarding._verify import verify

__version__ = "0.1.0"
"""The version of the distribution, which holds ``dp`` as well."""

__all__ = (
    "Coverage",
    "Forwarded",
    "Forwarding",
    "ForwardingABCMeta",
    "ForwardingError",
    "ForwardingMeta",
    "Lens",
    "ModuleForwarding",
    "SlottedWrapper",
    "Spec",
    "TargetMissingError",
    "Wrapper",
    "chain",
    "coverage",
    "forwarded",
    "forwarded_attributes",
    "lazy",
    "owner_of",
    "preserved",
    "target",
    "unwrap",
    "verify",
)

# What most programs never use is loaded when it is first asked for: a third of the
# time that the import would take.
_LATE = {
    "Coverage": "_coverage",
    "ModuleForwarding": "_module",
    "coverage": "_coverage",
    "preserved": "_preserved",
    "verify": "_verify",
}

if not TYPE_CHECKING:  # pragma: no branch -- Or checkers would find any name here.

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            told = f"module {__name__!r} has no attribute {name!r}"
            # With these two, Python asks after the name that was meant.
            raise AttributeError(told, name=name, obj=sys.modules[__name__])
        module = __import__(f"{__name__}.{_LATE[name]}", fromlist=[name])
        globals()[name] = found = getattr(module, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATE})
