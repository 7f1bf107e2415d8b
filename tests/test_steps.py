"""Two steps of every task on a tiny network: losses and gradients as they were recorded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infnet_jax.tasks import augment, inpaint, mean_teacher, rotation, supervised
from tests.toy import infection, lesions

SIZE = 32
RNG = np.random.default_rng(0)
MASK = np.kron(RNG.integers(0, 3, (4, 4, 4, 1)), np.ones((1, 8, 8, 1))).astype(np.uint8)
BATCH = {
    "image": (60 * MASK + RNG.integers(0, 99, MASK.shape)).astype(np.uint8),
    "mask": MASK,
    "prior": (100 * (MASK > 0) + RNG.integers(0, 99, MASK.shape)).astype(np.uint8),
    "unlabelled": RNG.integers(0, 255, MASK.shape).astype(np.uint8),
}
MOVES = dict(
    rotate_degrees=20.0, scale=(0.8, 1.25), cutout=0.3, gamma=0.3, contrast=0.2, noise=0.03
)


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        return [nn.relu(nn.BatchNorm(not train, name="bn")(x))]


class Net(nn.Module):
    """Every head that the tasks know, on one convolution."""

    classes: int = 1

    def setup(self):
        self.trunk = Trunk()
        self.maps = {name: nn.Conv(1, (3, 3)) for name in ("coarse", "s32", "s16", "s8", "edge")}
        self.logits = nn.Conv(3, (3, 3))
        self.fills = {name: nn.Conv(1, (3, 3)) for name in ("s8", "edge")}

    def __call__(self, x, *, train, head="segment"):
        x = self.trunk(x, train=train)[-1]
        maps = {name: conv(x) for name, conv in self.maps.items()}
        fills = {name: jnp.tanh(conv(x)) for name, conv in self.fills.items()}
        logits = {"logits": self.logits(x)}
        return fills if head == "inpaint" else maps if self.classes == 1 else logits


class Coach(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, key=None):
        x = nn.avg_pool(Trunk(name="trunk")(x, train=train)[-1], (16, 16), (16, 16))
        mu, logvar = nn.Dense(8, name="mu")(x), nn.Dense(8, name="logvar")(x)
        z = mu if key is None else mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
        return {"score": nn.Dense(1, name="score")(z), "mu": mu, "logvar": logvar}


NORM = augment.Norm((0.4,), (0.25,), (0.25,))
SGD = optax.sgd(0.1, momentum=0.9)
SUPERVISED = dict(
    size=SIZE,
    scales=(1.0, 2.0),
    steps=4,
    augmentation=MOVES,
    tx=SGD,
    schedule=lambda step: 0.1,
    ema_decay=0.9,
)


def pretext(kind):
    shared = dict(net=Net(), norm=NORM, size=SIZE, augmentation=MOVES)
    if kind == "rotation":
        return rotation.Rotation(
            steps=4, tx=SGD, schedule=lambda step: 0.1, with_prior=True, **shared
        ).task()
    return inpaint.Inpainting(
        coach=Coach(),
        rounds=[("coach", 1), ("net", 1)],
        n_random=0,
        masks=inpaint.Masks(),
        loss={},
        net_tx=SGD,
        coach_tx=SGD,
        random_share=0.5,
        sample_use=True,
        kld_weight=1e-3,
        coach_grad="through_net",
        **shared,
    ).task()


def supervised_task(target):
    return supervised.Supervised(Net(target.channels), target, NORM, **SUPERVISED).task()


def taught():
    settings = dict(SUPERVISED, weight=2.0, ramp_steps=3)
    return mean_teacher.MeanTeacher(Net(), infection(), NORM, **settings).task()


RECORDED = {"coach": ("coach_loss", "coach_grad"), "net": ("loss", "net_grad")}


# Of each of two steps the loss and the norm of the gradient.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "phase", "expected"),
    [
        (
            lambda: supervised_task(infection()),
            "size64",
            [6.70990419, 2.80682325, 6.04907751, 1.79420352],
        ),
        (
            lambda: supervised_task(infection(kind="structure_as_run")),
            "size32",
            [6.54072285, 2.34541631, 6.05106688, 1.66040754],
        ),
        (
            lambda: supervised_task(lesions("input", "softmax", gamma=2.0, smoothing=0.1)),
            "size64",
            [1.31584489, 1.52653337, 1.14809799, 1.07329416],
        ),
        (
            lambda: supervised_task(lesions("average", "sigmoid")),
            "size32",
            [1.31267381, 0.46832639, 1.30620039, 0.376432598],
        ),
        (taught, "size32", [6.4446454, 2.37253499, 5.86622524, 1.7455101]),
        (lambda: pretext("inpaint"), "coach", [0.510637164, 0.227126792, 0.595824063, 0.160783708]),
        (lambda: pretext("inpaint"), "net", [0.369093269, 0.366460174, 0.325115412, 0.618766069]),
        (
            lambda: pretext("rotation"),
            "rotation",
            [1.35420489, 0.452786028, 1.33415258, 0.962626696],
        ),
    ],
)
def test_two_steps_give_the_recorded_numbers(make, phase, expected):
    task, found = make(), []
    state = task.start(task.variables(jax.random.key(1)))
    step = jax.jit(task.steps[phase])
    loss, grad = RECORDED.get(phase, ("loss", "grad"))
    for seed in range(2):
        state, metrics = step(state, BATCH, jax.random.key(seed))
        found += [float(metrics[loss]), float(metrics[grad])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
