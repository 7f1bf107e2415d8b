"""Checkpoints come back bit for bit, or are recognised as damaged and passed over."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from infnet_jax.runs.checkpoint import Checkpoints, load_parameters
from infnet_jax.runs.mesh import make_mesh, replicate

NAN = float("nan")
# The reader leaves futures of an event loop behind when it gives up on damaged files.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    coach: dict | None


def make_state(step, seed=0):
    draw = np.random.default_rng([seed, step])
    params = {
        "trunk": {"kernel": jnp.asarray(draw.normal(size=(64, 96)), jnp.float32)},
        "head": {"bias": jnp.asarray(draw.normal(size=3), jnp.bfloat16)},
    }
    return State(jnp.asarray(step, jnp.int32), params, optax.adam(1e-3).init(params), None)


def equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def stored(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def fill(folder, metrics, **options):
    """Offers one step per metric, from step 1."""
    with Checkpoints(folder, **({"save_every": 1} | options)) as checkpoints:
        for step, metric in enumerate(metrics, 1):
            checkpoints.offer(step, make_state(step), metric)


def flip(path, place=0.5):
    """Flips one bit at this fraction of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


def test_a_state_returns_bit_for_bit(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path, save_every=5) as checkpoints:
        assert checkpoints.restore(state) is None
        assert checkpoints.offer(3, state, force=True)
        for target in make_state(0, seed=9), jax.eval_shape(lambda: make_state(0)):
            back, step = checkpoints.restore(target)
            assert step == 3 and equal(back, state)


def test_the_offered_state_may_be_donated_at_once(tmp_path):
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(1500, 1500)), jnp.float32)}
    before = np.array(state["w"])
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, save_every=1) as checkpoints:
        checkpoints.offer(1, state)
        back, _ = checkpoints.restore(advance(advance(state)))
    np.testing.assert_array_equal(back["w"], before)


def test_saves_fall_on_the_interval_and_on_a_new_best(tmp_path):
    with Checkpoints(tmp_path, save_every=3) as checkpoints:
        saved = [step for step in range(11) if checkpoints.offer(step, make_state(step))]
        assert saved == [3, 6, 9]
        assert checkpoints.offer(10, make_state(10), force=True)
        assert not checkpoints.offer(10, make_state(10), force=True)  # stored already
    assert stored(tmp_path) == [9, 10]
    metrics = [0.3, 0.2, NAN, 0.4, 0.4]
    with Checkpoints(tmp_path / "best", save_every=100) as checkpoints:  # a new best is saved too
        saved = [s for s, m in enumerate(metrics, 1) if checkpoints.offer(s, make_state(s), m)]
    assert saved == [1, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "metrics"),  # the second is the best
    [
        ("max", [0.2, 0.9, 0.3, 0.4, 0.5]),
        ("min", [0.2, 0.1, 0.3, 0.4, 0.5]),
        ("max", [NAN, 0.1, NAN, NAN, NAN]),
        ("min", [NAN, 7.0, None, None, None]),
        ("max", [0.5, 0.5, 0.1, 0.1, 0.1]),
    ],
)
def test_the_best_outlives_the_newest(tmp_path, mode, metrics):
    fill(tmp_path, metrics, best_mode=mode)
    assert stored(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path, save_every=1, best_mode=mode) as checkpoints:  # as after a restart
        assert checkpoints.restore(make_state(0))[1] == 5
        checkpoints.offer(6, make_state(6))
    assert stored(tmp_path) == [2, 5, 6]
    assert load_parameters(tmp_path, "best")["step"] == 2


def test_without_a_mode_no_best_is_kept(tmp_path):
    fill(tmp_path, [0.9, 0.1, 0.1, 0.1], best_mode=None)
    assert stored(tmp_path) == [3, 4]
    with pytest.raises(FileNotFoundError, match="no checkpoint with a metric"):
        load_parameters(tmp_path)
    with pytest.raises(ValueError, match="best_mode 'higher'"):
        Checkpoints(tmp_path, save_every=1, best_mode="higher")


@pytest.mark.parametrize("place", [0.05, 0.3, 0.5, 0.9])
def test_a_flipped_byte_in_the_arrays_is_found_and_the_earlier_one_used(tmp_path, caplog, place):
    fill(tmp_path, [0.1, 0.2])
    largest = max((p for p in (tmp_path / "2").rglob("*") if p.is_file()), key=os.path.getsize)
    flip(largest, place)
    with pytest.raises(ValueError, match=str(tmp_path / "2")):
        load_parameters(tmp_path, "latest")
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, save_every=1) as checkpoints:
        state, step = checkpoints.restore(make_state(0))
        assert step == 1 and equal(state, make_state(1))
        assert str(tmp_path / "2") in caplog.text and "moved to damaged-2" in caplog.text
        assert load_parameters(tmp_path, "best")["step"] == 1
        assert checkpoints.offer(2, make_state(2), 0.2)  # the repeated step is stored again
        state, step = checkpoints.restore(state)
        assert step == 2 and equal(state, make_state(2))
    assert (tmp_path / "damaged-2").is_dir()


def test_a_swapped_value_is_found_by_the_digest_alone(tmp_path, caplog):
    """Files that are whole as Orbax sees them, but hold other numbers."""
    other = tmp_path / "other"
    fill(tmp_path / "here", [0.1, 0.2])
    with Checkpoints(other, save_every=1) as checkpoints:
        checkpoints.offer(2, make_state(2, seed=1))
    (tmp_path / "here" / "2" / "state").rename(tmp_path / "aside")
    (other / "2" / "state").rename(tmp_path / "here" / "2" / "state")
    with Checkpoints(tmp_path / "here", save_every=1) as checkpoints:
        assert checkpoints.restore(make_state(0))[1] == 1
    assert "differs from what was saved" in caplog.text


