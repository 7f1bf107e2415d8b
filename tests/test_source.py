"""A prepared dataset is bound to the files it was built from."""

import shutil

import cv2
import numpy as np
import pytest

import tfds_builders
from tfds_builders import source


@pytest.fixture
def folder(tmp_path):
    """A source folder of three slices with masks."""
    rng = np.random.default_rng(0)
    for kind, levels in (("img", 255), ("label", 2)):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, levels, (16, 16), np.uint8)
            cv2.imwrite(str(tmp_path / "mine" / kind / f"{i}.png"), pixels)
    return tmp_path / "mine"


def _build(folder, tmp_path):
    return tfds_builders.prepare("folders", data_dir=tmp_path / "data", manual_dir=folder)


def _corrected(folder):
    path = folder / "label" / "1.png"
    cv2.imwrite(str(path), 1 - cv2.imread(str(path), 0))


CHANGES = {  # what the line says -> what was done to the source
    "label/1.png is another": _corrected,
    "img/1.png is gone": lambda folder: (folder / "img/1.png").unlink(),
    "img/9.png is new": lambda folder: shutil.copy(folder / "img/0.png", folder / "img/9.png"),
}


@pytest.mark.parametrize("words", CHANGES)
def test_changed_files_are_refused_and_named(words, folder, tmp_path):
    built = _build(folder, tmp_path)
    assert _build(folder, tmp_path) == built and (built / source.CHECKED).is_file()
    assert _build(folder, tmp_path) == built  # by size and time now
    CHANGES[words](folder)
    with pytest.raises(ValueError, match=f"{built} was built from other files.*{words}") as caught:
        _build(folder, tmp_path)
    assert str(folder) in str(caught.value)


def test_another_folder_or_none(folder, tmp_path):
    built = _build(folder, tmp_path)
    (tmp_path / "other" / "img").mkdir(parents=True)
    shutil.copy(folder / "img/0.png", tmp_path / "other/img/7.png")
    with pytest.raises(ValueError, match="none of its 6 files is there"):
        _build(tmp_path / "other", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _build(tmp_path / "nowhere", tmp_path)
    folder.rename(tmp_path / "moved")  # the same files elsewhere are the same files
    assert _build(tmp_path / "moved", tmp_path) == built
    assert _build(None, tmp_path) == built  # prepared data need no source
