"""Dummy data of every builder: prepared, read without our code, trained on, and mixed."""

import hashlib
import importlib
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

import main
import tfds_builders
from configs import selfsup
from infnet_jax import tasks
from infnet_jax.data.batches import Batches
from infnet_jax.data.sources import examples, open_split
from infnet_jax.training import data as stage_data

NAMES = [
    "phantom/tiny",
    "covid_semiseg/binary",
    "covid_semiseg/multiclass",
    "medseg/slices",
    "medseg/volumes",
    "ictcf/patients",
    "ictcf/slices",
    "covid_ct/official",
    "covid_chestxray/xray",
    "covid_chestxray/ct_picture",
    "covid_chestxray/ct_volume",
    "cc_ccii/slices",
    "cc_ccii/lesions",
    "folders/default",
]
SEMISEG_TEST = "TestingSet/LungInfection-Test/Imgs/6.jpg"
PSEUDO = "TrainingSet/LungInfection-Train/Pseudo-label/Imgs"
COPY = "Data-1_radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm_9"  # turned as the test split is
STATISTICS, SIZE = (0.4, 0.25), 32


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    """The dummy source files, a folder a builder; one test slice of covid_semiseg is unlabelled."""
    root = tmp_path_factory.mktemp("manual")
    for name in tfds_builders.NAMES:
        if name != "phantom":
            importlib.import_module(f"tfds_builders.{name}.dummy_data").make(root / name)
    semiseg = root / "covid_semiseg"
    shutil.copy(semiseg / SEMISEG_TEST, semiseg / PSEUDO / f"{COPY}.jpg")
    shutil.move(root / "ictcf/patients", root / "both")
    shutil.move(root / "ictcf/slices", root / "both/slices")
    shutil.rmtree(root / "ictcf")
    shutil.move(root / "both", root / "ictcf")
    return root


@pytest.fixture(scope="module")
def prepared(manual, tmp_path_factory):
    """{name: folder}, each made from its own folder below manual_dir."""
    config = selfsup.get_config("tiny")
    config.data.manual_dir = str(manual)
    config.data.data_dir = str(tmp_path_factory.mktemp("data"))
    return {name: main._build(name, config) for name in NAMES}


def test_no_builder_is_left_out(prepared):
    assert {name.split("/")[0] for name in NAMES} == set(tfds_builders.NAMES)
    configs = {
        f"{name}/{c.name}"
        for name in tfds_builders.NAMES
        for c in tfds_builders.find(name)[0].BUILDER_CONFIGS
    }
    assert configs - set(NAMES) == {"phantom/default"}  # like tiny, but slower


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
    for split in builder.info.splits:
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


@pytest.mark.parametrize("raw", [True, False])
def test_a_stranger_reads_them_all(raw, prepared, tmp_path):
    """Python without site-packages sees TFDS and array_record with what they need, nothing else.

    To decode pictures TFDS itself asks for Pillow (or OpenCV); without it they are PNG files.
    """
    strange = ["tfds_builders", "infnet_jax", "jax", "tensorflow", "cv2", *(["PIL"] if raw else [])]
    packages = site(
        tmp_path / "site", "tensorflow-datasets", "array_record", *([] if raw else ["pillow"])
    )
    folders = {name: str(folder) for name, folder in prepared.items()}
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.append({str(packages)!r})\n{STRANGER}",
        ],
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
                found = {
                    k: stored[k] if raw else example[k].tobytes()
                    for k in ("image", "mask", "lung")
                    if k in example
                }
                expected[f"{name} {split} {example['id']}"] = [
                    int(stored.get("label", -1)),
                    example["group"],
                    {k: hashlib.sha256(v).hexdigest() for k, v in found.items()},
                ]
    assert json.loads(done.stdout) == expected
    assert len({pictures["image"] for *_, pictures in expected.values()}) > 150  # no blank pages


def splits(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    return [split["name"] for split in info["splits"]]


@pytest.fixture(scope="module")
def learn():
    """learn(batches) pre-trains a tiny network for 20 steps; all share one compilation."""
    task = tasks.make("pretrain", tiny(), STATISTICS, 4)
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


def tiny():
    """Twenty steps at 32 x 32."""
    config = selfsup.get_config("tiny")
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
def test_twenty_steps_of_a_mix(manual, prepared, learn, tmp_path, capsys):
    """Whole runs of a mix, killed and resumed, are in test_main."""
    config = tiny()
    config.pretrain.validation = 3
    config.data.update(
        name="covid_semiseg/binary",
        manual_dir=str(manual),
        data_dir=str(prepared["phantom/tiny"].parents[2]),
        pretrain="covid_semiseg/binary:unlabeled + 2 * cc_ccii + ictcf",
    )
    dataset, mix = main._prepare(config)
    assert dataset == prepared["covid_semiseg/binary"]
    assert [part.folder for part in mix.parts] == [
        prepared[name] for name in ("covid_semiseg/binary", "cc_ccii/slices", "ictcf/patients")
    ]
    ((batches, held_out),) = stage_data.open_data("pretrain", config, dataset, tmp_path, mix)
    listing = json.loads((tmp_path / "pretrain/mix.json").read_text())
    assert [part["dropped"] for part in listing] == [[COPY], [], []]
    assert "1 of 5 slices dropped" in capsys.readouterr().err
    # Two slices a patient: of the last part a whole one is held out. Shares are 1, 2, 1.
    held = [held_out[i]["patient"] for i in range(len(held_out))]
    assert len(held) == 2 and held[0] == held[1] and held[0].startswith(b"patient")
    sizes = [4, listing[1]["examples"], listing[2]["examples"] - 2]
    drawn = np.searchsorted(np.cumsum(sizes), sum(map(batches.indices, range(20)), []), "right")
    total = batches.example_count
    np.testing.assert_allclose(
        np.bincount(drawn) / len(drawn), [0.25, 0.5, 0.25], atol=len(sizes) / total
    )
    learn(batches)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "pretrain",
            "phantom/tiny + icctf",
            "data.pretrain: unknown dataset 'icctf'; there are: cc_",
        ),
        (
            "pretrain",
            "ictcf/slicez",
            "data.pretrain: unknown config 'ictcf/slicez'; ictcf has: pat",
        ),
        ("pretrain", "2 * ", "data.pretrain: '2 *' in '2 * ' is no part of a mix"),
        ("stages", ("segment",), "data.pretrain = 'ictcf', but no stage is `pretrain`"),
    ],
)
def test_a_mix_that_cannot_be_is_told_before_anything_is_built(key, value, words, tmp_path):
    config = tiny()
    config.data.update(pretrain="ictcf", data_dir=str(tmp_path / "data"))
    (config if key == "stages" else config.data).update({key: value})
    with pytest.raises(ValueError) as caught:
        main._prepare(config)
    assert words in str(caught.value) and not (tmp_path / "data").exists()


def test_a_split_that_a_part_lacks(prepared, tmp_path):
    config = tiny()
    config.data.update(
        name="phantom/tiny",
        pretrain="phantom/tiny:dev",
        data_dir=str(Path(prepared["phantom/tiny"]).parents[2]),
    )
    _, mix = main._prepare(config)
    with pytest.raises(ValueError, match="no split 'dev'; it has test, train, unlabeled"):
        stage_data._open_mix(mix, tmp_path)
