"""Every preset of every config builds its tasks; wrong names are answered with the right ones."""

import jax
import jax.numpy as jnp
import pytest

from configs import common, multi, multi_selfsup, selfsup, supervised
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
    assert alone.stages == ("prior", "multi", "evaluate")
    assert after.stages == ("pretrain", "prior", "pretrain_multi", "multi", "evaluate")
    assert alone.multi.optim == after.multi.optim and alone.multi.loss == after.multi.loss
    assert alone.data.name.endswith("/multiclass") or "phantom" in alone.data.name
    assert {*after.pretrain_multi.splits} <= {after.data.train, *after.prior.splits}


SINGLE, MULTI = ("pretrain", "segment"), ("pretrain_multi", "multi")


@pytest.mark.parametrize(
    ("file", "preset", "stages"),
    [(selfsup, "tiny", SINGLE), (selfsup, "paper", SINGLE), (selfsup, "authors", SINGLE),
     (multi_selfsup, "tiny", MULTI), (multi_selfsup, "authors", MULTI)],
)  # fmt: skip
def test_preset_builds_its_tasks(file, preset, stages):
    config = file.get_config(preset)
    for stage in stages:
        task = tasks.make(stage, config, (0.4, 0.2), 10)
        assert task.total_steps > 0
        state = jax.eval_shape(lambda key, t=task: t.start(t.variables(key)), jax.random.key(0))
        side, rows = config[stage].size, config[stage].batch_size
        picture = jax.ShapeDtypeStruct((rows, side, side, 1), jnp.uint8)
        batch = dict.fromkeys(("image", "mask", "prior"), picture)
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
        "linear_replace", "tanh_parallel",
    )
    assert (paper.pretrain.rounds.schedule, authors.pretrain.rounds.schedule) == (
        "per_epoch", "blocks",
    )
    assert (paper.segment.loss.kind, authors.segment.loss.kind) == (
        "structure", "structure_as_run",
    )


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="'papr' is unknown: choose demo, semiseg"):
        selfsup.get_config("papr")


def test_a_stale_key_is_an_error():
    config = supervised.get_config("tiny")
    config.segment.optim.nesterov = True
    with pytest.raises(TypeError, match="nesterov"):
        tasks.make("segment", config, (0.4, 0.2), 10)
