"""The systems of the paper's Tables I and II, and ours, compared on the same slices.

    infnet-jax study --config=configs/study.py            # phantom, two cores, minutes
    infnet-jax study --config=configs/study.py:semiseg --config.data.manual_dir=DIR

Rows marked "aug" add what the paper names: flips, crops and a cutout of that share of the image;
the others see each slice as it is. They are trained for the same number of steps and evaluated
without test-time averaging. What pre-training and its coach are worth with fewer labels is asked
of the plain rows. "Ours" is the full recipe of `configs/common.py`. "Lite" is preset lite of
`configs/supervised.py`, with ImageNet weights, larger slices and more steps: no comparison of
methods, but the best single network that we have.

Presets:
    demo (the default)  one seed of most rows on `phantom`, to see what a study leaves
    semiseg             COVID-SemiSeg on two cores, 176 x 176 (multi-class 128 x 128), for a night;
                        its row lite needs the extra `pretrained`
    tiny                for tests
"""

from ml_collections import ConfigDict

from configs import common, multi, multi_selfsup, selfsup, supervised

PRESETS = ("demo", "semiseg", "tiny")
PAPER = {  # Tables I and II: (loss, Dice), single and multi; the paper leaves the others empty
    "sinfnet": ((0.60, 0.26), (0.93, 0.12)),
    "aug40": ((0.67, 0.31), (2.74, 0.66)),
    "aug50": ((0.65, 0.30), ()),
    "selfsup": ((0.67, 0.31), ()),
    "selfsup_aug": ((0.71, 0.34), ()),
}
TITLES = {
    "sinfnet": "SInfNet",
    "aug40": "SInfNet + aug (0.4)",
    "aug50": "SInfNet + aug (0.5)",
    "selfsup": "Self-super",
    "selfsup_aug": "Self-super + aug",
}


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown: choose {', '.join(PRESETS)}")
    c = ConfigDict()
    c.data = ConfigDict(dict(data_dir="", manual_dir=""))
    c.folds = 0  # from 2 on: cross-validation in the training split, the test split unread
    # Sets of test slices that the tables are also made without, by id: 91 and 93 are near-copies
    # of training slices 17 and 5; 21 and 97 look like the patients of 53 and 33 on other days.
    c.leaking = (("91", "93"), ("21", "91", "93", "97")) if preset == "semiseg" else ()
    c.bases = ConfigDict(
        dict(
            supervised=_base(supervised, preset),
            selfsup=_base(selfsup, preset),
            multi=_base(multi, preset),
            multi_selfsup=_base(multi_selfsup, preset),
        )
    )
    seeds = {"demo": ((0,), (0,)), "semiseg": ((0, 1, 2, 3, 4), (0, 1, 2)), "tiny": ((0,), ())}
    budgets = {"demo": (12, 0), "semiseg": (10, 25, 0), "tiny": (4, 0)}[preset]
    single, several = seeds[preset]
    c.rows = ConfigDict()
    for name, figures in PAPER.items():
        labels = budgets if name in ("sinfnet", "selfsup") else (0,)
        _add(c, name, "segment", single, labels, figures[0])
        if several:
            _add(c, f"multi_{name}", "multi", several, (0,), figures[1])
    ours = dict(
        evaluate=dict(tta=True),
        segment=dict(
            ema_decay=0.99,
            augmentation=common.augmentation(
                rotate_degrees=20.0,
                scale=(0.75, 1.35),
                gamma=0.3,
                contrast=0.2,
                noise=0.03,
                crop=(0.0, 1.0),
            ).to_dict(),
        ),
    )
    no_coach = dict(pretrain=dict(rounds=dict(use_coach=False)))
    _row(
        c,
        "selfsup_random",
        "Self-super, random masks",
        "selfsup",
        no_coach,
        single,
        budgets,
        against="selfsup",
    )
    _row(c, "scratch", "Ours, from scratch", "supervised", ours, single, (0,))
    _row(c, "ours", "Ours", "selfsup", ours, single, (0,), against="scratch")
    if several:
        both = dict(ours, multi=ours["segment"])
        _row(c, "multi_scratch", "Ours, from scratch, multi", "multi", both, several, (0,))
        _row(
            c,
            "multi_ours",
            "Ours, multi",
            "multi_selfsup",
            both,
            several,
            (0,),
            against="multi_scratch",
        )
    if preset == "semiseg":
        c.bases.lite = supervised.get_config("lite")
        c.bases.lite.data.name = c.bases.supervised.data.name
        _row(c, "lite", "Lite, ImageNet weights", "lite", {}, single, (0,))
    names = (*PAPER, "scratch", "ours")
    c.run = {  # which rows, in this order
        "tiny": ("sinfnet", "selfsup", "selfsup_aug"),
        "demo": (*names, "multi_sinfnet", "multi_selfsup"),
        "semiseg": (*names, "selfsup_random", "lite", *(f"multi_{name}" for name in names)),
    }[preset]
    return c


