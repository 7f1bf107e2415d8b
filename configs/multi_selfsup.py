"""Self-supervised multi-class segmentation: both networks inpaint before they learn to segment.

    python main.py --config=configs/multi_selfsup.py            # phantom, two cores
    python main.py --config=configs/multi_selfsup.py:semiseg --config.data.manual_dir=DIR

Stages: `pretrain` and `prior` as in `configs/selfsup.py` and `configs/multi.py`; `pretrain_multi`
plays Algorithm 1 on slice and prior, erased together; `multi` starts from it.
Presets: demo (the default), semiseg, lite, paper, authors, tiny; see `configs/selfsup.py`.
"""

from ml_collections import ConfigDict

from configs import multi, selfsup


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of a preset: that of `multi.py`, with pre-training in front of each network."""
    c, pretraining = multi.get_config(preset), selfsup.get_config(preset)
    c.stages = ("pretrain", "prior", "pretrain_multi", "multi", "evaluate")
    c.coach, c.pretrain = pretraining.coach, pretraining.pretrain
    c.model.inpaint_head = c.multi.net.inpaint_head = pretraining.model.inpaint_head
    p = c.pretrain_multi = c.pretrain.copy_and_resolve_references()
    p.splits = ("train",)  # each further split needs its place in prior.splits
    p.loss.context_heads = "all"  # its network has one
    if preset in ("demo", "semiseg", "lite"):
        p.validation, p.size = 12, c.multi.size
    return c
