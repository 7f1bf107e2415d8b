"""Label budgets nest and cut no patient; a test fold is seen by nothing else."""

from pathlib import Path

import numpy as np
import pytest

from infnet_jax.data import sources, splits
from infnet_jax.data.splits import group_folds, split_validation
from infnet_jax.plan import Data

PLAIN = Data("set", Path("set"), "train", "test", "infection", (), folds=0, fold=0, seed=0)


class Groups:
    """Examples that have nothing but a group."""

    def __init__(self, sizes):
        self.names = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return {"group": self.names[index]}


def groups_of(source, indices):
    return {source[int(i)]["group"] for i in indices}


@pytest.mark.parametrize("seed", range(20))
def test_budgets_nest_and_cut_no_group(seed):
    source = Groups([5, 2, *[1] * 43])  # as the 50 slices of COVID-SemiSeg are
    ten, more = (splits.nested_subset(source, ladder, seed) for ladder in ((10,), (10, 25)))
    everything = splits.nested_subset(source, (10, 25, 50), seed)
    assert (len(ten), len(more), len(everything)) == (10, 25, 50)
    assert set(ten) < set(more) < set(everything)
    for chosen in (ten, more):
        assert (np.diff(chosen) > 0).all()
        rest = np.setdiff1d(np.arange(50), chosen)
        assert not groups_of(source, chosen) & groups_of(source, rest)


def test_seeds_draw_other_subsets_and_a_big_group_that_was_passed_over_comes_later():
    source = Groups([1] * 30)
    draws = {tuple(splits.nested_subset(source, (5,), seed)) for seed in range(5)}
    assert len(draws) == 5
    source = Groups([4, 1, 1])
    assert splits.nested_subset(source, (2,), 0).tolist() == [4, 5]
    assert splits.nested_subset(source, (2, 6), 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert splits.nested_subset(source, (2, 5), 0).tolist() == [4, 5]  # short, not cut


@pytest.mark.parametrize("ladder", [(0,), (3, 3), (5, 2), (7,)])
def test_a_ladder_that_does_not_rise(ladder):
    with pytest.raises(ValueError, match="data.labels=.*: give rising numbers in 1 .. 6"):
        splits.nested_subset(Groups([4, 1, 1]), ladder, 0)


def test_a_budget_below_every_group():
    with pytest.raises(ValueError, match="every group has more slices"):
        splits.nested_subset(Groups([4, 3]), (2,), 0)


def test_validation_takes_whole_groups():
    source = Groups([3] * 10)
    training, validation = split_validation(source, count=7, seed=0)
    assert validation.size == 6  # a third patient would not fit
    assert not set(training // 3) & set(validation // 3)
    assert sorted([*training, *validation]) == list(range(30))
    draws = {tuple(split_validation(source, count=7, seed=s)[1]) for s in range(6)}
    assert len(draws) > 1
    assert split_validation(source, count=1)[1].size == 3  # the smallest group that there is
    assert split_validation(source, count=0)[1].size == 0
    backwards = split_validation(sources.select(source, range(29, -1, -1)), count=7, seed=0)[1]
    assert sorted(29 - backwards) == validation.tolist()  # the order of records does not matter


@pytest.mark.parametrize(
    ("sizes", "count", "message"),
    [
        ([3, 3], 6, "count 6 must lie in 0 .. 5"),
        ([3, 3], -1, "count -1"),
        ([3], 1, "share one group"),
    ],
)
def test_impossible_validation_sets_are_refused(sizes, count, message):
    with pytest.raises(ValueError, match=message):
        split_validation(Groups(sizes), count=count)


def test_folds_share_out_whole_groups_about_evenly():
    source = Groups([4, 1, 1, 1, 1])
    folds = group_folds(source, 2, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(8))
    assert not groups_of(source, folds[0]) & groups_of(source, folds[1])
    assert sorted(map(len, group_folds(Groups([2] * 5), 3))) == [2, 4, 4]
    assert any((group_folds(source, 2, seed)[0].tolist() != folds[0].tolist()) for seed in range(9))
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"{count} folds cannot be made of 5 groups"):
            group_folds(source, count)


class Patients:
    """Two slices of each patient, whose id begins with the patient's."""

    def __init__(self, split, count):
        self.names = [f"{split}{i // 2}_{i % 2}" for i in range(count)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return {"id": self.names[index].encode(), "group": self.names[index].split("_")[0]}


@pytest.fixture(autouse=True)
def dataset(monkeypatch):
    """A dataset of four splits, in place of what a folder holds."""
    counts = {"train": 10, "train[:80%]": 8, "unlabeled": 8, "test": 6}

    def open_split(folder, split, target):
        assert (folder, target) == (PLAIN.folder, PLAIN.target)
        return Patients(split, counts[split])

    monkeypatch.setattr(sources, "open_split", open_split)


def ids(source):
    return {sources.text(source[i]["id"]) for i in range(len(source))}


def folded(fold, **changes):
    return PLAIN._replace(folds=3, fold=fold, test="train", **changes)


def test_a_test_fold_is_seen_by_nothing_else():
    tested = []
    for fold in range(3):
        data = folded(fold)
        test = ids(splits.open_test(data))
        seen = ids(splits.open_training("train", data, masks=False))
        learned = ids(splits.open_training("train", data, masks=True))
        assert test and not test & seen and learned == seen and len(seen) + len(test) == 10
        patients = [{name.split("_")[0] for name in some} for some in (test, seen)]
        assert not patients[0] & patients[1]
        tested.append(test)
    assert sum(map(len, tested)) == 10 == len(set.union(*tested))


def test_labels_limit_masks_and_not_images():
    data = PLAIN._replace(labels=(4,))
    few = splits.open_training("train", data, masks=True)
    assert len(few) == 4 and len({name.split("_")[0] for name in ids(few)}) == 2
    assert len(splits.open_training("train", data, masks=False)) == 10
    assert len(splits.open_training("unlabeled", data, masks=True)) == 8
    assert len(splits.open_test(data)) == 6
    data = folded(0, labels=(2,))
    few = ids(splits.open_training("train", data, masks=True))
    assert len(few) == 2 and few.isdisjoint(ids(splits.open_test(data)))


def test_what_would_leak_or_be_ignored_is_refused():
    with pytest.raises(ValueError, match=r"data.fold=3 must lie in 0 .. 2"):
        splits.open_test(folded(3))
    with pytest.raises(ValueError, match="data.test='test': with data.folds it must be"):
        splits.open_test(folded(0)._replace(test="test"))
    for data in (folded(0), PLAIN._replace(labels=(4,))):
        with pytest.raises(ValueError, match="name the whole 'train'"):
            splits.open_training("train[:80%]", data, masks=True)
