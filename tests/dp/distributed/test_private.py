"""One line makes a trainer private, on many ranks as on one."""

import pytest

import dp


@pytest.mark.parametrize(
    ("framework", "options", "batch_size"),
    [
        ("trainer", {}, 4),
        ("trainer", {"users": True}, 4),
        ("trainer", {"resumes": True}, 4),
        ("lightning", {}, 4),
        ("lightning", {"resumes": True}, 4),
        ("accelerate", {}, 2),
    ],
)
def test_a_private_trainer_trains_on_many_ranks(
    ranks, tmp_path, framework, options, batch_size
):
    """All end with the same weights, after as many steps as planned, and one report."""
    results = ranks(f"ranks_private:by_{framework}", folder=str(tmp_path), **options)

    result = results[0]
    assert results == [result] * ranks.size
    assert result["wrapper"] == "DistributedDataParallel"
    # By Lightning each rank passes once a batch; the others as often as they drew parts.
    assert result["shares_buffers"] is (framework == "lightning")
    assert result["batch_size"] == batch_size * ranks.size
    assert result["steps"] == (4, 4)
    assert 7.9 < result["epsilon"] <= 8.0
    assert dp.verify(tmp_path / "privacy/certificate.json", quick=True).ok
