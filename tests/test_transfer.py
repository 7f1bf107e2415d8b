"""Weights go from one network to another by name and shape, and a report says which."""

import jax
import numpy as np
import pytest

from infnet_jax.runs.checkpoint import transfer


def is_head(name):
    return "/head/" in name


def trees():
    def tree(value, width):
        head = {"kernel": np.full((2, width), value, np.float32)}
        trunk = {"conv": {"kernel": np.full((3, 2), value, np.float32)}}
        stats = {"trunk": {"bn": {"mean": np.full(2, value, np.float64)}}}
        return {"params": {"trunk": trunk, "head": head, "neck": dict(head)}, "batch_stats": stats}

    target, source = tree(0, 1), tree(7, 1)
    target["params"]["neck"] = {"kernel": np.zeros((2, 4), np.float32)}
    target["batch_stats"]["trunk"]["bn"]["mean"] = np.zeros(2, np.float32)
    source["params"]["decoder"] = {"bias": np.ones(5)}
    return target, source


TRUNK, STATS = "params/trunk/conv/kernel", "batch_stats/trunk/bn/mean"
HEAD, NECK = "params/head/kernel", "params/neck/kernel"


@pytest.mark.parametrize(
    ("mode", "loaded", "fresh", "mismatched"),
    [
        ("all_but_last", {TRUNK, STATS}, {HEAD, NECK}, [f"{NECK}: target [2, 4], source [2, 1]"]),
        ("matching", {TRUNK, STATS, HEAD}, {NECK}, [f"{NECK}: target [2, 4], source [2, 1]"]),
        ("encoder", {TRUNK, STATS}, {HEAD, NECK}, []),
    ],
)
def test_transfer_takes_what_the_mode_says(mode, loaded, fresh, mismatched):
    target, source = trees()
    out, report = transfer(target, source, mode=mode, is_output_layer=is_head)
    assert (set(report.loaded), set(report.fresh)) == (loaded, fresh)
    assert report.mismatched == mismatched
    assert "params/decoder/bias" in report.unused and not set(report.unused) & loaded
    assert jax.tree.structure(out) == jax.tree.structure(target)
    for name, leaf in (
        (TRUNK, out["params"]["trunk"]["conv"]["kernel"]),
        (STATS, out["batch_stats"]["trunk"]["bn"]["mean"]),
        (HEAD, out["params"]["head"]["kernel"]),
        (NECK, out["params"]["neck"]["kernel"]),
    ):
        assert leaf.dtype == np.float32 and (leaf == (7 if name in loaded else 0)).all()
    assert not target["params"]["trunk"]["conv"]["kernel"].any()  # the target is left as it was


def test_a_transfer_of_nothing_is_an_error():
    target, source = trees()
    for one, other, mode, text in (
        ({"head": np.zeros(2)}, source, "encoder", "found no leaf to load"),
        ({"a": np.zeros(2)}, {"a": np.zeros(3)}, "matching", r"at a: target \[2\], source \[3\]"),
        (target, source, "most", "mode 'most' must be"),
    ):
        with pytest.raises(ValueError, match=text):
            transfer(one, other, mode=mode, is_output_layer=is_head)
