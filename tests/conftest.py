"""Hypothesis profiles, and how tests are shared out among several processes."""

import os

import pytest
from hypothesis import HealthCheck, settings


# ``ci`` is derandomised, ``dev`` looks for new examples.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=50, **_common)
settings.register_profile("ci", max_examples=50, derandomize=True, **_common)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
)

# One thread for each process of xdist; read by torch when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, and all tests of several ranks in one.

    Blocks of a page go on from each other. Ranks are processes themselves, and some
    tests see whether they answer in time.
    """
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 -- where it is used

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            ranks = "tests/dp/distributed/"
            return ranks if nodeid.startswith(ranks) else super()._split_scope(nodeid)

    return Scheduling(config, log)
