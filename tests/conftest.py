"""Hypothesis profiles, and how tests are shared out among several processes."""

import gc
import os
import sys

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


# The files that take longest, in CPU seconds 230 to 40: none of them may begin last, while
# other processes have nothing left to do.
LONGEST = (
    "tests/dp/test_crash.py",
    "tests/dp/distributed/",
    "tests/dp/integrations/test_examples.py",
    "tests/dp/test_audit.py",
    "tests/dp/test_audit_correlated.py",
    "tests/dp/test_audit_replay.py",
    "tests/dp/test_certificate.py",
    "tests/dp/test_audit_one_run.py",
    "tests/dp/test_audit_allocation.py",
    "tests/dp/integrations/test_private.py",
)


def pytest_collection_finish():
    """Let the garbage collector pass over all that was imported and collected.

    It stays until the end, and is most of what there is: a collection goes through a
    third of the objects, or a tenth.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Let no tracer follow what draws many samples: that of coverage takes most of it.

    The lines that it runs are run by other tests, too, or it is marked as traced.
    """
    tracer = sys.gettrace()
    marker = item.get_closest_marker("statistical")
    if marker is not None and not marker.kwargs.get("traced"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


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

        def _assign_work_unit(self, node):
            scope = next((long for long in LONGEST if long in self.workqueue), None)
            if scope is not None:
                self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)
