# SPDX-License-Identifier: Apache-2.0
"""The functions of safetensors, over plain and sealed files, and what they refuse.

The kinds of tests are those of safetensors' own (0.8.0, Apache-2.0), which
tests/upstream/safetensors_suite.py runs as they are.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import pickle
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyccmem
import pyccmem.safetensors as st
from pyccmem import EncryptedTensor, Key, errors

KINDS = ("plain", "sealed", "hidden names")


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    return {
        "b": rng.standard_normal((10, 5)),
        "a": rng.standard_normal((3, 700, 2)).astype(np.float32),
        "scalar": np.array(5000.0),
        "flag": np.array(True),
        "empty": np.zeros((2, 0), np.float32),
        "ключ \N{SNOWMAN}": np.arange(7, dtype=np.uint8),
    }


def plain_bytes(
    arrays: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str] | None = None
) -> bytes:
    """Makes a plain file, in the order of the dict."""
    codes = {"f8": "F64", "f4": "F32", "i4": "I32", "u1": "U8", "b1": "BOOL"}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {
            "dtype": codes[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": place,
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def content(kind: str, key: Key, metadata: dict[str, str] | None = None) -> bytes:
    if kind == "plain":
        return plain_bytes(tensors(), metadata)
    return st.save(tensors(), metadata, key=key, seal_names=kind == "hidden names")


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path, key: Key) -> Path:
    """A file of tensors() of each kind."""
    place = tmp_path / "model.safetensors"
    place.write_bytes(content(request.param, key))
    return place


def same(found: dict[str, EncryptedTensor], wanted: dict[str, np.ndarray[Any, Any]]) -> bool:
    return set(found) == set(wanted) and all(
        type(found[name]) is EncryptedTensor
        and found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and np.array_equal(found[name][...], array)
        for name, array in wanted.items()
    )


# ---- the whole of it ----------------------------------------------------------------------------


def members_of(module: Any) -> dict[str, Any]:
    """What a module of safetensors defines or has for its users."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and str(getattr(value, "__module__", "")).startswith(("safetensors", "builtins"))
        and (not name.startswith("_") or name == "_safe_open_handle")
    }


