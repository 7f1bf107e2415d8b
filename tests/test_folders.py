"""The builder of a lab's own folders: pairs, groups, labels, and what is refused."""

import cv2
import numpy as np
import pytest

from tests.builders import assert_stops, build, read

LABELS = np.array([[0, 1, 2, 3]] * 4, np.uint8)


def make(folder, stems, label=LABELS, lung=None, index=None):
    """Writes one folder of 4 x 4 slices."""
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for kind, picture in (("img", image), ("label", label), ("lung", lung)):
        for stem in stems if picture is not None else ():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{stem}.png"), picture)
    if index is not None:
        (folder / "index.csv").write_text(index)
    return folder


def built(folder, tmp_path):
    return read(build("folders", folder, tmp_path))


def test_two_folders_with_what_each_knows(tmp_path):
    root = tmp_path / "sets"
    white = np.eye(4, dtype=np.uint8) * 255
    make(root / "a", ["s1", "s2"], lung=white, index="name,volume\ns1.png,7\n")
    make(root / "b", ["s1"], label=white, index="id,volume,group\ns1,7,joint\n")
    (root / "c" / "img").mkdir(parents=True)  # no masks: not one of them
    found = built(root, tmp_path)
    assert sorted(found) == ["a/s1", "a/s2", "b/s1"]
    one, other, binary = (found[k] for k in sorted(found))
    np.testing.assert_array_equal(one["image"][..., 0], np.arange(16).reshape(4, 4))
    np.testing.assert_array_equal(one["mask"][..., 0], [[0, 1, 2, 0]] * 4)
    np.testing.assert_array_equal(one["lung"][..., 0], np.eye(4))
    assert one["lung_known"] and one["labelled"] and one["patient"] == one["group"] == b"a/7"
    assert (other["patient"], other["group"]) == (b"", b"a/s2")
    assert [e["volume"] for e in (one, other, binary)] == [b"a/7", b"", b"b/7"]
    assert (binary["group"], bool(binary["lung_known"])) == (b"b/joint", False)
    np.testing.assert_array_equal(binary["mask"][..., 0], np.eye(4))
    assert not binary["lung"].any()


def test_one_folder_with_lungs_alone(tmp_path):
    make(tmp_path / "own", ["x"], label=None, lung=np.ones((4, 4), np.uint8))
    found = built(tmp_path / "own", tmp_path)
    assert not found["x"]["labelled"] and found["x"]["lung"].all() and not found["x"]["mask"].any()


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (None, r"s1.png: image without mask"),
        (np.full((4, 4), 7, np.uint8), r"s1.png: its label holds \[7\]"),
        (np.zeros((2, 4), np.uint8), r"s1.png: \(2, 4\), its image \(4, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(label, words, tmp_path):
    folder = make(tmp_path / "own", ["s1", "s2"])
    (folder / "label/s1.png").unlink()
    if label is not None:
        cv2.imwrite(str(folder / "label/s1.png"), label)
    assert_stops(words, "folders", folder, tmp_path)


def test_no_such_layout(tmp_path):
    (tmp_path / "own" / "img").mkdir(parents=True)
    assert_stops("no img/ with label/ or lung/", "folders", tmp_path / "own", tmp_path)
