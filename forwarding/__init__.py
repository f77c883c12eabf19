"""Declare which attributes a wrapper forwards to the object it wraps."""

from forwarding._coverage import Coverage, coverage
from forwarding._descriptor import Forwarded, forwarded
from forwarding._dynamic import lazy
from forwarding._inspect import chain, owner_of, unwrap
from forwarding._meta import ForwardingABCMeta, ForwardingMeta
from forwarding._mixin import Forwarding
from forwarding._module import ModuleForwarding
from forwarding._preserved import preserved
from forwarding._record import Lens, Spec, forwarded_attributes
from forwarding._targets import target
from forwarding._verify import verify
from forwarding._wrapper import SlottedWrapper, Wrapper
from forwarding.exceptions import ForwardingError, TargetMissingError


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
