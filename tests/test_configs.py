"""Every preset of every config builds its tasks; wrong names are answered with the right ones."""

from operator import attrgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import (
    common,
    multi,
    multi_selfsup,
    multi_semisup,
    rotation,
    selfsup,
    semisup,
    supervised,
)
from infnet_jax import tasks
from infnet_jax.plan.resolve import resolve


def stages_of(config):
    return {stage.name: stage for stage in resolve(config, Path("w")).stages}


def make(stage):
    return tasks.make(stage, tasks.make_norm(stage, (0.4, 0.2)), 10)


@pytest.mark.parametrize("preset", common.PRESETS)
def test_pretraining_and_unlabelled_slices_come_in_front_of_supervised(preset):
    alone, after, semi = (m.get_config(preset) for m in (supervised, selfsup, semisup))
    assert alone.stages == after.stages[1:] == semi.stages[1:] == ("segment", "evaluate")
    assert alone.segment.optim == after.segment.optim == semi.segment.optim
    assert alone.segment.augmentation == after.segment.augmentation and alone.data == after.data
    assert semi.stages[0] == "semi" and alone.model == semi.model
    assert semi.semi.split not in (semi.data.train, semi.data.test)
    for part in ("teacher", "pool", "round"):  # lies over `segment`: no key that it lacks
        assert {*semi.semi[part]} <= {*alone.segment}
    if preset in ("paper", "authors"):  # as published: 320 groups of five, nine epochs each
        s = semi.semi
        assert (s.group_size, s.epochs, s.round.batch_size, s.stretch) == (5, 9, 16, True)
        assert (s.round.schedule.lr, s.round.optim.name) == (3e-4, "adam")
        assert s.round.optim.clip_value == 0.5
        assert s.pool.steps == 100 * 3 * -(-1600 // semi.segment.batch_size)


@pytest.mark.parametrize("preset", common.PRESETS)
def test_pretraining_and_unlabelled_slices_come_in_front_of_multi(preset):
    alone, after = multi.get_config(preset), multi_selfsup.get_config(preset)
    assert alone.multi.prior_use == ("average" if preset == "lite" else "input")
    assert alone.stages == ("prior", "multi", "evaluate")
    assert after.stages == ("pretrain", "prior", "pretrain_multi", "multi", "evaluate")
    assert alone.multi.optim == after.multi.optim and alone.multi.loss == after.multi.loss
    assert alone.data.name.endswith("/multiclass") or "phantom" in alone.data.name
    assert {*after.pretrain_multi.splits} <= {after.data.train, *after.prior.splits}
    if preset in multi_semisup.PRESETS:
        after = multi_semisup.get_config(preset)
        assert after.stages == ("prior", "semi", "multi", "evaluate")
        assert after.semi == semisup.get_config(preset).semi
        assert alone.multi.optim == after.multi.optim and alone.multi.loss == after.multi.loss
        for key in ("decoder", "trunk", "width"):
            assert after.model[key] == after.multi.net[key]


PLAIN, LITE = {"model.trunk": "plain"}, {"model.trunk": "efficientnet_lite0"}
UNET = {"model.decoder": "unet"}
BUILT = [  # config, preset, changes
    (selfsup, "tiny", {}),
    (selfsup, "tiny", {**UNET, **PLAIN}),
    (rotation, "tiny", {}),
    (supervised, "tiny", {**UNET, **LITE}),
    (semisup, "tiny", {"semi.kind": "mean_teacher"}),
    (multi_semisup, "tiny", {}),
    (multi_selfsup, "tiny", {}),
]
SLOW = [(selfsup, "paper"), (selfsup, "authors"), (selfsup, "lite"), (multi, "lite")]
SLOW += [(multi_selfsup, "authors"), (multi_selfsup, "lite")]
BUILT += [pytest.param(*each, {}, marks=pytest.mark.slow) for each in SLOW]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "preset", "changes"), BUILT)
def test_preset_builds_its_tasks(file, preset, changes):
    config = file.get_config(preset)
    config.update_from_flattened_dict(changes)
    for stage in stages_of(config).values():
        if stage.runs == "evaluate":
            continue
        task = make(stage)
        assert task.total_steps > 0
        state = jax.eval_shape(lambda key, t=task: t.start(t.variables(key)), jax.random.key(0))
        side, rows = stage.section.size, stage.section.batch_size
        picture = jax.ShapeDtypeStruct((rows, side, side, 1), jnp.uint8)
        batch = dict.fromkeys((*stage.fields, "unlabelled"), picture)
        for name in list(task.steps)[:2]:  # further sizes of multi-scale training are alike
            after, metrics = jax.eval_shape(task.steps[name], state, batch, jax.random.key(0))
            for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
                assert (old.shape, old.dtype) == (new.shape, new.dtype), (stage.name, name)
            assert all(value.shape == () for value in metrics.values())


def test_published_presets_differ_where_paper_and_code_do():
    def marks(preset):
        c = selfsup.get_config(preset)
        p = c.pretrain
        return p.loss.kind, c.model.inpaint_head, p.rounds.schedule, c.segment.loss.kind

    assert marks("paper") == ("ce", "linear_replace", "per_epoch", "structure")
    assert marks("authors") == ("mse_clamped", "tanh_parallel", "blocks", "structure_as_run")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="'papr' is unknown: choose demo, semiseg"):
        selfsup.get_config("papr")
    with pytest.raises(ValueError, match="'paper' is unknown: choose demo, semiseg, lite, tiny$"):
        multi_semisup.get_config("paper")


@pytest.mark.parametrize(
    ("file", "stage", "changes", "error", "message"),
    [
        (supervised, "segment", {"model.decoder": "unet++"}, ValueError, "fcn8s, infnet or unet"),
        (supervised, "segment", {"model.trunk": "resnet19"}, ValueError, "'resnet19': choose"),
        (supervised, "segment", PLAIN, ValueError, "plain"),
        (supervised, "segment", {"segment.optim.nesterov": True}, TypeError, "nesterov"),
        (rotation, "pretrain", {"pretrain.rounds": 3}, ValueError, "rounds"),
    ],
)
def test_a_name_or_key_that_nobody_knows(file, stage, changes, error, message):
    config = file.get_config("tiny")
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        attrgetter(section)(config)[name] = value
    with pytest.raises(error, match=message):
        make(stages_of(config)[stage])
