"""A config resolved: what each stage starts from and feeds on, and what is refused."""

from pathlib import Path

import pytest

from configs import (
    lung,
    multi,
    multi_selfsup,
    multi_semisup,
    rotation,
    selfsup,
    semisup,
    supervised,
)
from infnet_jax.plan.resolve import resolve
from infnet_jax.tasks.inpaint import make_rounds
from infnet_jax.training import run

TEACHER = {"semi.kind": "mean_teacher"}
LITE = {"weights": "imagenet_lite0", "multi.net.trunk": "efficientnet_lite0"}
FROM = {"multi.from_prior": True}
AVERAGE = {**FROM, "multi.prior_use": "average"}
FOLDED = {"multi.folds": 2, "multi.validation": 0}
SAME_NET = {"model.decoder": "unet", "model.trunk": "plain", "model.width": 4}
PAIRED = {**AVERAGE, **FOLDED, **SAME_NET}
CHOOSE = {"segment.validation": 0, "evaluate.choose_threshold": True}
TAUGHT_FOLDS = {**TEACHER, "segment.folds": 2, "segment.validation": 0}
REFUSED = [  # config, changes, message
    (supervised, {"segment.folds": 2}, "segment.validation=2 with segment.folds=2"),
    (supervised, {"evaluate.scales": (0.0, 1.0)}, "evaluate.scales=.0.0, 1.0.: choose factors"),
    (supervised, {"data.target": "mask"}, "data.target='mask': choose infection or lung"),
    (multi, {"prior.folds": 0}, "prior.folds=0: choose 2 or more"),
    (multi, {"prior.repeats": 0}, "prior.repeats=0: choose 1 or more"),
    (supervised, {"segment.repeats": 2}, "segment.validation=2 with segment.repeats=2"),
    (supervised, {"segment.repeats": 0}, "segment.repeats=0: choose 1 or more"),
    (supervised, CHOOSE, "needs segment.validation or segment.folds above 0"),
    (multi, {"prior.kind": "oracle"}, "prior.kind='oracle': choose crossfit or truth"),
    (multi, {"multi.prior_use": "concat"}, "multi.prior_use='concat': choose none or input or"),
    (multi, LITE, "multi.prior_use='input' with weights='imagenet_lite0'"),
    (multi, {"stages": ("multi",)}, "multi.prior_use='input' needs stage prior"),
    (semisup, {"semi.kind": "oracle"}, "semi.kind='oracle': choose pseudo or mean_teacher"),
    (semisup, {"semi.group_size": 0}, "semi.group_size=0: choose 1 or more"),
    (semisup, TAUGHT_FOLDS, "segment.folds=2 with semi.kind='mean_teacher'"),
    (multi_semisup, TEACHER, "semi.kind='mean_teacher' with stage multi"),
    (multi_semisup, {"model.decoder": "infnet"}, "model.decoder='infnet': multi starts from"),
    (multi_semisup, {"model.width": 8}, "model.width=8: multi starts .* of multi.net.width, 4"),
    (multi, {**FROM, "prior.kind": "truth"}, "multi.from_prior=True: nothing to start from"),
    (multi_semisup, FROM, "multi.from_prior=True with stage semi: choose one"),
    (multi, FROM, "multi.from_prior=True with multi.prior_use='input'"),
    (multi, AVERAGE, "model.decoder='infnet': multi starts from"),
    (supervised, {"data.pretrain": "ictcf"}, "data.pretrain='ictcf', but no stage is `pretrain`"),
    (supervised, {"stages": ("pretran",)}, "stages: 'pretran' is none"),
    (supervised, {"stages": ("pretrain", "segment")}, "stages: 'pretrain' is none"),
]
BATCH = "batch_size = 12 does not divide over 8 devices"
REFUSED_WITH_DATA = [
    (supervised, {"data.folds": 2}, "data.test='test': with data.folds it must be"),
    (supervised, {"segment.validation": 99}, "segment.validation=99: validation count 99 must lie"),
    (multi, {**FOLDED, "multi.folds": 99}, "multi.folds=99: 99 folds cannot be made"),
    (multi, {"prior.folds": 99}, "prior.folds=99: 99 folds cannot be made of"),
    (multi, {**PAIRED, "multi.repeats": 2}, "multi.folds=2 and multi.repeats=1 .* not 2 and 2"),
    (selfsup, {"pretrain.batch_size": 12}, f"pretrain.{BATCH}"),
    (selfsup, {"segment.batch_size": 12}, f"segment.{BATCH}"),
    (selfsup, {"evaluate.batch_size": 12}, f"evaluate.{BATCH}"),
]


