def test_statistics_of_two_pictures_by_hand():
    class Two(Numbered):
        def __getitem__(self, i):
            shape, value = (((1, 3, 1), 0), ((1, 1, 1), 255))[i]
            return {"image": np.full(shape, value, np.uint8)}

    mean, std = statistics(Two(2))  # pixels 0, 0, 0, 1
    assert mean == pytest.approx(0.25) and std == pytest.approx(np.sqrt(3) / 4)
    assert statistics(Two(2), [1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="empty"):
        statistics(Two(2), [])


def test_examples_come_decoded_at_native_size_with_text():
    out = list(examples(Numbered(2, shape=(5, 9), lung=np.ones((5, 9, 1), np.uint8))))
    assert out[1]["image"].shape == (5, 9, 1) and out[1]["image"].max() == 1
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
        select(Numbered(3), [0, 3])


def write_dataset(folder):
    """A dataset of six slices of two patients, made without the project's builders."""
    import tensorflow_datasets as tfds

    class TinySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = {name: tfds.features.Text() for name in ("id", "group")}
            pictures = {n: tfds.features.Image(shape=(None, None, 1)) for n in ("image", "mask")}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(pictures | text)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            source = Numbered(count, start=count * 10)
            for i in range(count):
                example = source[i]  # TFDS takes pictures as streams, not as bytes
                yield i, example | {n: io.BytesIO(example[n]) for n in ("image", "mask")}

    builder = TinySet(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_a_prepared_folder_opens_by_split(tmp_path):
    folder = write_dataset(tmp_path)
    train = open_split(folder, "train")
    assert isinstance(train[0]["image"], bytes)  # decoded later, by OpenCV
    found = list(examples(train))
    assert sorted(int(e["image"][0, 0, 0]) for e in found) == [40, 41, 42, 43]
    assert all((e["mask"] == e["image"] % 3).all() for e in found)
    assert (
        len(open_split(folder, "train[:50%]")) == 2 and len(open_split(folder, "train+test")) == 6
    )
    drawn = sum((numbers(make(train)[step]) for step in range(2)), [])
    assert sorted(drawn) == [40, 40, 41, 41, 42, 42, 43, 43]
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        open_split(folder, "val")
    with pytest.raises(FileNotFoundError, match="not a prepared dataset"):
        open_split(tmp_path / "nowhere", "train")
