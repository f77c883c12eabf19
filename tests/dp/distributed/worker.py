"""One rank: joins the process group, then answers calls until it is told to stop."""

import importlib.util
import os
import sys
import traceback
import warnings
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path

from torch import distributed


def function_of(name):
    """Return the function that ``file:function`` names, from this folder."""
    file, function = name.split(":")
    if file not in sys.modules:
        path = Path(__file__).parent / f"{file}.py"
        spec = importlib.util.spec_from_file_location(file, path)
        sys.modules[file] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[file])
    return getattr(sys.modules[file], function)


def main():
    warnings.simplefilter("error")
    # Most tests are not about what losses are computed from, and give finished ones.
    warnings.filterwarnings("ignore", "the losses came finished")
    if "DP_TEST_JOINS" in os.environ:
        join()
    sys.path.insert(0, str(Path(__file__).parent))
    key = os.environ["DP_TEST_KEY"].encode()
    with Client(os.environ["DP_TEST_CALLS"], authkey=key) as calls:
        calls.send(int(os.environ["RANK"]))
        while (call := calls.recv()) is not None:
            name, arguments = call
            try:
                answer = True, function_of(name)(**arguments)
            except BaseException:  # noqa: BLE001 -- whatever it is, the test is told
                answer = False, traceback.format_exc()
            calls.send(answer)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def join():
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    if "DP_TEST_TIMEOUT" in os.environ:  # Not for the rendezvous, which may be slow.
        timeout = timedelta(seconds=float(os.environ["DP_TEST_TIMEOUT"]))
        # torch 2.14 has a public name for it, and warns of the other.
        private = distributed.distributed_c10d._set_pg_timeout
        getattr(distributed, "set_timeout", private)(timeout)


@contextmanager
def measured():
    """Measure coverage into a file of its own, if the tests are measured.

    What measures every process may have begun already, in the server that forked this
    one; it would save nothing, as such a process ends without cleaning up.
    """
    if "DP_TEST_COVERAGE" not in os.environ:
        yield
        return
    import coverage  # noqa: PLC0415 -- only here is it needed

    if began := coverage.Coverage.current():
        began.stop()
    own = coverage.Coverage(data_file=os.environ["DP_TEST_COVERAGE"], data_suffix=True)
    own.start()
    try:
        yield
    finally:
        own.stop()
        own.save()


if __name__ == "__main__":
    os.environ.update(globals().get("ENVIRONMENT", {}))
    with measured():
        main()
