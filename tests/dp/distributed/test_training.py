"""Many ranks train as one process on the union of their batches."""

import importlib.util
from pathlib import Path

import pytest
import torch


KINDS = ("plain", "ddp", "ddp_unused", "ddp_views", "fsdp")


@pytest.fixture(scope="module")
def alone():
    """The rank-side code, for one process."""
    path = Path(__file__).with_name("ranks_training.py")
    spec = importlib.util.spec_from_file_location("ranks_training_alone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def union(results):
    """The batches of all ranks, step by step."""
    return [
        sorted(i for indices in step for i in indices)
        for step in zip(*(r["drawn"] for r in results), strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_ranks_train_as_one_process_on_the_union(ranks, alone, kind):
    """After 4 steps all weights agree to 1e-10, whichever wrapper the model is in."""
    results = ranks("ranks_training:train", kind=kind)

    expected = torch.tensor(alone.train_alone(union(results)))
    for result in results:
        torch.testing.assert_close(
            torch.tensor(result["weights"]), expected, rtol=0, atol=1e-10
        )
