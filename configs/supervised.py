"""Inf-Net from scratch, the baseline without pre-training.

    python main.py --config=configs/supervised.py            # phantom, two cores, minutes
    python main.py --config=configs/supervised.py:semiseg --config.data.manual_dir=DIR
    python main.py --config=configs/supervised.py --config.model.decoder=unet \
        --config.model.trunk=plain   # the plain U-Net

Presets: demo (the default), semiseg, lite, paper, authors, tiny; see `configs/selfsup.py`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset."""
    c = common.get_base()
    if preset == "demo":
        return c
    if preset in ("semiseg", "lite", "tiny"):
        getattr(common, preset)(c)
        return c
    if preset not in common.PRESETS:
        raise common.unknown_preset(preset)
    common.published(c)
    s = c.segment
    per_epoch = 3 * -(-45 // (8 if preset == "authors" else 24))  # three sizes a batch
    if preset == "authors":  # what their public code runs
        s.batch_size, s.steps = 8, 200 * per_epoch
        s.loss.kind = "structure_as_run"
        s.schedule = common.schedule("step_compounded", 1e-4, decay_every=50 * per_epoch)
        s.augmentation = common.augmentation(
            quarter_turns=False, cutout=0.5, cutout_mode="max_side"
        )
        s.augmentation.crop = (0.5, 0.8)
    else:  # the paper: "the default model and hyper-parameters from the Inf-Net code"
        c.model.trunk = "res2net50"
        s.batch_size, s.steps = 24, 100 * per_epoch
        s.schedule = common.schedule("step", 1e-4, decay_every=50 * per_epoch)
        s.augmentation = common.augmentation(cutout=0.5, cutout_mode="area")
        s.augmentation.crop = (0.5, 0.8)
    s.eval_every = 5 * per_epoch
    return c
