"""Lungs from a network: the target, its config, the run, and the choice in predict."""

import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import tfds_builders
from configs import common, lung, supervised
from infnet_jax import tasks
from infnet_jax.clinic import imaging, lung_network
from infnet_jax.data import batches as data
from infnet_jax.evaluation import lung_scores, networks, run_figures, summary as present
from infnet_jax.evaluation.predictor import Found, Segmenter
from infnet_jax.training import prior as crossfit, run as train
from infnet_jax.verbs import find_lungs, predict as scan_files
from tests.test_scan_files import Rule, chest


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def test_the_target_is_the_lung_and_the_lesion_is_kept(dataset):
    plain = list(data.examples(data.open_split(dataset, "test")))
    source = data.open_split(dataset, "test", "lung")
    assert len(source) == len(plain)
    for i, (e, before) in enumerate(zip(data.examples(source), plain, strict=True)):
        np.testing.assert_array_equal(e["mask"], before["lung"])  # there it holds all lesions
        np.testing.assert_array_equal(data.decode(source[i], "lesion"), before["mask"])
    batch = data.Batches(source, batch_size=2, size=64, seed=0)[0]
    assert batch["mask"].mean() > 0.1
    with pytest.raises(ValueError, match="data.target='lungs': choose mask or lung"):
        data.open_split(dataset, "test", "lungs")


def test_slices_without_a_known_lung_are_left_out():
    picture = np.zeros((2, 2, 1), np.uint8)
    made = [
        {
            "id": str(i),
            "image": picture,
            "mask": picture,
            "lung": picture + i,
            "lung_known": i % 2 == 1,
        }
        for i in range(4)
    ]
    target = data.LungTarget(made)
    assert [e["id"] for e in (target[i] for i in range(len(target)))] == ["1", "3"]
    assert target[1]["lung"].max() == 3 and target[1]["mask"].max() == 1
    made[3]["lung"] = np.uint8([[1, 0], [0, 0]])[..., None]
    made[3]["mask"] = np.uint8([[2, 1], [0, 0]])[..., None]
    assert target[1]["mask"][..., 0].tolist() == [[1, 1], [0, 0]]  # lesions count as lung
    for none in ([], made[:1], [{"id": "a", "image": picture, "mask": picture}]):
        with pytest.raises(ValueError, match="no lung masks"):
            data.LungTarget(none)


@pytest.mark.parametrize("preset", lung.PRESETS)
def test_presets_find_lungs_with_the_network_of_supervised(preset):
    config = lung.get_config(preset)
    assert tasks.target(config) == "lung" and networks.classes(config) == {"lung": None}
    like = preset if preset in ("tiny", "lite") else "demo"
    assert config.model == supervised.get_config(like).model
    assert tasks.make("segment", config, (0.4, 0.2), 5).total_steps == config.segment.steps
    assert ("prior" in config.stages) == (preset in ("folders", "lite"))


def test_configs_of_lesions_are_as_they_were():
    """A new key would part old workdirs from their configs."""
    config = common.get_base()
    assert "target" not in config.data and tasks.target(config) == "mask"
    assert networks.classes(config) == {"infection": None}
    with pytest.raises(ValueError, match="choose demo, folders, lite, tiny"):
        lung.get_config("semiseg")


