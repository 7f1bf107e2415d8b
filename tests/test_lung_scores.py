"""Lungs of a network beside the true ones, counted by hand."""

import cv2
import numpy as np
import pytest

from infnet_jax.clinic import lung_network
from infnet_jax.data.sources import decode, open_split, text
from infnet_jax.evaluation import lung_scores


def test_how_much_of_the_lesions_is_kept(phantom, monkeypatch, tmp_path):
    source = open_split(phantom, "train", "lung")
    known = {decode(source[i], "image").tobytes(): i for i in range(len(source))}
    right = {}

    def run(examples):
        """Finds the left lung, and nothing in a crop, which is not to be asked for."""
        maps = []
        for e in examples:
            i = known[e["image"].tobytes()]
            found = decode(source[i], "lung")[..., 0] > 0
            found[:, :32] = False  # the right lung is missed
            lesion = decode(source[i], "lesion")[..., 0] > 0
            if lesion.any():
                right[text(source[i]["id"])] = (lesion & found).sum() / lesion.sum()
            maps.append(found.astype(np.float32))
        return maps

    # So much room that the second pass would see the whole picture, and is left out.
    monkeypatch.setattr(lung_network, "ROOM", 9.0)
    rows = lung_scores.measure(source, run, 0.5, tmp_path)
    assert len(rows) == len(source)
    kept = {name: row["kept"] for name, row in rows.items() if row["kept"] is not None}
    assert kept == pytest.approx(right, abs=0.02) and 0.2 < np.mean(list(right.values())) < 0.8
    assert 0.5 < lung_scores.summarise(rows)["parts"]["all"]["dice"] < 0.8
    for name, row in rows.items():
        picture = cv2.imread(str(lung_scores.picture_of(tmp_path, name)), -1)
        assert picture.any() == bool(row["dice"]) and not picture[:, :32].any()


def volume(gas=False):
    """Three slices of a volume: examples, and a map of lung at .6 with four lesion pixels at .4."""
    lung = np.zeros((40, 40, 1), np.uint8)
    lung[5:35, 2:15] = lung[5:35, 25:38] = 1
    lesion = np.zeros_like(lung)
    lesion[5:15, 5:15] = 1
    made, maps = [], {}
    for i in (10, 9, 11):
        found = lung[..., 0].astype(np.float32) * 0.6
        found[5:7, 5:7] = 0.4
        if i == 11 and gas:
            found[5:10, 18:22] = 0.9
        image = np.full_like(lung, i)
        maps[i] = found
        made.append(
            {
                "id": f"set/z{i}".encode(),
                "image": image,
                "lung": lung,
                "lesion": lesion,
                "volume": b"v",
            }
        )

    def run(examples):
        assert len({e["image"].shape for e in examples}) == 1
        if examples[0]["image"].shape == lung.shape:
            return [maps[int(e["image"][0, 0, 0])] for e in examples]
        return [maps[int(e["image"][0, 0, 0])][4:36, 1:39] for e in examples]

    return made, run


def test_lungs_of_a_volume_are_tidied_together(monkeypatch, tmp_path):
    """Gas below the lungs hangs together with none of them, so it goes, in a volume only."""
    monkeypatch.setattr(lung_network, "ROOM", 9.0)  # one pass
    monkeypatch.setattr(lung_network, "CLOSING_EACH", 0.0)
    made, run = volume(gas=True)
    n = 780  # pixels of both lungs, of which four are missed: a corner
    rows = lung_scores.measure(made, run, 0.5, tmp_path)
    assert rows["set/z9"] == pytest.approx({"dice": 2 * (n - 4) / (2 * n - 4), "kept": 0.96})
    assert rows["set/z11"]["dice"] == pytest.approx(2 * (n - 4) / (2 * n - 4))
    part = lung_scores.summarise(rows)["parts"]["set"]
    assert part["kept_slices"] == 0 and part["infected"] == part["slices"] == 3
    for e in made:
        del e["volume"]
    alone = lung_scores.measure(made, run, 0.5, tmp_path)
    assert alone["set/z11"]["dice"] == pytest.approx(2 * (n - 4) / (2 * n - 4 + 20))
    dice = pytest.approx((2 + 2 * n / (2 * n + 20)) / 3)
    whole = {"slices": 3, "dice": dice, "infected": 3, "kept": 1.0, "kept_slices": 1.0}
    rows = lung_scores.measure(made, run, 0.3, tmp_path)
    assert lung_scores.summarise(rows)["parts"]["set"] == whole
