"""Bad settings are refused before the first stage, with key, value and what would be right."""

import pytest

import tfds_builders
from configs import multi, multi_semisup, semisup, supervised
from infnet_jax.training import run as train

FROM_PRIOR = {
    "multi.from_prior": True,
    "multi.prior_use": "average",
    "multi.folds": 2,
    "multi.validation": 0,
    "model.kind": "unet",
    "model.width": 4,
}
REFUSED = {
    "another test split with folds": (
        supervised,
        "tiny",
        {"data.folds": 2},
        "data.test='test': with data.folds it must be",
    ),
    "folds and held-out slices": (
        supervised,
        "tiny",
        {"segment.folds": 2},
        "segment.validation=2 with segment.folds=2",
    ),
    "no size to look at": (
        supervised,
        "tiny",
        {"evaluate.scales": (0.0, 1.0)},
        "evaluate.scales=.0.0, 1.0.: choose factors",
    ),
    "a prior of no fold": (multi, "tiny", {"prior.folds": 0}, "prior.folds=0: choose 2 or more"),
    "a prior of no network": (
        multi,
        "tiny",
        {"prior.repeats": 0},
        "prior.repeats=0: choose 1 or more",
    ),
    "averaged networks and held-out slices": (
        supervised,
        "tiny",
        {"segment.repeats": 2},
        "segment.validation=2 with segment.repeats=2",
    ),
    "no network at all": (
        supervised,
        "tiny",
        {"segment.repeats": 0},
        "segment.repeats=0: choose 1 or more",
    ),
    "nothing to choose a threshold on": (
        supervised,
        "tiny",
        {"segment.validation": 0, "evaluate.choose_threshold": True},
        "needs segment.validation or segment.folds above 0",
    ),
    "everything held out": (
        supervised,
        "tiny",
        {"segment.validation": 99},
        "segment.validation=99: validation count 99 must lie in",
    ),
    "more folds than patients, after a prior": (
        multi,
        "tiny",
        {"multi.folds": 99, "multi.validation": 0},
        "multi.folds=99: 99 folds cannot be made of",
    ),
    "more folds of a prior than patients": (
        multi,
        "tiny",
        {"prior.folds": 99},
        "prior.folds=99: 99 folds cannot be made of",
    ),
    "an unknown prior": (
        multi,
        "tiny",
        {"prior.kind": "oracle"},
        "prior.kind='oracle': choose crossfit or truth",
    ),
    "an unknown use of a prior": (
        multi,
        "tiny",
        {"multi.prior_use": "concat"},
        "multi.prior_use='concat': choose input or average",
    ),
    "no channel for a prior": (
        multi,
        "lite",
        {"multi.prior_use": "input"},
        "multi.prior_use='input' with weights='imagenet_lite0'",
    ),
    "an unknown use of unlabelled slices": (
        semisup,
        "tiny",
        {"semi.kind": "oracle"},
        "semi.kind='oracle': choose pseudo or mean_teacher",
    ),
    "groups of nothing": (
        semisup,
        "tiny",
        {"semi.group_size": 0},
        "semi.group_size=0: choose 1 or more",
    ),
    "folds of a mean teacher that has seen them all": (
        semisup,
        "tiny",
        {"semi.kind": "mean_teacher", "segment.folds": 2, "segment.validation": 0},
        "segment.folds=2 with semi.kind='mean_teacher'",
    ),
    "three classes from a mean teacher": (
        multi_semisup,
        "tiny",
        {"semi.kind": "mean_teacher"},
        "semi.kind='mean_teacher' with stage multi",
    ),
    "three classes from another kind of network": (
        multi_semisup,
        "tiny",
        {"model.kind": "infnet"},
        "model.kind='infnet' and model.width=4: multi starts from",
    ),
    "no prior to start from": (
        multi,
        "tiny",
        {"multi.from_prior": True, "prior.kind": "truth"},
        "multi.from_prior=True: nothing to start from, choose stage prior",
    ),
    "two starts": (
        multi_semisup,
        "tiny",
        {"multi.from_prior": True},
        "multi.from_prior=True with stage semi: choose one",
    ),
    "a start without a channel for the prior": (
        multi,
        "tiny",
        {"multi.from_prior": True},
        "multi.from_prior=True with multi.prior_use='input'",
    ),
    "a prior of another kind": (
        multi,
        "tiny",
        {"multi.from_prior": True, "multi.prior_use": "average"},
        "model.kind='infnet' and model.width=8: multi starts from what prior has",
    ),
    "a start that has seen what is held out": (
        multi,
        "tiny",
        {**FROM_PRIOR, "multi.repeats": 2},
        "choose multi.folds=2 and multi.repeats=1 .those of prior., not 2 and 2",
    ),
    "three classes from another width": (
        multi_semisup,
        "tiny",
        {"model.width": 8},
        "model.width=8: multi starts .* those of multi.net, 'unet' and 4",
    ),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_first_stage(case, tmp_path, dataset):
    module, preset, changes, message = REFUSED[case]
    config = module.get_config(preset)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        train.run(config, workdir=tmp_path / "run", dataset=dataset, name="t", command="")
    assert not (tmp_path / "run").exists()
