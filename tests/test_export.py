"""The export verb: what it holds, that it is read as the run is, and what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import multi
from infnet_jax.evaluation import predictor as networks
from infnet_jax.plan.resolve import resolve
from infnet_jax.verbs import export


def net(value):
    return {
        "params": {"conv": {"kernel": np.full((2, 3), value, np.float32)}},
        "batch_stats": {"bn": {"mean": np.full(3, -value, np.float32)}},
    }


def export_with(monkeypatch, priors, workdir, out):
    """Exports a run as if it had trained one network and these priors."""
    with monkeypatch.context() as patch:
        patch.setattr(networks, "load_final", lambda plan: ("best", [net(1.0)]))
        patch.setattr(networks, "load_priors", lambda plan: priors)
        return export.export(workdir, out)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a multi-class network with eleven priors; nothing is trained."""
    config, workdir = multi.get_config("tiny"), tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "statistics.json").write_text('{"mean": 0.3, "sd": 0.2}')
    path = export_with(monkeypatch, [net(k + 2.0) for k in range(11)], workdir, tmp_path / "out")
    return config, workdir, path


def test_networks_and_priors_are_read_back_in_order(run):
    config, workdir, path = run
    assert path.parent.name == "out" and not path.parent.with_name("out.tmp").exists()
    assert sorted(load_file(path))[0] == "multi/0/batch_stats/bn/mean"
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"config.json", "statistics.json", "weights.safetensors"}
    plan = resolve(config, path.parent)
    part, (evaluated,) = networks.load_final(plan)
    kernel = evaluated["params"]["conv"]["kernel"]
    assert part == "exported" and kernel.shape == (2, 3) and (kernel == 1).all()
    means = [prior["batch_stats"]["bn"]["mean"][0] for prior in networks.load_priors(plan)]
    assert means == [-(k + 2.0) for k in range(11)]  # the tenth after the ninth


def test_thresholds_go_with_it_and_a_second_export_is_refused(run, tmp_path, monkeypatch):
    config, workdir, path = run
    (workdir / "thresholds.json").write_text('{"ggo": 0.1, "consolidation": 0.4}')
    before = path.read_bytes()
    with pytest.raises(ValueError, match="out is not an empty folder"):
        export.export(workdir, path.parent)
    assert path.read_bytes() == before
    (tmp_path / "empty").mkdir()
    second = export_with(monkeypatch, [net(2.0)], workdir, tmp_path / "empty").parent
    assert json.loads((second / "thresholds.json").read_text())["ggo"] == 0.1


def test_what_cannot_be_exported_or_read(run, tmp_path):
    config, workdir, path = run
    with pytest.raises(FileNotFoundError, match="no trained run there"):
        export.export(tmp_path, tmp_path / "none")
    with pytest.raises(FileNotFoundError):  # nothing is trained there
        export.export(workdir, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    config.prior.kind = "truth"
    (workdir / "config.json").write_text(config.to_json())
    save_file({"segment/0/params/w": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="has no network of stage multi"):
        networks.load_final(resolve(config, path.parent))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="weights.safetensors: not readable"):
        networks.load_final(resolve(config, path.parent))
