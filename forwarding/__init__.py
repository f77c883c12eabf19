"""Declare which attributes a wrapper forwards to the object it wraps."""

from forwarding._descriptor import Forwarded, forwarded
from forwarding._inspect import chain, owner_of, unwrap
from forwarding._meta import ForwardingABCMeta, ForwardingMeta
from forwarding._mixin import Forwarding
from forwarding._preserved import preserved
from forwarding._record import Spec, forwarded_attributes
from forwarding._targets import target
from forwarding._verify import verify
from forwarding._wrapper import Wrapper
from forwarding.exceptions import ForwardingError


__all__ = (
    "Forwarded",
    "Forwarding",
    "ForwardingABCMeta",
    "ForwardingError",
    "ForwardingMeta",
    "Spec",
    "Wrapper",
    "chain",
    "forwarded",
    "forwarded_attributes",
    "owner_of",
    "preserved",
    "target",
    "unwrap",
    "verify",
)
