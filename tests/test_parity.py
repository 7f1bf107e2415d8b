"""Parity with the stored outputs of the public networks, and that a difference would show."""

import re
import shutil
from collections import Counter

import numpy as np
import pytest

from infnet_jax import cli
from infnet_jax.verbs import parity

ROWS = {"coach": 5, "losses": 4, "unet_multi": 2, "unet_multi_improved": 2}
ROWS |= {"infnet_res2net50": 5, "infnet_resnet50": 10, "infnet_vgg16": 5}


@pytest.mark.slow
def test_all_stored_outputs_agree(shared):
    rows = parity.compare(shared / "reference")
    compared = Counter(row.pair for row in rows if row.error is not None)
    assert compared.items() >= ROWS.items()
    assert all(row.ok for row in rows)


@pytest.fixture
def losses_pair(shared, tmp_path):
    """The quickest pair, copied so that a test can spoil it."""
    for suffix in ("json", "npz"):
        shutil.copy(shared / "reference" / f"losses.{suffix}", tmp_path)
    return tmp_path


def test_an_output_that_differs_or_lacks_or_has_another_shape_fails(losses_pair, capsys):
    assert cli.main(["parity", str(losses_pair)]) == 0
    assert "all compared outputs agree" in capsys.readouterr().out
    with np.load(losses_pair / "losses.npz") as stored:
        arrays = {**stored, "other": np.ones(2), "structure_as_run": np.ones(5)}
    arrays["structure_weighted"] += [0, 3e-4, 0]
    np.savez(losses_pair / "losses.npz", **arrays)
    assert cli.main(["parity", str(losses_pair)]) == 1
    text = capsys.readouterr().out
    assert re.search("structure_weighted +3.00e-04 +above 0.0001", text)
    assert re.search("other +- +missing: our network has no such output", text)
    assert "shape (3,), stored (5,)" in text and "3 of 5 rows failed" in text


def test_not_a_number_fails_and_unknown_pairs_are_listed_as_skipped(tmp_path):
    assert not parity.Row("a", "b", float("nan")).ok
    (tmp_path / "other.json").write_text("{}")
    np.savez(tmp_path / "other.npz", a=np.ones(1))
    (row,) = parity.compare(tmp_path)
    assert row.ok and row.note.startswith("skipped")


def test_an_incomplete_or_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reference pairs"):
        parity.compare(tmp_path)
    (tmp_path / "coach.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no coach.npz beside it"):
        parity.compare(tmp_path)


def test_rule_tensors_follow_their_kind():
    weight = parity.rule_tensor("a.weight", (4, 3, 2, 1), "weight")
    assert weight.shape == (4, 3, 2, 1) and weight.dtype == np.float32
    assert 0.4 <= parity.rule_tensor("n", (50,), "norm_weight").min() < 0.5
    assert 1.4 < parity.rule_tensor("v", (50,), "running_var").max() <= 1.5
    with pytest.raises(ValueError, match="tensor x: unknown kind 'scale'"):
        parity.rule_tensor("x", (1,), "scale")
