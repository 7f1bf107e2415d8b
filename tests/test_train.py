"""The loop with a toy task (faults, resuming, early stopping), and the real tasks' steps."""

import json
import os
import signal
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import tfds_builders
from configs import multi, multi_semisup, selfsup, supervised
from infnet_jax import tasks
from infnet_jax.data import sources
from infnet_jax.data.batches import Batches
from infnet_jax.data.sources import open_split
from infnet_jax.runs import mesh as mesh_lib, workdir
from infnet_jax.runs.checkpoint import Checkpoints, load_parameters
from infnet_jax.runs.logs import load_rows
from infnet_jax.tasks import game, inpaint, losses, normalise, segment
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.training import data as stage_data, loop, run as train

STATISTICS = (0.3, 0.25)
TOTAL, EVERY = 12, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def toy(total=TOTAL, dice=None, hook=lambda step: None, lr=0.1):
    """One weight that moves by noise and by the batch, so that each step leaves its mark."""
    tx = optax.sgd(lr)

    def step(state, batch, key):
        w = state.net.params["w"]
        pull = batch["image"][0].astype(jnp.float32).mean() / 255.0  # one row: order matters
        loss = (w - pull) ** 2
        w = w - lr * (2 * (w - pull) + 0.1 * jax.random.normal(key))
        return state.replace(step=state.step + 1, net=state.net.replace(params={"w": w})), {
            "loss": loss
        }

    def evaluate(state, batch, key):
        mask = (batch["mask"] > 0).astype(jnp.float32)[..., 0]
        updates = jnp.full(mask.shape[0], state.step)
        return {"probs": mask * state.net.params["w"], "mask": mask, "updates": updates}

    def summarise(rows):
        updates = int(rows[0]["updates"][0])
        assert all(len(row["updates"]) == 2 for row in rows)  # padding is dropped
        return {"dice": (dice or {}).get(updates, float(updates))}

    def phase(step):
        hook(step)
        return "toy"

    def start(trees):
        return make_state(make_player(trees["net"], tx, False), None, "max")

    return Task(
        variables=lambda key: {"net": {"params": {"w": jnp.float32(3.0)}, "batch_stats": {}}},
        start=start,
        steps={"toy": step},
        phase=phase,
        batch_index=lambda step: step // 3,
        evaluate=evaluate,
        total_steps=total,
        summarise=summarise,
        metric="dice",
        metric_mode="max",
    )


@pytest.fixture
def play(dataset, monkeypatch):
    """play(folder, patience, **toy) trains the toy as stage `segment`."""

    def run(folder, patience=0, **kwargs):
        monkeypatch.setattr(tasks, "make", lambda *_: toy(**kwargs))
        config = supervised.get_config("tiny")
        config.segment.update(size=32, eval_every=EVERY, patience=patience)
        return train.train_stage(
            "segment", config, folder, dataset, mesh_lib.make_mesh(), STATISTICS
        )

    return run


def weight(folder, part="latest"):
    tree = load_parameters(folder / "segment" / "checkpoints", part=part)
    return int(tree["step"]), tree["net"]["params"]["w"].tobytes()


def rows_of(folder):
    return load_rows(folder / "segment" / "metrics.jsonl")


class Crash(BaseException):
    """No error that anything in the loop may catch."""


def crash_at(*steps):
    def hook(step):
        if step in steps:
            raise Crash

    return hook


def test_a_crash_at_any_step_changes_nothing(play, tmp_path):
    assert play(tmp_path / "whole")["steps"] == TOTAL
    rows = rows_of(tmp_path / "whole")
    trained = [row["step"] for row in rows if "loss" in row]
    judged = [row["step"] for row in rows if "dice" in row]
    assert trained == list(range(TOTAL)) and judged == [4, 8, 12]
    for step in (1, 4, 6, 8, 11):  # before the first checkpoint, right after one, between
        with pytest.raises(Crash):
            play(tmp_path / "cut", hook=crash_at(step))
    play(tmp_path / "cut")
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows


