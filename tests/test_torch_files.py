"""Files as PyTorch writes them, made here without it: both layouts, and what must be refused."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest

from infnet_jax.weights import torch_files

WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
COUNT = np.array([7], np.int64)
# Classes of these names let `pickle` write references to torch's.
NAMES = {"torch": ["FloatStorage", "LongStorage"], "torch._utils": ["_rebuild_tensor_v2"]}


@pytest.fixture
def torch_names(monkeypatch):
    for module, names in NAMES.items():
        made = types.ModuleType(module)
        for name in names:
            setattr(made, name, type(name, (), {"__module__": module}))
        monkeypatch.setitem(sys.modules, module, made)


class Storage(NamedTuple):
    key: str
    array: np.ndarray


class Stored:
    """What the pickle of a tensor is made from."""

    def __init__(self, key, array, shape, strides, offset=0):
        self.parts = Storage(key, array), offset, shape, strides, False, OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


def write(path, content, arrays, legacy):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            name = "FloatStorage" if value.array.dtype == np.float32 else "LongStorage"
            kind, last = getattr(sys.modules["torch"], name), [None] if legacy else []
            return ("storage", kind, value.key, "cpu", value.array.size, *last)

    body = io.BytesIO()
    Pickler(body, 2).dump(content)
    if legacy:
        head = [torch_files._LEGACY_MAGIC, 1001, {"little_endian": True}]
        parts = [pickle.dumps(part, 2) for part in head]
        parts += [body.getvalue(), pickle.dumps(list(arrays), 2)]
        for array in arrays.values():
            parts += [np.int64(array.size).tobytes(), array.tobytes()]
        path.write_bytes(b"".join(parts))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", body.getvalue())
        for key, array in arrays.items():
            archive.writestr(f"net/data/{key}", array.tobytes())


@pytest.mark.usefixtures("torch_names")
@pytest.mark.parametrize("legacy", [True, False])
def test_tensors_come_back_by_name_type_and_stride(tmp_path, legacy):
    path = tmp_path / "a.pth"
    turned = Stored("0", WEIGHT, (4, 3), (1, 4), offset=12)  # a transposed view of its half
    state = {"whole": Stored("0", WEIGHT, (2, 3, 4), (12, 4, 1)), "turned": turned}
    state["count"] = Stored("1", COUNT, (), ())
    arrays = {"1": COUNT, "0": WEIGHT}  # not in the order of first use
    write(path, {"epoch": 3, "state_dict": state}, arrays, legacy)
    found = torch_files.load(path)
    np.testing.assert_array_equal(found["whole"], WEIGHT)
    np.testing.assert_array_equal(found["turned"], WEIGHT[1].T)
    assert found["count"] == 7 and found["count"].dtype == np.int64 and found["count"].shape == ()
    write(path, {"epoch": 3}, {}, legacy)
    with pytest.raises(ValueError, match="no state dict"):
        torch_files.load(path)


@pytest.mark.usefixtures("torch_names")
@pytest.mark.parametrize("legacy", [True, False])
def test_a_tensor_past_its_storage_and_a_cut_file_are_refused(tmp_path, legacy):
    path = tmp_path / "a.pth"
    for shape, held, message in (
        ((5, 5), WEIGHT, "tensor w reaches past its storage"),
        ((2, 1), WEIGHT[:1], "storage 0 has 48 bytes, should have 96"),
    ):
        write(path, {"w": Stored("0", WEIGHT, shape, (5, 1))}, {"0": held}, legacy)
        with pytest.raises(ValueError, match=message):
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


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_reads_the_same(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    state = {"w": torch.arange(12.0).reshape(3, 4).T, "h": torch.ones(2, dtype=torch.float16)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = torch_files.load(tmp_path / "a.pth")
    assert list(found) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value.numpy())
