"""From a stage to its task: what picks it, and which keys it refuses."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import multi, selfsup, semisup
from infnet_jax import tasks
from infnet_jax.plan import Net, Stage
from infnet_jax.runs.checkpoint import transfer

SELFSUP, MULTI = selfsup.get_config("tiny"), multi.get_config("tiny")
ROTATION = ("splits", "validation", "size", "batch_size", "eval_every", "augmentation")
PLAIN = Net("unet", "plain", 1, 1, "float32", {"width": 4, "inpaint_head": "none"})
THREE = PLAIN._replace(classes=3, channels=2)
FILLS = PLAIN._replace(options={"width": 4, "inpaint_head": "tanh_parallel"})


def make(learns, section, net=PLAIN, soft=False, **changed):
    stage = Stage(
        name="stage",
        runs="train",
        learns=learns,
        section=section,
        key="stage",
        folder=Path("stage"),
        net=net,
        coach=None,
        norm="dataset",
        channels=1,
        prior="none",
        splits=("train",),
        mix="",
        folds=0,
        networks=(),
        paired=False,
        origin="",
        transfer="",
        semi=None,
    )._replace(**changed)
    return tasks.make(stage, tasks.make_norm(stage, (0.3, 0.2)), 5, soft)


def rotation_section():
    section = SELFSUP.pretrain.copy_and_resolve_references()
    for key in set(section) - {*ROTATION, "net_optim", "net_schedule"}:
        del section[key]
    return section.unlock().update(pretext="rotation", steps=6) or section


def test_phases_and_batches_by_hand():
    section = SELFSUP.segment.copy_and_resolve_references()
    section.scales, section.size = (0.75, 1.0, 1.25), 352
    task = make("infection", section)
    assert [task.phase(i) for i in range(4)] == ["size256", "size352", "size448", "size256"]
    assert [task.batch_index(i) for i in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    section = SELFSUP.pretrain.copy_and_resolve_references()
    section.rounds.epochs = 5
    task = make("inpaint", section, FILLS, coach={"width": 8})
    names = ["net"] * 3 + (["coach"] * 2 + ["net"] * 3) * 4
    assert task.total_steps == 23 and [task.phase(i) for i in range(23)] == names
    assert task.phase(23) == "net" and task.batch_index(9) == 9


@pytest.mark.parametrize(
    ("learns", "net", "prior", "channels"),
    [("infection", PLAIN, "none", 1), ("lung", PLAIN, "none", 1), ("lesions", THREE, "input", 3)],
)
def test_what_a_stage_learns_makes_its_map(learns, net, prior, channels):
    section = MULTI.multi if learns == "lesions" else SELFSUP.segment
    task = make(learns, section, net, prior=prior)
    batch = dict.fromkeys(("image", "mask", "prior"), jnp.zeros((2, 64, 64, 1), jnp.uint8))
    state = jax.eval_shape(lambda key: task.start(task.variables(key)), jax.random.key(0))
    out = jax.eval_shape(task.evaluate, state, batch, None)
    assert out["probs"].shape == (2, 64, 64, channels) and out["mask"].dtype == jnp.uint8


def test_a_stage_with_unlabelled_slices_has_a_mean_teacher():
    semi = semisup.get_config("tiny").semi
    task = make("infection", SELFSUP.segment, semi=semi)
    batch = dict.fromkeys(("image", "mask"), jnp.zeros((2, 64, 64, 1), jnp.uint8))
    state = jax.eval_shape(lambda key: task.start(task.variables(key)), jax.random.key(0))
    with pytest.raises(KeyError, match="unlabelled"):
        jax.eval_shape(task.steps["size64"], state, batch, jax.random.key(0))
    pseudo = make("infection", SELFSUP.segment, semi=semi, runs="pseudo_labels")
    jax.eval_shape(pseudo.steps["size64"], state, batch, jax.random.key(0))


@pytest.mark.parametrize("net", [PLAIN, Net("infnet", "resnet18", 1, 1, "float32", {"width": 4})])
def test_the_trunk_and_nothing_else_is_transferred(net):
    zeros = {}
    for learns, section in (("rotation", rotation_section()), ("infection", SELFSUP.segment)):
        task = make(learns, section, net)
        shapes = jax.eval_shape(task.variables, jax.random.key(0))["net"]
        zeros[learns] = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    trees = zeros["infection"], zeros["rotation"]
    _, report = transfer(*trees, mode="matching", is_output_layer=lambda name: False)
    n = sum(len(jax.tree.leaves(tree["trunk"])) for tree in zeros["infection"].values())
    assert len(report.loaded) == n and all(name.split("/")[1] == "trunk" for name in report.loaded)
    unused = ["params/out_rotation/bias", "params/out_rotation/kernel"]
    assert sorted(report.unused) == unused and not report.mismatched


def test_a_pretext_reads_its_own_keys_and_no_other():
    section = rotation_section()
    task = make("rotation", section)
    assert task.total_steps == 6 and task.phase(0) == "rotation" and task.batch_index(4) == 4
    assert task.metric_mode == "max" and task.panel is None
    section.rounds = SELFSUP.pretrain.rounds
    with pytest.raises(ValueError, match="stage.rounds: rotation does not read this key"):
        make("rotation", section)
    with pytest.raises(ValueError, match="stage.steps: inpaint does not read this key"):
        make("inpaint", rotation_section(), FILLS)
    section = SELFSUP.pretrain.copy_and_resolve_references()
    del section["masks"]
    with pytest.raises(ValueError, match="stage.masks is missing: inpaint reads this key"):
        make("inpaint", section, FILLS)
    with pytest.raises(ValueError, match="stage.pretext='jigsaw': choose inpaint or rotation"):
        make("jigsaw", rotation_section())
