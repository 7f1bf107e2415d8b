"""Devices: one mesh axis, `data`, and the few moves that put host arrays onto it."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (of all processes), or of those given, along the axis `data`.

    The axis is `Auto`: XLA derives the shardings inside a jitted step from those of its inputs.
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: the leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of every leaf on every device; all processes must hold equal values."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins this process's rows with the other processes' into global arrays.

    Args:
      batch: arrays [b, ...] of this process's rows; b * processes must divide by the devices.
      mesh: as made by `make_mesh`.

    Returns:
      Arrays [b * processes, ...], split on their leading axis, process 0's rows first.
    """
    sharding = split_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def check_batch(batch_size: int, mesh: Mesh, key: str = "batch_size") -> None:
    """Refuses a global batch size that the mesh's devices cannot share evenly.

    Raises:
      ValueError: naming the config key, the value, the device count and the nearest legal values.
    """
    count = mesh.shape[AXIS]
    if batch_size > 0 and batch_size % count == 0:
        return
    below = max(batch_size, 0) // count * count
    legal = f"{below} or {below + count}" if below else f"{count}"
    raise ValueError(f"{key} = {batch_size} does not divide over {count} devices: use {legal}")


def initialise_distributed(autodetect: bool = False) -> None:
    """Joins the other processes of a run before any device is touched; alone, does nothing.

    Args:
      autodetect: let JAX find the processes itself (Cloud TPU, SLURM, Open MPI). Without it the
        run is distributed if JAX_NUM_PROCESSES is above 1 or JAX_COORDINATOR_ADDRESS is set; then
        JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID are all needed.

    Raises:
      ValueError: some of the variables are missing or no whole numbers.
    """
    if jax.distributed.is_initialized():
        return
    if autodetect:
        jax.distributed.initialize()
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = os.environ.get("JAX_NUM_PROCESSES", "")
    index = os.environ.get("JAX_PROCESS_ID", "")
    if not address and count in ("", "0", "1"):
        return
    for name, value, right in (
        ("JAX_COORDINATOR_ADDRESS", address, ":" in address),
        ("JAX_NUM_PROCESSES", count, count.isdigit() and int(count) > 0),
        ("JAX_PROCESS_ID", index, index.isdigit() and count.isdigit() and int(index) < int(count)),
    ):
        if not right:
            raise ValueError(
                f"environment {name} = {value!r}: a run of several processes needs "
                "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES=n and JAX_PROCESS_ID=0..n-1"
            )
    jax.distributed.initialize(address, int(count), int(index))


def first_process_first(work: Callable[[], T]) -> T:
    """Runs `work` on the first process, then on the others, so that one writes and all can read."""
    if jax.process_count() == 1:
        return work()
    from jax.experimental import multihost_utils

    if first := jax.process_index() == 0:
        result = work()
    multihost_utils.sync_global_devices("first process done")
    return result if first else work()
