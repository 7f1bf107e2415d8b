"""What every run shares. Each section is the keyword arguments of one function."""

from ml_collections import ConfigDict

PRESETS = ("demo", "semiseg", "lite", "paper", "authors", "tiny")


def optimizer(name: str, **kwargs) -> ConfigDict:
    """Arguments of `state.make_optimizer`, all present so that each can be overridden."""
    base = dict(
        name=name,
        weight_decay=0.0,
        momentum=0.9,
        eps=1e-8,
        clip_value=0.0,
        clip_norm=0.0,
        lookahead_every=0,
        lookahead_rate=0.5,
    )
    return ConfigDict({**base, **kwargs})


def schedule(kind: str, lr: float, **kwargs) -> ConfigDict:
    """Arguments of `state.make_schedule` but for `total_steps`."""
    base = dict(
        schedule=kind,
        lr=lr,
        warmup_steps=0,
        decay_every=0,
        decay_rate=0.1,
        boundaries=(),
        values=(),
    )
    return ConfigDict({**base, **kwargs})


def augmentation(**kwargs) -> ConfigDict:
    """Arguments of `augment.augment`; nothing but flips and quarter turns unless asked."""
    base = dict(
        flip_h=0.5,
        flip_v=0.5,
        quarter_turns=True,
        rotate_degrees=0.0,
        scale=(1.0, 1.0),
        shift=0.0,
        cutout=0.0,
        cutout_mode="area",
        cutout_prob=1.0,
        gamma=0.0,
        contrast=0.0,
        brightness=0.0,
        noise=0.0,
        dense=0.0,
    )
    return ConfigDict({**base, **kwargs}, convert_dict=False)


def get_base() -> ConfigDict:
    """The two-core demonstration on `phantom`; presets change it."""
    c = ConfigDict()
    c.seed = 0
    c.dtype = "float32"  # compute; parameters, losses and statistics stay float32
    c.distributed = False  # True: let JAX find the processes of a TPU pod or a SLURM job
    c.stages = ("segment", "evaluate")
    # What the first training stage starts from: a folder from `infnet-jax import-torch`, or
    # "imagenet_lite0" (extra `pretrained`, for trunk efficientnet_lite0).
    c.weights = ""

    c.data = ConfigDict(
        dict(
            name="phantom",
            data_dir="",
            manual_dir="",
            target="infection",  # infection | lung
            train="train",
            test="test",
            # label budgets, each within the next: (10, 25) learns from 25 slices; () all
            labels=(),
            folds=0,
            fold=0,  # from 2 on: tested on this fold of the training split, by group
            # What `pretrain` trains on instead of pretrain.splits, such as
            # "covid_semiseg/binary:unlabeled + 2 * ictcf"; see docs/data.md
            pretrain="",
            norm="dataset",  # dataset | imagenet | tf | aerial_bgr; one for all stages
            channels=1,  # 3 repeats the grey slice, for ImageNet weights
        )
    )
    c.model = ConfigDict(
        dict(
            decoder="infnet",  # infnet | unet (the plain baseline)
            # resnet18 | resnet50 | res2net50 | vgg16 | efficientnet_lite0 | plain (unet only)
            trunk="resnet18",
            width=24,
            max_pool=False,  # of infnet: False doubles the resolution, for small slices
            inpaint_head="none",  # tanh_parallel (as coded) | linear_replace (as written) | none
        )
    )
    c.segment = ConfigDict(
        dict(
            splits=("train",),
            validation=0,
            patience=0,  # the demo has 60 slices: all are needed
            folds=0,  # from 2 on: one network a fold of the slices; the mean of their maps counts
            repeats=1,  # as many networks again, by the next seed, which deals the folds anew
            size=128,
            batch_size=8,
            scales=(1.0,),
            steps=570,
            eval_every=60,
            loss=dict(
                kind="structure",  # structure | structure_as_run | focal
                lambda_bce=1.0,
                edge_weight=1.0,
                alpha=1.0,
                gamma=2.0,
            ),
            ema_decay=0.99,
            transfer="all_but_last",  # all_but_last | matching | encoder
        )
    )
    c.segment.augmentation = augmentation(
        rotate_degrees=20.0, scale=(0.75, 1.35), gamma=0.3, contrast=0.2, noise=0.03
    )
    c.segment.optim = optimizer("adamw", weight_decay=1e-2, eps=1e-6, clip_norm=5.0)
    c.segment.schedule = schedule("cosine", 2e-3, warmup_steps=20)
    c.evaluate = ConfigDict(
        dict(
            tta=True,
            batch_size=8,
            threshold=0.5,
            scales=(
                1.0,
            ),  # (0.75, 1.0, 1.25): the mean over the sizes of training, thrice the work
            choose_threshold=False,  # True: the best on slices unseen in training, one a class
        )
    )
    return c


def published(c: ConfigDict) -> None:
    """The settings that the paper and its authors share, at 352 x 352, for a GPU or TPU."""
    c.data.name, c.data.channels = "covid_semiseg/binary", 3
    c.model.trunk, c.model.width, c.model.max_pool = "resnet50", 64, True
    s = c.segment
    s.size, s.scales, s.validation = 352, (0.75, 1.0, 1.25), 5
    s.ema_decay = 0.0
    s.optim = optimizer("adam", clip_value=0.5)
    c.evaluate.tta = False


def semiseg(c: ConfigDict) -> None:
    """Real slices at a size that two cores train in about an hour."""
    c.data.name = "covid_semiseg/binary"
    s = c.segment
    s.size, s.steps, s.eval_every, s.validation = 224, 1500, 100, 0


def lite(c: ConfigDict) -> None:
    """Real slices, a U-Net on a light trunk from ImageNet weights; needs the extra `pretrained`."""
    c.data.name, c.data.norm, c.data.channels = "covid_semiseg/binary", "tf", 3
    c.weights = "imagenet_lite0"
    c.model.update(decoder="unet", trunk="efficientnet_lite0", width=24)
    s = c.segment
    s.size, s.steps, s.eval_every, s.validation = 256, 700, 100, 0


def tiny(c: ConfigDict) -> None:
    """Seconds on a CPU, for tests: every mechanism, no quality."""
    c.data.name = "phantom/tiny"
    c.model.width = 8
    s = c.segment
    s.size, s.batch_size, s.steps, s.eval_every, s.validation = 64, 8, 8, 4, 2
    s.schedule.warmup_steps = 2


def unknown_preset(preset: str, known: tuple[str, ...] = PRESETS) -> ValueError:
    """The error for a preset that does not exist."""
    return ValueError(f"preset {preset!r} is unknown: choose {', '.join(known)}")
