"""One way from weights and slices to maps: runs, scans, exports and formulas agree."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from configs import multi, supervised
from infnet_jax.data import Subset
from infnet_jax.data.sources import examples, open_split
from infnet_jax.evaluation import predictor as networks
from infnet_jax.evaluation.predictor import Predictor, full_size, mark
from infnet_jax.plan.resolve import resolve
from infnet_jax.runs import mesh as meshes, read_statistics
from infnet_jax.training import run, stage as stages
from infnet_jax.verbs import export

pytestmark = pytest.mark.slow


def predictor_of(plan, stage=None):
    statistics = read_statistics(plan.workdir)
    size = plan.evaluate.batch_size
    return Predictor(stage or plan.final, statistics, views=plan.views, batch_size=size)


def train(config, workdir, dataset):
    return run(config, workdir=workdir, dataset=dataset, name="folds", command="")


@pytest.fixture(scope="module")
def folds(phantom, tmp_path_factory):
    """A run of two networks, one a fold, with chosen thresholds -> its plan."""
    workdir, config = tmp_path_factory.mktemp("folds"), supervised.get_config("tiny")
    config.segment.update(folds=2, validation=0, size=32, steps=3)
    config.segment.schedule.warmup_steps = 1
    config.model.update(decoder="unet", trunk="plain")
    config.evaluate.update(tta=False, choose_threshold=True)
    train(config, workdir, phantom)
    return resolve(config, workdir, phantom)


@pytest.fixture(scope="module")
def classes(phantom, tmp_path_factory):
    """A run of three classes, each network from the prior's of its fold -> its plan."""
    workdir, config = tmp_path_factory.mktemp("classes"), multi.get_config("tiny")
    config.multi.update(
        prior_use="average", from_prior=True, folds=2, validation=0, size=32, steps=2
    )
    config.segment.update(size=32, steps=2)
    config.model.update(decoder="unet", trunk="plain", width=config.multi.net.width)
    config.evaluate.update(tta=False, scales=(1.0, 2.0), choose_threshold=True)
    train(config, workdir, phantom)
    return resolve(config, workdir, phantom)


@pytest.fixture
def case(phantom):
    """The first test slice, as a scan has it, and its file's name."""
    first = next(examples(open_split(phantom, "test")))
    return first["image"][..., 0], f"{first['id'].replace('/', '_')}.png"


