"""The prior of each slice comes from networks that have not seen it."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

import tfds_builders
from configs import multi, supervised
from infnet_jax import tasks
from infnet_jax.data.sources import examples, open_split, select, text
from infnet_jax.evaluation import (
    networks,
    predictor as inference,
    summary as present,
    test_split as predict,
)
from infnet_jax.runs import mesh
from infnet_jax.training import data as stage_data, loop, prior as crossfit, run as train
from infnet_jax.verbs import export


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def fit(dataset, monkeypatch, tmp_path):
    """fit() runs the stage with networks that answer 40 (k + 1) / 255 everywhere, k the fold."""
    config, trained = multi.get_config("tiny"), []

    def fit(task, section, batches, held_out, *, directory, **kwargs):
        kept = {text(held_out[i]["group"]) for i in range(len(held_out))}
        trained.append((directory.name, batches.example_count, kept))
        return {"steps": 8, "seconds": 1.0}

    def sweep(weights, source):
        return [np.full((4, 4), 40 * (weights + 1) / 255, np.float32)] * len(source)

    monkeypatch.setattr(tasks, "make", lambda *_: None)
    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(networks, "load_weights", lambda folder, part: int(folder.parent.name[4:]))
    monkeypatch.setattr(networks, "make_sweep", lambda *_: sweep)

    def run(labels=(), **prior):
        config.prior.update(prior)
        config.data.labels = labels
        timing = train._run_stage("prior", config, tmp_path, dataset, None, (0.3, 0.2))
        return config, trained, timing

    return run


def priors(dataset, split, config, workdir):
    source = crossfit.with_priors(open_split(dataset, split), split, config, workdir)
    return [(text(e["group"]), e["prior"]) for e in (source[i] for i in range(len(source)))]


def test_a_training_slice_gets_the_fold_that_left_it_out(fit, dataset, tmp_path):
    config, trained, timing = fit()
    assert [name for name, _, _ in trained] == ["fold0", "fold1"] and timing["steps"] == 16
    n = len(open_split(dataset, "train"))
    assert sum(n - seen for _, seen, _ in trained) == n  # each slice is left out once
    left_out = {group: k for k, (_, _, groups) in enumerate(trained) for group in groups}
    for group, prior in priors(dataset, "train", config, tmp_path):
        assert prior.shape == (4, 4, 1) and (prior == 40 * (left_out[group] + 1)).all()
    assert all((p == 60).all() for _, p in priors(dataset, "test", config, tmp_path))  # the mean


def test_a_prior_of_two_deals_is_the_mean_of_both_that_left_the_slice_out(fit, dataset, tmp_path):
    config, trained, timing = fit(repeats=2)
    assert [name for name, _, _ in trained] == [f"fold{k}" for k in range(4)]
    assert timing["steps"] == 32
    first, second = ({g: k for k in ks for g in trained[k][2]} for ks in ((0, 1), (2, 3)))
    assert [first[g] + 2 for g in sorted(first)] != [second[g] for g in sorted(second)]
    for group, prior in priors(dataset, "train", config, tmp_path):
        assert (prior == 20 * (first[group] + second[group] + 2)).all()
    assert all((p == 100).all() for _, p in priors(dataset, "test", config, tmp_path))
    for k in range(4):
        (tmp_path / "prior" / f"fold{k}" / "checkpoints").mkdir()
    assert networks.load_priors(config, tmp_path) == [0, 1, 2, 3]


def test_beyond_the_label_budget_a_slice_gets_the_mean(fit, dataset, tmp_path):
    config, trained, _ = fit(labels=(4,))
    assert [seen for _, seen, _ in trained] == [2, 2]  # two patients, two slices each
    left_out = {group: k for k, (_, _, groups) in enumerate(trained) for group in groups}
    found = priors(dataset, "train", config, tmp_path)
    assert len(left_out) == 2 and len(found) == 10
    for group, prior in found:
        assert (prior == (40 * (left_out[group] + 1) if group in left_out else 60)).all()
    score = json.loads((tmp_path / "prior" / "cross_validation.json").read_text())
    assert len(score["slices"]) <= 4  # no mask beyond the budget is read


def test_a_finished_fold_is_not_trained_again(fit, tmp_path):
    fit()
    (tmp_path / "prior" / "fold1" / "done.json").unlink()
    (tmp_path / "prior" / "fold1.npz").unlink()
    _, trained, _ = fit()
    assert [name for name, _, _ in trained] == ["fold0", "fold1", "fold1"]
    assert (tmp_path / "prior" / "fold1.npz").exists()


def test_the_cross_validated_dice_by_hand(fit, dataset, tmp_path):
    config, _, _ = fit()
    score = json.loads((tmp_path / "prior" / "cross_validation.json").read_text())
    sick = [e for e in examples(open_split(dataset, "train")) if e["mask"].any()]
    assert len(score["slices"]) == len(sick) and score["dice"] == 0.0  # 80 of 255 is below 0.5
    config.evaluate.threshold = 0.1
    crossfit._write_score(config, tmp_path, open_split(dataset, "train"))
    score = json.loads((tmp_path / "prior" / "cross_validation.json").read_text())
    share = {e["id"]: (e["mask"] > 0).mean() for e in sick}
    right = [2 * share[name] / (1 + share[name]) for name in share]
    healthy = len(open_split(dataset, "train")) - len(sick)  # all marked, none true: 0
    assert score["dice"] == pytest.approx(sum(right) / (len(right) + healthy))


def test_the_true_mask_as_an_upper_bound(fit, dataset, tmp_path):
    config, trained, _ = fit(kind="truth")
    assert not trained and not (tmp_path / "prior").exists()
    source = open_split(dataset, "test")
    with_prior = crossfit.with_priors(source, "test", config, tmp_path)
    for i in range(len(source)):
        truth = select(source, [i])
        mask = next(iter(examples(truth)))["mask"]
        np.testing.assert_array_equal(with_prior[i]["prior"], 255 * (mask > 0))


def test_folds_as_an_ensemble(dataset, tmp_path):
    """Two networks, one a fold: what is evaluated, predicted and chosen is of their mean."""
    config = supervised.get_config("tiny")
    config.segment.update(folds=2, validation=0)
    config.model.kind, config.segment.size, config.segment.steps = "unet", 32, 3
    config.segment.schedule.warmup_steps = 1
    config.evaluate.update(tta=False, choose_threshold=True)
    page = train.run(config, workdir=tmp_path, dataset=dataset, name="folds", command="")
    assert "The mean of 2 networks is evaluated" in page.read_text()
    test = open_split(dataset, "test")
    known = json.loads((tmp_path / "statistics.json").read_text())
    each = [
        networks.make_sweep("segment", config, (known["mean"], known["sd"]))(weights, test)
        for weights in networks.load_evaluated(config, tmp_path)[1]
    ]
    assert np.abs(each[0][0] - each[1][0]).max() > 0.04  # else a mean proves nothing
    written = cv2.imread(str(next((tmp_path / "predictions").glob("*.png"))), -1)
    names = [e["id"].replace("/", "_") for e in examples(test)]
    i = names.index(next((tmp_path / "predictions").glob("*.png")).stem)
    mean = (each[0][i] + each[1][i]) / 2
    full = cv2.resize(mean, written.shape[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(written / 255 - full).max() < 0.01

    segmenter = inference.Segmenter(tmp_path)
    picture = list(examples(test))[i]["image"][..., 0]
    (found,) = segmenter(iter([picture]))
    assert np.abs(found.probs - full).max() < 0.01
    spread = np.abs(each[0][i] - each[1][i]) / 2  # standard deviation of two
    assert np.abs(found.spread - cv2.resize(spread, picture.shape[::-1])).max() < 0.01
    assert "mean of 2 networks" in segmenter.identity["network"]

    passed_on = inference.Segmenter(export.export(tmp_path, tmp_path / "export").parent)
    (same,) = passed_on(iter([picture]))
    np.testing.assert_array_equal(same.probs, found.probs)
    np.testing.assert_array_equal(same.mask, found.mask)
    assert passed_on.identity == {**segmenter.identity, "run": "export"}

    chosen = json.loads((tmp_path / "thresholds.json").read_text())
    assert segmenter.thresholds == chosen and 0 < chosen["infection"] < 1
    np.testing.assert_array_equal(found.mask, found.probs >= np.float32(chosen["infection"]))
    mask = cv2.imread(str(tmp_path / "masks" / f"{names[i]}.png"), -1)
    assert mask.shape[:2] == picture.shape and mask.any() == found.mask.any()
    (tmp_path / "segment" / "fold1" / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="1 of 2 networks are trained"):
        inference.Segmenter(tmp_path)


def test_an_ensemble_of_multi_class_networks(dataset, tmp_path):
    """Each sees all slices but its fold's, and the cross-validated Dice is of those."""
    config = multi.get_config("tiny")
    config.stages, config.multi.with_prior = ("multi", "evaluate"), False
    config.multi.update(folds=2, validation=0, size=32, steps=2)
    config.evaluate.tta = False
    page = train.run(config, workdir=tmp_path, dataset=dataset, name="folds", command="")
    source = open_split(dataset, "train")
    held = stage_data.held_out("multi", config, source)
    assert sorted(np.concatenate(held)) == list(range(len(source))) and min(map(len, held)) > 0
    known = json.loads((tmp_path / "statistics.json").read_text())
    ensemble = networks.load_evaluated(config, tmp_path)[1]
    dice = []
    for part, weights in zip(held, ensemble, strict=True):
        some = select(source, part)
        maps = networks.make_sweep("multi", config, (known["mean"], known["sd"]))(weights, some)
        for case, probs in zip(examples(some), maps, strict=True):
            found = cv2.resize(probs[..., 1], (case["mask"].shape[1], case["mask"].shape[0])) >= 0.5
            truth = case["mask"][..., 0] == 1
            if total := found.sum() + truth.sum():
                dice.append(2 * (found & truth).sum() / total)
    result = json.loads((tmp_path / "evaluation.json").read_text())["cross_validated"]
    assert result["ggo"] == pytest.approx(np.mean(dice), abs=0.01) and 0 < result["ggo"] < 1
    text = page.read_text()
    assert "Cross-validated Dice of ggo," in text and text.startswith("# folds\n")
    streams = [b.example_count for b, _ in stage_data.open_data("multi", config, dataset, tmp_path)]
    assert streams == [len(source) - len(part) for part in held]

    config.evaluate.choose_threshold = True
    statistics = (known["mean"], known["sd"])
    train._run_stage("evaluate", config, tmp_path, dataset, mesh.make_mesh(), statistics)
    chosen = json.loads((tmp_path / "evaluation.json").read_text())["classes"]["ggo"]["cut"]
    assert 0 < chosen["cross_validated"] < 1
    page = present.write(tmp_path, config, timings=[], name="cut", command="", dataset=dataset)
    assert (
        f"Cross-validated Dice of the map of ggo cut at {chosen['threshold']:g} "
        f"(best in the toolbox reading), empty-aware: {chosen['cross_validated']:.3f}."
    ) in page.read_text()
    test = open_split(dataset, "test")
    result = predict.evaluate(
        config,
        workdir=tmp_path,
        test=test,
        train=source,
        statistics=statistics,
        alone={"ggo": (0.35, 0.0), "consolidation": (0.35, 0.0)},
    )
    dice = []
    for case in examples(test):
        name = f"{case['id'].replace('/', '_')}.png"
        probs = cv2.imread(str(tmp_path / "predictions" / "ggo" / name), -1) / 255
        found, truth = probs >= 0.35, case["mask"][..., 0] == 1
        dice.append(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))
    cut = result["classes"]["ggo"]["cut"]["toolbox"]["none"]["dice"]
    assert cut == pytest.approx(np.mean(dice), abs=0.005) and cut > 0.01
    config.evaluate.choose_threshold = False

    (tmp_path / "multi" / "done.json").unlink()  # killed in the second fold: the first one stays
    (tmp_path / "multi" / "fold1" / "done.json").unlink()
    before = (tmp_path / "multi" / "fold0" / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "multi" / "fold1")
    train.run(config, workdir=tmp_path, dataset=dataset, name="folds", command="")
    assert (tmp_path / "multi" / "fold0" / "metrics.jsonl").stat().st_mtime_ns == before
    again = networks.load_evaluated(config, tmp_path)[1]
    for a, b in zip(jax.tree.leaves(ensemble), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_prior_averaged_into_the_map(dataset, tmp_path):
    """A run, its Segmenter and the formula agree; the network alone says something else."""
    config = multi.get_config("tiny")
    config.multi.update(prior_use="average", validation=0, size=32, steps=2)
    config.segment.update(validation=0, size=32, steps=2)
    config.model.kind = "unet"
    config.evaluate.update(tta=False, scales=(1.0, 2.0))
    train.run(config, workdir=tmp_path, dataset=dataset, name="average", command="")
    case = next(examples(open_split(dataset, "test")))
    segmenter = inference.Segmenter(tmp_path)
    assert segmenter.identity["views"] == "1, at 2 sizes"
    assert inference.Segmenter(tmp_path, tta=False).identity["views"] == "1"
    (found,) = segmenter(iter([case["image"][..., 0]]))
    assert found.spread.max() > 1e-3
    written = (
        cv2.imread(
            str(tmp_path / "predictions" / "ggo" / f"{case['id'].replace('/', '_')}.png"), -1
        )
        / 255
    )
    assert np.abs(written - found.probs[..., 1]).max() < 0.01

    known = json.loads((tmp_path / "statistics.json").read_text())
    fed = networks.make_sweep("segment", config, (known["mean"], known["sd"]))
    test = select(open_split(dataset, "test"), [0])
    prior = np.mean([fed(w, test)[0] for w in networks.load_priors(config, tmp_path)], axis=0)
    config.multi.with_prior = False
    (weights,) = networks.load_evaluated(config, tmp_path)[1]
    alone = networks.make_sweep("multi", config, (known["mean"], known["sd"]))(weights, test)[0]
    infected = (alone[..., 1] + alone[..., 2] + prior) / 2
    right = infected * alone[..., 1] / (alone[..., 1] + alone[..., 2])
    assert np.abs(cv2.resize(right, written.shape[::-1]) - written).max() < 0.02
    assert np.abs(cv2.resize(alone[..., 1], written.shape[::-1]) - written).max() > 0.04


def test_each_fold_starts_from_the_one_that_left_out_the_same(dataset, tmp_path):
    config = multi.get_config("tiny")
    config.multi.update(prior_use="average", from_prior=True, folds=2, validation=0, size=32)
    config.segment.update(size=32, steps=2)
    config.model.update(kind="unet", width=config.multi.net.width)
    config.stages = ("prior", "multi")
    stage_data.check_held_out(config, dataset)
    source = open_split(dataset, "train")
    for a, b in zip(*(stage_data.held_out(s, config, source) for s in config.stages), strict=True):
        np.testing.assert_array_equal(a, b)
    config.stages = ("prior",)
    train.run(config, workdir=tmp_path, dataset=dataset, name="prior", command="")
    config.stages = ("prior", "multi")
    task = tasks.make("multi", config, (0.4, 0.2), 1)
    for k in (0, 1):
        folder = tmp_path / "multi" / f"fold{k}"
        state = train._start(task, "multi", config, tmp_path, folder, 0)
        learned = networks.load_weights(tmp_path / "prior" / f"fold{k}" / "checkpoints", "latest")
        report = json.loads((folder / "transfer.json").read_text())
        assert report["from"] == "prior" and not report["mismatched"]
        name = next(n for n in learned["params"] if "out" not in n)
        jax.tree.map(np.testing.assert_array_equal, state.net.params[name], learned["params"][name])


def test_folds_dealt_twice(dataset, tmp_path):
    """The second deal is that of the next seed, and an unseen map the mean of one of each deal."""
    config = supervised.get_config("tiny")
    config.stages = ("segment",)
    config.segment.update(folds=2, repeats=2, validation=0, size=32, steps=2)
    config.segment.schedule.warmup_steps, config.model.kind = 1, "unet"
    train.run(config, workdir=tmp_path / "twice", dataset=dataset, name="folds", command="")
    again = config.copy_and_resolve_references()
    again.seed, again.segment.repeats = 1, 1
    train.run(again, workdir=tmp_path / "next", dataset=dataset, name="folds", command="")
    ensemble = networks.load_evaluated(config, tmp_path / "twice")[1]
    second = networks.load_evaluated(again, tmp_path / "next")[1]
    assert len(ensemble) == 4
    for a, b in zip(jax.tree.leaves(ensemble[2:]), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)

    source = open_split(dataset, "train")
    held = stage_data.held_out("segment", config, source)
    assert sorted(np.concatenate(held[:2])) == sorted(np.concatenate(held[2:]))
    assert set(held[0]) not in (set(held[2]), set(held[3]))  # else the seed changes nothing
    unseen = train._unseen(config, dataset, tmp_path / "twice", known := (0.4, 0.2))
    assert len(unseen.source) == len(unseen.maps) == len(source)
    sweep = networks.make_sweep("segment", config, known)
    for i in (0, len(source) - 1):
        each = [
            sweep(weights, select(source, [i]))[0]
            for weights, part in zip(ensemble, held, strict=True)
            if i in part
        ]
        assert len(each) == 2
        np.testing.assert_allclose(unseen.maps[i], (each[0] + each[1]) / 2, atol=1e-6)


def test_all_slices_twice_by_two_seeds(dataset, tmp_path, capsys):
    """Without folds: the mean of the networks of two runs that differ in their seed."""
    config = supervised.get_config("tiny")
    config.segment.update(repeats=2, validation=0, size=32, steps=2)
    config.model.kind, config.evaluate.tta = "unet", False
    page = train.run(config, workdir=tmp_path / "both", dataset=dataset, name="x", command="")
    assert "each trained on all training slices by a seed of its own" in page.read_text()
    said = [line for line in capsys.readouterr().err.splitlines() if "network" in line]
    assert said == ["segment: network 1 of 2", "segment: network 2 of 2"]
    ensemble = networks.load_evaluated(config, tmp_path / "both")[1]
    config.segment.repeats, config.stages = 1, ("segment",)
    for seed, weights in enumerate(ensemble):
        config.seed = seed
        train.run(config, workdir=tmp_path / str(seed), dataset=dataset, name="x", command="")
        (alone,) = networks.load_evaluated(config, tmp_path / str(seed))[1]
        jax.tree.map(np.testing.assert_array_equal, weights, alone)
    kernels = [jax.tree.leaves(weights["params"])[-1] for weights in ensemble]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    result = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    assert result["weights"] == "latest" and "cross_validated" not in result


def test_networks_past_the_tenth_keep_their_numbers(tmp_path, monkeypatch):
    """Read as 0, 1, 10, 2, a slice would get the map of a network that has seen it."""
    config = multi.get_config("tiny")
    config.multi.update(folds=3, repeats=4, validation=0)
    for k in range(12):
        (tmp_path / "multi" / f"fold{k}" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(networks, "load_weights", lambda folder, part: int(folder.parent.name[4:]))
    assert networks.load_evaluated(config, tmp_path) == ("latest", list(range(12)))
    (tmp_path / "multi" / "fold11" / "checkpoints").rmdir()
    with pytest.raises(FileNotFoundError, match="multi: 11 of 12 networks are trained"):
        networks.load_evaluated(config, tmp_path)


def test_two_views_of_two_networks():
    """Means 0.2 and 0.6, each of views 0.1 above and below, and 0.3: by hand."""
    found = [(np.float32([0.2]), np.float32([0.1])), (np.float32([0.6]), np.float32([0.3]))]
    probs, spread = inference._mean(found)
    assert probs == pytest.approx(0.4)
    assert spread == pytest.approx(np.std([0.1, 0.3, 0.3, 0.9]))


def test_two_networks_of_three_classes_differ_in_where_they_see_any_lesion():
    """Maps [1, 1, 1, 3]: the spread is that of the background, with views or without."""
    maps = [np.float32([[[[0.2, 0.8, 0.0]]]]), np.float32([[[[0.6, 0.1, 0.3]]]])]
    probs, spread = inference._mean([(m, None) for m in maps])
    np.testing.assert_allclose(probs, [[[[0.4, 0.45, 0.15]]]], atol=1e-6)
    np.testing.assert_allclose(spread, [[[0.2]]], atol=1e-6)
    views = np.float32([[[0.15]]])
    _, spread = inference._mean([(m, views) for m in maps])
    np.testing.assert_allclose(spread, [[[0.25]]], atol=1e-6)
