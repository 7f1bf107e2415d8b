"""The semi-supervised stage: who learns from what, in which order, and after any kill the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tfds_builders
from configs import semisup
from infnet_jax import tasks
from infnet_jax.data import sources
from infnet_jax.data.batches import Batches, resize
from infnet_jax.data.sources import decode, examples, open_split, text
from infnet_jax.evaluation import figures, networks, run_figures, summary as present
from infnet_jax.runs import mesh as mesh_lib
from infnet_jax.runs.checkpoint import load_parameters
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.training import data as stage_data, loop, pseudo_labels as semi, run as train

STATISTICS = (0.3, 0.25)
N_TRAIN, N_UNLABELLED = 10, 8  # of phantom/tiny


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def small(**changes):
    """Two rounds; every network checkpoints each second step."""
    c = semisup.get_config("tiny")
    c.segment.update(size=16, eval_every=2)
    c.semi.update(changes)
    return c


def test_each_slice_is_in_one_group_by_the_seed():
    groups = semi.partition(13, 5, seed=1)
    assert [len(g) for g in groups] == [5, 5, 3]
    assert sorted(np.concatenate(groups).tolist()) == list(range(13))
    assert np.concatenate(groups).tolist() == np.concatenate(semi.partition(13, 5, 1)).tolist()
    assert np.concatenate(groups).tolist() != np.concatenate(semi.partition(13, 5, 2)).tolist()
    assert np.concatenate(groups).tolist() != list(range(13))


def test_soft_labels_of_eight_bits_by_hand():
    prob = np.float32([[0.25, 0.5], [0.375, 0.75]])
    plain, stretched = (semi.pseudo_label(prob, stretch) for stretch in (False, True))
    assert plain.dtype == np.uint8 and plain.tolist() == [[64, 128], [96, 191]]
    assert stretched.tolist() == [[0, 128], [64, 255]]
    assert semi.pseudo_label(np.full((2, 2), 0.4), True).tolist() == [[0, 0], [0, 0]]


def toy(hook=lambda: None):
    """One weight that is drawn to the batch's targets and shaken by noise."""
    tx = optax.sgd(0.1)

    def step(state, batch, key):
        w = state.net.params["w"]
        pull = batch["prior"].astype(jnp.float32).mean() / 255.0
        w = w - 0.1 * (w - pull) + 0.05 * jax.random.normal(key)
        net = state.net.replace(params={"w": w})
        return state.replace(step=state.step + 1, net=net), {"loss": (w - pull) ** 2}

    def evaluate(state, batch, key):
        mask = (batch["mask"] > 0).astype(jnp.float32)[..., 0]
        return {"probs": mask * state.net.params["w"], "mask": mask}

    def phase(step):
        hook()
        return "toy"

    return Task(
        variables=lambda key: {"net": {"params": {"w": jnp.float32(0.5)}, "batch_stats": {}}},
        start=lambda trees: make_state(make_player(trees["net"], tx, False), None, "max"),
        steps={"toy": step},
        phase=phase,
        batch_index=lambda step: step,
        evaluate=evaluate,
        total_steps=4,
        summarise=lambda rows: {"dice": 0.0},
        metric="dice",
        metric_mode="max",
    )


@pytest.fixture
def play(dataset, monkeypatch):
    """play(folder, hook) runs the stage with the toy, whose maps are its weight everywhere."""

    def run(folder, hook=lambda: None, config=None):
        def make_sweep(stage, config, statistics):
            def sweep(weights, source):
                value = float(np.clip(weights["params"]["w"], 0, 1))
                return [
                    np.full((4, 4), value * (i + 1) / len(source), np.float32)
                    for i in range(len(source))
                ]

            return sweep

        monkeypatch.setattr(tasks, "make_segment", lambda *_, soft: toy(hook))
        monkeypatch.setattr(networks, "make_sweep", make_sweep)
        return semi.run(
            config or small(),
            workdir=folder,
            dataset=dataset,
            mesh=mesh_lib.make_mesh(),
            statistics=STATISTICS,
            start=lambda task, _: task.start(loop.init_variables(task, seed=0)),
        )

    return run


