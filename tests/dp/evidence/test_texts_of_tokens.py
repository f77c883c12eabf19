"""Batches of texts that a function packs itself, with a loss for every token.

Other texts have other lengths, so that the losses of those that stay move.
"""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import dp
from dp import SampleMixingError
from dp.evidence._company import Company, _collated

from .conftest import evidence_of
from .losses import cross_entropy


WORDS = 12


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)

    def forward(self, tokens, _unit):
        return self.head(torch.tanh(self.words(tokens)))


class Centred(Texts):
    """Takes off a mean over all texts, without a gradient."""

    def forward(self, tokens, _unit):
        h = self.words(tokens)
        return self.head(torch.tanh(h - h.detach().mean(0)))


class Steered(Texts):
    """Multiplies gradients with a number of all texts."""

    def forward(self, tokens, _unit):
        h = torch.tanh(self.words(tokens))
        h.register_hook(lambda gradient: gradient * float(tokens.float().mean()))
        return self.head(h)


def units_of(texts):
    lengths = torch.tensor([len(text) - 1 for text in texts])
    return torch.arange(len(texts)).repeat_interleave(lengths)


@pytest.fixture
def train(make_plan):
    """Train a model of texts for some steps."""

    def train(model, steps=4):
        lengths = torch.randint(3, 9, (40,))
        texts = [torch.randint(WORDS, (int(n),)) for n in lengths]
        plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.3))
        loader = plan.loader(texts, collate_fn=list, empty_batch=[])
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = dp.DPOptimizer(inner, plan=plan, loader=loader)

        def losses(drawn):
            tokens = torch.cat([text[:-1] for text in drawn])
            targets = torch.cat([text[1:] for text in drawn])
            return cross_entropy(model(tokens, units_of(drawn)), targets)

        for drawn, _ in zip(loader, range(steps), strict=False):
            optimizer.backward(losses, drawn, units=units_of(drawn))
            optimizer.step()
        return optimizer

    return train


@pytest.mark.filterwarnings("error::dp.EvidenceWarning")
def test_texts_are_looked_at_token_by_token(train):
    optimizer = train(Texts())

    record = evidence_of(optimizer)
    assert record.looks >= 3
    assert not record.inconclusive


@pytest.mark.parametrize("kind", [Centred, Steered])
def test_texts_that_depend_on_others_are_refused(train, kind):
    with pytest.raises(SampleMixingError, match="of an example changed"):
        train(kind())


def test_losses_go_back_to_their_places():
    """Texts of 2, 4 and 3 tokens; their sum is that of 3 copies of the last, too."""
    unit_of_loss = np.repeat([0, 1, 2], [2, 4, 3])
    company = Company(
        num_units=3,
        unit_of_row=np.arange(3),
        unit_of_loss=unit_of_loss,
        ways=[partial(_collated, None, [0, 1, 2], set())],
    )
    exchanged = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])

    placed = company.in_places(exchanged, [2, 2, 2])
    assert placed.tolist() == [0, 0, 0, 0, 0, 0, 7, 8, 9]
    placed = company.in_places(exchanged[:6], [0, 0, 0])
    assert placed.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert company.in_places(exchanged, [0, 1, 2]).tolist() == exchanged.tolist()
    assert company.in_places(exchanged[:5], [0, 0, 0]).tolist() == [1, 2, 3, 4, 5]