def test_a_stage_cut_after_its_last_checkpoint_repeats_nothing(play, tmp_path):
    play(tmp_path)
    before, rows = weight(tmp_path), rows_of(tmp_path)
    assert play(tmp_path)["steps"] == 0
    assert weight(tmp_path) == before and rows_of(tmp_path) == rows


def test_sigterm_saves_at_once_and_the_run_resumes(play, tmp_path):
    def terminate(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert play(tmp_path / "cut", hook=terminate) is None  # asked to stop, and no timing
    assert signal.getsignal(signal.SIGTERM) == before
    assert weight(tmp_path / "cut")[0] == 7  # no regular interval
    play(tmp_path / "cut")
    play(tmp_path / "whole")
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_stage(play, tmp_path):
    # |w - pull| grows by 2e5 - 1 a step; the square leaves float32 at the fourth loss.
    with pytest.raises(FloatingPointError, match=r"segment: loss not finite at step 4 \(phase toy"):
        play(tmp_path, lr=1e5)
    step, kept = weight(tmp_path)
    assert step == 4 and np.isfinite(np.frombuffer(kept, np.float32)).all()
    assert [row["step"] for row in rows_of(tmp_path) if "loss" in row] == [0, 1, 2, 3]


@pytest.mark.parametrize(("start", "right"), [(0, [0, 0, 0, 1, 1, 1, 2]), (4, [1, 1, 2])])
def test_each_step_gets_the_batch_of_its_index(start, right):
    class Numbers:
        def iterate(self, index):
            return ({"x": np.full(8, i)} for i in count(index))

    stream = loop._batches(toy(total=7), Numbers(), mesh_lib.make_mesh(), start)
    assert [int(batch["x"][0]) for batch in stream] == right


def test_early_stopping_counts_evaluations_without_a_better_one(play, tmp_path):
    dice = {4: 0.5, 8: 0.7, 12: 0.7, 16: 0.6, 20: 0.9}  # an equal one is not better
    play(tmp_path / "whole", patience=2, total=24, dice=dice)
    assert weight(tmp_path / "whole")[0] == 16
    assert weight(tmp_path / "whole", "best")[0] in (8, 12)
    rows = rows_of(tmp_path / "whole")
    # Cut after its last checkpoint, it must stop at the same step again.
    play(tmp_path / "whole", patience=2, total=24, dice=dice)
    assert weight(tmp_path / "whole")[0] == 16 and rows_of(tmp_path / "whole") == rows
    with pytest.raises(Crash):
        play(tmp_path / "cut", patience=2, total=24, dice=dice, hook=crash_at(13))
    play(tmp_path / "cut", patience=2, total=24, dice=dice)
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    play(tmp_path / "never", patience=0, total=24, dice=dice)
    assert weight(tmp_path / "never")[0] == 24


def test_three_classes_start_from_what_pseudo_labels_have_taught(tmp_path):
    config = multi_semisup.get_config("tiny")
    config.weights = "imagenet_lite0"  # of an earlier stage: not of this one
    single, task = (tasks.make(stage, config, STATISTICS, 1) for stage in ("segment", "multi"))
    learned = loop.init_variables(single, 7)
    with Checkpoints(tmp_path / "semi" / "pool" / "checkpoints", save_every=4) as pool:
        pool.offer(4, single.start(learned))
    state = train._start(task, "multi", config, tmp_path, tmp_path / "multi" / "fold0", 0)
    start, fresh = state.net.params, loop.init_variables(task, 0)["net"]["params"]
    for part in ("trunk", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, start[part], learned["net"]["params"][part])
    jax.tree.map(np.testing.assert_array_equal, start["out_seg"], fresh["out_seg"])


def test_a_multi_class_network_without_prior_needs_none_in_its_test_slices(tmp_path, dataset):
    config = multi.get_config("tiny")
    config.multi.with_prior = False
    assert "prior" not in stage_data.open_test(config, tmp_path, dataset)[0]


def test_another_config_is_refused_before_anything_is_written(tmp_path, dataset):
    config = selfsup.get_config("tiny")
    workdir.claim(tmp_path, config)
    workdir.claim(tmp_path, config)  # its own may come again
    before = (tmp_path / "config.json").read_bytes()
    config.segment.optim.momentum = 0.5
    with pytest.raises(ValueError, match=r"segment.optim.momentum = 0.9 \(now 0.5\)"):
        train.run(config, workdir=tmp_path, dataset=dataset, name="x", command="x")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_starts_from_imported_weights(tmp_path, dataset):
    def imported(folder, value):
        folder.mkdir()
        save_file({"params/w": np.asarray(value, np.float32)}, folder / "variables.safetensors")
        (folder / "report.json").write_text("{}")
        return str(folder)

    config = supervised.get_config("tiny")
    config.weights = imported(tmp_path / "good", 5.0)
    state = train._start(toy(), "segment", config, tmp_path, tmp_path / "segment", 0)
    assert float(state.net.params["w"]) == 5.0
    listing = json.loads((tmp_path / "segment" / "transfer.json").read_text())
    assert listing["loaded"] == ["params/w"] and listing["from"] == config.weights
    config.weights = imported(tmp_path / "wide", [5.0, 6.0])
    with pytest.raises(ValueError, match=r"wide.*no leaf to load; shapes differ at params/w"):
        train._start(toy(), "segment", config, tmp_path, tmp_path / "segment", 0)
    config.weights = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        train.run(config, workdir=tmp_path / "run", dataset=dataset, name="x", command="x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["pretrain", "segment", "evaluate"])
def test_each_stages_batch_is_checked_before_the_first_stage(tmp_path, stage, dataset):
    config = selfsup.get_config("tiny")
    config[stage].batch_size = 12
    with pytest.raises(ValueError, match="12 does not divide over 8 devices: use 8 or 16"):
        train.run(config, workdir=tmp_path / "w", dataset=dataset, name="x", command="x")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("stages", [("pretran",), ("pretrain", "segment"), ("data",)])
def test_a_stage_that_the_config_does_not_have(tmp_path, stages, dataset):
    config = supervised.get_config("tiny")
    config.stages = stages
    with pytest.raises(ValueError, match=f"stages: '{stages[0]}' is none"):
        train.run(config, workdir=tmp_path / "w", dataset=dataset, name="x", command="x")


ROUNDS = dict(
    schedule="per_epoch",
    epochs=3,
    steps_per_epoch=7,
    coach_steps=2,
    net_steps=0,
    blocks=(2, 1),
    warmup_random_rounds=1,
    use_coach=True,
)


@pytest.mark.parametrize(
    ("changed", "rounds", "n_random"),
    [
        ({}, [("net", 7), ("coach", 2), ("net", 7), ("coach", 2), ("net", 7)], 7),
        (
            dict(warmup_random_rounds=0, coach_steps=0, net_steps=4, epochs=2),
            [("coach", 7), ("net", 4), ("coach", 7), ("net", 4)],
            0,
        ),
        (dict(schedule="blocks"), [("net", 14), ("coach", 7), ("net", 7)], 14),
        (
            dict(schedule="blocks", warmup_random_rounds=0),
            [("coach", 14), ("net", 14), ("coach", 7), ("net", 7)],
            0,
        ),
        (dict(use_coach=False), [("net", 7)] * 3, 21),
    ],
)
def test_rounds_by_hand(changed, rounds, n_random):
    assert game.make_rounds(**{**ROUNDS, **changed}) == (rounds, n_random)


def test_an_unknown_order_of_play():
    with pytest.raises(ValueError, match="schedule='spiral': choose per_epoch or blocks"):
        game.make_rounds(**{**ROUNDS, "schedule": "spiral"})


def small(preset="tiny"):
    """What these tests and those of main.py and of devices share, so that it compiles once."""
    c = selfsup.get_config(preset)
    c.pretrain.size = c.segment.size = 32
    c.pretrain.rounds.epochs, c.pretrain.eval_every = 5, 6
    c.segment.steps, c.segment.eval_every = 30, 6
    return c


def test_phases_and_batches_by_hand():
    c = small()
    c.segment.scales, c.segment.size = (0.75, 1.0, 1.25), 352
    task = tasks.make("segment", c, STATISTICS, 5)
    assert [task.phase(i) for i in range(4)] == ["size256", "size352", "size448", "size256"]
    assert [task.batch_index(i) for i in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    task = tasks.make("pretrain", small(), STATISTICS, 5)
    names = ["net"] * 3 + (["coach"] * 2 + ["net"] * 3) * 4
    assert task.total_steps == 23 and [task.phase(i) for i in range(23)] == names
    assert task.phase(23) == "net" and task.batch_index(9) == 9


def test_masks_keep_the_share_that_was_asked_for():
    score = jnp.arange(2 * 16, dtype=jnp.float32).reshape(2, 4, 4, 1)
    for inclusive, kept in ((True, 12), (False, 11)):
        _, use, random = game.make_masks(keep_ratio=0.75, inclusive=inclusive)
        for mask in (use({"score": score}, (64, 64)), random(jax.random.key(0), 2, (64, 64))):
            assert mask.shape == (2, 64, 64, 1) and set(np.unique(mask)) == {0.0, 1.0}
            assert np.asarray(mask).sum((1, 2, 3)).tolist() == [kept * 256] * 2
        low = np.asarray(use({"score": score}, (64, 64)))[0, :16, :, 0]
        assert not low.any()  # the four lowest scores are the first row of cells
    soft, _, random = game.make_masks(alpha_train=1.0)
    got = np.asarray(soft({"score": score}, (64, 64)))[0, 0, 0, 0]
    assert got == pytest.approx(1 / (1 + np.exp(4.0)))  # eq. 3: score 0, threshold 4
    one, two = (random(jax.random.key(k), 2, (64, 64)) for k in (0, 1))
    assert (one != two).any() and (one[0] != one[1]).any()


def test_summary_of_pretraining_by_hand():
    masks = np.ones((3, 32, 32), np.float32)
    masks[1, :16, :16] = 0  # one cell of four
    masks[2] = 1 - masks[1]

    def row(part):
        n = len(range(*part.indices(3)))
        coach, random = np.float32([[1.0, 2.0, 6.0], [2.0, 0.5, 2.0]])[:, part]
        return {
            "image": np.zeros((n, 32, 32)),
            "visible_coach": masks[part],
            "error_coach": coach,
            "error_random": random,
        }

    got = inpaint.summarise([row(slice(0, 2)), row(slice(2, 3))])
    assert got["rec_coach"] == 3.0 and got["rec_random"] == 1.5
    assert got["harder_share"] == pytest.approx(2 / 3)
    assert got["mask_difference"] == pytest.approx((1 / 4 + 3 / 4 + 1) / 3)
    masks[:] = masks[1]
    assert inpaint.summarise([row(slice(0, 3))])["mask_difference"] == 0.0
    assert inpaint.summarise([row(slice(0, 1))])["mask_difference"] == 0.0


def test_a_unet_has_the_region_loss_alone():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 8, 8, 1)), rng.random((2, 8, 8, 1)) > 0.5
    logits, mask = jnp.asarray(logits, jnp.float32), jnp.asarray(mask, jnp.float32)
    total, parts = segment.make_loss()({"logits": logits}, mask)
    assert {*parts} == {"region"}
    assert float(total) == pytest.approx(float(losses.structure_loss(logits, mask).mean()))
    five = dict.fromkeys((*segment.MAPS, "edge"), logits)
    total5, parts5 = segment.make_loss()(five, mask)
    assert float(total5) == pytest.approx(4 * float(total) + float(parts5["edge"]), rel=1e-6)


def test_soft_targets_are_the_prior_and_their_edge_is_at_one_half():
    prior = np.zeros((1, 4, 4, 1), np.uint8)
    prior[0, :2], prior[0, 2:] = 51, 204  # 0.2 above, 0.8 below
    batch = {"image": prior, "mask": np.ones_like(prior), "prior": prior}
    still = dict(flip_h=0.0, flip_v=0.0, quarter_turns=False)
    norm = normalise.Norm((0.0,), (1.0,), (1.0,))
    for soft, expected in ((True, prior / 255), (False, np.ones(prior.shape))):
        _, mask = segment.prepare(batch, jax.random.key(0), 4, norm, still, soft)
        np.testing.assert_allclose(mask, expected, rtol=1e-6)
    outputs = dict.fromkeys((*segment.MAPS, "edge"), jnp.zeros((1, 4, 4, 1)))
    outputs["edge"] = jnp.full((1, 4, 4, 1), -20.0).at[0, 1:3].set(20.0)
    _, parts = segment.make_loss()(outputs, jnp.asarray(prior / 255, jnp.float32))
    assert float(parts["edge"]) < 1e-6


def test_summary_of_segmentation_by_hand():
    probs, mask = np.zeros((3, 2, 2)), np.zeros((3, 2, 2))
    probs[0] = [[0.5, 0.6], [0.49, 0.0]]
    mask[0] = [[1, 0], [0, 0]]  # Dice 2 * 1 / (2 + 1)
    mask[1, 0, 0] = 1  # missed: 0; the third is empty on both sides and does not count
    rows = [{"probs": probs[:1], "mask": mask[:1]}, {"probs": probs[1:], "mask": mask[1:]}]
    assert segment.summarise(rows)["dice"] == pytest.approx((2 / 3 + 0) / 2)
    assert segment.summarise([{"probs": probs[2:], "mask": mask[2:]}])["dice"] == 0.0


def statistics_of(dataset):
    """Those of a real run: they are constants of the compiled step, which is kept."""
    return sources.statistics(open_split(dataset, "train"))


def batch_of(config, stage, dataset, index=0):
    section = config[stage]
    sources = [open_split(dataset, split) for split in section.splits]
    return Batches(sources, batch_size=section.batch_size, size=section.size, seed=0)[index]


def compiled(task, mesh):
    """The steps as the training loop compiles them."""
    whole = mesh_lib.replicated(mesh)
    return {
        name: jax.jit(fn, donate_argnums=0, out_shardings=(whole, whole))
        for name, fn in task.steps.items()
    }


def begin(task, mesh):
    return mesh_lib.replicate(task.start(loop.init_variables(task, seed=0)), mesh)


def changed(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [a.tobytes() != np.asarray(b).tobytes() for a, b in pairs]


@pytest.mark.slow
def test_each_player_moves_alone(dataset):
    config, mesh = small(), mesh_lib.make_mesh(jax.devices()[:1])
    task = tasks.make("pretrain", config, statistics_of(dataset), 5)
    steps, state = compiled(task, mesh), begin(task, mesh)
    batch = mesh_lib.shard_batch(batch_of(config, "pretrain", dataset), mesh)
    for mover, still in (("coach", "net"), ("net", "coach")):
        for turn in range(2):  # the first update of the net has learning rate 0: it warms up
            before = jax.device_get(state)
            state, _ = steps[mover](state, batch, jax.random.key(turn))
            assert not any(changed(getattr(before, still), getattr(state, still)))
        moved = changed(getattr(before, mover).params, getattr(state, mover).params)
        assert sum(moved) > 0.5 * len(moved)  # segmentation heads of the net have no gradient
        assert (
            all(changed(getattr(before, mover).batch_stats, getattr(state, mover).batch_stats))
            or mover == "net"
        )
    assert int(state.step) == 4
