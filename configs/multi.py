"""Background, ground-glass opacity, consolidation: a U-Net fed the slice and a single-class prior.

    python main.py --config=configs/multi.py            # phantom, two cores, minutes
    python main.py --config=configs/multi.py:semiseg --config.data.manual_dir=DIR

Stages: `prior` trains the single-class network of `configs/supervised.py` once a fold, so that each
training slice gets the map of a network that has not seen it; `multi` trains on slice and prior.
Preset lite averages the two, since ImageNet weights have no channel for a prior: its network sees
the slice alone, and how likely a lesion is at all is the mean of what both say. With
`--config.multi.folds=3 --config.multi.from_prior=True` each of its networks starts from one of
`prior`, which knows lesions already: without ImageNet weights half the steps are enough.
Presets: demo (the default), semiseg, lite, paper, authors, tiny; see `configs/selfsup.py`.
"""

from ml_collections import ConfigDict

from configs import common, supervised


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset: that of `supervised.py`, its network made the prior."""
    c = supervised.get_config(preset)
    c.stages = ("prior", "multi", "evaluate")
    c.data.name = c.data.name.replace("/binary", "/multiclass")
    c.prior = ConfigDict(
        dict(
            kind="crossfit",  # crossfit | truth (an upper bound: nobody has it at test time)
            folds=3,
            repeats=1,
            splits=(),  # further splits that get a prior, such as "unlabeled"
        )
    )
    m = c.multi = c.segment.copy_and_resolve_references()
    m.with_prior = True  # False: the slice alone
    m.prior_use = "input"  # input (paper) | average: into the map instead of into the network
    m.from_prior = False  # True: each network starts from the prior's that left out the same fold
    m.net = ConfigDict(
        dict(
            kind="unet",  # unet | fcn8s | unet_lite0 (its `weights` have no channel for a prior)
            width=24,
            improved=False,
            inpaint_head="none",
        )
    )
    m.loss = ConfigDict(
        dict(
            head="softmax",  # softmax | sigmoid (public code)
            gamma=0.0,  # 2: focal
            smoothing=0.0,
            dice_weight=1.0,  # the public code has no Dice term: 0
        )
    )
    if preset == "demo":
        c.segment.steps = 150
        m.update(steps=240, eval_every=60, validation=12)
        c.prior.folds = 2
    elif preset == "semiseg":
        c.segment.update(size=144, steps=500)
        m.update(size=144, steps=1200)
    elif preset == "lite":
        m.update(prior_use="average", steps=800)
        m.net.kind = "unet_lite0"
    elif preset == "tiny":
        c.prior.folds, m.net.width = 2, 4
    else:
        m.net.update(width=64, improved=preset == "authors")
        m.loss.update(head="sigmoid", dice_weight=0.0)
        m.optim = common.optimizer("sgd", momentum=0.7)
        m.schedule = common.schedule("constant", 1e-2)
        m.batch_size, m.scales = 12, (1.0,)
        m.steps, m.eval_every = 500 * 4, 5 * 4  # 45 slices are four batches
    return c
