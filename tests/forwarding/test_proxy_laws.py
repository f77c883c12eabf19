"""The law kit judges transparent proxies, at one to three layers."""

import os

import pytest

from forwarding import Forwarded
from forwarding.proxy import TransparentProxy, around
from forwarding.testing import check


class Engine:
    def __init__(self):
        self.rpm = 900
        self.note = [1]

    def start(self, key=1):
        return self, key


class Declared(TransparentProxy[Engine]):
    rpm = Forwarded()
    note = Forwarded()
    start = Forwarded()


class Advised(TransparentProxy):
    rpm = Forwarded()
    note = Forwarded()

    @around()
    def start(self, proceed, /, *args, **kwargs):
        return proceed(*args, **kwargs)


class Plain(TransparentProxy):
    pass


NAMES = ("rpm", "note", "start")
# A proxy's class that travels by value is no proxy any more where wrapt has no C.
BROKEN = {"survives cloudpickle"} if os.environ.get("WRAPT_DISABLE_EXTENSIONS") else ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Declared, Advised])
def test_a_proxy_keeps_every_law_on_what_it_declares_or_advises(kind):
    """As a wrapper does; so nothing must be waived, with wrapt's extension."""
    check(kind, Engine, NAMES, waive=BROKEN, strict=True)


@pytest.mark.slow
def test_a_proxy_that_declares_nothing_breaks_three_laws_only():
    """Its class has none of the names, so what is rebound is rebound on the target."""
    check(
        Plain,
        Engine,
        NAMES,
        waive={"class access", "patched method", "rebound method", *BROKEN},
        strict=True,
    )
