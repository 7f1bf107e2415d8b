"""Files as PyTorch writes them, made here without it: both layouts, and what must be refused."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from infnet_jax.weights import torch_files

WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
COUNT = np.array([7], np.int64)


class Stored:
    """What the pickle of a tensor is made from."""

    def __init__(self, key, array, shape, strides, offset=0):
        self.key, self.array, self.tail = key, array, (offset, shape, strides, False, OrderedDict())


@pytest.fixture
def torch_names(monkeypatch):
    """Modules under torch's names, so that `pickle` writes references to them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError("this must not run")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def pickled(torch, content, legacy):
    class Storage:
        def __init__(self, stored):
            self.stored = stored

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            array = value.stored.array
            kind = torch.FloatStorage if array.dtype == np.float32 else torch.LongStorage
            last = [None] if legacy else []
            return ("storage", kind, value.stored.key, "cpu", array.size, *last)

        def reducer_override(self, value):
            if isinstance(value, Stored):
                return torch._utils._rebuild_tensor_v2, (Storage(value), *value.tail)
            return NotImplemented

    out = io.BytesIO()
    Pickler(out, 2).dump(content)
    return out.getvalue()


def write(path, torch, content, arrays, legacy):
    body = pickled(torch, content, legacy)
    if legacy:
        head = [torch_files._LEGACY_MAGIC, 1001, {"little_endian": True}]
        parts = [*(pickle.dumps(part, 2) for part in head), body, pickle.dumps(list(arrays), 2)]
        for array in arrays.values():
            parts += [np.int64(array.size).tobytes(), array.tobytes()]
        path.write_bytes(b"".join(parts))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", body)
        for key, array in arrays.items():
            archive.writestr(f"net/data/{key}", array.tobytes())


@pytest.mark.parametrize("legacy", [True, False])
def test_tensors_come_back_by_name_type_and_stride(tmp_path, torch_names, legacy):
    state = OrderedDict(
        {
            "whole": Stored("0", WEIGHT, (2, 3, 4), (12, 4, 1)),
            # A transposed view of its half.
            "turned": Stored("0", WEIGHT, (4, 3), (1, 4), offset=12),
            "count": Stored("1", COUNT, (), ()),
        }
    )
    arrays = {"1": COUNT, "0": WEIGHT}  # not in the order of first use
    write(tmp_path / "a.pth", torch_names, {"epoch": 3, "state_dict": state}, arrays, legacy)
    with pytest.raises(ValueError, match="no state dict"):
        write(tmp_path / "b.pth", torch_names, {"epoch": 3}, {}, legacy)
        torch_files.load(tmp_path / "b.pth")
    found = torch_files.load(tmp_path / "a.pth")
    np.testing.assert_array_equal(found["whole"], WEIGHT)
    np.testing.assert_array_equal(found["turned"], WEIGHT[1].T)
    assert found["count"] == 7 and found["count"].dtype == np.int64 and found["count"].shape == ()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tensor_past_its_storage_and_a_cut_file_are_refused(tmp_path, torch_names, legacy):
    path = tmp_path / "a.pth"
    state = {"w": Stored("0", WEIGHT, (5, 5), (5, 1))}
    write(path, torch_names, state, {"0": WEIGHT}, legacy)
    with pytest.raises(ValueError, match="tensor w reaches past its storage"):
        torch_files.load(path)
    write(path, torch_names, {"w": Stored("0", WEIGHT, (2,), (1,))}, {"0": WEIGHT[:1]}, legacy)
    with pytest.raises(ValueError, match="storage 0 has 48 bytes, should have 96"):
        torch_files.load(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="a.pth: not a readable PyTorch weight file"):
        torch_files.load(path)


def test_nothing_in_the_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({"w": Evil()}))
    with pytest.raises(ValueError, match=r"it asks for \w+\.mkdir, which no weights need"):
        torch_files.load(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_torch_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"w": torch.arange(12.0).reshape(3, 4).T, "h": torch.ones(2, dtype=torch.float16)}
    for zipped in (True, False):
        torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        found = torch_files.load(tmp_path / "a.pth")
        assert {**found}.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value.numpy())
