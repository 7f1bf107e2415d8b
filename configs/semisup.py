"""Semi-supervised Inf-Net: labelled slices teach, unlabelled ones join in.

    python main.py --config=configs/semisup.py            # phantom, two cores
    python main.py --config=configs/semisup.py:semiseg --config.data.manual_dir=DIR
    python main.py --config=configs/semisup.py --config.semi.kind=mean_teacher

Stages: `semi` trains a teacher on the labelled slices, and for `pseudo` (Semi-Inf-Net) maps the
unlabelled ones group by group and pre-trains a fresh network on these maps; `segment` fine-tunes
it, or for `mean_teacher` goes on from the teacher with unlabelled slices in each batch.
Presets: demo (the default), semiseg, lite, paper, authors, tiny; see `configs/selfsup.py`. `paper`
and `authors` are Semi-Inf-Net as published with it, on the network of either.
"""

from ml_collections import ConfigDict

from configs import common, supervised


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset: that of `supervised.py`, with the unlabelled slices in front."""
    c = supervised.get_config(preset)
    c.stages = ("semi", "segment", "evaluate")
    c.segment.transfer = "matching"
    s = c.semi = ConfigDict(
        dict(
            kind="pseudo",  # pseudo | mean_teacher
            split="unlabeled",
            group_size=25,
            epochs=1,  # of pseudo: slices a round, and epochs on pool and labelled ones
            stretch=False,  # True: each map to its full range first (public code)
        )
    )
    # Each is laid over `segment`.
    s.teacher, s.pool = ConfigDict(dict(steps=240)), ConfigDict(dict(steps=160))
    s.round = ConfigDict(dict(batch_size=8, scales=(1.0,)))
    s.round.optim = common.optimizer("adamw", weight_decay=1e-2, eps=1e-6, clip_norm=5.0)
    s.round.schedule = common.schedule("constant", 3e-4)
    s.consistency = ConfigDict(dict(weight=10.0, ramp_steps=80))  # of mean_teacher
    if preset == "demo":
        c.segment.update(steps=240, validation=12)
    elif preset in ("semiseg", "lite"):
        c.segment.steps, s.teacher.steps, s.pool.steps = 600, 600, 400
        s.group_size, s.consistency.ramp_steps = 320, 200
    elif preset == "tiny":
        s.teacher.steps, s.pool.steps, s.group_size, s.consistency.ramp_steps = 4, 4, 5, 4
    else:
        per_epoch = len(c.segment.scales) * -(-1600 // c.segment.batch_size)
        s.group_size, s.epochs, s.stretch = 5, 9, True
        s.round.update(batch_size=16, optim=common.optimizer("adam", clip_value=0.5))
        s.teacher.steps, s.pool.steps = c.segment.steps, 100 * per_epoch
        s.pool.update(eval_every=5 * per_epoch, schedule=dict(decay_every=50 * per_epoch))
        s.consistency.ramp_steps = c.segment.steps // 3
    return c
