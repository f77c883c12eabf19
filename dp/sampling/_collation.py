"""Whether a row of a batch is made of several examples, as by mixup in ``collate_fn``.

Four examples are collated together, and once more with all but one of them replaced by
copies of one other: the row of the one that stayed must stay. The copied example is one
that keeps the shapes, so that padding is the same and, by the same seed, so are random
numbers. What draws another number of them for other examples cannot be compared.
A dataset that reads several rows at once is asked for one row in other company, too.

Not seen: mixing that is rare, or that four examples are too few for.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from types import MethodType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from dp._containers import is_sequence, parts_of
from dp.exceptions import SampleMixingError
from dp.sampling._fetch import fetch


__all__ = ("check_collation", "differ", "drawn_states", "seeded")

_NUM: Final = 4
_SEEDS: Final = (0, 1, 2)
_Collate = Callable[[list[Any]], Any]
_Draws = tuple[Any, ...]


def check_collation(dataset: Any, collate_fn: _Collate) -> None:
    """Raise if a row of a batch depends on another example of it.

    Examples that cannot be read, or not be collated in this way, are left to training.

    Raises:
        SampleMixingError: If one does.
    """
    if len(dataset) < _NUM:
        return
    places = [i * (len(dataset) - 1) // (_NUM - 1) for i in range(_NUM)]
    _check_fetching(dataset, places)
    if collate_fn is default_collate:
        return
    try:
        examples = fetch(dataset, places)
        if not isinstance(examples, list):
            return
        mixed = _mixes(examples, collate_fn)
    except Exception:  # noqa: BLE001 -- whatever a user's function raises, training shows
        return
    if mixed:
        raise SampleMixingError(
            "collate_fn makes rows of several examples: a row changes if other examples"
            " of its batch are exchanged, as by mixup, cutmix or a statistic of the"
            " batch. Let it only stack and pad; augment each example by itself"
        )


def _check_fetching(dataset: Any, places: list[int]) -> None:
    """Raise if a row that is read together with others depends on which these are."""
    if not hasattr(dataset, "__getitems__"):
        return
    try:
        (one, draws), (again, same), (other, others) = (
            _fetched(dataset, company)
            for company in (places, places, [places[0], *places[1:2] * (_NUM - 1)])
        )
    except Exception:  # noqa: BLE001 -- as above
        return
    # What does not repeat itself draws from a generator of its own.
    repeats = not differ(one, again) and draws == same == others
    if repeats and differ(one, other):
        raise SampleMixingError(
            f"{type(dataset).__name__}.__getitems__ makes rows of several examples: a"
            " row changes if it is read together with others, as by a statistic of all"
            " rows that are read. Make each row of its own example"
        )


def _fetched(dataset: Any, places: list[int]) -> tuple[Any, _Draws]:
    """Return the row of the first place, read with others by a seed, and the draws."""
    with seeded(_SEEDS[0]):
        return deepcopy(fetch(dataset, places)[0]), drawn_states()


def differ(one: Any, other: Any) -> bool:
    """Whether two examples of the same shapes differ."""
    parts, others = parts_of(one), parts_of(other)
    if parts is not None and others is not None:
        return any(differ(parts[k], others[k]) for k in parts.keys() & others.keys())
    if isinstance(one, Tensor | np.ndarray):
        return _shapes(one) == _shapes(other) and not _equal(one, other)
    return _is_plain([one, other]) and bool(one != other)


def _equal(one: Any, other: Any) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 -- NaN equals itself here


def _mixes(examples: list[Any], collate_fn: _Collate) -> bool:
    """Whether a row changed with its company, at every seed where it can be told."""
    # Example: sentences of 3, 5, 4 and 2 tokens are padded to 5. Copies of the second
    # alone are, too, so the row of another beside three copies of it must stay as it
    # was.
    copied = _keeping_shapes(examples, collate_fn)
    verdicts: list[bool] = []
    for seed in _SEEDS:
        changes = [_changes(examples, collate_fn, one, seed) for one in copied]
        if any(change is not None for change in changes):
            verdicts.append(any(changes))
    # Mixing by chance may leave all rows alone under one seed. A function that draws by
    # rejection may end in an equal state by chance, so one seed alone proves nothing.
    return sum(verdicts) >= min(2, len(verdicts)) > 0


def _keeping_shapes(examples: list[Any], collate_fn: _Collate) -> list[int]:
    """Return two examples whose copies have the shapes of all together, if there are.

    Two, since a largest value stays where the example that has it does.
    """
    shapes = _shapes(_collated(examples, collate_fn, 0)[0])
    keeping = [
        place
        for place, example in enumerate(examples)
        if _shapes(_collated([example] * _NUM, collate_fn, 0)[0]) == shapes
    ]
    return keeping[:2]


def _changes(
    examples: list[Any], collate_fn: _Collate, copied: int, seed: int
) -> bool | None:
    """Whether a row changes with its company; None if that cannot be told."""
    batch, draws = _collated(examples, collate_fn, seed)
    # Sizes alone are ambiguous: the examples' axis is the one that grows with them.
    # [4, 4] of four examples may have them on either axis; of five it is [5, 4].
    larger, _ = _collated([examples[copied]] * (_NUM + 1), collate_fn, seed)
    told = False
    for place in range(_NUM):
        if place == copied:
            continue
        company = [
            example if i == place else examples[copied]
            for i, example in enumerate(examples)
        ]
        other, other_draws = _collated(company, collate_fn, seed)
        if draws != other_draws or _shapes(batch) != _shapes(other):
            continue
        told = True
        if _row_differs(batch, other, larger, place):
            return True
    return False if told else None


def _collated(
    examples: Sequence[Any], collate_fn: _Collate, seed: int
) -> tuple[Any, _Draws]:
    """Return a batch by a seed, and the states in which it left the generators."""
    with seeded(seed):
        # Collating may use up what it is given, and keep a statistic of it.
        batch = _anew(collate_fn)([deepcopy(example) for example in examples])
        return batch, drawn_states()


def _anew(collate_fn: _Collate) -> _Collate:
    """Return it with attributes of its own, as a first call finds them."""
    try:
        if isinstance(collate_fn, MethodType):
            return MethodType(collate_fn.__func__, copy(collate_fn.__self__))
        return copy(collate_fn)
    except Exception:  # noqa: BLE001 -- of the caller's own types, which may refuse it
        return collate_fn


def drawn_states() -> _Draws:
    """Return the states of the generators, which say how much was drawn from them."""
    _, words, *rest = np.random.get_state()  # noqa: NPY002 -- as above
    state = torch.random.get_rng_state().numpy().tobytes()
    return random.getstate(), state, np.asarray(words).tobytes(), *rest


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators for a block, and restore them after it."""
    state, words = random.getstate(), np.random.get_state()  # noqa: NPY002 -- as above
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # Without devices, torch.manual_seed writes down the stack for those that may come.
    seed_all = torch.manual_seed if devices else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices):
        seed_all(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 -- whatever the function draws from
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(words)  # noqa: NPY002 -- as above


def _shapes(part: Any) -> Any:
    if isinstance(part, Tensor | np.ndarray):
        return tuple(part.shape)
    parts = parts_of(part)
    if parts is None:
        return type(part)
    return {place: _shapes(one) for place, one in parts.items()}


def _row_differs(batch: Any, other: Any, larger: Any, row: int) -> bool:
    """Whether a row of two batches of equal shapes differs."""
    if isinstance(batch, Tensor | np.ndarray):
        grown = [
            axis
            for axis, (n, m) in enumerate(zip(batch.shape, larger.shape, strict=True))
            if (n, m) == (_NUM, _NUM + 1)
        ]
        if len(grown) != 1:
            return False
        one, its = (_taken(array, row, grown[0]) for array in (batch, other))
        return not _equal(one, its)
    parts, others, more = parts_of(batch), parts_of(other), parts_of(larger)
    if parts is None or others is None or more is None:
        return False
    if is_sequence(batch) and (len(parts), len(more)) == (_NUM, _NUM + 1):
        return _is_plain(batch) and bool(batch[row] != other[row])
    return any(
        _row_differs(part, others[place], more[place], row)
        for place, part in parts.items()
    )


def _taken(array: Any, row: int, axis: int) -> Any:
    if isinstance(array, Tensor):
        return array.select(axis, row)
    return np.take(array, row, axis)


def _is_plain(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str | bytes | int | float | bool) for value in values)
