"""Prepared datasets read back with plain TFDS, for the tests of builders."""

import importlib
import io
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tfds_builders


def build(name, source, tmp_path, **kwargs):
    """The version folder of a dataset that is prepared below `tmp_path / "data"`."""
    return tfds_builders.prepare(name, data_dir=tmp_path / "data", manual_dir=source, **kwargs)


def read(folder, split=None):
    """The examples of one split, or of all: {id: example and its `split`}."""
    builder = tfds.builder_from_directory(folder)
    return {
        e["id"].decode(): {**e, "split": name}
        for name in ([split] if split else builder.info.splits)
        for e in builder.as_data_source(split=name)
    }


def build_and_read(name, source, tmp_path, **kwargs):
    """The examples of a dataset, {split: {id: example}}, and its report."""
    folder, found = build(name, source, tmp_path, **kwargs), {}
    for key, example in read(folder).items():
        found.setdefault(example["split"], {})[key] = example
    return found, report(folder)


def report(folder):
    """What the build found."""
    return tfds_builders.report_of(folder)


def skipped(folder):
    """File -> reason."""
    return report(folder)["skipped"]


def the_skip(folder):
    """The one file that was skipped, and the reason."""
    ((file, reason),) = skipped(folder).items()
    return file, reason


def assert_stops(words, name, source, tmp_path, **kwargs):
    """The build is refused in one line with these words, and leaves no version folder."""
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        build(name, source, tmp_path, **kwargs)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").rglob("[0-9].*.[0-9]"))


def assert_equal_bytes(first, second):
    """Two version folders hold the same files."""
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def dummy(name, folder):
    """The dummy source files of `builder/config`, written below a folder."""
    builder, _, config = name.partition("/")
    made = importlib.import_module(f"tfds_builders.{builder}.dummy_data").make(folder)
    own = made.parent / config  # a config with files of its own has a folder of its own
    return own if own.is_dir() else made


def configs(manual=False):
    """All `builder/config`; with `manual` those that read source files."""
    return [
        f"{name}/{config.name}"
        for name in tfds_builders.NAMES
        for cls in [tfds_builders.find(name)[0]]
        for config in cls.BUILDER_CONFIGS
        if cls.MANUAL_DOWNLOAD_INSTRUCTIONS or not manual
    ]


def encoded(array, kind="png", mode="L", **kwargs):
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).convert(mode).save(buffer, kind, **kwargs)
    return buffer.getvalue()


def add(archive, name, data, **kwargs):
    """Adds a member to a zip, which is made if missing."""
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, data, **kwargs)
