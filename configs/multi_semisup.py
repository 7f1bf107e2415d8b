"""Semi-supervised three classes: the network learns infection from unlabelled slices first.

    python main.py --config=configs/multi_semisup.py            # phantom, two cores
    python main.py --config=configs/multi_semisup.py:lite --config.data.manual_dir=DIR

Stages: `prior` as in `configs/multi.py`; `semi` as in `configs/semisup.py`, for a single-class
network of the same kind; `multi` starts from what that has learned from pseudo-labels alone. It
sees the slice, and its answer is averaged with the prior. A choice of this project: Semi-Inf-Net
takes its prior from the semi-supervised network instead, and trains the second one afresh.
Presets: demo (the default), semiseg, lite, tiny; see `configs/selfsup.py`.
"""

from ml_collections import ConfigDict

from configs import common, multi, semisup

PRESETS = ("demo", "semiseg", "lite", "tiny")


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset: that of `multi.py`, with the unlabelled slices in front."""
    if preset not in PRESETS:
        raise common.unknown_preset(preset, PRESETS)
    c = multi.get_config(preset)
    c.stages = ("prior", "semi", "multi", "evaluate")
    c.semi = semisup.get_config(preset).semi
    c.multi.prior_use = "average"
    if preset in ("semiseg", "lite"):
        c.multi.steps = 600
    for key in ("decoder", "trunk", "width"):  # one starts from the other
        c.model[key] = c.multi.net[key]
    return c