def _base(file, preset: str) -> ConfigDict:
    """A base of the paper's rows: the preset of a config, its slices as they are."""
    c = file.get_config(preset)
    c.data.name = c.data.name.replace("/binary", "/multiclass")  # one dataset: stages are shared
    c.evaluate.tta = False
    size, steps = {"demo": (96, 120), "semiseg": (176, 200), "tiny": (32, 4)}[preset]
    if preset == "semiseg":  # ninety cells: half the batch and narrow, minutes of one core each
        c.model.width, c.segment.batch_size = 16, 4
        if "multi" in c:  # its rows train three networks each
            size, steps = 128, 150
            c.multi.batch_size, c.multi.net.width = 4, 16
    sections = [c.segment] + ([c.multi] if "multi" in c else [])
    for section in sections:
        section.update(size=size, steps=steps, eval_every=steps, validation=0, ema_decay=0.0)
        section.augmentation = common.augmentation(flip_h=0.0, flip_v=0.0, quarter_turns=False)
        section.augmentation.crop = (0.0, 1.0)
    if "multi" in c:
        c.prior.folds = 2
        c.multi.steps *= 2
    for name in ("pretrain", "pretrain_multi"):
        if name in c and preset != "tiny":
            c[name].rounds.epochs = 3 if preset == "demo" else 5
            if preset == "demo" or name == "pretrain_multi":
                c[name].update(size=96, batch_size=8)
    return c


def _add(c, name: str, section: str, seeds: tuple, labels: tuple, figures: tuple) -> None:
    """A row of the paper, `section` is what it trains last."""
    kind, of_multi = name.removeprefix("multi_"), section == "multi"
    changes = {}
    if "aug" in kind:
        cutout = 0.4 if kind == "aug40" else 0.5
        changes[section] = dict(
            augmentation=dict(
                flip_h=0.5, flip_v=0.5, crop=(0.5, 0.8), cutout=cutout, cutout_mode="area"
            )
        )
    base = "selfsup" if kind.startswith("selfsup") else "supervised"
    if of_multi:
        base = "multi_selfsup" if base == "selfsup" else "multi"
    _row(
        c,
        name,
        TITLES[kind] + (", multi" if of_multi else ""),
        base,
        changes,
        seeds,
        labels,
        against="" if kind == "sinfnet" else "multi_sinfnet" if of_multi else "sinfnet",
        figures=figures,
    )


def _row(
    c,
    name: str,
    title: str,
    base: str,
    changes: dict,
    seeds: tuple,
    labels: tuple,
    against: str = "",
    figures: tuple = (),
) -> None:
    """A row: its base, what it changes, its seeds and label budgets (0: all), its reference."""
    loss, dice = figures or (float("nan"), float("nan"))
    c.rows[name] = ConfigDict(
        dict(
            title=title,
            base=base,
            set=changes,
            seeds=seeds,
            labels=labels,
            against=against,
            paper_loss=loss,
            paper_dice=dice,
        )
    )
