"""Prepared folders open as they are; budgets and folds cut no patient and leak nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from infnet_jax.data import Subset, decode, sources, text
from infnet_jax.data.sources import Mix, Part, examples, group_folds, nested_subset, parse_mix
from infnet_jax.plan import Data
from infnet_jax.training import stage as stages

PLAIN = Data("set", Path("set"), "train", "test", "infection")


def test_statistics_of_two_pictures_by_hand():
    pictures = [np.full((1, 3, 1), 0, np.uint8), np.full((1, 1, 1), 255, np.uint8)]
    source = [{"image": picture} for picture in pictures]
    mean, std = sources.statistics(source)  # pixels 0, 0, 0, 1
    assert mean == pytest.approx(0.25) and std == pytest.approx(np.sqrt(3) / 4)
    assert sources.statistics(source, [1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="empty"):
        sources.statistics(source, [])


def test_examples_come_decoded_at_native_size_with_text():
    png = cv2.imencode(".png", np.full((6, 8), 7, np.uint8))[1].tobytes()
    example = {"image": png, "lung": np.ones((5, 9, 1), np.uint8), "id": b"slice1", "group": "p0"}
    (out,) = examples([example])
    assert out["image"].shape == (6, 8, 1) and (out["image"] == 7).all()
    assert out["lung"].sum() == 45 and out["id"] == "slice1" and out["group"] == "p0"
    assert out.keys() == example.keys()


def test_unfit_pictures_are_named():
    colour = cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1].tobytes()
    deep = cv2.imencode(".png", np.zeros((3, 3), np.uint16))[1].tobytes()
    for value, found in ((colour, r"uint8 \[3, 3, 3"), (deep, "uint16"), (b"no", "unreadable")):
        with pytest.raises(ValueError, match=f"'image' of example 'a7' is {found}"):
            decode({"image": value, "id": b"a7"}, "image")
    with pytest.raises(ValueError, match="index 3 is outside"):
        Subset([{}] * 3, [0, 3])


def test_a_prepared_folder_opens_by_split(phantom, tmp_path):
    import tensorflow_datasets as tfds

    train = sources.open_split(phantom, "train")
    assert isinstance(train[0]["image"], bytes)  # decoded later, by OpenCV
    decoded_by_tfds = tfds.builder_from_directory(phantom).as_data_source("train")
    for mine, theirs in zip(examples(train), decoded_by_tfds, strict=True):
        assert mine["id"].encode() == theirs["id"]
        np.testing.assert_array_equal(mine["image"], theirs["image"])
        np.testing.assert_array_equal(mine["mask"], theirs["mask"])
    splits = ("train", "test", "train+test", "train[:50%]")
    n, test, both, half = (len(sources.open_split(phantom, split)) for split in splits)
    assert (both, half) == (n + test, n // 2)
    for words, *call in (
        ("no split 'val'; it has test, train", phantom, "val"),
        ("data.target='mask': choose infection or lung", phantom, "train", "mask"),
        ("not a prepared dataset", tmp_path / "nowhere", "train"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            sources.open_split(*call)


def groups(sizes):
    """Examples that have nothing but a group."""
    return [{"group": f"p{i}"} for i, size in enumerate(sizes) for _ in range(size)]


def patients(name, count):
    """Two slices of each patient, whose id begins with the patient's."""
    names = [f"{name}{i // 2}_{i % 2}" for i in range(count)]
    return [{"id": each.encode(), "group": each.split("_")[0]} for each in names]


def groups_of(source, indices):
    return {source[int(i)]["group"] for i in indices}


def ids(source):
    return [text(source[i]["id"]) for i in range(len(source))]


@pytest.mark.parametrize("seed", range(20))
def test_budgets_nest_and_cut_no_group(seed):
    source = groups([5, 2, *[1] * 43])  # as the 50 slices of COVID-SemiSeg are
    ladders = (10,), (10, 25), (10, 25, 50)
    ten, more, everything = (nested_subset(source, each, seed) for each in ladders)
    assert (len(ten), len(more), len(everything)) == (10, 25, 50)
    assert set(ten) < set(more) < set(everything)
    for chosen in (ten, more):
        assert (np.diff(chosen) > 0).all()
        rest = np.setdiff1d(np.arange(50), chosen)
        assert not groups_of(source, chosen) & groups_of(source, rest)