@pytest.mark.parametrize("name", ["manifest/metadata", "state/_METADATA", "state/manifest.ocdbt"])
@pytest.mark.parametrize("fault", [Path.unlink, lambda path: path.write_bytes(b""), flip])
def test_damage_beside_the_arrays_never_gives_wrong_weights(tmp_path, name, fault):
    fill(tmp_path, [0.2, 0.1])
    fault(tmp_path / "2" / name)
    with Checkpoints(tmp_path, save_every=1) as checkpoints:
        state, step = checkpoints.restore(make_state(0))
    assert equal(state, make_state(step))
    assert step == 1 or name.startswith("state")


def test_a_changed_score_in_the_manifest_is_not_believed(tmp_path):
    fill(tmp_path, [0.9, 0.2])
    path = tmp_path / "2" / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"score": 0.2', '"score": 1.2'))
    with pytest.raises(ValueError, match=f"{path}: damaged"):
        load_parameters(tmp_path, "best")
    with Checkpoints(tmp_path, save_every=1) as checkpoints:
        assert checkpoints.restore(make_state(0))[1] == 1
        (tmp_path / "1" / "manifest" / "metadata").unlink()
        assert checkpoints.restore(make_state(0)) is None  # nothing whole is left


def test_another_tree_is_refused_by_the_leafs_name(tmp_path):
    fill(tmp_path, [0.1])
    state = make_state(0)
    trunk, head = state.params["trunk"], state.params["head"]
    narrow, single = {"kernel": trunk["kernel"][:, :95]}, {"bias": head["bias"].astype(jnp.float32)}
    wrong = [
        (narrow, head, "kernel is stored as float32 [64, 96], the model needs float32 [64, 95]"),
        (trunk, single, "head/bias is stored as bfloat16 [3], the model needs float32 [3]"),
        (trunk, head | {"scale": head["bias"]}, "has no leaf params/head/scale"),
        (trunk, {}, "holds a leaf params/head/bias"),
    ]
    with Checkpoints(tmp_path, save_every=1) as checkpoints:
        for trunk, head, message in wrong:
            with pytest.raises(ValueError) as caught:
                checkpoints.restore(state.replace(params={"trunk": trunk, "head": head}))
            assert message in str(caught.value) and str(tmp_path / "1") in str(caught.value)
        assert checkpoints.restore(state)[1] == 1  # nothing was moved aside


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (8, 2)])
def test_restores_on_another_number_of_devices(tmp_path, before, after):
    state = make_state(4)
    old, new = (make_mesh(jax.devices()[:count]) for count in (before, after))
    with Checkpoints(tmp_path, save_every=4) as checkpoints:
        checkpoints.offer(4, replicate(state, old), 0.5)
    with Checkpoints(tmp_path, save_every=4) as checkpoints:
        back, _ = checkpoints.restore(replicate(make_state(0), new))
    assert equal(back, state)
    assert all(len(leaf.sharding.device_set) == after for leaf in jax.tree.leaves(back))


def test_sigterm_saves_at_the_next_offer(tmp_path):
    earlier = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path, save_every=100) as checkpoints:
        checkpoints.handle_sigterm()
        assert not checkpoints.offer(1, make_state(1)) and not checkpoints.preempted
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoints.offer(2, make_state(2)) and checkpoints.preempted
        assert stored(tmp_path) == [2]  # whole already, before anything waits
    assert signal.getsignal(signal.SIGTERM) is earlier


_VICTIM = """
import numpy as np
from infnet_jax.runs.checkpoint import Checkpoints
state = lambda step: {"w": np.random.default_rng(step).normal(size=2_000_000)}
checkpoints = Checkpoints(FOLDER, save_every=1)
checkpoints.offer(1, state(1))
checkpoints.wait()
print("FIRST", flush=True)
for step in range(2, 1000):
    checkpoints.offer(step, state(step))
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.03, 0.25])
def test_kill_in_mid_save_leaves_the_earlier_one_whole(tmp_path, delay):
    fill(tmp_path, [0.1])
    (tmp_path / "1").rename(tmp_path / "7.orbax-checkpoint-tmp")  # half written and stale
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    code = f"FOLDER = {str(tmp_path)!r}\n{_VICTIM}"
    victim = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert victim.stdout.readline() == b"FIRST\n"
    time.sleep(delay)
    victim.kill()
    victim.communicate()
    with Checkpoints(tmp_path, save_every=1) as checkpoints:
        state, step = checkpoints.restore({"w": np.zeros(2_000_000)})
        checkpoints.offer(step + 1, state)  # orbax has cleaned up once it can write
    np.testing.assert_array_equal(state["w"], np.random.default_rng(step).normal(size=2_000_000))
    assert all(path.name.isdigit() for path in tmp_path.iterdir())


def test_parameters_load_without_a_target(tmp_path):
    fill(tmp_path, [0.3, 0.9, 0.2])
    for part, step in (("best", 2), ("latest", 3)):
        tree = load_parameters(tmp_path, part)
        assert equal(tree["params"], jax.tree.map(np.asarray, make_state(step).params))
        assert tree["step"] == step and isinstance(tree["params"]["head"]["bias"], np.ndarray)
    with pytest.raises(ValueError, match="part 'newest' must be best or latest"):
        load_parameters(tmp_path, "newest")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_parameters(tmp_path / "nowhere", "latest")