def changed(module, changes, preset="tiny"):
    config = module.get_config(preset)
    config.update_from_flattened_dict(changes)
    return config


def plan_of(module, preset="tiny", **changes):
    return resolve(changed(module, changes, preset), Path("w"))


def stages(module, **changes):
    return {stage.name: stage for stage in plan_of(module, **changes).stages}


@pytest.mark.parametrize(("module", "changes", "message"), REFUSED)
def test_refused_by_the_config_alone(module, changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(changed(module, changes), Path("w"))


@pytest.mark.parametrize(("module", "changes", "message"), REFUSED_WITH_DATA)
def test_refused_before_anything_is_written(module, changes, message, tmp_path, phantom):
    config = changed(module, changes)
    with pytest.raises(ValueError, match=message):
        run(config, workdir=tmp_path / "run", dataset=phantom, name="t", command="")
    assert not (tmp_path / "run").exists()


def test_a_config_of_the_first_version_is_refused_by_name():
    config = supervised.get_config("tiny")
    del config.model.decoder
    with pytest.raises(ValueError, match=r"version 0\.1\.0.*train the run again"):
        resolve(config, Path("w"))


def test_what_each_stage_starts_from():
    found = stages(multi_selfsup)
    assert found["pretrain"].origin == "" and found["multi"].origin == "pretrain_multi"
    assert (found["prior"].origin, found["prior"].transfer) == ("pretrain", "all_but_last")
    assert found["prior"].networks[1].start == Path("w/pretrain/checkpoints")
    assert stages(semisup)["segment"].networks[0].start == Path("w/semi/pool/checkpoints")
    taught = stages(semisup, **TEACHER)["segment"]
    assert taught.networks[0].start == Path("w/semi/teacher/checkpoints")
    assert taught.semi is not None and stages(multi_semisup)["multi"].origin == "semi"
    paired = stages(multi, **PAIRED)["multi"]
    folders = [n.start.relative_to("w/prior").as_posix() for n in paired.networks]
    assert paired.paired and folders == ["fold0/checkpoints", "fold1/checkpoints"]


def test_imported_weights_serve_the_first_stage_only():
    found = stages(selfsup, weights="imagenet_lite0")
    assert (found["pretrain"].origin, found["pretrain"].transfer) == ("imagenet_lite0", "matching")
    assert found["segment"].origin == "pretrain"
    found = stages(multi, weights="imagenet_lite0")  # a plain U-Net has no use for them
    assert (found["prior"].origin, found["multi"].origin) == ("imagenet_lite0", "")


def test_what_each_stage_is_fed():
    fed = [s.name for s in stages(multi_selfsup).values() if "prior" in s.fields]
    assert fed == ["pretrain_multi", "multi"]
    found = stages(multi_selfsup, **{"multi.prior_use": "average"})
    assert found["pretrain_multi"].prior == "none" and found["multi"].prior == "average"
    assert found["multi"].net.channels == 1 and stages(multi)["multi"].net.channels == 2
    assert "prior" not in stages(multi, **{"multi.prior_use": "none"})["multi"].fields
    assert stages(selfsup, **{"data.pretrain": "ictcf"})["pretrain"].mix == "ictcf"


def test_networks_of_folds_and_repeats_by_hand():
    def networks(module, name, **changes):
        return [(n.folder.name, n.seed, n.fold) for n in stages(module, **changes)[name].networks]

    deals = [("fold0", 0, 0), ("fold1", 0, 1), ("fold2", 1, 0), ("fold3", 1, 1)]
    assert networks(multi, "prior", **{"prior.folds": 2, "prior.repeats": 2}) == deals
    twice = {"segment.repeats": 2, "segment.validation": 0}
    assert networks(supervised, "segment", **twice) == [("seed0", 0, None), ("seed1", 1, None)]
    assert networks(supervised, "segment") == [("segment", 0, None)]


def test_the_final_stage_and_its_classes():
    assert plan_of(multi).final.classes == ("ggo", "consolidation")
    assert plan_of(lung).final.classes == ("lung",)
    assert plan_of(lung, "folders").final.name == "segment"
    assert plan_of(selfsup).final.classes == ("infection",)


@pytest.mark.parametrize("preset", ["demo", "tiny", "semiseg", "lite", "paper", "authors"])
def test_rotation_gets_as_many_updates_as_the_inpainter(preset):
    config, p = rotation.get_config(preset), selfsup.get_config(preset).pretrain
    batches = -(-45 // p.batch_size)  # of the published presets, a pass over 45 slices
    played, _ = make_rounds(**dict(p.rounds, steps_per_epoch=batches))
    assert config.pretrain.steps == sum(n for who, n in played if who == "net")
    assert "rounds" not in config.pretrain and "coach" not in config