def grey(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 255


def test_an_ensemble_is_the_mean_of_its_networks(folds, case):
    picture, name = case
    one = Subset(open_split(folds.data.folder, "test"), [0])
    alone = predictor_of(folds)
    each = [alone.using([w]).maps(one)[0][..., 0] for w in networks.load_final(folds)[1]]
    assert np.abs(each[0] - each[1]).max() > 0.04  # else a mean proves nothing
    full = cv2.resize((each[0] + each[1]) / 2, picture.shape[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(grey(folds.workdir / "predictions" / name) - full).max() < 0.01
    predictor = Predictor.load(folds.workdir)
    (found,) = predictor([picture])
    np.testing.assert_allclose(found.probs[..., 0], full, atol=1e-6)
    spread = np.abs(each[0] - each[1]) / 2  # standard deviation of two
    np.testing.assert_allclose(found.spread, cv2.resize(spread, picture.shape[::-1]), atol=1e-6)
    assert "mean of 2 networks" in predictor.identity["network"]


def test_masks_are_cut_at_the_thresholds_that_the_run_chose(folds, case):
    picture, name = case
    chosen = json.loads((folds.workdir / "thresholds.json").read_text())
    predictor = Predictor.load(folds.workdir)
    (found,) = predictor([picture])
    assert predictor.thresholds == chosen and 0 < chosen["infection"] < 1
    np.testing.assert_array_equal(found.mask, found.probs[..., 0] >= chosen["infection"])
    mask = cv2.imread(str(folds.workdir / "masks" / name), cv2.IMREAD_UNCHANGED)
    assert mask.shape[:2] == picture.shape and mask.any() == found.mask.any()


def test_an_export_predicts_what_its_run_does(folds, case, tmp_path):
    exported = Predictor.load(export.export(folds.workdir, tmp_path / "export").parent)
    predictor = Predictor.load(folds.workdir)
    (a,), (b,) = exported([case[0]]), predictor([case[0]])
    np.testing.assert_array_equal(a.probs, b.probs)
    np.testing.assert_array_equal(a.mask, b.mask)
    assert exported.identity == {**predictor.identity, "run": "export"}


def test_a_network_that_is_missing(folds, tmp_path):
    shutil.copytree(folds.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "segment" / "fold1" / "checkpoints")
    with pytest.raises(FileNotFoundError, match="1 of 2 networks are trained"):
        Predictor.load(tmp_path / "run")


@pytest.mark.parametrize(
    "slices", [np.zeros((1, 8, 8), np.int16), np.zeros((1, 8, 8, 3), np.uint8)]
)
def test_a_slice_that_is_none_in_the_lung_window_is_refused(slices, folds):
    with pytest.raises(ValueError, match=r"a slice of .*; uint8 \[H, W\] in the lung window"):
        next(predictor_of(folds)(slices))


def test_the_wrong_organ_is_refused(folds):
    with pytest.raises(ValueError, match=r"that run finds infection; give a run of configs/lung"):
        Predictor.load(folds.workdir, lungs=True)


def test_each_fold_starts_from_the_one_that_left_out_the_same(classes):
    source = open_split(classes.data.folder, "train")
    parts = [stages.held_out(stage, source) for stage in (classes.prior, classes.final)]
    for a, b in zip(*parts, strict=True):
        np.testing.assert_array_equal(a, b)
    for network in classes.final.networks:
        report = json.loads((network.folder / "transfer.json").read_text())
        assert report["from"] == "prior" and report["loaded"] and not report["mismatched"]


def test_a_prior_averaged_into_the_map(classes, case):
    """A run, its Predictor and the formula agree; the network alone says something else."""
    picture, name = case
    one = Subset(open_split(classes.data.folder, "test"), [0])
    fed = predictor_of(classes, classes.prior).using(networks.load_priors(classes))
    prior = np.round(255 * fed.maps(one)[0][..., 0]) / 255
    plain = predictor_of(classes, classes.final._replace(prior="none"))
    alone = plain.using(networks.load_final(classes)[1]).maps(one)[0]
    infected = (alone[..., 1] + alone[..., 2] + prior) / 2
    right = infected * alone[..., 1] / (alone[..., 1] + alone[..., 2])
    written = grey(classes.workdir / "predictions" / "ggo" / name)
    assert np.abs(cv2.resize(right, picture.shape[::-1]) - written).max() < 0.02
    assert np.abs(cv2.resize(alone[..., 1], picture.shape[::-1]) - written).max() > 0.04
    (found,) = Predictor.load(classes.workdir)([picture])
    assert np.abs(written - found.probs[..., 1]).max() < 0.01
    assert found.spread.max() > 1e-3


def test_views_are_those_of_the_run_or_one(classes):
    assert Predictor.load(classes.workdir).identity["views"] == "1, at 2 sizes"
    assert Predictor.load(classes.workdir, tta=False).identity["views"] == "1"


def test_the_cross_validated_dice_is_of_networks_that_had_not_seen_the_slice(classes):
    source = stages.open_sources(classes.final, classes)[-1]
    final, dice = predictor_of(classes), []
    result = json.loads((classes.workdir / "evaluation.json").read_text())
    held = stages.held_out(classes.final, source)
    for part, weights in zip(held, networks.load_final(classes)[1], strict=True):
        maps = final.using([weights]).maps(Subset(source, part))
        for case, probs in zip(examples(Subset(source, part)), maps, strict=True):
            marked = mark(full_size(probs, case["mask"].shape[:2]), result["thresholds"]) == 1
            truth = case["mask"][..., 0] == 1
            if total := marked.sum() + truth.sum():
                dice.append(2 * (marked & truth).sum() / total)
    assert result["cross_validated"]["ggo"] == pytest.approx(np.mean(dice)) and max(dice) > 0


def test_a_map_cut_by_itself_is_scored_on_the_test_slices(classes, phantom):
    found = json.loads((classes.workdir / "evaluation.json").read_text())["classes"]["ggo"]["cut"]
    dice = []
    for case in examples(open_split(phantom, "test")):
        name = f"{case['id'].replace('/', '_')}.png"
        marked = grey(classes.workdir / "predictions" / "ggo" / name) >= found["threshold"]
        truth = case["mask"][..., 0] == 1
        dice.append(2 * (marked & truth).sum() / max(1, marked.sum() + truth.sum()))
    assert found["toolbox"]["none"]["dice"] == pytest.approx(np.mean(dice), abs=0.01)


def test_a_run_that_was_killed_in_its_second_fold_keeps_the_first(classes, tmp_path, phantom):
    workdir = tmp_path / "run"
    shutil.copytree(classes.workdir, workdir)
    (workdir / "multi" / "done.json").unlink()
    before = (workdir / "multi" / "fold0" / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(workdir / "multi" / "fold1")
    config = multi.get_config("tiny")
    config.update(json.loads((workdir / "config.json").read_text()))
    train(config, workdir, phantom)
    assert (workdir / "multi" / "fold0" / "metrics.jsonl").stat().st_mtime_ns == before
    after = networks.load_final(resolve(config, workdir))[1]
    jax.tree.map(np.testing.assert_array_equal, networks.load_final(classes)[1], after)


class Two(Predictor):
    """Two networks with given maps and spreads."""

    def __init__(self, found):
        self._found = iter(found)
        self._ensemble = [None] * len(found)
        self._mesh = meshes.make_mesh(jax.devices()[:1])
        self._step = lambda *_: next(self._found)


def test_two_views_of_two_networks():
    """Means 0.2 and 0.6, each of views 0.1 above and below, and 0.3: by hand."""
    pairs = [(0.2, 0.1), (0.6, 0.3)]
    found = [tuple(np.full((1, 1, 1, 1), v, np.float32) for v in pair) for pair in pairs]
    probs, spread = Two(found)._run({})
    assert probs.item() == pytest.approx(0.4)
    assert spread.item() == pytest.approx(np.std([0.1, 0.3, 0.3, 0.9]))


def test_two_networks_of_three_classes_differ_in_where_they_see_any_lesion():
    """Maps of three channels: the spread is that of the background."""
    maps = [np.float32([[[[0.2, 0.8, 0.0]]]]), np.float32([[[[0.6, 0.1, 0.3]]]])]
    probs, spread = Two([(m, None) for m in maps])._run({})
    np.testing.assert_allclose(probs, [[[[0.4, 0.45, 0.15]]]], atol=1e-6)
    np.testing.assert_allclose(spread, [[[0.2]]], atol=1e-6)


def test_a_pixel_gets_the_class_that_exceeds_its_threshold_most():
    thresholds = {"ggo": 0.1, "consolidation": 0.4}
    probs = np.float32(
        [
            [0.95, 0.04, 0.01],  # none
            [0.80, 0.15, 0.05],  # ground glass alone
            [0.40, 0.12, 0.48],  # both, equally: the first
            [0.30, 0.10, 0.60],  # consolidation, 1.5 against 1
            [0.20, 0.30, 0.50],  # ground glass, 3 against 1.25
            [0.75, 0.10, 0.15],  # exactly at the threshold counts
        ]
    )[None]
    np.testing.assert_array_equal(mark(probs, thresholds), [[0, 1, 1, 2, 1, 1]])
    halves = dict.fromkeys(thresholds, 0.5)
    np.testing.assert_array_equal(mark(probs, halves), [[0, 0, 0, 2, 2, 0]])
    found = mark(np.float32([[[0.2], [0.7]]]), {"infection": 0.7})
    assert found.dtype == np.uint8 and found.tolist() == [[0, 1]]