def test_seeds_draw_other_subsets_and_a_big_group_that_was_passed_over_comes_later():
    draws = {tuple(nested_subset(groups([1] * 30), (5,), seed)) for seed in range(5)}
    assert len(draws) == 5
    source = groups([4, 1, 1])
    assert nested_subset(source, (2,), 0).tolist() == [4, 5]
    assert nested_subset(source, (2, 6), 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert nested_subset(source, (2, 5), 0).tolist() == [4, 5]  # short, not cut


@pytest.mark.parametrize("ladder", [(0,), (3, 3), (5, 2), (7,)])
def test_impossible_budgets_are_refused(ladder):
    with pytest.raises(ValueError, match="data.labels=.*: give rising numbers in 1 .. 6"):
        nested_subset(groups([4, 1, 1]), ladder, 0)
    with pytest.raises(ValueError, match="every group has more slices"):
        nested_subset(groups([4, 3]), (2,), 0)


def test_validation_takes_whole_groups():
    source = groups([3] * 10)
    training, validation = sources.split_validation(source, count=7, seed=0)
    assert validation.size == 6  # a third patient would not fit
    assert not set(training // 3) & set(validation // 3)
    assert sorted([*training, *validation]) == list(range(30))
    assert len({tuple(sources.split_validation(source, count=7, seed=s)[1]) for s in range(6)}) > 1
    sizes = [sources.split_validation(source, count=count)[1].size for count in (0, 1)]
    assert sizes == [0, 3]  # the smallest group that there is
    backwards = sources.split_validation(source[::-1], count=7, seed=0)[1]
    assert sorted(29 - backwards) == validation.tolist()  # the order of records does not matter


@pytest.mark.parametrize(
    ("sizes", "count", "message"),
    [([3, 3], 6, "count 6 must lie in 0 .. 5"), ([3, 3], -1, "count -1"), ([3], 1, "one group")],
)
def test_impossible_validation_sets_are_refused(sizes, count, message):
    with pytest.raises(ValueError, match=message):
        sources.split_validation(groups(sizes), count=count)


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

    def opened(folder, split, target):
        assert (folder, target) == (PLAIN.folder, PLAIN.target)
        return patients(split, counts[split])

    monkeypatch.setattr(sources, "open_split", opened)


def folded(fold, **changes):
    return PLAIN._replace(folds=3, fold=fold, test="train", **changes)


def test_a_test_fold_is_seen_by_nothing_else(dataset):
    tested = []
    for fold in range(3):
        data = folded(fold)
        test = set(ids(sources.open_test(data)))
        both = (sources.open_training("train", data, masks=m) for m in (False, True))
        seen, learned = (set(ids(source)) for source in both)
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
    assert parse_mix("") == parse_mix("  ") == []
    assert parse_mix("ictcf") == [Part("ictcf", "train", None)]
    mix = "covid_semiseg/binary:unlabeled + 2 * ictcf + .5*cc_ccii/slices:test[:50%]"
    first, *rest = parse_mix(mix)
    assert first == Part("covid_semiseg/binary", "unlabeled", None)
    assert rest == [Part("ictcf", "train", 2.0), Part("cc_ccii/slices", "test[:50%]", 0.5)]
    parts = Part("a"), Part("b", weight=3.0)
    assert Mix(parts, list).weights == [1.0, 3.0] and Mix(parts[:1], list).weights is None


NO_MIX = {"ictcf + ": "''", "+": "''", "0 * ictcf": "weight above 0"}
NO_MIX |= {"ictcf + 2*ictcf:train": "comes twice"}
NO_MIX |= {t: repr(t) for t in ("a * 2", "ictcf:", "ictcf cc_ccii", "-1 * a", "a/b/c", "1.2.3 * a")}


@pytest.mark.parametrize("mix", NO_MIX)
def test_what_is_no_mix_is_named(mix):
    with pytest.raises(ValueError, match="data.pretrain") as caught:
        parse_mix(mix)
    assert NO_MIX[mix] in str(caught.value)


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
    told = [(e["split"], e["weight"], e["examples"], e["dropped"]) for e in listing]
    assert told == [("train", None, 6, ["a0_1", "a2_0"]), ("unlabeled", 2.0, 4, [])]
    assert [ids(source) for source in opened(None)] == kept  # would fail if it were called


def test_a_part_of_copies_alone_is_an_error(opened):
    with pytest.raises(ValueError, match="data.pretrain: all slices of a:train are in the test"):
        opened(lambda part: ids(patients("a", 6)))
