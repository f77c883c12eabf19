"""A small language model of what many users wrote, private at user level.

The corpus is synthetic: every user writes lines from templates, with a favourite of
their own, and a few users write very much.

Shapes: ``B`` lines, ``T`` characters.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import dp


LENGTH = 32  # Characters of a line.
ALPHABET = " abcdefghijklmnopqrstuvwxyz"  # The blank is what lines are padded with.
_THINGS = ("bread", "cheese", "apples", "soup", "rice", "honey")
_TEMPLATES = ("i like {} very much", "today we had {}", "please buy some {}")


@dataclass(frozen=True)
class Corpus:
    """Lines of text as numbers, and who wrote each."""

    lines: Tensor
    user_of_line: list[str]


def make_corpus(num_users: int, *, seed: int = 0) -> Corpus:
    """Return the lines of some users: from 1 to 12, and every tenth user wrote 40."""
    rng = random.Random(seed)  # noqa: S311 -- a public corpus
    written = []
    for number in range(num_users):
        favourite = rng.choice(_THINGS)
        num_lines = 40 if number % 10 == 0 else rng.randint(1, 12)
        for _ in range(num_lines):
            thing = favourite if rng.random() < 0.7 else rng.choice(_THINGS)  # noqa: PLR2004 -- a share
            line = rng.choice(_TEMPLATES).format(thing).ljust(LENGTH)
            written.append((f"user{number}", [ALPHABET.index(c) for c in line]))
    rng.shuffle(written)
    return Corpus(
        torch.tensor([numbers for _, numbers in written]), [u for u, _ in written]
    )


class CharacterModel(nn.Module):
    """Predicts the next character from all before it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, len(ALPHABET))

    def forward(self, lines_BT: Tensor) -> Tensor:
        """Return the logits of the character after each."""
        states, _ = self.memory(self.characters(lines_BT))
        logits: Tensor = self.head(states)
        return logits


def losses_of(model: nn.Module, lines_BT: Tensor) -> Tensor:
    """Return [B] the mean loss of each line's characters."""
    logits = model(lines_BT[:, :-1])
    losses_BT = cross_entropy(logits.transpose(1, 2), lines_BT[:, 1:], reduction="none")
    return losses_BT.mean(1)


def main(num_users: int = 1000, steps: int = 60) -> dp.Certificate:
    """Train with users as units, and return the certificate."""
    corpus = make_corpus(num_users)
    plan = dp.plan_for(
        target_epsilon=6.0,
        target_delta=1e-4,
        sampling_probability=0.1,  # Of each user.
        steps=steps,
        expected_batch_size=0.1 * num_users,  # Users; their number is public here.
        max_grad_norm=1.0,
        unit_of_privacy="one value of user_id",
    )
    loader = plan.loader(
        TensorDataset(corpus.lines), units=corpus.user_of_line, max_per_unit=10
    )
    model = CharacterModel()
    optimizer = dp.DPOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.02), plan=plan, loader=loader
    )

    def loss_fn(batch: list[Tensor]) -> Tensor:
        (lines,) = batch
        return losses_of(model, lines)

    for batch in loader:
        # The loader knows whose each line is.
        optimizer.backward(loss_fn, batch)
        optimizer.step()
    with torch.no_grad():
        # The corpus is public here. Of private text, this number would be private too.
        loss = losses_of(model, corpus.lines).mean().item()
    print(f"{loss:.2f} nats for each character")  # noqa: T201
    return optimizer.certificate()


if __name__ == "__main__":
    print(main().to_text())  # noqa: T201
