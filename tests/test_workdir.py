"""A run's folder belongs to one config, and is read back only where it is complete."""

import json

import jax
import pytest
from ml_collections import ConfigDict

from infnet_jax import runs as workdir


def config(**changes):
    return ConfigDict({"seed": 0, "optim": {"lr": 0.1, "steps": [1, 2]}, "name": "x", **changes})


def test_a_folder_is_claimed_by_one_config(tmp_path):
    workdir.claim(tmp_path, config())
    workdir.claim(tmp_path, config())  # its own may come again
    before = (tmp_path / "config.json").read_bytes()
    other = config(seed=1, optim={"lr": 0.2}, name="y")
    with pytest.raises(ValueError) as caught:
        workdir.claim(tmp_path, other)
    assert str(caught.value) == (
        f"workdir {tmp_path} belongs to another config: name = x (now y), "
        "optim.lr = 0.1 (now 0.2), optim.steps = [1, 2] (now None) and more; "
        "use another --workdir"
    )
    assert (tmp_path / "config.json").read_bytes() == before


def test_config_and_statistics_come_back(tmp_path):
    workdir.claim(tmp_path, config())
    with pytest.raises(FileNotFoundError, match="no trained run there .statistics.json is missing"):
        workdir.read_config(tmp_path)
    workdir.write_json(tmp_path / "statistics.json", {"mean": 0.25, "sd": 0.5})
    assert workdir.read_config(tmp_path).to_dict() == config().to_dict()
    assert workdir.read_statistics(tmp_path) == (0.25, 0.5)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no trained run there .config.json is missing"):
        workdir.read_statistics(tmp_path)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    workdir.write_json(tmp_path / "a.json", [1])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    workdir.write_json(tmp_path / "a.json", [2])
    workdir.write_text(tmp_path / "b.txt", "b")
    workdir.write_npz(tmp_path / "c.npz", {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
