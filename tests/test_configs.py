"""Every preset of every config builds its tasks; wrong names are answered with the right ones."""

import jax
import jax.numpy as jnp
import pytest

from configs import common, multi, multi_selfsup, multi_semisup, selfsup, semisup, supervised
from infnet_jax import tasks


@pytest.mark.parametrize("preset", common.PRESETS)
def test_supervised_is_selfsup_without_pretraining(preset):
    alone, after = supervised.get_config(preset), selfsup.get_config(preset)
    assert alone.stages == after.stages[1:] == ("segment", "evaluate")
    assert alone.segment.optim == after.segment.optim
    assert alone.segment.augmentation == after.segment.augmentation
    assert alone.data == after.data


@pytest.mark.parametrize("preset", common.PRESETS)
def test_multi_selfsup_is_multi_with_pretraining(preset):
    alone, after = multi.get_config(preset), multi_selfsup.get_config(preset)
    assert alone.multi.with_prior
    assert alone.multi.prior_use == ("average" if preset == "lite" else "input")
    assert alone.stages == ("prior", "multi", "evaluate")
    assert after.stages == ("pretrain", "prior", "pretrain_multi", "multi", "evaluate")
    assert alone.multi.optim == after.multi.optim and alone.multi.loss == after.multi.loss
    assert alone.data.name.endswith("/multiclass") or "phantom" in alone.data.name
    assert {*after.pretrain_multi.splits} <= {after.data.train, *after.prior.splits}


@pytest.mark.parametrize("preset", common.PRESETS)
def test_semisup_is_supervised_with_unlabelled_slices_in_front(preset):
    alone, after = supervised.get_config(preset), semisup.get_config(preset)
    assert after.stages == ("semi", *alone.stages)
    assert alone.segment.optim == after.segment.optim and alone.model == after.model
    assert after.semi.split not in (after.data.train, after.data.test)
    for part in ("teacher", "pool", "round"):  # lies over `segment`: no key that it lacks
        assert {*after.semi[part]} <= {*alone.segment}
    if preset in ("paper", "authors"):  # as published: 320 groups of five, nine epochs each
        s = after.semi
        assert (s.group_size, s.epochs, s.round.batch_size, s.stretch) == (5, 9, 16, True)
        assert (s.round.schedule.lr, s.round.optim.name) == (3e-4, "adam")
        assert s.round.optim.clip_value == 0.5
        assert s.pool.steps == 100 * 3 * -(-1600 // after.segment.batch_size)


@pytest.mark.parametrize("preset", multi_semisup.PRESETS)
def test_multi_semisup_is_multi_with_unlabelled_slices_in_front(preset):
    alone, after = multi.get_config(preset), multi_semisup.get_config(preset)
    assert after.stages == ("prior", "semi", "multi", "evaluate")
    assert after.semi == semisup.get_config(preset).semi
    assert alone.multi.optim == after.multi.optim and alone.multi.loss == after.multi.loss
    assert (after.model.kind, after.model.width) == (after.multi.net.kind, after.multi.net.width)
    with pytest.raises(ValueError, match="'paper' is unknown: choose demo, semiseg, lite, tiny$"):
        multi_semisup.get_config("paper")


SINGLE, MULTI = ("pretrain", "segment"), ("pretrain_multi", "multi")
UNET = {"model.kind": "unet"}


@pytest.mark.parametrize(
    ("file", "preset", "stages", "changes"),
    [
        (selfsup, "tiny", SINGLE, {}),
        (selfsup, "paper", SINGLE, {}),
        (selfsup, "authors", SINGLE, {}),
        (multi_selfsup, "tiny", MULTI, {}),
        (multi_selfsup, "authors", MULTI, {}),
        (selfsup, "tiny", SINGLE, UNET),
        (selfsup, "tiny", ("pretrain",), {"pretrain.pretext": "rotation"}),
        (multi_selfsup, "tiny", ("pretrain_multi",), {"pretrain_multi.pretext": "rotation"}),
        (semisup, "tiny", ("segment",), {"semi.kind": "mean_teacher"}),
        (supervised, "tiny", ("segment",), {"model.kind": "unet_lite0"}),
        (multi_selfsup, "lite", MULTI, {}),
        (selfsup, "lite", SINGLE, {}),
        (multi, "lite", ("multi",), {}),
        (multi_semisup, "tiny", ("segment", "multi"), {}),
    ],
)
def test_preset_builds_its_tasks(file, preset, stages, changes):
    config = file.get_config(preset)
    config.update_from_flattened_dict(changes)
    for stage in stages:
        task = tasks.make(stage, config, (0.4, 0.2), 10)
        assert task.total_steps > 0
        state = jax.eval_shape(lambda key, t=task: t.start(t.variables(key)), jax.random.key(0))
        side, rows = config[stage].size, config[stage].batch_size
        picture = jax.ShapeDtypeStruct((rows, side, side, 1), jnp.uint8)
        batch = dict.fromkeys(("image", "mask", "prior", "unlabelled"), picture)
        for name in list(task.steps)[:2]:  # further sizes of multi-scale training are alike
            after, metrics = jax.eval_shape(task.steps[name], state, batch, jax.random.key(0))
            assert jax.tree.structure(after) == jax.tree.structure(state), (stage, name)
            kinds = [
                [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
                for tree in (after, state)
            ]
            assert kinds[0] == kinds[1], (stage, name)
            assert all(value.shape == () for value in metrics.values())


def test_published_presets_differ_where_paper_and_code_do():
    paper, authors = selfsup.get_config("paper"), selfsup.get_config("authors")
    assert (paper.pretrain.loss.kind, authors.pretrain.loss.kind) == ("ce", "mse_clamped")
    assert (paper.model.inpaint_head, authors.model.inpaint_head) == (
        "linear_replace",
        "tanh_parallel",
    )
    assert (paper.pretrain.rounds.schedule, authors.pretrain.rounds.schedule) == (
        "per_epoch",
        "blocks",
    )
    assert (paper.segment.loss.kind, authors.segment.loss.kind) == ("structure", "structure_as_run")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="'papr' is unknown: choose demo, semiseg"):
        selfsup.get_config("papr")


def test_an_unknown_network():
    config = supervised.get_config("tiny")
    config.model.kind = "unet++"
    with pytest.raises(ValueError, match=r"model.kind='unet\+\+': choose infnet, unet or unet_"):
        tasks.make_net(config)


def test_a_stale_key_is_an_error():
    config = supervised.get_config("tiny")
    config.segment.optim.nesterov = True
    with pytest.raises(TypeError, match="nesterov"):
        tasks.make("segment", config, (0.4, 0.2), 10)
