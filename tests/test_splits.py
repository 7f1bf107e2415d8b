"""Label budgets nest and cut no patient; a test fold is seen by nothing else; mixes are read."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infnet_jax.data import sources, text
from infnet_jax.data.sources import Mix, Part, group_folds, split_validation
from infnet_jax.plan import Data
from infnet_jax.training import stage as stages

PLAIN = Data("set", Path("set"), "train", "test", "infection", (), folds=0, fold=0, seed=0)


def groups(sizes):
    """Examples that have nothing but a group."""
    return [{"group": f"p{i}"} for i, size in enumerate(sizes) for _ in range(size)]


def patients(name, count):
    """Two slices of each patient, whose id begins with the patient's."""
    names = [f"{name}{i // 2}_{i % 2}" for i in range(count)]
    return [{"id": text.encode(), "group": text.split("_")[0]} for text in names]


def groups_of(source, indices):
    return {source[int(i)]["group"] for i in indices}


def ids(source):
    return [text(source[i]["id"]) for i in range(len(source))]


@pytest.mark.parametrize("seed", range(20))
def test_budgets_nest_and_cut_no_group(seed):
    source = groups([5, 2, *[1] * 43])  # as the 50 slices of COVID-SemiSeg are
    ladders = (10,), (10, 25), (10, 25, 50)
    ten, more, everything = (sources.nested_subset(source, each, seed) for each in ladders)
    assert (len(ten), len(more), len(everything)) == (10, 25, 50)
    assert set(ten) < set(more) < set(everything)
    for chosen in (ten, more):
        assert (np.diff(chosen) > 0).all()
        rest = np.setdiff1d(np.arange(50), chosen)
        assert not groups_of(source, chosen) & groups_of(source, rest)


