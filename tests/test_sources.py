"""Examples come out of a prepared folder as they went in; what is unfit is named."""

import cv2
import numpy as np
import pytest

from infnet_jax.data import Subset, decode
from infnet_jax.data.sources import examples, open_split, statistics


def test_statistics_of_two_pictures_by_hand():
    pictures = [np.full((1, 3, 1), 0, np.uint8), np.full((1, 1, 1), 255, np.uint8)]
    source = [{"image": picture} for picture in pictures]
    mean, std = statistics(source)  # pixels 0, 0, 0, 1
    assert mean == pytest.approx(0.25) and std == pytest.approx(np.sqrt(3) / 4)
    assert statistics(source, [1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="empty"):
        statistics(source, [])


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
    for value, found in (
        (colour, r"uint8 \[3, 3, 3\]"),
        (deep, "uint16"),
        (b"no png", "unreadable"),
    ):
        with pytest.raises(ValueError, match=f"'image' of example 'a7' is {found}"):
            decode({"image": value, "id": b"a7"}, "image")
    with pytest.raises(ValueError, match="index 3 is outside"):
        Subset([{}] * 3, [0, 3])


def test_a_prepared_folder_opens_by_split(phantom, tmp_path):
    import tensorflow_datasets as tfds

    train = open_split(phantom, "train")
    assert isinstance(train[0]["image"], bytes)  # decoded later, by OpenCV
    decoded_by_tfds = tfds.builder_from_directory(phantom).as_data_source("train")
    for mine, theirs in zip(examples(train), decoded_by_tfds, strict=True):
        assert mine["id"].encode() == theirs["id"]
        np.testing.assert_array_equal(mine["image"], theirs["image"])
        np.testing.assert_array_equal(mine["mask"], theirs["mask"])
    count = len(train)
    assert len(open_split(phantom, "train[:50%]")) == count // 2
    assert len(open_split(phantom, "train+test")) == count + len(open_split(phantom, "test"))
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        open_split(phantom, "val")
    with pytest.raises(ValueError, match="data.target='mask': choose infection or lung"):
        open_split(phantom, "train", "mask")
    with pytest.raises(FileNotFoundError, match="not a prepared dataset"):
        open_split(tmp_path / "nowhere", "train")
