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

FROM_PRIOR = {
    "multi.from_prior": True,
    "multi.prior_use": "average",
    "multi.folds": 2,
    "multi.validation": 0,
    "model.decoder": "unet",
    "model.trunk": "plain",
    "model.width": 4,
}
TEACHER = {"semi.kind": "mean_teacher"}
AVERAGE = {"multi.prior_use": "average"}
REFUSED = [  # config, changes, message
    (supervised, {"segment.folds": 2}, "segment.validation=2 with segment.folds=2"),
    (supervised, {"evaluate.scales": (0.0, 1.0)}, "evaluate.scales=.0.0, 1.0.: choose factors"),
    (supervised, {"data.target": "mask"}, "data.target='mask': choose infection or lung"),
    (multi, {"prior.folds": 0}, "prior.folds=0: choose 2 or more"),
    (multi, {"prior.repeats": 0}, "prior.repeats=0: choose 1 or more"),
    (supervised, {"segment.repeats": 2}, "segment.validation=2 with segment.repeats=2"),
    (supervised, {"segment.repeats": 0}, "segment.repeats=0: choose 1 or more"),
    (
        supervised,
        {"segment.validation": 0, "evaluate.choose_threshold": True},
        "needs segment.validation or segment.folds above 0",
    ),
    (multi, {"prior.kind": "oracle"}, "prior.kind='oracle': choose crossfit or truth"),
    (multi, {"multi.prior_use": "concat"}, "multi.prior_use='concat': choose none or input or"),
    (
        multi,
        {"weights": "imagenet_lite0", "multi.net.trunk": "efficientnet_lite0"},
        "multi.prior_use='input' with weights='imagenet_lite0'",
    ),
    (multi, {"stages": ("multi",)}, "multi.prior_use='input' needs stage prior"),
    (semisup, {"semi.kind": "oracle"}, "semi.kind='oracle': choose pseudo or mean_teacher"),
    (semisup, {"semi.group_size": 0}, "semi.group_size=0: choose 1 or more"),
    (
        semisup,
        {**TEACHER, "segment.folds": 2, "segment.validation": 0},
        "segment.folds=2 with semi.kind='mean_teacher'",
    ),
    (multi_semisup, TEACHER, "semi.kind='mean_teacher' with stage multi"),
    (multi_semisup, {"model.decoder": "infnet"}, "model.decoder='infnet': multi starts from"),
    (multi_semisup, {"model.width": 8}, "model.width=8: multi starts .* of multi.net.width, 4"),
    (
        multi,
        {"multi.from_prior": True, "prior.kind": "truth"},
        "multi.from_prior=True: nothing to start from, choose stage prior",
    ),
    (
        multi_semisup,
        {"multi.from_prior": True},
        "multi.from_prior=True with stage semi: choose one",
    ),
    (multi, {"multi.from_prior": True}, "multi.from_prior=True with multi.prior_use='input'"),
    (multi, {"multi.from_prior": True, **AVERAGE}, "model.decoder='infnet': multi starts from"),
    (supervised, {"data.pretrain": "ictcf"}, "data.pretrain='ictcf', but no stage is `pretrain`"),
    (supervised, {"stages": ("pretran",)}, "stages: 'pretran' is none"),
    (supervised, {"stages": ("pretrain", "segment")}, "stages: 'pretrain' is none"),
]
REFUSED_WITH_DATA = [
    (supervised, {"data.folds": 2}, "data.test='test': with data.folds it must be"),
    (supervised, {"segment.validation": 99}, "segment.validation=99: validation count 99 must lie"),
    (multi, {"multi.folds": 99, "multi.validation": 0}, "multi.folds=99: 99 folds cannot be made"),
    (multi, {"prior.folds": 99}, "prior.folds=99: 99 folds cannot be made of"),
    (
        multi,
        {**FROM_PRIOR, "multi.repeats": 2},
        "choose multi.folds=2 and multi.repeats=1 .those of prior., not 2 and 2",
    ),
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


@pytest.mark.parametrize("key", ["pretrain", "segment", "evaluate"])
def test_each_stages_batch_is_checked_before_the_first_stage(tmp_path, key, phantom):
    config = changed(selfsup, {f"{key}.batch_size": 12})
    with pytest.raises(ValueError, match=f"{key}.batch_size = 12 does not divide over 8 devices"):
        run(config, workdir=tmp_path / "w", dataset=phantom, name="x", command="x")
    assert not (tmp_path / "w").exists()


def test_a_config_of_the_first_version_is_refused_by_name():
    config = supervised.get_config("tiny")
    del config.model.decoder
    with pytest.raises(ValueError, match=r"version 0\.1\.0.*train the run again"):
        resolve(config, Path("w"))


def test_what_each_stage_starts_from():
    found = stages(multi_selfsup)
    starts = [(s.origin, s.transfer) for s in found.values()]
    assert starts[0][0] == "" and starts[1] == ("pretrain", "all_but_last")
    assert found["prior"].networks[1].start == Path("w/pretrain/checkpoints")
    assert found["multi"].origin == "pretrain_multi"
    assert stages(semisup)["segment"].networks[0].start == Path("w/semi/pool/checkpoints")
    taught = stages(semisup, **TEACHER)["segment"]
    assert (
        taught.networks[0].start == Path("w/semi/teacher/checkpoints") and taught.semi is not None
    )
    assert stages(multi_semisup)["multi"].origin == "semi"
    paired = stages(multi, **FROM_PRIOR)["multi"]
    assert paired.paired and [n.start for n in paired.networks] == [
        Path(f"w/prior/fold{k}/checkpoints") for k in (0, 1)
    ]


def test_imported_weights_serve_the_first_stage_only():
    found = stages(selfsup, weights="imagenet_lite0")
    assert (found["pretrain"].origin, found["pretrain"].transfer) == ("imagenet_lite0", "matching")
    assert found["segment"].origin == "pretrain"
    found = stages(multi, weights="imagenet_lite0")  # a plain U-Net has no use for them
    assert (found["prior"].origin, found["multi"].origin) == ("imagenet_lite0", "")


def test_what_each_stage_is_fed():
    fed = {"image", "mask", "prior"}
    assert {s.name for s in stages(multi_selfsup).values() if {*s.fields} == fed} == {
        "pretrain_multi",
        "multi",
    }
    found = stages(multi_selfsup, **{"multi.prior_use": "average"})
    assert found["pretrain_multi"].prior == "none" and found["multi"].prior == "average"
    assert found["multi"].net.channels == 1 and stages(multi)["multi"].net.channels == 2
    assert "prior" not in stages(multi, **{"multi.prior_use": "none"})["multi"].fields
    assert stages(selfsup, **{"data.pretrain": "ictcf"})["pretrain"].mix == "ictcf"


def test_networks_of_folds_and_repeats_by_hand():
    several = dict(zip(("prior.folds", "prior.repeats"), (2, 2), strict=True))
    networks = stages(multi, **several)["prior"].networks
    assert [(n.folder.name, n.seed, n.fold) for n in networks] == [
        ("fold0", 0, 0),
        ("fold1", 0, 1),
        ("fold2", 1, 0),
        ("fold3", 1, 1),
    ]
    repeated = {"segment.repeats": 2, "segment.validation": 0}
    networks = stages(supervised, **repeated)["segment"].networks
    assert [(n.folder.name, n.seed, n.fold) for n in networks] == [
        ("seed0", 0, None),
        ("seed1", 1, None),
    ]
    assert [n.folder for n in stages(supervised)["segment"].networks] == [Path("w/segment")]


def test_the_final_stage_and_its_classes():
    assert plan_of(multi).final.classes == ("ggo", "consolidation")
    assert plan_of(lung).final.classes == ("lung",)
    assert plan_of(lung, "folders").final.name == "segment"
    assert plan_of(selfsup).final.classes == ("infection",)


@pytest.mark.parametrize("preset", ["demo", "tiny", "semiseg", "lite", "paper", "authors"])
def test_rotation_gets_as_many_updates_as_the_inpainter(preset):
    config, p = rotation.get_config(preset), selfsup.get_config(preset).pretrain
    batches = -(-45 // p.batch_size)  # of the published presets, a pass over 45 slices
    rounds = dict(p.rounds, steps_per_epoch=batches)
    played, _ = make_rounds(**rounds)
    assert config.pretrain.steps == sum(n for who, n in played if who == "net")
    assert "rounds" not in config.pretrain and "coach" not in config