def result(folder):
    """Everything that later stages read: last weights, maps and markers."""
    maps = {}
    for path in sorted((folder / "semi").glob("round*.npz")):
        with np.load(path) as z:
            maps |= {f"{path.stem}/{name}": z[name].tobytes() for name in z.files}
    done = sorted(p.parent.name for p in (folder / "semi").glob("*/done.json"))
    folders = [folder / "semi" / name for name in ("teacher", "round0001", "pool")]
    nets = [load_parameters(f / "checkpoints", "latest")["net"] for f in folders]
    weights = [float(net["params"]["w"]) for net in nets]
    return weights, maps, done, (folder / "semi" / "pseudo.json").read_text()


class Crash(BaseException):
    """No error that anything may catch."""


def test_killed_again_and_again_it_ends_the_same(play, tmp_path):
    calls = []
    timing = play(tmp_path / "whole", hook=lambda: calls.append(0))
    # Teacher and pool 4 steps; rounds of one epoch over 8 labelled slices and 5, then 8 others.
    assert timing["steps"] == len(calls) == 4 + 2 + 2 + 4
    weights, maps, done, _ = result(tmp_path / "whole")
    assert len(set(weights)) == 3 and len(maps) == N_UNLABELLED
    assert done == ["pool", "round0000", "round0001", "teacher"]
    assert not (tmp_path / "whole" / "semi" / "round0000" / "checkpoints").exists()
    kills = 0
    while True:
        left = [4]  # a kill at every fourth step, wherever that is

        def hook(left=left):
            left[0] -= 1
            if not left[0]:
                raise Crash

        try:
            play(tmp_path / "cut", hook=hook)
            break
        except Crash:
            kills += 1
    assert kills >= 4
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_what_is_finished_is_not_trained_again(play, tmp_path):
    def hook():
        raise Crash

    timing = play(tmp_path)
    assert play(tmp_path, hook=hook)["steps"] == timing["steps"]


def test_a_request_to_stop_ends_the_stage(play, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "fit", lambda *_, **__: None)
    assert play(tmp_path) is None and not list(tmp_path.rglob("done.json"))


@pytest.fixture
def recorded(play, dataset, monkeypatch, tmp_path):
    """recorded(**semi) -> ([name, ids trained on, ids held out, steps, state of step 0], ...)."""
    opened, fitted = [], []

    def watch(folder, split, target="infection"):
        opened.append(split)
        return open_split(folder, split, target)

    def fit(task, section, batches, held, *, directory, fresh, **_):
        ids = [[text(source[i]["id"]) for i in range(len(source))] for source in batches._sources]
        held_ids = [text(held[i]["id"]) for i in range(len(held))]
        fitted.append(
            (directory.name, ids, held_ids, task.total_steps, float(fresh().net.params["w"]))
        )
        return {"steps": task.total_steps}

    def weights(folder, part):
        return {
            "params": {"w": {"teacher": 0.25, "round0000": 0.75}[folder.parent.name]},
            "batch_stats": {},
        }

    monkeypatch.setattr(sources, "open_split", watch)
    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(networks, "load_weights", weights)

    def run(**changes):
        play(tmp_path, config=small(**changes))
        return fitted, opened

    return run


