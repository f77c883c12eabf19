"""Real wrappers, rewritten as declarations in ``docs/examples``, keep the laws."""

import functools
import importlib.util
import sqlite3
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from forwarding import coverage
from forwarding.testing import law_tests


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FEW = settings(max_examples=6, derandomize=True)


@functools.cache
def example(name):
    """Import a file of the examples, which need not be a module of a package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle asks for it
    spec.loader.exec_module(module)
    return module


Noted = example("wrap_sqlite_connection").Noted


class Connection(sqlite3.Connection):
    """Closes itself; from Python 3.13 on, one that is only dropped is warned of."""

    def __del__(self):
        self.close()


def connection():
    # Threads of the law `lazy` make some, and who collects them is not known.
    return sqlite3.connect(":memory:", factory=Connection, check_same_thread=False)


test_a_connection = law_tests(
    Noted,
    connection,
    ["row_factory", "isolation_level", "total_changes", "commit", "cursor"],
    leave_out=[],
    settings=FEW,
)


def test_a_statement_is_noted_inside_with_too():
    """``with`` binds the wrapper, not the bare connection."""
    noted = Noted(connection())

    with noted as bound:
        bound.execute("create table t (a)")

    assert bound is noted
    assert noted.statements == ["create table t (a)"]


class Job:
    """What takes long to build."""

    def __init__(self):
        self.name, self.steps = "job", [1]

    def run(self, times=1):
        return times


lazy_object = example("wrap_lazily").lazy_object


def lately(job):
    return lazy_object(Job, lambda: job)


test_a_lazy_object = law_tests(
    lately,
    Job,
    ["name", "steps", "run"],
    leave_out=[],
    lazy=lambda make: lazy_object(Job, make),
    waive={
        "deepcopy": "a copy that was not asked yet asks the same factory",
        "pickle": "the factory is a lambda",
        "freed": "the factory holds the job",
    },
    settings=FEW,
)


def response():
    found = pytest.importorskip("requests").Response()
    found.status_code, found._content = 200, b"{}"
    return found


def lenient(inner):
    return example("wrap_requests_response").Lenient(inner)


test_a_response = law_tests(
    lenient,
    response,
    ["status_code", "url", "headers", "reason", "json", "raise_for_status"],
    leave_out=[],
    settings=FEW,
)


def test_one_answer_of_a_response_differs():
    """The rest is forwarded."""
    answer = lenient(response())
    before, answer.status_code = answer.ok, 304

    assert (before, answer.ok, answer.__wrapped__.ok) == (True, False, True)


def environment():
    gymnasium = pytest.importorskip("gymnasium")

    class Env(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Discrete(2)

        def step(self, action):
            return action, 0.0, False, False, {}

        def reset(self, *, seed=None, options=None):
            return seed, {"options": options}

        def render(self):
            return None

    return Env()


def layered(inner):
    return example("wrap_gymnasium_env").EnvWrapper(inner)


test_an_environment = law_tests(
    layered,
    environment,
    ["observation_space", "action_space", "metadata", "step", "reset", "render"],
    leave_out=[],
    settings=FEW,
)


def test_a_layer_finds_what_another_layer_has():
    """As gymnasium's own wrappers do."""
    outer = layered(layered(environment()))
    outer.env.steps = 7

    found = outer.get_wrapper_attr("steps")
    outer.set_wrapper_attr("steps", 8)

    assert (found, outer.env.steps, outer.has_wrapper_attr("none")) == (7, 8, False)


def session():
    return pytest.importorskip("sqlalchemy.orm").Session()


def scoped(inner):
    return example("wrap_sqlalchemy_session").scoped_session(lambda: inner)


test_a_session = law_tests(
    scoped,
    session,
    ["autoflush", "info", "bind", "dirty", "add", "commit", "execute"],
    leave_out=[],
    waive={
        "freed": "the registry holds the thread's session",
        "deepcopy": "a copy asks the same registry",
    },
    settings=FEW,
)


def test_no_name_of_a_session_is_missing():
    """SQLAlchemy's own lacks 17 (#7103 asks for this test)."""
    assert coverage(scoped(session()), session()).complete


def averaged(model):
    """Average the model itself: the laws are about the model, not about a copy."""
    pytest.importorskip("torch")
    ema = example("wrap_torch_ema").EMA
    average = ema.__new__(ema)
    super(ema, average).__init__(model)
    average.decay, average.num_updates = 0.999, 0
    return average


def network():
    nn = pytest.importorskip("torch.nn")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.body = 2, nn.Linear(2, 2)

        def forward(self, x):
            return self.body(x)

        def generate(self, x, times=1):
            return self.body(x) * times

    return Network()


test_an_average = law_tests(
    averaged,
    network,
    ["training", "width", "body", "generate"],
    leave_out=[],
    waive={
        "class access": "a module's names are looked up by __getattr__",
        "rebound method": "what is set reaches the module",
    },
    settings=FEW,
)


def test_an_average_moves_towards_the_model():
    """By one minus the decay; integer buffers are copied."""
    torch = pytest.importorskip("torch")
    model = torch.nn.BatchNorm1d(1)
    ema = example("wrap_torch_ema").EMA(model, decay=0.75)
    with torch.no_grad():
        model.weight += 4.0
    model.num_batches_tracked += 8
    ema.update(model)

    assert ema.weight.item() == 2.0
    assert ema.num_batches_tracked.item() == 8
    assert ema.num_updates == 1
    assert list(ema.state_dict()) == list(model.state_dict())


def test_an_average_is_in_the_mode_of_its_model():
    """``eval`` of either is seen in both."""
    torch = pytest.importorskip("torch")
    ema = example("wrap_torch_ema").EMA(torch.nn.Dropout().eval())
    before = ema.training
    ema.train()

    assert (before, ema.__wrapped__.training) == (False, True)
