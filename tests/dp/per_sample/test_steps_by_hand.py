"""Steps written by hand, which are measured as the limit, compute what the engine does."""

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from step_by_hand import gradients_by_hand
from step_models import MODELS, Subject
from step_models_in_hand import IN_HAND

from dp.per_sample import Engine


WRITTEN: Mapping[str, Callable[[], Subject]] = {
    "MLP": partial(IN_HAND["MLP, 64"], 4),
    "tiny layers": partial(IN_HAND["30 tiny layers"], 4),
    "LSTM": partial(IN_HAND["LSTM of 96"], 4, 5),
    "ViT": partial(IN_HAND["ViT of 6 layers"], 4),
    "encoder": partial(IN_HAND["encoder"], 4, 9),
    "decoder": partial(IN_HAND["decoder of 6 layers"], 4, 9),
    "BERT": partial(MODELS["BERT"], 4, 9),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_step_by_hand_has_the_norms_and_sums_of_the_engine(name: str) -> None:
    """So that both are steps of the same mechanism, and their times can be compared."""
    if name == "BERT":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    subject = WRITTEN[name]()
    parameters = list(subject.model.parameters())
    groups, factors_B = [0] * len(parameters), torch.rand(4)
    gradients = Engine().gradients(
        subject.losses(subject.model(subject.x), subject.y), parameters
    )
    expected = [torch.empty_like(p) for p in parameters]
    gradients.add_weighted_sum(factors_B[None], groups, expected, beta=0)

    norms_B, weigh = gradients_by_hand(subject)()
    sums = [torch.full_like(p, torch.nan) for p in parameters]
    weigh(factors_B, sums)

    torch.testing.assert_close(
        norms_B, gradients.squared_norms(groups)[0], rtol=1e-3, atol=0
    )
    for ours, wanted in zip(sums, expected, strict=True):
        assert (ours - wanted).norm() <= 1e-5 * wanted.norm()
