"""Devices: one mesh axis, `data`, and the few moves that put host arrays onto it."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (of all processes), or of those given, along the axis `data`."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto: XLA derives the shardings inside a jitted step from those of its inputs.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of every leaf on every device; all processes must hold equal values."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins the rows of all processes, here [b, ...], into global arrays [b * processes, ...].

    Process 0's rows come first; the leading axis, split over the devices, divides by their number.
    """
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    return {name: jax.make_array_from_process_local_data(split, x) for name, x in batch.items()}


def check_batch(batch_size: int, mesh: Mesh, key: str = "batch_size") -> None:
    """Raises a ValueError, with `key` and legal values, unless the devices can share a batch."""
    count = mesh.shape[AXIS]
    if batch_size <= 0 or batch_size % count:
        below = max(batch_size, 0) // count * count
        legal = f"{below} or {below + count}" if below else f"{count}"
        raise ValueError(f"{key} = {batch_size} does not divide over {count} devices: use {legal}")


def initialise_distributed(autodetect: bool = False) -> None:
    """Joins the other processes of a run before any device is touched; alone, does nothing.

    With `autodetect` JAX finds the processes itself (Cloud TPU, SLURM, Open MPI). Without it a run
    is distributed if JAX_NUM_PROCESSES is above 1 or JAX_COORDINATOR_ADDRESS (host:port) is set;
    then both and JAX_PROCESS_ID are needed, and a ValueError names what is missing or wrong.
    """
    if jax.distributed.is_initialized():
        return
    if autodetect:
        jax.distributed.initialize()
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = values = [os.environ.get(name, "") for name in names]
    if not address and count in ("", "0", "1"):
        return
    counted = count.isdigit() and int(count) > 0
    right = (":" in address, counted, counted and index.isdigit() and int(index) < int(count))
    if not all(right):
        wrong = right.index(False)
        raise ValueError(
            f"environment {names[wrong]} = {values[wrong]!r}: a run of several processes needs "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES=n and JAX_PROCESS_ID=0..n-1"
        )
    jax.distributed.initialize(address, int(count), int(index))


def first_process_first(work: Callable[[], T]) -> T:
    """Runs `work` on the first process, then on the others, so that one writes and all can read."""
    if first := jax.process_index() == 0:
        result = work()
    multihost_utils.sync_global_devices("first process done")
    return result if first else work()
