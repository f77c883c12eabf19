"""An LSTM that reads names letter by letter: which library is a function's name from?

The names are read from the source of libraries that are installed here.
``nn.LSTM`` is used as it is.

Shapes: ``B`` names, ``T`` letters.
"""

import random
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import dp


LIBRARIES = ("scipy", "sympy", "torch")
NUM_EACH = 3000  # Names of a library, so that none is the likelier guess.
LENGTH = 24  # Letters of a name that are read.
_LETTERS = " _abcdefghijklmnopqrstuvwxyz0123456789"  # The blank is padding.


def make_names() -> tuple[Tensor, Tensor]:
    """Return the letters of every name, and the number of its library."""
    names: dict[str, set[str]] = {}
    for library in LIBRARIES:
        (folder,) = find_spec(library).submodule_search_locations
        for path in sorted(Path(folder).rglob("*.py")):
            text = path.read_text("utf-8", errors="ignore")
            for name in re.findall(r"^ *def ([a-z_]\w+)\(", text, re.MULTILINE):
                if not name.startswith(("_", "test")):
                    names.setdefault(name.lower(), set()).add(library)
    rng = random.Random(0)  # noqa: S311 -- public names
    known = []
    for label, library in enumerate(LIBRARIES):
        # A name of two libraries would have two labels.
        only = sorted(name for name, of in names.items() if of == {library})
        known += [(name, label) for name in rng.sample(only, NUM_EACH)]
    rng.shuffle(known)
    letters = [
        [max(0, _LETTERS.find(c)) for c in name[:LENGTH].ljust(LENGTH)]
        for name, _ in known
    ]
    return torch.tensor(letters), torch.tensor([label for _, label in known])


class Reader(nn.Module):
    """Reads a name, and guesses its library from its last state."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(_LETTERS), width)
        self.memory = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, len(LIBRARIES))

    def forward(self, names_BT: Tensor) -> Tensor:
        """Return the logits of every library."""
        states, _ = self.memory(self.letters(names_BT))
        last = (names_BT > 0).sum(1) - 1
        logits: Tensor = self.head(states[torch.arange(len(names_BT)), last])
        return logits


def main(steps: int = 120) -> tuple[float, float]:
    """Train, and return the accuracy on other names and the epsilon spent."""
    names, labels = make_names()
    plan = dp.plan_for(  # Public numbers, decided in advance.
        target_epsilon=3.0,
        target_delta=1e-5,
        sampling_probability=0.1,
        steps=steps,
        expected_batch_size=800,
        max_grad_norm=1.0,
    )
    loader = plan.loader(TensorDataset(names[1000:], labels[1000:]))
    model = Reader()
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    optimizer = dp.DPOptimizer(adam, plan=plan, loader=loader)

    def loss_fn(batch: list[Tensor]) -> Tensor:
        x, y = batch
        return cross_entropy(model(x), y, reduction="none")

    for batch in loader:
        optimizer.backward(loss_fn, batch)
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(names[:1000]).argmax(1) == labels[:1000]).float().mean()
    return accuracy.item(), optimizer.guarantee().epsilon


if __name__ == "__main__":
    reached, spent = main()
    print(f"accuracy {reached:.3f} at epsilon {spent:.2f}")  # noqa: T201
