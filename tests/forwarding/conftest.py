"""What the tests of ``forwarding`` share."""

import sys

import pytest


# What a Python in a browser lacks, as it says itself.
_LACKS = ("can't start new thread", "does not support processes", "stack switching")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Skip what needs threads, processes or an event loop, where there are none."""
    try:
        return (yield)
    except (OSError, RuntimeError) as error:
        if sys.platform == "emscripten" and any(lack in str(error) for lack in _LACKS):
            pytest.skip(f"{pyfuncitem.name}: {error}")
        raise
