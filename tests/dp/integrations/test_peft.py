"""Methods of peft train privately, or are refused by name, as the page says."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest


pytest.importorskip("peft")
ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests/benchmarks/peft_methods.py"
PAGE = ROOT / "docs/reference/peft.md"


@pytest.fixture(scope="module")
def script():
    """The script that tries every method, and writes the page."""
    spec = importlib.util.spec_from_file_location("peft_methods", SCRIPT)
    module = sys.modules["peft_methods"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peft_methods"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("LORA", "nothing"),
        ("LORA, DoRA", "a function that returns the norms"),
        ("OFT, Cayley", "frozen weights and buffers"),
        ("RANDLORA", "frozen weights and buffers"),
        ("LOHA", "its scale, as a tensor"),
        ("SHIRA", "nothing"),
    ],
)
def test_a_method_trains_with_what_the_page_says_to_declare(script, name, declared):
    """To a loop over examples, and with nothing less declared."""
    row = script.tried(name)

    assert declared in row.declared
    assert row.deviation < 1e-9
    assert f"| {name} | {row.num_trained} | {row.declared} |" in PAGE.read_text("utf-8")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["LILY", "FROD"])
def test_a_method_is_refused_for_the_reason_on_the_page(script, name):
    """Whatever is declared."""
    row = script.tried(name)

    assert row.refused
    assert f"| {name} | {row.num_trained} | **refused**: {row.refused}" in (
        PAGE.read_text("utf-8")
    )


def test_the_page_has_every_method(script):
    """None is left out because it does not work."""
    named = re.findall(r"^\| ([A-Z_0-9]+)[,| ]", PAGE.read_text("utf-8"), re.MULTILINE)

    assert {kind.value for kind in script.CONFIGS} == set(named)