def test_cross_validation_tells_how_much_of_the_lesions_is_kept(dataset, tmp_path):
    config = lung.get_config("folders")
    source = data.open_split(dataset, "train", "lung")
    known = {data.decode(source[i], "image").tobytes(): i for i in range(len(source))}
    right = {}

    def run(examples):
        """Finds the left lung, and nothing in a crop, which is not to be asked for."""
        maps = []
        for e in examples:
            i = known[e["image"].tobytes()]
            found = data.decode(source[i], "lung")[..., 0] > 0
            found[:, :32] = False  # the right lung is missed
            lesion = data.decode(source[i], "lesion")[..., 0] > 0
            if lesion.any():
                right[data.text(source[i]["id"])] = (lesion & found).sum() / lesion.sum()
            maps.append(found.astype(np.float32))
        return maps

    (tmp_path / "prior").mkdir()
    whole = lung_network.ROOM
    try:
        lung_network.ROOM = 9.0  # so the second pass would see the whole picture, and is left out
        rows = lung_scores.measure(source, run, 0.5, tmp_path / "prior" / "lungs")
    finally:
        lung_network.ROOM = whole
    for k in range(2):
        half = {name: row for i, (name, row) in enumerate(rows.items()) if i % 2 == k}
        (tmp_path / "prior" / f"fold{k}.json").write_text(json.dumps(half))
    crossfit._write_score(config, tmp_path, source)
    score = json.loads((tmp_path / "prior" / "cross_validation.json").read_text())
    assert len(score["slices"]) == len(source)
    kept = {name: row["kept"] for name, row in score["slices"].items() if row["kept"] is not None}
    assert kept == pytest.approx(right, abs=0.02) and 0.2 < np.mean(list(right.values())) < 0.8
    assert 0.5 < score["parts"]["all"]["dice"] < 0.8
    assert "| all |" in present._lung_table(score)
    ((path, _),) = run_figures.lungs(tmp_path, config, dataset, score)
    assert path.stat().st_size > 10_000
    name = min(
        (n for n in score["slices"] if score["slices"][n]["dice"]),
        key=lambda n: score["slices"][n]["dice"],
    )
    picture = cv2.imread(str(lung_scores.picture_of(tmp_path / "prior" / "lungs", name)), -1)
    assert picture.any() and not picture[:, :32].any()


def volume(gas=False):
    """Three slices of a volume: examples, and a map of lung at .6 with four lesion pixels at .4."""
    lung = np.zeros((40, 40, 1), np.uint8)
    lung[5:35, 2:15] = lung[5:35, 25:38] = 1
    lesion = np.zeros_like(lung)
    lesion[5:15, 5:15] = 1
    made, maps = [], {}
    for i in (10, 9, 11):
        found = lung[..., 0].astype(np.float32) * 0.6
        found[5:7, 5:7] = 0.4
        if i == 11 and gas:
            found[5:10, 18:22] = 0.9
        image = np.full_like(lung, i)
        maps[i] = found
        made.append(
            {
                "id": f"set/z{i}".encode(),
                "image": image,
                "lung": lung,
                "lesion": lesion,
                "volume": b"v",
            }
        )

    def run(examples):
        assert len({e["image"].shape for e in examples}) == 1
        if examples[0]["image"].shape == lung.shape:
            return [maps[int(e["image"][0, 0, 0])] for e in examples]
        return [maps[int(e["image"][0, 0, 0])][4:36, 1:39] for e in examples]

    return made, run


def test_lungs_of_a_volume_are_tidied_together(monkeypatch, tmp_path):
    """Gas below the lungs hangs together with none of them, so it goes, in a volume only."""
    monkeypatch.setattr(lung_network, "ROOM", 9.0)  # one pass
    monkeypatch.setattr(lung_network, "CLOSING_EACH", 0.0)
    made, run = volume(gas=True)
    n = 780  # pixels of both lungs, of which four are missed: a corner
    rows = lung_scores.measure(made, run, 0.5, tmp_path)
    assert rows["set/z9"] == pytest.approx({"dice": 2 * (n - 4) / (2 * n - 4), "kept": 0.96})
    assert rows["set/z11"]["dice"] == pytest.approx(2 * (n - 4) / (2 * n - 4))
    part = lung_scores.summarise(rows)["parts"]["set"]
    assert part["kept_slices"] == 0 and part["infected"] == part["slices"] == 3
    for e in made:
        del e["volume"]
    alone = lung_scores.measure(made, run, 0.5, tmp_path)
    assert alone["set/z11"]["dice"] == pytest.approx(2 * (n - 4) / (2 * n - 4 + 20))
    assert lung_scores.summarise(lung_scores.measure(made, run, 0.3, tmp_path))["parts"]["set"] == {
        "slices": 3,
        "dice": pytest.approx((2 + 2 * n / (2 * n + 20)) / 3),
        "infected": 3,
        "kept": 1.0,
        "kept_slices": 1.0,
    }


