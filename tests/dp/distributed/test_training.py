"""Many ranks train as one process on the union of their batches."""

import importlib.util
from pathlib import Path

import pytest
import torch


KINDS = (
    "plain",
    "ddp",
    "ddp_unused",
    "ddp_views",
    "fsdp",
    "fsdp_axis",
    "fsdp_kept",
    "hsdp",
)


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


def agree(results, weights, *, tolerance=1e-10):
    """Whether all ranks have these weights."""
    expected = torch.tensor(weights, dtype=torch.float64)
    return all(
        (torch.tensor(r["weights"], dtype=torch.float64) - expected).abs().max()
        < tolerance
        for r in results
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_ranks_train_as_one_process_on_the_union(ranks, alone, kind):
    """After 4 steps all weights agree to 1e-10, whichever wrapper the model is in."""
    results = ranks("ranks_training:train", kind=kind)

    assert agree(results, alone.train_alone(union(results)))


@pytest.mark.parametrize("kind", ["plain", "ddp", "fsdp"])
def test_ranks_count_norms_as_one_process(ranks, alone, kind):
    """Every rank finds the clipping norms that one process finds on the union."""
    results = ranks("ranks_training:train_by_quantile", kind=kind)

    norms, weights = alone.train_alone_by_quantile(union(results))
    assert all(r["norms"] == pytest.approx(norms, rel=1e-12) for r in results)
    assert agree(results, weights)


def test_ranks_agree_on_a_norm_that_was_found_under_noise(ranks):
    """The noisy count is one release, which all ranks see."""
    results = ranks("ranks_training:train_by_quantile", noise_multiplier=1.0)

    assert len({tuple(r["norms"]) for r in results}) == 1
    assert len({*results[0]["norms"]}) > 1  # A noisy count may be just as planned.


@pytest.mark.parametrize(
    ("kind", "scaled"), [("ddp", True), ("ddp", False), ("fsdp", False)]
)
def test_ranks_scale_and_correct_as_one_process(ranks, alone, kind, scaled):
    """Scales and second moments are of what all ranks released."""
    results = ranks("ranks_training:train_by_adam", kind=kind, scaled=scaled)

    assert agree(results, alone.train_alone_by_adam(union(results), scaled=scaled))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ranks_agree_on_corrected_moments_under_noise(ranks, kind):
    """Every rank subtracts the same variance."""
    results = ranks(
        "ranks_training:train_by_adam", kind=kind, scaled=False, noise_multiplier=1.0
    )

    assert agree(results, results[0]["weights"])


def test_scales_of_shards_are_refused(ranks):
    """By name, on every rank."""
    for error in ranks("ranks_training:scale_shards"):
        assert "is sharded, and clipping=ScaledClipping needs whole" in error


def test_norms_over_a_part_of_the_model_are_noticed(ranks, alone):
    """Were each rank to clip by what it holds, the test above would fail."""
    results = ranks("ranks_release:train", broken="local norm only")

    assert not agree(results, alone.train_alone(union(results)))


def test_frozen_layers_that_are_sharded_stay_in_step(ranks, alone):
    """They too are gathered before a backward pass, which ranks differ in."""
    layers = {"frozen": ["last", "norm"]}
    results = ranks("ranks_training:train", kind="fsdp", q=0.05, num_steps=10, **layers)

    assert agree(results, alone.train_alone(union(results), **layers))


def test_lower_precision_in_passes_leaves_sums_precise(ranks, alone):
    """Parameters are float64, passes float32: 1e-4 apart, and equal on all ranks."""
    results = ranks("ranks_training:train", kind="fsdp_low")

    exact = alone.train_alone(union(results))
    assert agree(results, exact, tolerance=1e-4)
    assert not agree(results, exact)
    assert all(r["weights"] == results[0]["weights"] for r in results)


def test_parts_of_a_batch_change_nothing(ranks, alone):
    """Each rank may split its batch as it likes."""
    parts = [3, 1, 5, 2][: ranks.size]

    results = ranks("ranks_training:train", num_parts=parts)

    assert agree(results, alone.train_alone(union(results)))


def test_parts_of_a_batch_change_nothing_under_fsdp(ranks, alone):
    """There forward passes gather, so ranks make equally many; parts may be empty."""
    results = ranks("ranks_training:train", kind="fsdp", num_parts=[4] * ranks.size)

    assert agree(results, alone.train_alone(union(results)))


@pytest.mark.parametrize("kind", ["plain", "ddp", "fsdp"])
def test_ranks_with_empty_batches_stay_in_step(ranks, alone, kind):
    """With q = 0.01 and 23 examples, 4 of 5 steps are empty on all ranks."""
    q = 0.01
    results = ranks("ranks_training:train", kind=kind, num_steps=30, q=q, steps=30)

    assert agree(results, alone.train_alone(union(results), steps=30))
    assert [r["ledger"] for r in results] == [results[0]["ledger"]] * ranks.size
    (charges,) = results[0]["ledger"]["segments"].values()
    assert sum(c["count"] for c in charges) == 30


@pytest.mark.parametrize("num_examples", [1, 2, 5])
def test_a_dataset_may_be_smaller_than_the_world(ranks, alone, num_examples):
    """Some ranks never have an example; all take part in every step."""
    results = ranks("ranks_training:train", num_examples=num_examples, q=0.7)

    assert agree(results, alone.train_alone(union(results)))


@pytest.mark.parametrize("kind", ["plain", "ddp", "fsdp"])
def test_a_poisoned_example_on_one_rank_contributes_nothing(ranks, alone, kind):
    """It is not a number; all others count, and all ranks have equal, finite weights."""
    results = ranks("ranks_training:train", kind=kind, poison=3, q=1.0)

    clean = [[i for i in step if i != 3] for step in union(results)]
    assert all(3 in step for step in union(results))
    assert agree(results, alone.train_alone(clean))


def test_ranks_report_what_one_process_would(ranks, alone):
    """Epsilon and the ledger are those of the run, equal on all ranks, once."""
    results = ranks("ranks_training:train", noise_multiplier=1.0, num_steps=3)

    model, optimizer, loader = alone.run_of(noise_multiplier=1.0)
    for batch, _ in zip(loader, range(3), strict=False):
        optimizer.backward(alone.losses_of(model, batch))
        optimizer.step()
    assert [r["epsilon"] for r in results] == [optimizer.spent().epsilon] * ranks.size
    assert len({r["segment"] for r in results}) == 1
    assert [r["ledger"] for r in results] == [results[0]["ledger"]] * ranks.size


def test_a_ledger_for_each_rank_is_noticed(ranks):
    """Were ledgers to keep ids of their own, the second step would not be taken."""
    results = ranks("ranks_failures:error_of_train", broken="a ledger for each rank")

    assert [name for name, _ in results] == ["RanksDivergedError"] * ranks.size
    assert all("the ledger differs" in message for _, message in results)
