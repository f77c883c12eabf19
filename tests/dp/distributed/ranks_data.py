"""Ranks whose data are not what they should be, or only look so."""

import random

import ranks_training
import torch
from ranks_failures import error_of
from torch import distributed
from torch.utils.data import Dataset, Subset, TensorDataset, random_split
from torch.utils.data.distributed import DistributedSampler

from dp import DPOptimizer
from dp.clipping import Clipping


class Augmented(Dataset):
    """Examples that are mirrored with some probability, each time anew."""

    def __init__(self, probability):
        self.columns = ranks_training.dataset_of().tensors
        self.probability = probability

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        x, y, number = (column[index] for column in self.columns)
        is_mirrored = random.random() < self.probability  # noqa: S311 -- no secret
        return x.flip(0) if is_mirrored else x, y, number


class OwnRule(Clipping):
    """Flat clipping, by a class that prints as its address."""

    def group_of(self, parameters):
        return [0] * len(parameters)

    def factors(self, norms):
        return (0.7 * (1 - 2**-20) / norms).clamp(max=1.0)

    def sensitivity(self, relation):
        return 0.7 * (1 + (relation == "replace_one"))


def step_on(dataset, *, sharded=False, units=None, clipping=None, **plan):
    """Take a step; return the error, if there is one, and what was charged."""
    model = ranks_training.model_of()
    plan = ranks_training.plan_of(**plan)
    loader = plan.loader(dataset, sharded=sharded, units=units)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan=plan,
        loader=loader,
        clipping=clipping,
    )
    optimizer.backward(ranks_training.losses_of(model, next(iter(loader))))
    return *error_of(optimizer.step), optimizer.ledger.steps


def shuffled_in_place(*, seeded):
    """Take a step on a list, shuffle it, and take another."""
    x, y, number = ranks_training.dataset_of().tensors
    rows = [*zip(x, y, number, strict=True)]
    model, plan = ranks_training.model_of(), ranks_training.plan_of()
    loader = plan.loader(rows)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
    errors = []
    for _ in range(2):
        optimizer.backward(ranks_training.losses_of(model, next(iter(loader))))
        errors.append(error_of(optimizer.step))
        random.seed(0 if seeded else distributed.get_rank())
        random.shuffle(rows)
    return errors, optimizer.ledger.steps


def split_at_random(*, seeded):
    """Of augmented examples, whose numbers and labels alone stay."""
    torch.manual_seed(0 if seeded else distributed.get_rank())
    train, _rest = random_split(Augmented(1.0), [16, 7])
    random.seed()
    train.dataset.probability = 0.5
    return step_on(train)


def augmented(probability, times):
    """The same examples on every rank, mirrored by coins of its own."""
    random.seed()
    return [step_on(Augmented(probability)) for _ in range(times)]


def mirrored_on_one_rank():
    """As where no coin happened to fall on one rank, in any of its readings."""
    random.seed()
    return step_on(Augmented(0.5 * distributed.get_rank()))


def part(how):
    """Each rank has a part of the same rows."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    whole = ranks_training.dataset_of()
    if how == "padded":
        places = list(DistributedSampler(whole, num_replicas=size, rank=rank))
        return step_on(Subset(whole, places), sharded=True)
    places = list(range(rank, len(whole), size))
    if how == "apart":
        return step_on(Subset(whole, places), sharded=True)
    if how == "of their own":  # The same split of other examples.
        own = TensorDataset(*(column + 100 * rank for column in whole.tensors))
        return step_on(Subset(own, range(10)), sharded=True)
    users = {
        "users on both": [place // size for place in places],
        "users apart": [(rank, place // 4) for place in places],
    }[how]
    return step_on(
        Subset(whole, places), sharded=True, units=users, unit_of_privacy="a user"
    )


def joined_late(*, again):
    """Draw before the process group is there; iterate again, or go on."""
    model, optimizer, loader = ranks_training.run_of(q=1.0)
    batches = iter(loader)
    next(batches)
    distributed.init_process_group("gloo")
    batches = iter(loader) if again else batches
    optimizer.backward(ranks_training.losses_of(model, next(batches)))
    return *error_of(optimizer.step), optimizer.ledger.steps


def ruled_by_an_own_class():
    """A rule of one's own has no words for itself."""
    return step_on(ranks_training.dataset_of(), clipping=OwnRule())
