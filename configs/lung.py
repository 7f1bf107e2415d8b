"""Lungs instead of lesions: the network of `configs/supervised.py` on a dataset's lung masks.

    python main.py --config=configs/lung.py            # phantom, two cores
    python main.py --config=configs/lung.py:folders --config.data.manual_dir=DIR

The run's workdir is what `infnet-jax predict --lungs` takes. Presets:
    demo (the default)  the procedural `phantom` dataset
    folders             your own slices with lung masks (see `tfds_builders/folders/README.md`):
                        cross-validated by group, then trained on all of them
    lite                the same, a U-Net on a light trunk from ImageNet weights; needs the extra
                        `pretrained`
    tiny                seconds, for tests
"""

from ml_collections import ConfigDict

from configs import common

PRESETS = ("demo", "folders", "lite", "tiny")


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown: choose {', '.join(PRESETS)}")
    c = common.get_base()
    c.data.target = "lung"
    s = c.segment
    # Lungs are large and dark: fewer steps than lesions, and grey levels of many windows.
    s.steps, s.augmentation.contrast, s.augmentation.brightness = 240, 0.3, 0.1
    if preset == "tiny":
        common.tiny(c)
    elif preset in ("folders", "lite"):
        c.data.name, c.data.test = "folders", "train"
        c.stages = ("cross_validation", "segment")
        c.cross_validation = ConfigDict(dict(folds=5, repeats=1))
        s.size, s.steps, s.eval_every, s.validation = 144, 300, 100, 0
        s.augmentation.scale = (0.5, 1.3)  # lungs fill a cropped picture, and half of a whole one
        s.augmentation.dense = 0.7  # dense lesions at the wall are lung too, and few slices show it
        if preset == "lite":
            common.lite(c)
            c.data.name, s.size, s.steps = "folders", 256, 400
            c.evaluate.threshold = 0.43  # a rim too much costs less than a lesion at the wall
    return c
