"""A checkpoint of one layout resumes on another, with what was spent."""

import importlib

import pytest
import torch


@pytest.mark.parametrize(
    ("saved", "loaded"), [("plain", "fsdp"), ("fsdp", "plain"), ("fsdp", "fsdp")]
)
def test_the_ledger_follows_a_checkpoint_to_another_layout(
    ranks, tmp_path, saved, loaded
):
    """Replicated and sharded runs exchange weights, buffers and charges."""
    path = str(tmp_path)
    before = ranks("ranks_checkpoint:save", kind=saved, path=path)
    after = ranks("ranks_checkpoint:load", kind=loaded, path=path)

    for (weights, steps), (resumed, charged, num_buffers, later) in zip(
        before, after, strict=True
    ):
        torch.testing.assert_close(resumed, weights)
        assert (steps, charged, later) == (3, 3, 4)
        assert num_buffers == 9


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_one_process_resumes_what_many_ranks_saved(ranks, tmp_path):
    """Sharded over ranks before, whole afterwards; the charges are the same."""
    alone = importlib.import_module("ranks_checkpoint")
    (weights, _), *_ = ranks("ranks_checkpoint:save", kind="fsdp", path=str(tmp_path))

    resumed, charged, _, later = alone.load(kind="plain", path=str(tmp_path))

    torch.testing.assert_close(resumed, weights)
    assert (charged, later) == (3, 4)
