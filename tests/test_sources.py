"""Examples come out of a prepared folder as they went in; what is unfit is named."""

import io

import cv2
import numpy as np
import pytest

from infnet_jax.data.sources import decode, examples, open_split, select, statistics


def made(count, start=0):
    """Examples whose every pixel tells their number, as PNG bytes."""
    found = []
    for i in range(count):
        picture = np.full((6, 8, 1), start + i, np.uint8)
        image, mask = (cv2.imencode(".png", x)[1].tobytes() for x in (picture, picture % 3))
        texts = {"id": f"slice{i}".encode(), "group": f"patient{i // 3}".encode()}
        found.append({"image": image, "mask": mask, **texts})
    return found


def test_statistics_of_two_pictures_by_hand():
    pictures = [np.full((1, 3, 1), 0, np.uint8), np.full((1, 1, 1), 255, np.uint8)]
    source = [{"image": picture} for picture in pictures]
    mean, std = statistics(source)  # pixels 0, 0, 0, 1
    assert mean == pytest.approx(0.25) and std == pytest.approx(np.sqrt(3) / 4)
    assert statistics(source, [1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="empty"):
        statistics(source, [])


def test_examples_come_decoded_at_native_size_with_text():
    out = list(examples([e | {"lung": np.ones((5, 9, 1), np.uint8)} for e in made(2)]))
    assert out[1]["image"].shape == (6, 8, 1) and out[1]["image"].max() == 1
    assert out[1]["id"] == "slice1" and out[1]["group"] == "patient0"
    assert out[1]["lung"].sum() == 45 and "patient" not in out[1]


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
        select(made(3), [0, 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of six slices of two patients, made without the project's builders."""
    import tensorflow_datasets as tfds

    class TinySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = {name: tfds.features.Text() for name in ("id", "group")}
            pictures = {n: tfds.features.Image(shape=(None, None, 1)) for n in ("image", "mask")}
            features = tfds.features.FeaturesDict(pictures | text)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i, example in enumerate(made(count, start=count * 10)):
                # TFDS takes pictures as streams, not as bytes.
                yield i, example | {n: io.BytesIO(example[n]) for n in ("image", "mask")}

    builder = TinySet(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_a_prepared_folder_opens_by_split(folder, tmp_path):
    train = open_split(folder, "train")
    assert isinstance(train[0]["image"], bytes)  # decoded later, by OpenCV
    found = list(examples(train))
    assert sorted(int(e["image"][0, 0, 0]) for e in found) == [40, 41, 42, 43]
    assert all((e["mask"] == e["image"] % 3).all() for e in found)
    sizes = [len(open_split(folder, split)) for split in ("train[:50%]", "train+test")]
    assert sizes == [2, 6]
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        open_split(folder, "val")
    with pytest.raises(ValueError, match="data.target='mask': choose infection or lung"):
        open_split(folder, "train", "mask")
    with pytest.raises(FileNotFoundError, match="not a prepared dataset"):
        open_split(tmp_path / "nowhere", "train")
