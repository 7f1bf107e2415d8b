"""Pre-training mixes: their text, the order of their examples, and what is left out of them."""

import json

import numpy as np
import pytest

from infnet_jax.data.batches import Batches, epoch_order, quotas
from infnet_jax.data.splits import Mix, Part, parse_mix
from infnet_jax.training import data as stage_data

SIZES, WEIGHTS = [10, 4, 6], [1, 2, 1]


class Named:
    """Examples whose pixels and id tell their number; every two share a group."""

    def __init__(self, count, start=0):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        n = self.start + i
        texts = {"id": f"slice{n}".encode(), "group": f"patient{n // 2}".encode()}
        return {"image": np.full((4, 4, 1), n, np.uint8), **texts}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  ", []),
        ("ictcf", [Part("ictcf", "train", None)]),
        (
            "covid_semiseg/binary:unlabeled + 2 * ictcf + .5*cc_ccii/slices:test[:50%]",
            [
                Part("covid_semiseg/binary", "unlabeled", None),
                Part("ictcf", "train", 2.0),
                Part("cc_ccii/slices", "test[:50%]", 0.5),
            ],
        ),
    ],
)
def test_mixes_are_read(text, parts):
    assert parse_mix(text) == parts


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
        parse_mix(text)
    assert words in str(caught.value)


def test_weights_of_a_mix():
    parts = Part("a"), Part("b", weight=3.0)
    assert Mix(parts, list).weights == [1.0, 3.0]
    assert Mix(parts[:1], list).weights is None


def test_quotas_by_hand():
    assert quotas(SIZES, None) == SIZES
    assert quotas(SIZES, WEIGHTS) == [5, 10, 5]
    assert quotas([1000, 10], [0.5, 0.5]) == [505, 505]
    assert quotas([100, 2], [1000, 1]) == [102, 1]  # never nothing


def test_every_epoch_has_the_shares_and_every_source_is_used_evenly():
    drawn, ends = quotas(SIZES, WEIGHTS), np.cumsum(SIZES)
    seen = np.zeros(20, int)
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


def test_without_weights_an_epoch_is_one_permutation_of_all():
    np.testing.assert_array_equal(
        epoch_order(SIZES, SIZES, 3, 2), np.random.default_rng((3, 2)).permutation(20)
    )


def test_weighted_batches_are_pure_in_the_step_and_shared_by_processes():
    def make(**changes):
        sources = [Named(10), Named(4, 100), Named(6, 200)]
        return Batches(
            sources, batch_size=4, size=4, seed=1, weights=WEIGHTS, fields=("image",), **changes
        )

    whole = make()
    assert whole.example_count == 20
    first = np.concatenate([whole[step]["image"][:, 0, 0, 0] for step in range(5)])
    assert np.bincount(first // 100).tolist() == [5, 10, 5]
    stream = make().iterate(7)
    for step in (7, 8, 9):
        np.testing.assert_array_equal(next(stream)["image"], whole[step]["image"])
        parts = [make(process=(p, 2))[step]["image"] for p in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[step]["image"])
    stream.close()


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """opened(copies) opens two parts of 6 and 4 examples with these near-copies of the test."""
    sources = {"a": Named(6), "b": Named(4, 50)}
    monkeypatch.setattr(stage_data, "open_split", lambda folder, split: sources[folder])

    def run(copies):
        parts = Part("a", folder="a"), Part("b", "unlabeled", 2.0, "b")
        return stage_data._open_mix(Mix(parts, copies), tmp_path / "pretrain")

    return run


def ids(source):
    return [source[i]["id"].decode() for i in range(len(source))]


def test_near_copies_are_left_out_listed_and_not_searched_again(opened, tmp_path, capsys):
    found = opened(lambda part: {"a": ["slice4", "slice1"], "b": []}[part.name])
    assert [ids(source) for source in found] == [
        ["slice0", "slice2", "slice3", "slice5"],
        [f"slice{i}" for i in range(50, 54)],
    ]
    assert "pretrain: a:train: 2 of 6 slices dropped" in capsys.readouterr().err
    listing = json.loads((tmp_path / "pretrain/mix.json").read_text())
    assert [(e["split"], e["weight"], e["examples"], e["dropped"]) for e in listing] == [
        ("train", None, 6, ["slice1", "slice4"]),
        ("unlabeled", 2.0, 4, []),
    ]
    again = opened(None)  # would fail if it were called
    assert [ids(source) for source in again] == [ids(source) for source in found]


def test_a_part_of_copies_alone_is_an_error(opened):
    with pytest.raises(ValueError, match="data.pretrain: all slices of a:train are in the test"):
        opened(lambda part: [f"slice{i}" for i in range(6)])