class LungNetwork:
    """Knows the grey level of lung in the drawn chests."""

    classes, thresholds, identity = ("lung",), {"lung": 0.5}, {"run": "lungs", "weights": "1234"}

    def __init__(self, path, *, lungs=False, **kwargs):
        assert lungs

    def __call__(self, slices):
        for picture in slices:
            yield Found(np.uint8(picture == 30), np.float32(picture == 30), None)


def test_predict_takes_lungs_in_three_ways(monkeypatch, tmp_path):
    scans, own, run = (tmp_path / name for name in ("scans", "own", "run"))
    for folder in (scans, own, run):
        folder.mkdir()
    (run / "config.json").write_text("{}")
    left = np.zeros((96, 96), np.uint8)
    left[30:66, 60:80] = 1
    for name in "ab":
        cv2.imwrite(str(scans / f"{name}.png"), chest())
        cv2.imwrite(str(own / f"{name}.png"), left)
    monkeypatch.setattr(scan_files, "Segmenter", lambda *a, **k: Rule())
    monkeypatch.setattr(find_lungs, "Segmenter", LungNetwork)
    sizes = {}
    for way in ("morphology", str(run), str(own)):
        out = tmp_path / "out"
        assert scan_files.run([scans], checkpoint=tmp_path, out=out, lung_way=way) == 0
        document = json.loads((out / "severity.json").read_text())
        share = document["patients"][0]["scores"]["infected_share"]
        sizes[document["model"]["lungs"]] = share
    names = ["morphology", "network, run lungs, weights 1234", "given masks"]
    assert list(sizes) == names
    lesion = (chest() > 90) & (chest() < 150)
    assert sizes["given masks"] == 0  # the lesion lies in the other lung, and is dropped
    near = lesion.sum() / ((chest() == 30) | lesion).sum()
    assert sizes[names[0]] == pytest.approx(near, rel=0.1)
    assert sizes[names[1]] == pytest.approx(near, rel=0.1)
    assert scan_files.run([scans], checkpoint=tmp_path, out=out, go_on=True) == 1  # other lungs
    (own / "b.png").unlink()
    assert scan_files.run([scans], checkpoint=tmp_path, out=out, lung_way=str(own)) == 1
    with pytest.raises(ValueError, match="--lungs nowhere: give morphology"):
        find_lungs.choose("nowhere")


class Small(nn.Module):
    """One convolution in place of Inf-Net, which takes a minute to compile."""

    @nn.compact
    def __call__(self, x, *, train):
        self.variable("batch_stats", "none", jnp.zeros, (1,))
        logits = nn.Conv(1, (3, 3))(x)
        return dict.fromkeys(("coarse", "s32", "s16", "s8", "edge"), logits)


def test_a_run_of_lungs_and_what_it_is_good_for(dataset, monkeypatch, tmp_path):
    """A run that is refused as lesions, and serves as lungs."""
    monkeypatch.setattr(tasks, "make_net", lambda config: Small())
    config = lung.get_config("tiny")
    config.segment.update(size=32, steps=2, eval_every=2)
    config.evaluate.tta = False
    train.run(config, workdir=tmp_path / "run", dataset=dataset, name="lung:tiny", command="")
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(result["classes"]) == ["lung"]
    floor = result["classes"]["lung"]["floors"]["all_positive"]["toolbox"]["mean"]["dice"]
    area = [(e["lung"] > 0).mean() for e in data.examples(data.open_split(dataset, "test"))]
    assert floor == pytest.approx(np.mean([2 * a / (1 + a) for a in area]), abs=0.01)
    with pytest.raises(ValueError, match="finds lung; it is for --lungs"):
        Segmenter(tmp_path / "run")
    finder, name = find_lungs.choose(str(tmp_path / "run"))
    assert name.startswith("network, run run, weights ")
    cv2.imwrite(str(tmp_path / "a.png"), chest())
    scan = imaging.read(imaging.find([tmp_path / "a.png"])[0])
    found = finder(scan)
    assert found.shape == (1, 96, 96) and found.dtype == bool
    lesions = supervised.get_config("tiny")
    (tmp_path / "run" / "config.json").write_text(lesions.to_json())
    with pytest.raises(ValueError, match="finds infection; give a run of configs/lung.py"):
        find_lungs.choose(str(tmp_path / "run"))
