"""Label budgets nest and cut no patient; a test fold is seen by nothing else."""

import numpy as np
import pytest

from configs import supervised
from infnet_jax.data import splits
from infnet_jax.data.sources import text
from infnet_jax.training import data as stage_data


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


class Patients:
    """Two slices of each patient, whose id begins with the patient's."""

    def __init__(self, split, count):
        self.names = [f"{split}{i // 2}_{i % 2}" for i in range(count)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return {"id": self.names[index].encode(), "group": self.names[index].split("_")[0]}


@pytest.fixture
def dataset(monkeypatch):
    counts = {"train": 10, "train[:80%]": 8, "unlabeled": 8, "test": 6}
    monkeypatch.setattr(
        data, "open_split", lambda folder, split, target: Patients(split, counts[split])
    )
    return None


def ids(source):
    return {text(source[i]["id"]) for i in range(len(source))}


def folded(fold, **changes):
    config = supervised.get_config("tiny")
    config.data.update(folds=3, fold=fold, test="train", **changes)
    return config


def test_a_test_fold_is_seen_by_nothing_else(dataset, tmp_path):
    tested = []
    for fold in range(3):
        config = folded(fold)
        config.segment.validation = 2  # what early stopping watches
        test = ids(splits.open_test(dataset, config))
        seen = ids(splits.open_training(dataset, "train", config, masks=False))
        assert test and not test & seen
        ((batches, held_out),) = stage_data.open_data("segment", config, dataset, tmp_path)
        assert len(held_out) == 2 and ids(held_out) < seen
        assert batches.example_count == len(seen) - 2
        patients = [{name.split("_")[0] for name in some} for some in (test, seen)]
        assert not patients[0] & patients[1]
        tested.append(test)
    assert sum(map(len, tested)) == 10 == len(set.union(*tested))


def test_labels_limit_masks_and_not_images(dataset):
    config = supervised.get_config("tiny")
    config.data.labels = (4,)
    few = splits.open_training(dataset, "train", config, masks=True)
    assert len(few) == 4 and len({name.split("_")[0] for name in ids(few)}) == 2
    assert len(splits.open_training(dataset, "train", config, masks=False)) == 10
    assert len(splits.open_training(dataset, "unlabeled", config, masks=True)) == 8
    assert len(splits.open_test(dataset, config)) == 6
    config = folded(0, labels=(2,))
    assert ids(splits.open_training(dataset, "train", config, masks=True)).isdisjoint(
        ids(splits.open_test(dataset, config))
    )


def test_what_would_leak_or_be_ignored_is_refused(dataset):
    config = folded(3)
    with pytest.raises(ValueError, match=r"data.fold=3 must lie in 0 .. 2"):
        splits.open_test(dataset, config)
    config = folded(0)
    config.data.test = "test"
    with pytest.raises(ValueError, match="data.test='test': with data.folds it must be"):
        splits.open_test(dataset, config)
    with pytest.raises(ValueError, match="name the whole 'train'"):
        splits.open_training(dataset, "train[:80%]", folded(0), masks=True)