def test_who_learns_from_what(recorded, dataset, tmp_path):
    fitted, opened = recorded(epochs=3)
    assert "test" not in opened
    labelled, others = (
        [text(s[i]["id"]) for i in range(len(s))]
        for s in (open_split(dataset, split) for split in ("train", "unlabeled"))
    )
    assert [n[0] for n in fitted] == ["teacher", "round0000", "round0001", "pool"]
    (_, teacher, held, _, _), first, second, pool = fitted
    assert len(held) == 2 and sorted(teacher[0] + held) == sorted(labelled)
    ((_, segment_held),) = stage_data.open_data("segment", small(), dataset, tmp_path)
    assert held == [text(segment_held[i]["id"]) for i in range(len(segment_held))]
    assert first[1][0] == second[1][0] == teacher[0] and first[2] == second[2] == []
    assert len(first[1][1]) == 5 and second[1][1][:5] == first[1][1]
    assert sorted(second[1][1]) == sorted(others) and pool[1] == [others] and pool[2] == held
    assert (first[3], second[3]) == (3 * 2, 3 * 2)  # ceil(13 / 8), ceil(16 / 8) batches an epoch
    # Each round goes on from the network before it; the pool's starts afresh.
    assert (first[4], second[4], pool[4]) == (0.25, 0.75, 0.5)


def test_the_maps_are_those_of_the_network_before_the_round(recorded, tmp_path):
    recorded()
    for k, weight, n in ((0, 0.25, 5), (1, 0.75, 3)):
        with np.load(tmp_path / "semi" / f"round{k:04d}.npz") as z:
            values = [int(z[name][0, 0]) for name in z.files]
            assert all(z[name].dtype == np.uint8 for name in z.files)
        assert values == [round(255 * weight * (i + 1) / n) for i in range(n)]
    report = json.loads((tmp_path / "semi" / "pseudo.json").read_text())
    assert (report["rounds"], report["slices"]) == (2, 8)
    assert report["marked"] == 2 / 8  # maps of .25 i / 5 stay below one half; .5 and .75 do not
    assert 0 < report["marked_in_masks"] < 0.5


def test_a_mean_teacher_needs_the_teacher_only(recorded, tmp_path):
    fitted, _ = recorded(kind="mean_teacher")
    assert [n[0] for n in fitted] == ["teacher"]
    config = small(kind="mean_teacher")
    assert semi.result_folder(config, tmp_path) == tmp_path / "semi" / "teacher" / "checkpoints"
    assert semi.result_folder(small(), tmp_path) == tmp_path / "semi" / "pool" / "checkpoints"


def test_batches_hold_unlabelled_images_and_resume(dataset, tmp_path):
    config = small(kind="mean_teacher")
    ((batches, _),) = stage_data.open_data("segment", config, dataset, tmp_path)
    assert batches.fields == ("image", "mask") and batches.example_count == N_TRAIN - 2
    stream = batches.iterate(0)
    first = [next(stream) for _ in range(3)]
    stream.close()
    again = batches.iterate(2)
    third = next(again)
    again.close()
    pictures = {e["image"].tobytes() for e in examples(open_split(dataset, "unlabeled"))}
    assert len(pictures) == N_UNLABELLED
    for name in ("image", "mask", "unlabelled"):
        assert first[0][name].shape == (8, 16, 16, 1)
        np.testing.assert_array_equal(third[name], first[2][name])
    stray = Batches(
        [open_split(dataset, "unlabeled")], batch_size=8, size=16, seed=0, fields=("image",)
    )
    np.testing.assert_array_equal(first[1]["unlabelled"], stray[1]["image"])


