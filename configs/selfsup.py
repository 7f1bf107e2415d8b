"""Self-supervised Inf-Net: Algorithm 1, then fine-tuning, then the test split.

    python main.py --config=configs/selfsup.py            # phantom, two cores, some 8 minutes
    python main.py --config=configs/selfsup.py:semiseg --config.data.manual_dir=DIR
    python main.py --config=configs/selfsup.py --config.pretrain.rounds.use_coach=False

Presets:
    demo (the default)  the two-core demonstration on the procedural `phantom` dataset
    semiseg             COVID-SemiSeg at 224 x 224 on two cores
    lite                COVID-SemiSeg at 256 x 256 on two cores, from ImageNet weights
    paper               what the paper writes, at 352 x 352, for a GPU or TPU
    authors             what the authors' public code does, at 352 x 352, for a GPU or TPU
    tiny                seconds, for tests
"""

from ml_collections import ConfigDict

from configs import common, supervised


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset: that of `supervised.py`, with pre-training in front."""
    c = supervised.get_config(preset)
    c.stages = ("pretrain", "segment", "evaluate")
    c.model.inpaint_head = "tanh_parallel"
    c.coach = ConfigDict(dict(width=16))
    p = c.pretrain = ConfigDict(
        dict(
            pretext="inpaint",  # configs/rotation.py has the other one
            splits=("train", "unlabeled"),
            validation=40,
            size=128,
            batch_size=8,
            eval_every=48,
            rounds=dict(
                schedule="per_epoch",  # per_epoch | blocks
                epochs=5,
                coach_steps=12,
                net_steps=36,
                blocks=(),
                use_coach=True,  # False: random masks only
                warmup_random_rounds=1,
            ),
            masks=dict(
                keep_ratio=0.75, alpha_train=1.0, alpha_use=100.0, hard_use=True, inclusive=True
            ),
            sample_train=True,  # the coach learns with a sampled z; False: with its mean
            sample_use=True,  # and so it serves
            loss=dict(
                kind="mse_clamped",  # mse_clamped | ce | l1
                reduction="mean",  # sum_heads | mean
                rec_weight=0.99,
                context_heads="all",
            ),  # the paper has no context term: 1.0
            kld_weight=1e-6,  # eq. 1 has none: 0
            coach_grad="weights_only",  # through_net (as coded) | weights_only
            random_share=0.5,  # of each batch gets random masks all along; in paper and code: 0
        )
    )
    p.augmentation = common.augmentation(scale=(0.8, 1.25))
    p.net_optim = common.optimizer("adamw", weight_decay=1e-2, eps=1e-6, clip_norm=5.0)
    p.net_schedule = common.schedule("cosine", 1e-3, warmup_steps=10)
    p.coach_optim = common.optimizer("adam", eps=1e-6, clip_norm=5.0)
    p.coach_schedule = common.schedule("constant", 1e-3)
    if preset == "demo":  # cut errors have no gradient: white slices that began black stayed so
        p.loss.kind = "l1"
        p.rounds.update(coach_steps=30, net_steps=30, warmup_random_rounds=3)
        # What a network fills badly after one round says little of what it fills badly later; a
        # sampled z is noise in the scores; a constant rate keeps them moving. Share of the oracle's
        # gain at the end: .59 to .85 over seeds 0 to 4; on seed 0 .80, with either part alone .3.
        p.sample_train = p.sample_use = False
        p.coach_schedule = common.schedule("cosine", 2e-3)
    elif preset in ("semiseg", "lite"):
        p.batch_size, p.validation, p.eval_every = 16, 48, 64
        p.rounds.update(epochs=8, coach_steps=16, net_steps=48)
    elif preset == "tiny":
        c.coach.width = 8
        p.size, p.batch_size, p.validation, p.eval_every = 64, 8, 2, 4
        p.rounds.update(epochs=2, coach_steps=2, net_steps=3)
        p.net_schedule.warmup_steps = 2
    elif preset in ("paper", "authors"):
        _published(c, preset)
    return c


def _published(c: ConfigDict, preset: str) -> None:
    """Pre-training as written and as coded."""
    p = c.pretrain
    c.coach.width = 64
    p.splits, p.validation = ("train",), 5  # the labelled slices only
    p.augmentation = common.augmentation(flip_v=0.0)
    p.coach_schedule = common.schedule("constant", 1e-5)
    p.coach_optim = common.optimizer("adam")
    p.coach_grad, p.random_share = "through_net", 0.0
    if preset == "authors":
        p.size, p.batch_size = 352, 45
        p.augmentation.crop = (1.0, 128 / 352)
        p.masks.update(inclusive=False)
        p.rounds.update(schedule="blocks", blocks=(200, *(100,) * 10), warmup_random_rounds=0)
        p.loss.update(reduction="sum_heads", context_heads="last")
        p.net_optim = common.optimizer("sgd", weight_decay=5e-4)
        p.net_schedule = common.schedule(
            "piecewise", 1e-1, boundaries=(40, 80, 90, 200), values=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
        )
        c.segment.transfer = "matching"
    else:
        p.size, p.batch_size = 352, 24
        c.model.inpaint_head = "linear_replace"
        p.masks.update(alpha_use=1.0, hard_use=False)  # eq. 3 knows alpha = 1 only
        p.rounds.update(epochs=200, coach_steps=0, net_steps=0, warmup_random_rounds=0)
        p.loss.update(kind="ce", rec_weight=1.0)
        p.kld_weight = 0.0
        p.net_optim = common.optimizer("sgd", weight_decay=5e-4)
        p.net_schedule = common.schedule("constant", 1e-2)
    p.eval_every = 20
