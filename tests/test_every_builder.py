"""Dummy data of every builder: prepared, read without our code, trained on, and mixed."""

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement

from configs import selfsup
from infnet_jax import tasks
from infnet_jax.config import prepare
from infnet_jax.data import Batches
from infnet_jax.data.sources import examples, open_split
from infnet_jax.plan.resolve import resolve
from infnet_jax.training.stage import open_data, open_sources
from tests.builders import build, configs, dummy

NAMES = [name for name in configs() if name != "phantom/default"]  # like tiny, but slower
SEMISEG_TEST = "TestingSet/LungInfection-Test/Imgs/6.jpg"
PSEUDO = "TrainingSet/LungInfection-Train/Pseudo-label/Imgs"
COPY = "Data-1_radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm_9"  # turned as the test split is
STATISTICS, SIZE = (0.4, 0.25), 32


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """{name: folder}, of dummy files; one test slice of covid_semiseg is unlabelled too."""
    root, found = tmp_path_factory.mktemp("all"), {}
    for name in NAMES:
        source = dummy(name, root / name) if name in configs(manual=True) else None
        if name.startswith("covid_semiseg"):
            shutil.copy(source / SEMISEG_TEST, source / PSEUDO / f"{COPY}.jpg")
        found[name] = build(name, source, root)
    return found


STRANGER = """
import hashlib, importlib.util, json, sys
import tensorflow_datasets as tfds

request, out = json.load(sys.stdin), {}
for name in request["strange"]:
    assert importlib.util.find_spec(name) is None, name
for name, folder in request["folders"].items():
    builder = tfds.builder_from_directory(folder)
    pictures = [k for k in ("image", "mask", "lung") if k in builder.info.features]
    skip = {k: tfds.decode.SkipDecoding() for k, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)}
    decoders = skip if request["raw"] else None
    data_dir, _, _, version = folder.rsplit("/", 3)
    for split in builder.info.splits:
        assert tfds.data_source(f"{name}:{version}", split=split, data_dir=data_dir)
        for example in builder.as_data_source(split, decoders=decoders):
            found = {k: example[k] if request["raw"] else example[k].tobytes() for k in pictures}
            out[f"{name} {split} {example['id'].decode()}"] = [
                int(example.get("label", -1)), example["group"].decode(),
                {k: hashlib.sha256(v).hexdigest() for k, v in found.items()}]
json.dump(out, sys.stdout)
"""


def site(folder, *names):
    """Links what these distributions and all that they require have installed into a folder."""
    folder.mkdir()
    waiting, done = [Requirement(name) for name in names], set()
    while waiting:
        wanted = waiting.pop()
        extras = {"", *wanted.extras}
        if done >= {(wanted.name, extra) for extra in extras}:
            continue
        done |= {(wanted.name, extra) for extra in extras}
        found = importlib.metadata.distribution(wanted.name)
        for line in found.requires or []:
            further = Requirement(line)
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(further)
        for part in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (folder / part).exists():
                (folder / part).symlink_to(found.locate_file(part))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("raw", [True, False])
