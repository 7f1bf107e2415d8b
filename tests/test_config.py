"""Config files with presets and overrides, and what is refused before a dataset is built."""

import pytest

from configs import selfsup
from infnet_jax.config import build, load, prepare
from tests.builders import dummy


def test_overrides_change_a_preset():
    config = load("configs/study.py:tiny", ["--config.bases.supervised.seed=3", "--config.folds=3"])
    assert config.bases.supervised.seed == 3 and config.folds == 3
    assert load("configs/study.py:tiny").folds == 0


@pytest.mark.parametrize(
    ("file", "override", "words"),
    [
        ("configs/stud.py", "--config.folds=3", "configs/stud.py: there is no such file"),
        ("configs/study.py:big", "--config.folds=3", "'big' is unknown: choose demo"),
        ("configs/study.py:tiny", "--config.fodls=3", "fodls"),
        ("configs/study.py:tiny", "--config.folds=many", "many"),
    ],
)
def test_what_cannot_be_read_is_one_line(file, override, words):
    with pytest.raises(ValueError) as caught:
        load(file, [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.pretrain", "phantom/tiny + icctf", "data.pretrain: unknown dataset 'icctf'; there"),
        ("data.pretrain", "ictcf/slicez", "unknown config 'ictcf/slicez'; ictcf has: pat"),
        ("data.pretrain", "2 * ", "data.pretrain: '2 *' in '2 * ' is no part of a mix"),
        ("stages", ("segment",), "data.pretrain='ictcf', but no stage is `pretrain`"),
        ("data.target", "liver", "data.target='liver': choose infection or lung"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_built(key, value, words, tmp_path):
    config = selfsup.get_config("tiny")
    config.data.update(pretrain="ictcf", data_dir=str(tmp_path / "data"))
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError) as caught:
        prepare(config)
    assert words in str(caught.value) and not (tmp_path / "data").exists()


@pytest.mark.parametrize("given", [".", "folders"])
def test_source_files_may_lie_in_a_folder_of_the_builder(given, tmp_path):
    config = selfsup.get_config("tiny")
    dummy("folders/default", tmp_path / "manual/folders")
    config.data.update(manual_dir=str(tmp_path / "manual" / given), data_dir=str(tmp_path / "data"))
    assert build("folders", config.data) == tmp_path / "data/folders/default/1.1.0"