#: About the addresses of tensors, which encrypted ones do not have.
NOT_OFFERED = {"storage_ptr", "storage_size"}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("safetensors", "pyccmem.safetensors"),
        ("safetensors.numpy", "pyccmem.safetensors"),
        ("safetensors.torch", "pyccmem.torch"),
    ],
)
def test_every_public_function_is_here(theirs: str, ours: str) -> None:
    pytest.importorskip("safetensors")
    if theirs.endswith("torch"):
        pytest.importorskip("torch")
    stock, own = importlib.import_module(theirs), importlib.import_module(ours)
    found = members_of(stock)
    assert {"save_file", "load_file"} <= set(found) or theirs == "safetensors"
    if ours == "pyccmem.torch":  # what it takes from the package is there
        found = {name: value for name, value in found.items() if value.__module__ == theirs}
    checked = 0
    for name, value in found.items():
        if name in NOT_OFFERED:
            continue
        mine = getattr(own, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            assert issubclass(mine, Exception)
            continue
        checked += 1
        try:
            wanted = inspect.signature(value).parameters.values()
        except ValueError:  # a class of native code without one
            continue
        given = inspect.signature(mine).parameters
        for parameter in wanted:
            assert parameter.name in given, (name, parameter.name)
            assert given[parameter.name].kind == parameter.kind or name == "deserialize", name
            if parameter.default is not parameter.empty and parameter.default is not ...:
                default = given[parameter.name].default
                assert default == parameter.default or default is None, (name, parameter.name)
        ordered = [p.name for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert list(given)[: len(ordered)] == ordered, name
        assert "key" in given or name == "TensorSpec", name
    assert checked >= 4


def test_an_open_file_has_every_method(path: Path, key: Key) -> None:
    stock = pytest.importorskip("safetensors")
    with st.safe_open(path, key=key) as file:
        for name in dir(stock.safe_open):
            if not name.startswith("_"):
                assert callable(getattr(file, name))
        assert callable(file.get_slice("b").get_shape) and callable(file.get_slice("b").get_dtype)


# ---- files, bytes, handles -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_a_file_gives_its_tensors(path: Path, key: Key, backend: str) -> None:
    for name in (path, str(path), os.fsencode(path)):
        assert same(st.load_file(name, key=key, backend=backend), tensors())
    with st.safe_open(path, "numpy", "cpu", key=key, backend=backend) as file:
        assert file.keys() == sorted(tensors())
        assert file.offset_keys() == list(tensors())
        assert same(file.get_tensors(), tensors()) and list(file.get_tensors()) == list(tensors())
        assert same({name: file.get_tensor(name) for name in file.keys()}, tensors())  # noqa: SIM118
        assert file.metadata() is None
        assert len(file) == 6 and "a" in file and "c" not in file
        info = file.info("a")
        assert (info.dtype, info.shape, info.nbytes) == ("F32", (3, 700, 2), 16_800)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_give_their_tensors(key: Key, kind: str) -> None:
    data = content(kind, key, {"framework": "np"})
    for given in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert same(st.load(given, key=key), tensors())
    mine = bytearray(data)
    found = st.load(mine, key=key)
    mine[:] = bytes(len(mine))
    mine.extend(b"no view is left")
    assert same(found, tensors()), "the tensors do not depend on the caller's bytes"


@pytest.mark.parametrize("kind", KINDS)
def test_deserialized_bytes_are_encrypted_buffers(key: Key, kind: str) -> None:
    found = st.deserialize(content(kind, key), key=key)
    assert [name for name, _ in found] == list(tensors())
    for name, parts in found:
        array = tensors()[name]
        assert set(parts) == {"shape", "dtype", "data"} and parts["shape"] == list(array.shape)
        assert isinstance(parts["data"], pyccmem.EncryptedBuffer)
        assert parts["data"].read() == array.tobytes()
    assert dict(found)["b"]["dtype"] == "F64"


class Remote:
    """A file of a remote file system: no descriptor, no name."""

    def __init__(self, data: bytes) -> None:
        self._file, self.reads = io.BytesIO(data), 0

    def seek(self, *where: int) -> int:
        return self._file.seek(*where)

    def read(self, count: int = -1) -> bytes:
        self.reads += 1
        return self._file.read(min(count, 1000))


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_gives_its_file(tmp_path: Path, key: Key, kind: str) -> None:
    data = content(kind, key, {"a": "b"})
    place = tmp_path / "file"
    place.write_bytes(data)
    with (
        open(place, "rb") as binary,
        open(place, encoding="latin-1") as text,
        open(place, "rb", buffering=0) as raw,
    ):
        binary.read(3)
        handles = [binary, text, raw, io.BytesIO(data), Remote(data)]
        os.unlink(place)
        for handle in handles:
            with st._safe_open_handle(handle, "np", "cpu", key=key) as file:
                assert file.metadata() == {"a": "b"} and same(file.get_tensors(), tensors())
                found = file.get_tensor("a")
            assert np.array_equal(found[1], tensors()["a"][1])
        assert not raw.closed and not binary.closed and binary.tell() == 3
    remote = handles[-1]
    assert isinstance(remote, Remote) and remote.reads > 3


def test_handles_that_cannot_be_read(tmp_path: Path, key: Key) -> None:
    place = tmp_path / "file"
    place.write_bytes(content("plain", key))
    with open(place, "rb") as file:
        pass
    with pytest.raises(errors.FileReadError, match="closed"):
        st.safe_open_handle(file, key=key)
    with open(place, "ab") as writing, pytest.raises(errors.FileReadError):
        st.safe_open_handle(writing, key=key)
    for wrong in (5, None, str(place), place, object()):
        with pytest.raises(errors.ArgumentTypeError):
            st.safe_open_handle(wrong, key=key)
    with pytest.raises(errors.ArgumentTypeError, match="binary"):
        st.safe_open_handle(io.StringIO("{" * 100), key=key)
    with open("/dev/null", "rb") as device, pytest.raises(errors.FileReadError):
        st.safe_open_handle(device, key=key)
    buffer = io.BytesIO(content("plain", key))
    with st.safe_open_handle(buffer, key=key) as opened:
        buffer.close()
        with pytest.raises(errors.FileReadError, match="closed"):
            opened.get_tensor("a")


def test_nothing_plain_is_in_what_is_saved(tmp_path: Path, key: Key) -> None:
    secret = np.frombuffer(b"a very secret weight" * 500, np.uint8)
    for arrays in ({"t": secret}, {"t": secret[::-1][::-1]}):
        data = st.save(arrays, {"note": "x"}, key=key, seal_names=True)
        assert b"secret" not in data and b"note" not in data
        assert st.load(data, key=key)["t"][...].tobytes() == secret.tobytes()
    assert b"secret" in plain_bytes({"t": secret}), "the control"
    with Key.generate() as other, pytest.raises(errors.InvalidKeyError):
        st.load(data, key=other)
    for at in range(8, len(data), len(data) // 50):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((errors.IntegrityError, errors.SafetensorError, errors.InvalidKeyError)):
            st.load(changed, key=key)["t"][...]


def test_pins_and_seals_of_bytes(key: Key) -> None:
    data, plain = content("sealed", key), content("plain", key)
    with st.safe_open_handle(io.BytesIO(data), key=key) as file:
        assert isinstance(file, st.SealedFile)
        pin = f"{file.file_id}:{file.generation}"
    assert st.load(data, key=key, expect=pin, sealed=True)
    for options in ({"expect": pin}, {"sealed": True}):
        for function in (st.load, st.deserialize):
            with pytest.raises(errors.IntegrityError, match="plain"):
                function(plain, key=key, **options)  # type: ignore[operator]
    with pytest.raises(errors.FileFormatError):
        st.load(data, key=key, sealed=False)


# ---- specs ---------------------------------------------------------------------------------------


def spec(array: np.ndarray[Any, Any], **changes: Any) -> st.TensorSpec:
    given = {
        "dtype": array.dtype.name,
        "shape": array.shape,
        "data_ptr": array.ctypes.data,
        "data_len": array.nbytes,
    }
    return st.TensorSpec(**(given | changes))


@pytest.mark.parametrize("stock", [False, True])
def test_specs_are_sealed(tmp_path: Path, key: Key, stock: bool) -> None:
    arrays = tensors()
    specs: dict[str, Any] = {name: spec(array) for name, array in arrays.items()}
    if stock:
        package = pytest.importorskip("safetensors", minversion="0.8.0")
        specs = {
            name: package.TensorSpec(
                dtype=array.dtype.name,
                shape=array.shape,
                data_ptr=array.ctypes.data,
                data_len=array.nbytes,
            )
            for name, array in arrays.items()
        }
    data = st.serialize(specs, {"m": "n"}, key=key)
    assert same(st.load(data, key=key), arrays)
    pin = st.serialize_file(specs, tmp_path / "f", {"m": "n"}, key=key)
    assert same(st.load_file(tmp_path / "f", key=key, expect=pin), arrays)
    with st.safe_open(tmp_path / "f", key=key) as file:
        assert file.metadata() == {"m": "n"}


def test_specs_say_what_they_are_and_refuse_what_cannot_be(key: Key) -> None:
    array = np.zeros((2, 3), np.float32)
    one = spec(array)
    assert (one.dtype, one.shape, one.data_len) == ("F32", [2, 3], 24)
    assert one.data_ptr == array.ctypes.data and "F32" in repr(one)
    pairs = spec(np.zeros((2, 3), np.uint8), dtype="float4_e2m1fn_x2")
    assert (pairs.dtype, pairs.shape) == ("F4", [2, 6])
    for changes in ({"dtype": "nonsense"}, {"dtype": 5}, {"dtype": "F32"}, {"shape": (-1,)}):
        with pytest.raises(st.SafetensorError):
            spec(array, **changes)
    for changes in ({"shape": 5}, {"shape": ("x",)}, {"data_ptr": None}, {"data_len": 1.5}):
        with pytest.raises(errors.ArgumentTypeError):
            spec(array, **changes)
    for wrong in (spec(array, data_len=20), spec(array, shape=(7,)), spec(array, data_ptr=0)):
        with pytest.raises(st.SafetensorError):
            st.serialize({"t": wrong}, key=key)
    for raw in ({"t": {"dtype": "float32"}}, {"t": array}, [one], None, {5: one}):
        with pytest.raises(TypeError):
            st.serialize(raw, key=key)  # type: ignore[arg-type]
    data = st.serialize({"pairs": pairs, "none": spec(np.zeros((0, 2)))}, key=key)
    parts = dict(st.deserialize(data, key=key))["pairs"]
    assert parts["dtype"] == "F4" and parts["data"].read() == bytes(6)
    with pytest.raises(errors.ArgumentTypeError, match="F4"):
        st.load(data, key=key)


# ---- slices --------------------------------------------------------------------------------------

INDICES: dict[str, Any] = {
    "[:]": np.s_[:],
    "[...]": np.s_[...],
    "[()]": (),
    "[:2]": np.s_[:2],
    "[:, :2]": np.s_[:, :2],
    "[0, :2]": np.s_[0, :2],
    "[2:, 0]": np.s_[2:, 0],
    "[2:, -1]": np.s_[2:, -1],
    "[2:, -5]": np.s_[2:, -5],
    "[-3]": np.s_[-3],
    "[-3:-1]": np.s_[-3:-1],
    "[3:8:2, ::3]": np.s_[3:8:2, ::3],
    "[9:2]": np.s_[9:2],
    "[10:]": np.s_[10:],
    "[..., 1]": np.s_[..., 1],
    "[1, ..., 1:2]": np.s_[1, ..., 1:2],
    "[4, 4]": np.s_[4, 4],
    "[]": [],
    "numpy's": (np.int64(3), slice(np.uint8(1), np.int32(4))),
}


@pytest.mark.parametrize("index", INDICES)
def test_slices(path: Path, key: Key, index: str) -> None:
    with st.safe_open(path, key=key) as file:
        part = file.get_slice("b")
        assert part.get_shape() == [10, 5] and part.get_dtype() == "F64" and "F64" in repr(part)
        wanted = tensors()["b"][INDICES[index]]
        found = part[INDICES[index]]
        assert np.shape(found) == wanted.shape and np.array_equal(found, wanted)
        assert file.get_slice("scalar")[()] == 5000 and file.get_slice("scalar")[...] == 5000
        assert file.get_slice("empty")[:, :].shape == (2, 0)
        assert file.get_slice("a")[1:, 600:650:7, 1].shape == (2, 8)


WRONG: dict[str, Any] = {
    "beyond": np.s_[2:, 20],
    "before": np.s_[2:, -6],
    "end beyond": np.s_[:20],
    "end beyond of axis 1": np.s_[:, :20],
    "begin beyond": np.s_[11:],
    "too many": np.s_[0, 0, 0],
    "two ellipses": np.s_[..., ...],
    "backwards": np.s_[::-1],
    "step 0": np.s_[::0],
    "list": [0, 1],
    "array": np.array([1, 2]),
    "mask": np.ones(10, bool),
    "bool": True,
    "None": None,
    "text": "a",
    "float": 1.0,
    "slice of floats": slice(0.0, 2.0),
}


@pytest.mark.parametrize("index", WRONG)
def test_slices_that_are_refused(path: Path, key: Key, index: str) -> None:
    with st.safe_open(path, key=key) as file:
        part = file.get_slice("b")
        with pytest.raises(errors.FileIndexError) as caught:
            part[WRONG[index]]
    assert isinstance(caught.value, IndexError) and isinstance(caught.value, st.SafetensorError)


def test_slices_of_plain_files_read_their_rows_alone(tmp_path: Path, key: Key) -> None:
    class Counted(io.BytesIO):
        moved = 0

        def readinto(self, out: Any) -> int:
            count = super().readinto(out)
            self.moved += count
            return count

    big = np.arange(500_000, dtype=np.int32).reshape(1000, 500)
    file = Counted(plain_bytes({"t": big, "u": big}))
    with st.safe_open_handle(file, key=key) as opened:
        part = opened.get_slice("u")
        before = file.moved
        assert np.array_equal(part[500:503, 7], big[500:503, 7])
        assert file.moved - before == 3 * 2000
        assert np.array_equal(part[17], big[17]) and np.array_equal(part[3:9:5], big[3:9:5])
        assert file.moved - before == (3 + 1 + 6) * 2000
        opened.get_tensor("u")
        assert file.moved - before == 10 * 2000 + big.nbytes, "the control: all of it"


def test_slices_outlive_a_sealed_file_and_no_plain_one(tmp_path: Path, key: Key) -> None:
    for kind in KINDS:
        with st.safe_open_handle(io.BytesIO(content(kind, key)), key=key) as file:
            part = file.get_slice("b")
        if kind == "plain":
            with pytest.raises(errors.ClosedFileError):
                part[0]
        else:
            assert np.array_equal(part[0], tensors()["b"][0])


# ---- what is refused -----------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path, key: Key) -> None:
    place = tmp_path / "none.safetensors"
    calls: list[Callable[[], Any]] = [
        lambda: st.load_file(place, key=key),
        lambda: st.safe_open(place, "np", key=key),
        lambda: st.is_sealed(place),
        lambda: st.encrypt_file(place, tmp_path / "x", key),
        lambda: st.decrypt_file(place, tmp_path / "x", key),
        lambda: st.inspect_file(place),
        lambda: st.verify_file(place, key),
        lambda: st.rewrap_file(place, key, key),
        lambda: Key.from_file(place),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError) as caught:
            call()
        error = caught.value
        assert isinstance(error, errors.FileReadError) and str(place) in str(error)
        assert error.filename == str(place) and error.errno == 2
    with pytest.raises(errors.FileReadError) as directory:
        st.load_file(tmp_path, key=key)
    assert not isinstance(directory.value, FileNotFoundError)
    copied = pickle.loads(pickle.dumps(errors.MissingFileError("gone")))
    assert isinstance(copied, FileNotFoundError) and str(copied) == "gone"


def test_every_method_of_a_closed_file_raises(path: Path, key: Key) -> None:
    with st.safe_open(path, key=key) as file:
        tensor = file.get_tensor("b")
    calls: list[Callable[[], Any]] = [
        file.keys,
        file.offset_keys,
        file.metadata,
        file.get_tensors,
        file.__enter__,
        lambda: file.get_tensor("b"),
        lambda: file.get_slice("b"),
        lambda: file.info("b"),
        lambda: "b" in file,
        lambda: len(file),
    ]
    for call in calls:
        with pytest.raises(errors.ClosedFileError) as caught:
            call()
        assert isinstance(caught.value, (st.SafetensorError, errors.ClosedError))
        assert "safe_open" in str(caught.value)
    assert "closed" in repr(file) and file.closed
    file.close()
    assert np.array_equal(tensor[...], tensors()["b"])


@pytest.mark.parametrize("name", ["tf", "tensorflow", "flax", "jax", "mlx", "paddle", "nonsense"])
def test_other_frameworks(path: Path, key: Key, name: str) -> None:
    with pytest.raises(errors.FileRequestError, match="framework='np'"):
        st.safe_open(path, name, key=key)
    with pytest.raises(errors.ArgumentTypeError):
        st.safe_open(path, None, key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, "mps", "meta", "npu:1", object()])
def test_other_devices(path: Path, key: Key, device: Any) -> None:
    with pytest.raises(errors.FileRequestError, match=r"main\s+memory"):
        st.safe_open(path, "np", device, key=key)


def test_other_arguments(path: Path, key: Key) -> None:
    for backend in ("nonsense", None, 5, ["mmap"]):
        with pytest.raises(st.SafetensorError, match="'pread'"):
            st.safe_open(path, key=key, backend=backend)  # type: ignore[arg-type]
        with pytest.raises(st.SafetensorError, match="'pread'"):
            st.load_file(path, key=key, backend=backend)  # type: ignore[arg-type]
    for wrong in (None, "key", b"x" * 32, 5):
        with pytest.raises((errors.ArgumentTypeError, errors.InvalidKeyError)):
            st.load_file(path, key=wrong)  # type: ignore[arg-type]
    for name in (None, 5, ["a"], {}):
        with pytest.raises(errors.ArgumentTypeError):
            st.load_file(name, key=key)  # type: ignore[arg-type]
        with pytest.raises(errors.ArgumentTypeError):
            st.save_file({}, name, key=key)  # type: ignore[arg-type]
        with pytest.raises(errors.ArgumentTypeError):
            st.load(name, key=key)
    with st.safe_open(path, key=key) as file:
        for name in ("none", None, 5, b"a", ""):
            for method in (file.get_tensor, file.get_slice, file.info):
                with pytest.raises(errors.FileRequestError):
                    method(name)  # type: ignore[arg-type]
    for metadata in ({"a": 1}, {1: "a"}, {"a": None}, "text", [("a", "b")]):
        with pytest.raises(errors.ArgumentTypeError):
            st.save({}, metadata, key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"\x08" + b"\0" * 7])
def test_what_is_no_file(tmp_path: Path, key: Key, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(st.SafetensorError):
        st.load_file(tmp_path / "f", key=key)
    for function in (st.load, st.deserialize):
        with pytest.raises(st.SafetensorError):
            function(data, key=key)  # type: ignore[operator]
    with pytest.raises(st.SafetensorError):
        st.safe_open_handle(io.BytesIO(data), key=key)


# ---- what is saved -------------------------------------------------------------------------------


def test_arrays_of_every_layout(key: Key) -> None:
    base = np.arange(600_000, dtype=np.float32).reshape(300, 2000)
    given = {
        "transposed": base.T,
        "part": base[10:200:3, 5:1999:2],
        "reversed": base[::-1],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(base[0], (5, 2000)),
        "big-endian": base.astype(">f4"),
        "big-endian part": base.astype(">f4")[::2, ::3],
        "big scalar": np.array(3.5, ">f8"),
        "shared": base,
        "list": [[1, 2], [3, 4]],
    }
    found = st.load(st.save(given, key=key), key=key)
    for name, value in given.items():
        assert np.array_equal(found[name][...], np.asarray(value)), name
        assert found[name].dtype.str[0] in "<|", name


def test_plain_bytes_do_not_depend_on_the_order(tmp_path: Path, key: Key) -> None:
    """What decrypt_file() writes is what safetensors would have."""
    package = pytest.importorskip("safetensors.numpy")
    one = np.arange(4, dtype=np.int32).reshape(2, 2)
    given = {"z": one, "b": one.astype(np.float16), "a": one.astype(np.float64), "y": one}
    for names in (list(given), sorted(given), sorted(given, reverse=True)):
        st.save_file({name: given[name] for name in names}, tmp_path / "s", key=key)
        st.decrypt_file(tmp_path / "s", tmp_path / "p", key, overwrite=True)
        assert (tmp_path / "p").read_bytes() == package.save(given)


def test_threads_share_an_open_file(path: Path, key: Key) -> None:
    wanted, wrong = tensors(), []

    def work() -> None:
        for _ in range(20):
            for name, array in wanted.items():
                if not np.array_equal(file.get_tensor(name)[...], array):
                    wrong.append(name)
            if not np.array_equal(file.get_slice("b")[2:7, 3], wanted["b"][2:7, 3]):
                wrong.append("slice")

    with st.safe_open(path, key=key) as file:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_child_reads_an_open_plain_file(tmp_path: Path, key: Key) -> None:
    """Its key is the parent's, so that it cannot, and it says so."""
    place = tmp_path / "f"
    place.write_bytes(content("plain", key))
    with st.safe_open(place, key=key) as file:
        pid = os.fork()
        if not pid:
            try:
                assert file.keys() == sorted(tensors())
                file.get_tensor("a")
            except errors.ForkError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