def test_a_stranger_reads_them_all(raw, prepared, tmp_path):
    """Python without site-packages sees TFDS and array_record with what they need, nothing else.

    To decode pictures TFDS itself asks for Pillow (or OpenCV); without it they are PNG files.
    """
    strange = ["tfds_builders", "infnet_jax", "jax", "tensorflow", "cv2", *(["PIL"] if raw else [])]
    wanted = ["tensorflow-datasets", "array_record", *([] if raw else ["pillow"])]
    packages = site(tmp_path / "site", *wanted)
    path = f"import sys; sys.path.append({str(packages)!r})"
    folders = {name: str(folder) for name, folder in prepared.items()}
    done = subprocess.run(
        [sys.executable, *("-I", "-S", "-c"), f"{path}\n{STRANGER}"],
        input=json.dumps({"folders": folders, "raw": raw, "strange": strange}),
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {}
    for name, folder in prepared.items():
        for split in splits(folder):
            source = open_split(folder, split)
            for stored, example in zip(source, examples(source), strict=True):
                parts = [k for k in ("image", "mask", "lung") if k in example]
                found = {k: stored[k] if raw else example[k].tobytes() for k in parts}
                digests = {k: hashlib.sha256(v).hexdigest() for k, v in found.items()}
                row = [int(stored.get("label", -1)), example["group"], digests]
                expected[f"{name} {split} {example['id']}"] = row
    assert json.loads(done.stdout) == expected
    assert len({pictures["image"] for *_, pictures in expected.values()}) > 150  # no blank pages


def splits(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    return [split["name"] for split in info["splits"]]


@pytest.fixture(scope="module")
def learn():
    """learn(batches) pre-trains a tiny network for 20 steps; all share one compilation."""
    stage = resolve(tiny(), Path()).stages[0]
    task = tasks.make(stage, tasks.make_norm(stage, STATISTICS), 4)
    steps = {name: jax.jit(step) for name, step in task.steps.items()}
    trees = jax.jit(task.variables)(jax.random.key(0, impl="rbg"))

    def run(batches):
        state, losses, seen = task.start(dict(trees)), [], set()
        for step in range(20):
            batch = batches[task.batch_index(step)]
            state, out = steps[task.phase(step)](state, batch, jax.random.key(step))
            losses.append(float(out["loss"]))
            seen.add(tuple(map(float, out.values())))  # one number alone can come twice
        assert int(state.step) == 20 == task.total_steps
        assert np.isfinite(losses).all() and len(seen) == 20
        before, after = (jax.tree.leaves(t) for t in (trees["net"]["params"], state.net.params))
        assert all(np.isfinite(b).all() for b in after)
        moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert np.mean(moved) > 0.9  # all but the heads that only segmentation uses

    return run


def tiny(mix="", prepared=None):
    """Twenty steps at 32 x 32, of a mix of prepared datasets if one is named."""
    config = selfsup.get_config("tiny")
    config.data.pretrain = mix
    if prepared:
        config.data.data_dir = str(prepared["phantom/tiny"].parents[2])
    config.pretrain.update(size=SIZE, batch_size=4, eval_every=10)
    config.pretrain.rounds.update(epochs=4, net_steps=5, use_coach=False)  # one compilation
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps(name, prepared, learn):
    sources = [open_split(prepared[name], split) for split in splits(prepared[name])]
    batches = Batches(sources, batch_size=4, size=SIZE, seed=0)
    classes = set(np.unique([batches[step]["mask"] for step in range(5)]))
    assert classes <= {0, 1, 2} and ("mask" in sources[0][0]) == (len(classes) > 1)
    learn(batches)


@pytest.mark.slow
def test_twenty_steps_of_a_mix(prepared, learn, tmp_path, capsys):
    """Whole runs of a mix, killed and resumed, are in test_main."""
    config = tiny("covid_semiseg/binary:unlabeled + 2 * cc_ccii + ictcf", prepared)
    config.pretrain.validation = 3
    config.data.name = "covid_semiseg/binary"
    dataset, mix = prepare(config)
    assert dataset == prepared["covid_semiseg/binary"]
    assert [part.folder for part in mix.parts] == [
        prepared[name] for name in ("covid_semiseg/binary", "cc_ccii/slices", "ictcf/patients")
    ]
    plan = resolve(config, tmp_path, dataset)
    ((batches, held_out),) = open_data(plan.stages[0], plan, mix)
    listing = json.loads((tmp_path / "pretrain/mix.json").read_text())
    assert [part["dropped"] for part in listing] == [[COPY], [], []]
    assert "1 of 5 slices dropped" in capsys.readouterr().err
    # Two slices a patient: of the last part a whole one is held out. Shares are 1, 2, 1.
    held = [held_out[i]["patient"] for i in range(len(held_out))]
    assert len(held) == 2 and held[0] == held[1] and held[0].startswith(b"patient")
    sizes = [4, listing[1]["examples"], listing[2]["examples"] - 2]
    drawn = np.searchsorted(np.cumsum(sizes), sum(map(batches.indices, range(20)), []), "right")
    total = batches.example_count
    shares = np.bincount(drawn) / len(drawn)
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=len(sizes) / total)
    learn(batches)


@pytest.mark.slow
def test_a_split_that_a_part_lacks(prepared, tmp_path):
    config = tiny("phantom/tiny:dev", prepared)
    dataset, mix = prepare(config)
    plan = resolve(config, tmp_path, dataset)
    with pytest.raises(ValueError, match="no split 'dev'; it has test, train, unlabeled"):
        open_sources(plan.stages[0], plan, mix)
