"""Batches are pure in (seed, step) and cover everything once, whatever the processes."""

from contextlib import closing
from functools import partial

import cv2
import jax
import numpy as np
import pytest

from infnet_jax import data
from infnet_jax.data import Batches, Paired, epoch_order, eval_batches, quotas

SIZES, WEIGHTS = [10, 4, 6], [1, 2, 1]


class Numbered:
    """Examples whose every pixel tells their number; `reads` counts the accesses."""

    def __init__(self, count, start=0, png=True, **extra):
        self.count, self.start, self.png, self.extra = count, start, png, extra
        self.reads = 0

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.reads += 1
        picture = np.full((6, 8, 1), self.start + i, np.uint8)
        mask = np.uint8(picture % 3)
        if self.png:
            picture, mask = (cv2.imencode(".png", x)[1].tobytes() for x in (picture, mask))
        return {"image": picture, "mask": mask} | self.extra


def numbers(batch):
    return batch["image"][:, 0, 0, 0].tolist()


def make(*sources, **changes):
    return Batches(sources, **({"batch_size": 4, "size": 8, "seed": 5} | changes))


def weighted(**changes):
    parts = [Numbered(size, start) for size, start in zip(SIZES, (0, 100, 200), strict=True)]
    return make(*parts, weights=WEIGHTS, **changes)


def evaluated(count, **changes):
    return list(eval_batches(Numbered(count), batch_size=4, size=8, **changes))


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_batch_depends_on_seed_and_step_alone():
    batches, again = make(Numbered(10)), make(Numbered(10, png=False))
    late = batches[1234]
    for step in (7, 0, 1234):
        assert same(batches[step], again[step])
    assert same(late, batches[1234])
    assert {k: (v.shape, str(v.dtype)) for k, v in late.items()} == {
        "image": ((4, 8, 8, 1), "uint8"),
        "mask": ((4, 8, 8, 1), "uint8"),
        "valid": ((4,), "bool"),
    }
    assert late["valid"].all()
    np.testing.assert_array_equal(late["mask"], late["image"] % 3)
    assert not same(make(Numbered(50), seed=0)[0], make(Numbered(50), seed=1)[0])


@pytest.mark.parametrize("start", [0, 1001])
def test_iterating_equals_indexing(start):
    with closing(make(Numbered(10)).iterate(start)) as stream:
        for step in range(start, start + 9):
            assert same(next(stream), make(Numbered(10))[step])


def test_each_epoch_holds_each_example_once_in_a_new_order():
    batches = make(Numbered(10))
    drawn = sum((numbers(batches[step]) for step in range(10)), [])  # 40 rows: 4 epochs
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_processes_share_the_rows_of_one_batch():
    for made, count in ((partial(make, Numbered(10)), 2), (weighted, 2), (weighted, 4)):
        parts = [made(process=(p, count)) for p in range(count)]
        for step in (0, 2, 9):
            assert sum((numbers(part[step]) for part in parts), []) == numbers(made()[step])
    with pytest.raises(ValueError, match="batch_size 4 must be a positive multiple of 3"):
        make(Numbered(10), process=(0, 3))


def test_a_process_reads_its_own_rows_unless_told(monkeypatch):
    shares = [make(Numbered(10), process=(p, 2)) for p in (0, 1)]
    tests = [evaluated(5, process=(p, 2)) for p in (0, 1)]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert numbers(make(Numbered(10))[3]) == numbers(shares[1][3]) != numbers(shares[0][3])
    assert numbers(evaluated(5)[0]) == numbers(tests[1][0]) != numbers(tests[0][0])


def test_a_set_smaller_than_the_batch_repeats():
    batch = make(Numbered(3), batch_size=7)[0]
    assert sorted(np.bincount(numbers(batch))) == [2, 2, 3] and batch["valid"].all()
    with pytest.raises(ValueError, match="no examples"):
        make(Numbered(0))


def test_sources_are_mixed_and_unlabelled_ones_have_background():
    class Unlabelled(Numbered):
        def __getitem__(self, i):
            return {"image": super().__getitem__(i)["image"]}

    batches = make(Numbered(4, start=2), Unlabelled(6, start=100), batch_size=5)
    batch = {k: np.concatenate([batches[i][k] for i in (0, 1)]) for k in batches[0]}
    assert sorted(numbers(batch)) == [2, 3, 4, 5, *range(100, 106)]
    labelled = batch["image"] < 100
    np.testing.assert_array_equal(batch["mask"], np.where(labelled, batch["image"] % 3, 0))
    with pytest.raises(ValueError, match="no 'lung'"):
        make(Unlabelled(2), fields=("image", "lung"))[0]


