"""Rows of tables are kept by what all ranks counted, on every rank alike."""

import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def alone():
    """The rank-side code, for one process."""
    path = Path(__file__).with_name("ranks_sparse.py")
    spec = importlib.util.spec_from_file_location("ranks_sparse_alone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_noise_ranks_keep_what_one_process_keeps(ranks, alone, wrapped):
    """The counts are of the union of the batches, and so are the gradients."""
    results = ranks("ranks_sparse:train", wrapped=wrapped)

    steps = zip(*(r["drawn"] for r in results), strict=True)
    union = [sorted(i for indices in step for i in indices) for step in steps]
    expected = torch.tensor(alone.train_alone(union))
    for result in results:
        torch.testing.assert_close(torch.tensor(result["gradients"]), expected)


def test_ranks_agree_on_rows_that_were_kept_under_noise(ranks):
    """One noisy map a step: half the rows or so, the same everywhere, charged alike.

    Each of 50 rows is kept with a probability of 0.3 at least, and noise on its three
    elements is 0 with one of 6e-5: no or all rows are kept in one of 1e7 runs.
    """
    results = ranks("ranks_sparse:train", wrapped=False, noise_multiplier=1.0)

    assert all(r["gradients"] == results[0]["gradients"] for r in results)
    assert all(r["charged"] == results[0]["charged"] for r in results)
    kept = torch.tensor(results[0]["gradients"]).any(2).sum(1)
    assert (kept > 0).all()
    assert (kept < 50).all()


def test_tables_that_are_sharded_are_refused(ranks):
    """By name, on every rank, where the optimizer is made."""
    for error in ranks("ranks_sparse:shard"):
        assert "the table at 0, of shape (50, 3), is sharded" in error
