"""Eight faked CPU devices, kept compilations, and the real data where it is at hand."""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[1]

# All of this must stand before jax is imported, and reaches subprocesses too.
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs run for a few steps only: half the compilation time is worth more than fast code.
QUICK = "--xla_backend_optimization_level=0"
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", ""), QUICK, "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """The version folder of the prepared `phantom/tiny`; nobody may change it."""
    import tfds_builders

    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="session")
def finished_run(phantom, tmp_path_factory) -> Path:
    """The workdir of a finished run of `configs/supervised.py:tiny`; nobody may change it."""
    from configs import supervised
    from infnet_jax.training import run

    workdir = tmp_path_factory.mktemp("finished") / "run"
    run(
        supervised.get_config("tiny"),
        workdir=workdir,
        dataset=phantom,
        name="supervised:tiny",
        command="python main.py --config=configs/supervised.py:tiny",
    )
    return workdir


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference outputs; skips where it is absent."""
    path = Path(os.environ.get("INFNET_SHARED", _ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no shared data (set INFNET_SHARED)")
    return path