def test_the_cache_reads_each_example_once_until_it_is_full(monkeypatch):
    def reads(steps):
        source = Numbered(10)
        batches = make(source)
        return [batches[step] for step in range(steps)], source.reads

    found, count = reads(20)
    assert count == 10
    monkeypatch.setattr(data, "CACHE_BYTES", 3 * 2 * 8 * 8)  # room for 3 examples
    again, count = reads(10)
    assert count == 3 + 4 * 7 and same(again[3], found[3])


def test_images_are_averaged_and_masks_keep_their_labels_in_place():
    image = np.zeros((6, 6, 1), np.uint8)
    image[0, 0] = 90  # one of the nine pixels of the upper left quarter
    mask = np.zeros((4, 4, 1), np.uint8)
    mask[2:, 2:] = 2
    source = Numbered(1, image=image, mask=mask)
    batch = next(eval_batches(source, batch_size=1, size=2))
    assert batch["image"][0, ..., 0].tolist() == [[10, 0], [0, 0]]
    assert batch["mask"][0, ..., 0].tolist() == [[0, 0], [0, 2]]
    large = next(eval_batches(source, batch_size=1, size=12))
    assert set(np.unique(large["mask"])) == {0, 2}
    assert large["mask"][0, 6:, 6:].min() == 2 and large["mask"].sum() == 2 * 36
    # Shrinking by 3 must pick the middle pixel, not the first.
    mask = np.zeros((6, 6, 1), np.uint8)
    mask[1::3, 1::3] = 1
    small = next(eval_batches(Numbered(1, mask=mask), batch_size=1, size=2))
    assert small["mask"].sum() == 4


def test_evaluation_counts_every_example_once():
    found = evaluated(5)
    assert [numbers(batch) for batch in found] == [[0, 1, 2, 3], [4, 0, 0, 0]]
    assert found[1]["valid"].tolist() == [True, False, False, False]
    first, second = (evaluated(5, process=(p, 2)) for p in (0, 1))
    assert [numbers(batch) for batch in first] == [[0, 1], [4, 0]]
    assert [numbers(batch) for batch in second] == [[2, 3], [0, 0]]
    assert [batch["valid"].tolist() for batch in second] == [[True, True], [False, False]]
    assert evaluated(0) == []


def test_quotas_by_hand():
    assert quotas(SIZES, None) == SIZES
    assert quotas(SIZES, WEIGHTS) == [5, 10, 5]
    assert quotas([1000, 10], [0.5, 0.5]) == [505, 505]
    assert quotas([100, 2], [1000, 1]) == [102, 1]  # never nothing


def test_every_epoch_has_the_shares_and_every_source_is_used_evenly():
    drawn, ends, seen = quotas(SIZES, WEIGHTS), np.cumsum(SIZES), np.zeros(20, int)
    orders = [epoch_order(SIZES, drawn, 3, epoch) for epoch in range(7)]
    for order in orders:
        which = np.searchsorted(ends, order, side="right")
        assert np.bincount(which).tolist() == drawn
        seen += np.bincount(order, minlength=20)
        for part in np.split(seen, ends[:-1]):
            assert part.max() - part.min() <= 1
    assert seen[10:14].sum() == 70
    assert len({order.tobytes() for order in orders}) == 7
    np.testing.assert_array_equal(epoch_order(SIZES, drawn, 3, 5), orders[5])
    assert (epoch_order(SIZES, drawn, 4, 5) != orders[5]).any()
    plain = np.random.default_rng((3, 2)).permutation(20)  # without weights one of all
    np.testing.assert_array_equal(epoch_order(SIZES, SIZES, 3, 2), plain)


def test_weighted_batches_have_the_shares():
    batches = weighted()
    first = sum((numbers(batches[step]) for step in range(batches.example_count // 4)), [])
    assert np.bincount(np.array(first) // 100).tolist() == [5, 10, 5]


def test_paired_batches_hold_unlabelled_images_of_a_stream_of_their_own():
    labelled, unlabelled = make(Numbered(10)), make(Numbered(7, start=100), fields=("image",))
    both = Paired(labelled, unlabelled)
    assert both.fields == ("image", "mask") and both.example_count == 10
    with closing(both.iterate(3)) as stream:
        for step in (3, 4):
            batch = next(stream)
            np.testing.assert_array_equal(batch.pop("unlabelled"), unlabelled[step]["image"])
            assert same(batch, labelled[step])