@pytest.mark.slow
def test_a_real_run_stores_what_the_teacher_says(dataset, tmp_path):
    config = small()
    config.model.update(kind="unet", width=2)
    config.evaluate.tta, config.segment.validation = False, 0
    statistics = sources.statistics(open_split(dataset, "train"))
    mesh = mesh_lib.make_mesh()
    assert train._run_stage("semi", config, tmp_path, dataset, mesh, statistics)["steps"] == 13
    weights = networks.load_weights(tmp_path / "semi" / "teacher" / "checkpoints", "latest")
    source = open_split(dataset, "unlabeled")
    maps = networks.make_sweep("segment", config, statistics)(weights, source)
    by_id = {text(source[i]["id"]): m for i, m in enumerate(maps)}
    with np.load(tmp_path / "semi" / "round0000.npz") as z:
        assert len(z.files) == 5
        for name in z.files:
            assert np.abs(z[name] - 255 * by_id[name]).max() < 0.51 and z[name].dtype == np.uint8
            assert len(np.unique(z[name])) > 2  # soft, not a mask
    # `segment` starts from every weight of the pool's network, which is not the teacher.
    task = tasks.make("segment", config, statistics, 1)
    state = train._start(task, "segment", config, tmp_path, tmp_path / "segment", 0)
    pool = networks.load_weights(tmp_path / "semi" / "pool" / "checkpoints", "latest")
    triples = zip(
        *(jax.tree.leaves(t["params"]) for t in (pool, state.net.variables, weights)), strict=True
    )
    unlike = 0
    for learned, started, teacher in triples:
        np.testing.assert_array_equal(learned, started)
        unlike += bool((learned != teacher).any())
    assert unlike > 10
    listing = json.loads((tmp_path / "segment" / "transfer.json").read_text())
    assert listing["from"] == "semi" and not listing["fresh"] and not listing["mismatched"]


def test_the_summary_says_how_much_the_pseudo_labels_mark(tmp_path):
    (tmp_path / "semi").mkdir()
    report = {"rounds": 2, "slices": 8, "marked": 0.034, "marked_in_masks": 0.145}
    (tmp_path / "semi" / "pseudo.json").write_text(json.dumps(report))
    assert present._semi(tmp_path, small()) == (
        "Pseudo-labels: 8 slices of `unlabeled` in 2 rounds; they mark 3.4% of the pixels, the "
        "true masks of the labelled slices 14.5%."
    )
    assert "Mean teacher: consistency weight 10" in present._semi(
        tmp_path, small(kind="mean_teacher")
    )


def test_the_summary_says_that_the_folds_share_a_teacher(tmp_path):
    (tmp_path / "semi").mkdir()
    report = {"rounds": 2, "slices": 8, "marked": 0.034, "marked_in_masks": 0.145}
    (tmp_path / "semi" / "pseudo.json").write_text(json.dumps(report))
    config = small()
    assert not [note for note in present._readings(tmp_path, config) if "share a start" in note]
    config.segment.update(folds=2, validation=0)
    assert [note for note in present._readings(tmp_path, config) if "share a start" in note]
    config.stages = ("segment", "evaluate")
    assert not [note for note in present._readings(tmp_path, config) if "share a start" in note]


def test_the_picture_of_pseudo_labels_has_each_slice_with_its_own(dataset, tmp_path, monkeypatch):
    source = open_split(dataset, "unlabeled")
    names = [text(source[i]["id"]) for i in range(len(source))]
    (tmp_path / "semi").mkdir()
    for k, part in enumerate((names[5:], names[:5])):  # slice i marks i rows of eight
        maps = {
            n: np.uint8([[255] * 8] * names.index(n) + [[100] * 8] * (8 - names.index(n)))
            for n in part
        }
        np.savez(tmp_path / "semi" / f"round000{k}.npz", **maps)
    drawn = []
    monkeypatch.setattr(figures, "overlays", lambda cases, path: drawn.extend(cases) or path)
    ((path, _),) = run_figures.pseudo_labels(tmp_path, small(), dataset)
    assert path == tmp_path / "figures" / "pseudo_labels.png"
    assert [case[0] for case in drawn] == [f"{names[i]}\n{i / 8:.1%} marked" for i in (0, 2, 4, 7)]
    for i, (_, image, truth, marked, prob) in zip((0, 2, 4, 7), drawn, strict=True):
        whole = decode(source[i], "image")
        np.testing.assert_array_equal(image, resize(whole, 8, labels=False)[..., 0])
        assert truth is None and marked.sum() == 8 * i
        assert set(np.round(255 * prob).astype(int).ravel().tolist()) <= {100, 255}
