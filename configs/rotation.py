"""Self-supervision by rotation, the paper's other pretext: which quarter turn did a slice get?

    python main.py --config=configs/rotation.py            # phantom, two cores
    python main.py --config=configs/rotation.py:semiseg --config.data.manual_dir=DIR

Stages: `pretrain` trains the trunk to tell quarter turns, for as many updates as the network of
`configs/selfsup.py` gets; `segment` starts from that trunk; `evaluate`. There is no coach.
Presets: demo (the default), semiseg, lite, paper, authors, tiny; see `configs/selfsup.py`.
"""

from ml_collections import ConfigDict

from configs import selfsup

STEPS = {"demo": 150, "semiseg": 384, "lite": 384, "tiny": 6, "paper": 400, "authors": 1200}
SHARED = ("splits", "validation", "size", "batch_size", "eval_every", "augmentation", "net_optim")


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset: that of `selfsup.py` with another pretext."""
    c = selfsup.get_config(preset)
    inpainting = c.pretrain
    c.pretrain = ConfigDict({name: inpainting[name] for name in SHARED})
    c.pretrain.net_schedule = inpainting.net_schedule
    c.pretrain.update(pretext="rotation", steps=STEPS[preset])
    c.model.inpaint_head = "none"
    del c.coach
    return c