def test_seeds_draw_other_subsets_and_a_big_group_that_was_passed_over_comes_later():
    draws = {tuple(sources.nested_subset(groups([1] * 30), (5,), seed)) for seed in range(5)}
    assert len(draws) == 5
    source = groups([4, 1, 1])
    assert sources.nested_subset(source, (2,), 0).tolist() == [4, 5]
    assert sources.nested_subset(source, (2, 6), 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert sources.nested_subset(source, (2, 5), 0).tolist() == [4, 5]  # short, not cut


@pytest.mark.parametrize("ladder", [(0,), (3, 3), (5, 2), (7,)])
def test_a_ladder_that_does_not_rise(ladder):
    with pytest.raises(ValueError, match="data.labels=.*: give rising numbers in 1 .. 6"):
        sources.nested_subset(groups([4, 1, 1]), ladder, 0)


def test_a_budget_below_every_group():
    with pytest.raises(ValueError, match="every group has more slices"):
        sources.nested_subset(groups([4, 3]), (2,), 0)


def test_validation_takes_whole_groups():
    source = groups([3] * 10)
    training, validation = split_validation(source, count=7, seed=0)
    assert validation.size == 6  # a third patient would not fit
    assert not set(training // 3) & set(validation // 3)
    assert sorted([*training, *validation]) == list(range(30))
    draws = {tuple(split_validation(source, count=7, seed=s)[1]) for s in range(6)}
    assert len(draws) > 1
    assert split_validation(source, count=1)[1].size == 3  # the smallest group that there is
    assert split_validation(source, count=0)[1].size == 0
    backwards = split_validation(source[::-1], count=7, seed=0)[1]
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
        split_validation(groups(sizes), count=count)


def test_folds_share_out_whole_groups_about_evenly():
    source = groups([4, 1, 1, 1, 1])
    folds = group_folds(source, 2, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(8))
    assert not groups_of(source, folds[0]) & groups_of(source, folds[1])
    assert sorted(map(len, group_folds(groups([2] * 5), 3))) == [2, 4, 4]
    assert any((group_folds(source, 2, seed)[0].tolist() != folds[0].tolist()) for seed in range(9))
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"{count} folds cannot be made of 5 groups"):
            group_folds(source, count)


@pytest.fixture
def dataset(monkeypatch):
    """A dataset of four splits, in place of what a folder holds."""
    counts = {"train": 10, "train[:80%]": 8, "unlabeled": 8, "test": 6}

    def open_split(folder, split, target):
        assert (folder, target) == (PLAIN.folder, PLAIN.target)
        return patients(split, counts[split])

    monkeypatch.setattr(sources, "open_split", open_split)


def folded(fold, **changes):
    return PLAIN._replace(folds=3, fold=fold, test="train", **changes)


def test_a_test_fold_is_seen_by_nothing_else(dataset):
    tested = []
    for fold in range(3):
        test = set(ids(sources.open_test(folded(fold))))
        seen, learned = (
            set(ids(sources.open_training("train", folded(fold), masks=m))) for m in (False, True)
        )
        assert test and not test & seen and learned == seen and len(seen) + len(test) == 10
        tested_patients, seen_patients = ({i.split("_")[0] for i in some} for some in (test, seen))
        assert not tested_patients & seen_patients
        tested.append(test)
    assert sum(map(len, tested)) == 10 == len(set.union(*tested))


def test_labels_limit_masks_and_not_images(dataset):
    data = PLAIN._replace(labels=(4,))
    few = sources.open_training("train", data, masks=True)
    assert len(few) == 4 and len({name.split("_")[0] for name in ids(few)}) == 2
    assert len(sources.open_training("train", data, masks=False)) == 10
    assert len(sources.open_training("unlabeled", data, masks=True)) == 8
    assert len(sources.open_test(data)) == 6
    data = folded(0, labels=(2,))
    few = set(ids(sources.open_training("train", data, masks=True)))
    assert len(few) == 2 and few.isdisjoint(ids(sources.open_test(data)))


def test_what_would_leak_or_be_ignored_is_refused(dataset):
    with pytest.raises(ValueError, match=r"data.fold=3 must lie in 0 .. 2"):
        sources.open_test(folded(3))
    with pytest.raises(ValueError, match="data.test='test': with data.folds it must be"):
        sources.open_test(folded(0)._replace(test="test"))
    for data in (folded(0), PLAIN._replace(labels=(4,))):
        with pytest.raises(ValueError, match="name the whole 'train'"):
            sources.open_training("train[:80%]", data, masks=True)


def test_mixes_are_read():
    assert sources.parse_mix("") == sources.parse_mix("  ") == []
    assert sources.parse_mix("ictcf") == [Part("ictcf", "train", None)]
    text = "covid_semiseg/binary:unlabeled + 2 * ictcf + .5*cc_ccii/slices:test[:50%]"
    assert sources.parse_mix(text) == [
        Part("covid_semiseg/binary", "unlabeled", None),
        Part("ictcf", "train", 2.0),
        Part("cc_ccii/slices", "test[:50%]", 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ictcf + ", "''"),
        ("ictcf * 2", "'ictcf * 2'"),
        ("ictcf:", "'ictcf:'"),
        ("+", "''"),
        ("ictcf cc_ccii", "'ictcf cc_ccii'"),
        ("0 * ictcf", "weight above 0"),
        ("-1 * a", "'-1 * a'"),
        ("a/b/c", "'a/b/c'"),
        ("1.2.3 * a", "'1.2.3 * a'"),
        ("ictcf + 2*ictcf:train", "comes twice"),
    ],
)
def test_what_is_no_mix_is_named(text, words):
    with pytest.raises(ValueError, match="data.pretrain") as caught:
        sources.parse_mix(text)
    assert words in str(caught.value)


def test_weights_of_a_mix():
    parts = Part("a"), Part("b", weight=3.0)
    assert Mix(parts, list).weights == [1.0, 3.0]
    assert Mix(parts[:1], list).weights is None


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """opened(copies) opens two parts of 6 and 4 examples with these near-copies of the test."""
    found = {"a": patients("a", 6), "b": patients("b", 4)}
    monkeypatch.setattr(sources, "open_split", lambda folder, split: found[folder])
    parts = Part("a", folder="a"), Part("b", "unlabeled", 2.0, "b")
    stage = SimpleNamespace(mix="a + 2 * b:unlabeled", folder=tmp_path / "pretrain")
    return lambda copies: stages.open_sources(stage, None, Mix(parts, copies))


def test_near_copies_are_left_out_listed_and_not_searched_again(opened, tmp_path, capsys):
    found = opened(lambda part: {"a": ["a2_0", "a0_1"], "b": []}[part.name])
    kept = [["a0_0", "a1_0", "a1_1", "a2_1"], ["b0_0", "b0_1", "b1_0", "b1_1"]]
    assert [ids(source) for source in found] == kept
    assert "pretrain: a:train: 2 of 6 slices dropped" in capsys.readouterr().err
    listing = json.loads((tmp_path / "pretrain/mix.json").read_text())
    assert [(e["split"], e["weight"], e["examples"], e["dropped"]) for e in listing] == [
        ("train", None, 6, ["a0_1", "a2_0"]),
        ("unlabeled", 2.0, 4, []),
    ]
    assert [ids(source) for source in opened(None)] == kept  # would fail if it were called


def test_a_part_of_copies_alone_is_an_error(opened):
    with pytest.raises(ValueError, match="data.pretrain: all slices of a:train are in the test"):
        opened(lambda part: ids(patients("a", 6)))
