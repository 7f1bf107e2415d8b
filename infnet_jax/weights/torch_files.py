"""Reads PyTorch weight files (`.pth`, `.pt`) without PyTorch and without running what is in them.

Such a file is a pickle that names storages, and the storages' bytes: in a zip archive (since
PyTorch 1.6) or one behind the other. The pickle may call nothing but the few constructors of
tensors and ordered dictionaries named here.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_KINDS = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4"}
_KINDS |= {"Short": "<i2", "Char": "<i1", "Byte": "<u1", "Bool": "?"}


class _Tensor(NamedTuple):
    """A tensor before its storage is read; places and strides in elements."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: str, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_CONSTRUCTORS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", f"{kind}Storage"): dtype for kind, dtype in _KINDS.items()},
}


class _Unpickler(pickle.Unpickler):
    """Notes which storages the tensors lie in, and refuses everything else."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self.storages: dict[str, tuple[str, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")
        return _CONSTRUCTORS[module, name]

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("it holds something other than whole storages")
        self.storages[str(key)] = (str(dtype), int(count))
        return str(key)


def load(path: Path) -> Arrays:
    """The tensors of a state dict (or of its "state_dict") by name, own types, torch's layouts.

    Raises:
      ValueError: no PyTorch file, a damaged one, one that holds no state dict, or one whose
        pickle asks for anything but tensors.
    """
    try:
        content, storages = (_read_zip if zipfile.is_zipfile(path) else _read_legacy)(path)
    except Exception as error:  # a damaged pickle raises many types
        raise ValueError(f"{path}: not a readable PyTorch weight file ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = list(content.values()) if isinstance(content, dict) else []
    if not tensors or not all(isinstance(tensor, _Tensor) for tensor in tensors):
        raise ValueError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return {str(k): _array(path, k, v, storages[v.storage]) for k, v in content.items()}


def _array(path: Path, name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """The tensor's view of its storage (one axis), copied."""
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, storage.dtype)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    negative = min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0
    if negative or tensor.offset + last >= len(storage):
        raise ValueError(f"{path}: tensor {name} reaches past its storage; the file is damaged")
    strides = [s * storage.itemsize for s in tensor.strides]
    start = storage[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides).copy()


def _storages(found: Mapping[str, tuple[str, int]], read: Callable[[str, int], bytes]) -> Arrays:
    """Arrays of all storages; `read` gives so many bytes of the one with a key."""
    arrays = {}
    for key, (dtype, count) in found.items():
        size = count * np.dtype(dtype).itemsize
        if len(content := read(key, size)) != size:
            raise ValueError(f"storage {key} has {len(content)} bytes, should have {size}")
        arrays[key] = np.frombuffer(content, dtype)
    return arrays


def _read_zip(path: Path) -> tuple[Any, Arrays]:
    with zipfile.ZipFile(path) as archive:
        (index,) = (n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        unpickler = _Unpickler(io.BytesIO(archive.read(index)))
        content = unpickler.load()

        def read(key: str, size: int) -> bytes:
            with archive.open(f"{folder}data/{key}") as file:
                return file.read(size)

        return content, _storages(unpickler.storages, read)


def _read_legacy(path: Path) -> tuple[Any, Arrays]:
    """Magic number, version, machine, content, storages' keys; then each one's count and bytes."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise ValueError("the magic number of PyTorch files is missing")
        _Unpickler(file).load()
        if not _Unpickler(file).load().get("little_endian", True):
            raise ValueError("its numbers are big-endian")
        unpickler = _Unpickler(file)
        content = unpickler.load()
        keys, found = [str(key) for key in _Unpickler(file).load()], unpickler.storages
        if sorted(keys) != sorted(found):
            raise ValueError("its list of storages is not that of its tensors")

        def read(_: str, size: int) -> bytes:
            file.read(8)  # the count, which the pickle has told
            return file.read(size)

        return content, _storages({key: found[key] for key in keys}, read)
