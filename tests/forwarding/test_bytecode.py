"""Forwarded attributes are read by the instruction for properties."""

import subprocess
import sys
import textwrap

import pytest


pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="CPython 3.11 has no LOAD_ATTR_PROPERTY"
)
PROGRAM = """
    import dis
    from forwarding import Forwarded, Forwarding, Wrapper, forwarded, target

    class Engine:
        rpm = 900

    class Single:
        rpm = Forwarded(to="engine")
        def __init__(self, engine):
            self.engine = engine

    class Typed:
        engine = target(Engine)
        rpm = forwarded(engine.rpm)
        __init__ = Single.__init__

    class Bulk(Forwarding, to="engine", forward="rpm"):
        __init__ = Single.__init__

    class Wrapping(Wrapper[Engine]):
        rpm = Forwarded()

    class Hand:
        rpm = property(lambda self: self.engine.rpm)
        __init__ = Single.__init__

    class Slower(property):
        pass

    class Subclassed:
        rpm = Slower(lambda self: self.engine.rpm)
        __init__ = Single.__init__

    def read(top):
        return top.rpm

    top = {kind}(Engine())
    for _ in range(100):
        read(top)
    found = [line.opname for line in dis.get_instructions(read, adaptive=True)]
    print("LOAD_ATTR_PROPERTY" in found)
"""


def is_read_as_a_property(kind):
    """Ask a process that nobody traces, since tracing changes the instructions."""
    program = textwrap.dedent(PROGRAM).replace("{kind}", kind)
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout == "True\n"


@pytest.mark.parametrize("kind", ["Hand", "Single", "Typed", "Bulk", "Wrapping"])
def test_a_declaration_of_any_kind_is_read_as_a_property_by_hand(kind):
    """The interpreter calls nothing to get at it."""
    assert is_read_as_a_property(kind)


def test_what_is_slower_would_be_found():
    """A subclass of property is not read so; the test above can fail."""
    assert not is_read_as_a_property("Subclassed")
