# SPDX-License-Identifier: Apache-2.0
"""Sealed files: what goes in comes out, without a decryption on the way, and as the format says."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import linux_only

import pyccmem
from pyccmem import EncryptedTensor, Key, errors
from pyccmem import safetensors as sealed
from pyccmem.binding import wiped
from pyccmem.files import atomic
from pyccmem.files.safetensors_header import open_file, read_all
from pyccmem.safetensors._dtypes import _ML_DTYPES, _NUMPY

PAGE = 4096


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors below a page, above the writer's block of 1 MiB, empty, of no dimensions, of whole
    pages."""
    rng = np.random.default_rng(seed)
    return {
        "z.bias": rng.standard_normal(384).astype(np.float32),
        "matrix": rng.standard_normal((1000, 700)).astype(np.float32),
        "nothing": np.zeros((0, 5), np.float32),
        "scalar": np.array(-5),
        "pages": rng.integers(0, 256, 3 * PAGE, dtype=np.uint8),
    }


def same(found: dict[str, EncryptedTensor], expected: dict[str, np.ndarray]) -> bool:
    """True when names, order, dtypes, shapes and contents are the same."""
    return list(found) == list(expected) and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and np.array_equal(found[name][...], array)
        for name, array in expected.items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# ---- round trips ----


@pytest.mark.parametrize("seal_names", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
def test_what_was_saved_is_loaded(path: Path, key: Key, seal_names: bool, mmap: bool) -> None:
    metadata = {"format": "pt", "é\U0001f600": '"\\\n'}
    pin = sealed.save_file(tensors(), path, key=key, metadata=metadata, seal_names=seal_names)
    weights = sealed.load_file(path, key=key, expect=pin, mmap=mmap)
    assert same(weights, tensors())
    assert not any(tensor.writable for tensor in weights.values())
    assert all(tensor.name == name for name, tensor in weights.items())
    assert sealed.is_sealed(path)
    with sealed.safe_open(path, key=key, mmap=mmap) as file:
        assert file.metadata() == metadata
        assert file.keys() == sorted(tensors()) and len(file) == 5 and "matrix" in file
        assert file.info("matrix") == sealed.TensorInfo("F32", (1000, 700), 2_800_000)
        assert f"{file.file_id}:{file.generation}" == pin
        matrix = file.get_tensor("matrix")
        for name in ("none", "__pyccmem_table__", "t0", [], None):
            with pytest.raises(errors.ArgumentError):
                file.get_tensor(name)  # type: ignore[arg-type]
    assert np.array_equal(matrix[...], tensors()["matrix"]), "a tensor outlives its file"
    with pytest.raises(errors.ClosedError):
        file.get_tensor("matrix")


@pytest.mark.parametrize("page_size", support.PAGE_SIZES)
def test_page_sizes(path: Path, key: Key, page_size: int) -> None:
    sealed.save_file(tensors(), path, key=key, page_size=page_size)
    weights = sealed.load_file(path, key=key, page_size=page_size)
    assert same(weights, tensors())
    assert {tensor.page_size for tensor in weights.values()} == {page_size}
    with open_file(path) as file:
        header = read_all(file)
    assert all(e.start % page_size == 0 for e in header.entries)
    with pytest.raises(errors.ArgumentError):
        sealed.load_file(path, key=key, page_size=page_size * 2)
    with pytest.raises(errors.ArgumentError):
        sealed.load_file(path, key=key, cipher="aes-128-xts")


def test_no_tensors(path: Path, key: Key) -> None:
    for seal_names in (False, True):
        sealed.save_file({}, path, key=key, seal_names=seal_names)
        assert sealed.load_file(path, key=key) == {}
        sealed.verify_file(path, key)


@pytest.mark.parametrize("name", [*_NUMPY, *_ML_DTYPES])
def test_every_dtype(path: Path, key: Key, name: str) -> None:
    if name in _ML_DTYPES:
        dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), _ML_DTYPES[name]))
    else:
        dtype = np.dtype(_NUMPY[name])
    data = np.random.default_rng(1).integers(0, 2, 15 * dtype.itemsize, dtype=np.uint8)
    array = data.view(dtype).reshape(3, 5)
    sealed.save_file({"t": array}, path, key=key)
    tensor = sealed.load_file(path, key=key)["t"]
    assert tensor.dtype == dtype and tensor[...].tobytes() == array.tobytes()
    assert sealed.inspect_file(path).tensors == {
        "t": sealed.TensorInfo(name, (3, 5), 15 * dtype.itemsize)
    }


def test_dtypes_that_no_file_has(path: Path, key: Key) -> None:
    for array in (np.zeros(3, "c16"), np.zeros(3, ">c16"), np.array(["a"]), np.zeros(3, "M8[s]")):
        with pytest.raises(errors.ArgumentTypeError, match="'t'"):
            sealed.save_file({"t": array}, path, key=key)
    assert not path.exists() and not os.listdir(path.parent)


def test_encrypted_tensors_are_saved(path: Path, key: Key) -> None:
    with Key.generate() as other:
        source = {
            name: EncryptedTensor.from_numpy(array, key=other, page_size=8192)
            for name, array in tensors().items()
        }
    whole = source["matrix"]
    source["part"] = EncryptedTensor._adopt(whole.buffer, (100, 7), np.float32, offset=40)
    sealed.save_file(source, path, key=key)
    flat = tensors()["matrix"].reshape(-1)
    assert same(
        sealed.load_file(path, key=key),
        tensors() | {"part": flat[10:710].reshape(100, 7)},
    )


def test_a_file_saved_over_itself(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    weights = sealed.load_file(path, key=key)
    sealed.save_file(weights, path, key=key)
    assert same(weights, tensors()), "the old file stays mapped"
    assert same(sealed.load_file(path, key=key), tensors())


def test_arrays_in_any_order_of_memory(path: Path, key: Key) -> None:
    array = np.arange(700_000, dtype=np.float32).reshape(700, 1000)
    source = {
        "t": array.T,
        "step": array[::3, ::-7],
        "wide": np.broadcast_to(array[0], (400, 1000)),
    }
    sealed.save_file(source, path, key=key)
    assert same(sealed.load_file(path, key=key), source)


def test_other_dtypes_in_any_order_of_memory(path: Path, key: Key) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(900_000).reshape(900, 1000)
    source = {str(t): array.astype(t).T for t in (ml_dtypes.bfloat16, np.bool_, np.complex64)}
    sealed.save_file(source, path, key=key)
    for tensor, expected in zip(
        sealed.load_file(path, key=key).values(), source.values(), strict=True
    ):
        assert tensor[...].tobytes() == expected.tobytes()


def test_torch_tensors(path: Path, key: Key) -> None:
    torch = pytest.importorskip("torch", reason="torch tensors are saved when torch is there")
    pytest.importorskip("ml_dtypes")
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn((300, 50), generator=generator)
    source = {
        "f": plain,
        "t": plain.t(),
        "b": plain.bfloat16(),
        "bool": plain > 0,
        "s": plain[0, 0],
    }
    sealed.save_file(source, path, key=key)
    for name, tensor in sealed.load_file(path, key=key).items():
        expected = source[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert tensor[...].tobytes() == expected and tensor.shape == tuple(source[name].shape)
    with pytest.raises(errors.ArgumentTypeError, match="sparse"):
        sealed.save_file({"t": plain.to_sparse()}, path, key=key)
    with pytest.raises(errors.ArgumentTypeError, match="meta"):
        sealed.save_file({"t": plain.to("meta")}, path, key=key)


def test_encrypted_torch_tensors_and_their_views(path: Path, key: Key) -> None:
    torch = pytest.importorskip("torch", reason="torch tensors are saved when torch is there")
    adapter = pytest.importorskip("pyccmem.torch", reason="the adapter for torch is not there")
    plain = torch.randn((64, 64), generator=torch.Generator().manual_seed(0))
    source = {"f": plain, "b": plain.bfloat16(), "s": plain[0, 0]}
    hidden = {n: adapter.EncryptedTensor.from_tensor(t, key=key) for n, t in source.items()}
    views = {"turned": hidden["f"].t(), "part": hidden["f"][3:5]}
    expected = source | {"turned": plain.t(), "part": plain[3:5]}
    sealed.save_file({**hidden, **views}, path, key=key)
    for name, tensor in sealed.load_file(path, key=key).items():
        data = expected[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert tensor[...].tobytes() == data and tensor.shape == tuple(expected[name].shape)


@pytest.mark.parametrize("name", ["__metadata__", "__pyccmem_table__", "__pyccmem_x", "a\ud800", 3])
def test_names_that_no_tensor_can_have(path: Path, key: Key, name: Any) -> None:
    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)):
        sealed.save_file({name: np.zeros(3)}, path, key=key)
    assert not os.listdir(path.parent)


def test_odd_names(path: Path, key: Key) -> None:
    source = {name: np.arange(3.0) for name in ("", "t1", "t0", "a b\n", "ü\0", "key", "x" * 5000)}
    for seal_names in (False, True):
        sealed.save_file(source, path, key=key, seal_names=seal_names)
        assert same(sealed.load_file(path, key=key), source)


def test_wrong_arguments(path: Path, key: Key) -> None:
    for wrong in (b"k" * 32, None, "key", Key, object()):
        with pytest.raises(errors.ArgumentTypeError):
            sealed.save_file({}, path, key=wrong)  # type: ignore[arg-type]
    sealed.save_file(tensors(), path, key=key)
    for wrong in (b"k" * 32, None, "key", Key):
        with pytest.raises(errors.ArgumentTypeError):
            sealed.load_file(path, key=wrong)  # type: ignore[arg-type]
    for metadata in ({"a": 1}, ["a"], {"a": "\ud800"}):
        with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)):
            sealed.save_file({}, path, key=key, metadata=metadata)  # type: ignore[arg-type]
    for page_size in (0, 2048, 4097, 1 << 17):
        with pytest.raises(errors.PageSizeError):
            sealed.save_file({}, path, key=key, page_size=page_size)
    with pytest.raises(errors.ArgumentTypeError):
        sealed.save_file([np.zeros(3)], path, key=key)  # type: ignore[arg-type]
    with pytest.raises(errors.FileReadError):
        sealed.load_file(path.with_name("none"), key=key)
    closed = Key.generate()
    closed.close()
    with pytest.raises(errors.ClosedError):
        sealed.load_file(path, key=closed)
    assert same(sealed.load_file(path, key=key), tensors()), "the file was left as it was"


# ---- no decryption, read-only, shared ----


def test_loading_decrypts_nothing(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    weights = sealed.load_file(path, key=key)
    assert all(tensor.buffer.stats()["pages_opened"] == 0 for tensor in weights.values())
    with open_file(path) as file:
        entries = {entry.name: entry for entry in read_all(file).entries}
    data = path.read_bytes()
    for name, tensor in weights.items():
        entry = entries[name]
        assert bytes(tensor.buffer.ciphertext) == data[entry.start : entry.end]
    weights["pages"][0]
    assert weights["pages"].buffer.stats()["pages_opened"] == 1


def test_tensors_are_read_only_and_can_be_copied(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    before = path.read_bytes()
    weight = sealed.load_file(path, key=key)["matrix"]
    assert not weight.writable
    with pytest.raises(errors.ReadOnlyError, match="copy"):
        weight[0] = 1
    copied = weight.copy(key=key)
    copied[0] = 1
    assert copied.writable and copied[0].max() == 1
    assert np.array_equal(weight[...], tensors()["matrix"]) and path.read_bytes() == before


@linux_only
def test_pages_are_mapped_from_the_file(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    weights = sealed.load_file(path, key=key)
    maps = Path("/proc/self/maps").read_text()
    found = [line.split()[:2] for line in maps.splitlines() if line.endswith(str(path))]
    assert {kind for _, kind in found} == {"r--s"}, "read-only and shared"
    spans = [[int(bound, 16) for bound in place.split("-")] for place, _ in found]
    assert sum(high - low for low, high in spans) >= sum(t.nbytes for t in weights.values())
    weights = sealed.load_file(path, key=key, mmap=False)
    os.truncate(path, 0)
    assert same(weights, tensors()), "in memory of its own"


def test_a_change_under_a_mapped_tensor_is_noticed(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    weights = sealed.load_file(path, key=key)
    with open_file(path) as file:
        entry = next(e for e in read_all(file).entries if e.name == "matrix")
    with open(path, "r+b") as file:
        file.seek(entry.start + 5 * PAGE)
        byte = file.read(1)
        file.seek(entry.start + 5 * PAGE)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(errors.IntegrityError, match="Page 5 of buffer 'matrix'") as caught:
        weights["matrix"][...]
    assert (caught.value.name, caught.value.page) == ("matrix", 5)
    assert np.array_equal(weights["matrix"][:5], tensors()["matrix"][:5])
    assert np.array_equal(weights["z.bias"][...], tensors()["z.bias"])


def test_nothing_stays_open(path: Path, key: Key) -> None:
    def held() -> tuple[int, int]:
        gc.collect()  # what earlier tests left in their exceptions
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return pyccmem.stats()["buffers"], descriptors

    sealed.save_file(tensors(), path, key=key)
    before = held()
    for _ in range(3):
        weights = sealed.load_file(path, key=key)
        assert held()[0] == before[0] + len(weights)
        del weights
        sealed.verify_file(path, key)
        with pytest.raises(errors.InvalidKeyError), Key.generate() as other:
            sealed.load_file(path, key=other)
    assert held() == before


# ---- plain files ----


def plain_file(path: Path, key: Key, **options: Any) -> Path:
    package = pytest.importorskip("safetensors.numpy")
    source = {name: np.ascontiguousarray(array) for name, array in tensors().items()}
    package.save_file(source, path, **options)
    return path


def test_there_and_back(tmp_path: Path, path: Path, key: Key) -> None:
    package = pytest.importorskip("safetensors.numpy")
    plain = plain_file(tmp_path / "plain", key, metadata={"format": "pt"})
    for seal_names in (False, True):
        pin = sealed.encrypt_file(plain, path, key, seal_names=seal_names, overwrite=seal_names)
        weights = sealed.load_file(path, key=key, expect=pin)
        assert {n: t[...].tobytes() for n, t in weights.items()} == {
            n: a.tobytes() for n, a in tensors().items()
        }
        sealed.decrypt_file(path, tmp_path / "back", key, expect=pin, overwrite=seal_names)
        assert (tmp_path / "back").read_bytes() == plain.read_bytes()
        assert (tmp_path / "back").stat().st_mode & 0o777 == 0o600
    sealed.save_file({"odd": np.zeros(3, np.uint8), **tensors()}, path, key=key)
    sealed.decrypt_file(path, tmp_path / "back", key, overwrite=True)
    with open_file(tmp_path / "back") as file:
        header = read_all(file)
    assert header.data_start % 8 == 0
    for entry in header.entries:
        assert entry.start % np.dtype(_NUMPY[entry.dtype]).itemsize == 0, "aligned"
    assert len(package.load_file(tmp_path / "back")) == 6


def test_a_file_replaced_by_its_sealed_self(path: Path, key: Key) -> None:
    plain_file(path, key)
    plain = path.read_bytes()
    os.chmod(path, 0o640)
    with pytest.raises(errors.FileWriteError, match="overwrite=True"):
        sealed.encrypt_file(path, path, key)
    assert path.read_bytes() == plain
    sealed.encrypt_file(path, path, key, overwrite=True)
    assert sealed.is_sealed(path) and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(errors.FileFormatError, match="sealed already"):
        sealed.encrypt_file(path, path, key)
    sealed.decrypt_file(path, path, key, overwrite=True)
    assert path.read_bytes() == plain and not sealed.is_sealed(path)
    with pytest.raises(errors.FileFormatError, match="plain safetensors file"):
        sealed.decrypt_file(path, path, key, overwrite=True)


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_replaced_unasked(
    tmp_path: Path, path: Path, key: Key, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def without_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    if not links:
        monkeypatch.setattr(os, "link", without_links)
    plain, back, other = plain_file(tmp_path / "plain", key), tmp_path / "back", tmp_path / "other"
    sealed.encrypt_file(plain, path, key)
    sealed.decrypt_file(path, back, key)
    assert back.read_bytes() == plain.read_bytes() and back.stat().st_nlink == 1
    kept = path.read_bytes()
    for work in (
        lambda **options: sealed.encrypt_file(plain, path, key, **options),
        lambda **options: sealed.decrypt_file(path, back, key, **options),
    ):
        with pytest.raises(errors.FileWriteError, match="overwrite=True") as caught:
            work()
        assert caught.value.errno == errno.EEXIST
        assert path.read_bytes() == kept and back.read_bytes() == plain.read_bytes()

    def appears(done: int, total: int) -> None:
        other.write_bytes(b"another's")

    for meanwhile in (
        lambda: sealed.encrypt_file(plain, other, key, progress=appears),
        lambda: sealed.decrypt_file(path, other, key, progress=appears),
    ):
        with pytest.raises(errors.FileWriteError, match="overwrite=True"):
            meanwhile()
        assert other.read_bytes() == b"another's"
        other.unlink()
    sealed.decrypt_file(path, back, key, overwrite=True)
    assert sealed.encrypt_file(plain, path, key, overwrite=True).endswith(":2")
    sealed.save_file(tensors(), path, key=key)
    assert sorted(os.listdir(tmp_path)) == sorted(["back", "plain", path.name])


def test_elements_smaller_than_a_byte_travel_as_files(tmp_path: Path, path: Path, key: Key) -> None:
    header = {"t": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    plain = tmp_path / "plain"
    plain.write_bytes(len(text).to_bytes(8, "little") + text + b"\x12\x34\x56\x78")
    sealed.encrypt_file(plain, path, key)
    sealed.verify_file(path, key)
    sealed.decrypt_file(path, tmp_path / "back", key)
    assert (tmp_path / "back").read_bytes() == plain.read_bytes()
    with pytest.raises(errors.ArgumentTypeError, match="smaller than a byte"):
        sealed.load_file(path, key=key)


def test_plain_files_that_cannot_be_sealed(tmp_path: Path, path: Path, key: Key) -> None:
    plain = tmp_path / "plain"
    for content in (b"", b"1234567", b"\2\0\0\0\0\0\0\0{}x"):
        plain.write_bytes(content)
        with pytest.raises(errors.FileFormatError):
            sealed.encrypt_file(plain, path, key)
    for name, dtype, data in (("b", "BOOL", b"\2"), ("__pyccmem_table__", "U8", b"1")):
        text = json.dumps({name: {"dtype": dtype, "shape": [1], "data_offsets": [0, 1]}}).encode()
        plain.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with pytest.raises(errors.FileFormatError):
            sealed.encrypt_file(plain, path, key)
    assert os.listdir(tmp_path) == ["plain"], "nothing half done stays"


def test_a_plain_file_in_the_place_of_a_sealed_one(path: Path, key: Key) -> None:
    pin = sealed.save_file(tensors(), path, key=key)
    plain_file(path, key)
    assert sealed.load_file(path, key=key)["pages"].writable, "without a pin it is just loaded"
    for options in ({"expect": pin}, {"sealed": True}):
        for opener in (sealed.load_file, sealed.safe_open):
            with pytest.raises(errors.IntegrityError, match="plain"):
                opener(path, key=key, **options)  # type: ignore[operator]
    for opener in (sealed.verify_file, sealed.inspect_file):
        with pytest.raises(errors.FileFormatError, match="plain"):
            opener(path, key=key)  # type: ignore[operator]
    with pytest.raises(errors.ArgumentTypeError, match="plain file"):
        sealed.load_file(path, key=sealed.Passphrase("x"))
    sealed.save_file(tensors(), path, key=key)
    with pytest.raises(errors.FileFormatError):
        sealed.load_file(path, key=key, sealed=False)


def test_stock_safetensors_sees_bytes_and_no_weights(path: Path, key: Key) -> None:
    package = pytest.importorskip("safetensors.numpy")
    stock = pytest.importorskip("safetensors")
    source = {**tensors(), "flags": np.zeros(PAGE, bool), "small": np.zeros((2, PAGE), np.int8)}
    for seal_names in (False, True):
        sealed.save_file(source, path, key=key, metadata={"format": "pt"}, seal_names=seal_names)
        found = package.load_file(path)
        assert {array.dtype for array in found.values()} == {np.dtype(np.uint8)}
        for name, array in found.items():
            assert name not in source or array.shape != source[name].shape
        with stock.safe_open(path, framework="np") as file:
            assert list(file.metadata()) == ["pyccmem"], "no format that a loader would accept"


# ---- pins ----


def test_every_save_is_a_new_file(path: Path, key: Key) -> None:
    pins, blobs, wrapped = [], [], []
    for _ in range(3):
        pins.append(sealed.save_file(tensors(), path, key=key))
        blobs.append(bytes(sealed.load_file(path, key=key)["pages"].buffer.ciphertext))
        with sealed.safe_open(path, key=key) as file:
            wrapped.append(file._header.wrapped.blob)
    assert [pin.partition(":")[2] for pin in pins] == ["1", "2", "3"]
    assert len({pin.partition(":")[0] for pin in pins}) == len(set(blobs)) == len(set(wrapped)) == 3


def test_an_older_file_put_back_is_caught_by_its_pin(path: Path, key: Key) -> None:
    first = sealed.save_file(tensors(1), path, key=key)
    old = path.read_bytes()
    second = sealed.rewrap_file(path, key, key)
    assert second.split(":")[0] == first.split(":")[0] and second.endswith(":2")
    for expect in (
        second,
        (second.split(":")[0], 2),
        {"file_id": second.split(":")[0], "generation": 2},
        sealed.inspect_file(path),
        second.upper(),
    ):
        assert same(sealed.load_file(path, key=key, expect=expect), tensors(1))
    newer = f"{second.split(':')[0]}:3"
    path.write_bytes(old)
    assert same(sealed.load_file(path, key=key), tensors(1)), "without a pin it is as good as ever"
    assert same(sealed.load_file(path, key=key, expect=first), tensors(1))
    for expect in (second, newer):
        with pytest.raises(errors.IntegrityError, match="older than expected"):
            sealed.load_file(path, key=key, expect=expect)
    third = sealed.save_file(tensors(2), path, key=key)
    with pytest.raises(errors.IntegrityError, match="another file than expected"):
        sealed.load_file(path, key=key, expect=first)
    path.write_bytes(old)
    for function in (sealed.verify_file, sealed.inspect_file):
        with pytest.raises(errors.IntegrityError, match="another file than expected"):
            function(path, key, expect=third)
    with pytest.raises(errors.IntegrityError):
        sealed.decrypt_file(path, path.with_name("plain"), key, expect=third)
    with pytest.raises(errors.IntegrityError):
        sealed.rewrap_file(path, key, key, expect=third)
    assert os.listdir(path.parent) == [path.name] and path.read_bytes() == old


@pytest.mark.parametrize(
    "expect",
    [
        "",
        "abc:1",
        "0" * 32,
        "0" * 32 + ":0",
        "0" * 32 + ":x",
        "0" * 32 + ":" + "9" * 5000,
        3,
        ("a",),
        {},
        [1, 2],
        b"x",
    ],
)
def test_pins_that_are_none(path: Path, key: Key, expect: Any) -> None:
    sealed.save_file({}, path, key=key)
    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError), match="expect"):
        sealed.load_file(path, key=key, expect=expect)


# ---- other keys ----


def test_another_key_is_told_apart(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    with Key.generate() as other:
        with pytest.raises(errors.InvalidKeyError) as caught:
            sealed.load_file(path, key=other)
        assert key.id in str(caught.value) and other.id in str(caught.value)
        before = path.read_bytes()
        sealed.rewrap_file(path, key, other)
        after = path.read_bytes()
        assert len(after) == len(before) and after != before
        assert same(sealed.load_file(path, key=other), tensors())
        sealed.verify_file(path, other)
        with pytest.raises(errors.InvalidKeyError):
            sealed.load_file(path, key=key)
        start = 8 + int.from_bytes(before[:8], "little")
        assert sum(a != b for a, b in zip(before[start:], after[start:], strict=True)) <= 16, (
            "only the header and its tag are new"
        )


def test_rewrap_across_a_longer_header(path: Path, key: Key) -> None:
    many = {f"tensor.{n:03}.{'x' * 60}": np.arange(n) for n in range(300)}
    phrase = sealed.Passphrase("phrase", n=16)
    for seal_names in (False, True):
        sealed.save_file(many, path, key=key, seal_names=seal_names)
        sealed.rewrap_file(path, key, phrase)
        assert same(sealed.load_file(path, key=phrase), many)
        sealed.verify_file(path, phrase)


# ---- as the format says ----


@pytest.mark.parametrize("cipher", [support.AEGIS, "sm4-gcm"])
@pytest.mark.parametrize("seal_names", [False, True])
def test_an_independent_reader(path: Path, key: Key, seal_names: bool, cipher: str) -> None:
    """Opens a file with pyca/cryptography and libaegis alone, by what the format says."""
    pytest.importorskip("cryptography", reason="another implementation of the primitives")
    pytest.importorskip("pyaegis", reason="another implementation of AEGIS")
    import oracle
    from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

    sealed.save_file(
        tensors(),
        path,
        key=key,
        metadata={"a": "b"},
        seal_names=seal_names,
        context={"for": "a test"},
        cipher=cipher,
    )
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    described = json.loads(header["__metadata__"]["pyccmem"])
    places = {n: e["data_offsets"] for n, e in header.items() if n != "__metadata__"}
    table = start + places.pop("__pyccmem_table__")[0]
    context = described["key"]["context"]
    assert context == {
        "pyccmem.file_id": described["file_id"],
        "pyccmem.format": "2",
        "pyccmem.purpose": "sealed-file",
        "for": "a test",
    }
    texts = [text.encode() for name in sorted(context) for text in (name, context[name])]
    canonical = b"pyccmem-context-1" + struct.pack(">I", 4)
    canonical += b"".join(struct.pack(">I", len(text)) + text for text in texts)
    own = oracle.kdf_counter_cmac(
        support.KEY_BYTES, b"key-context", hashlib.sha256(canonical).digest(), 32
    )
    kek = oracle.kdf_counter_cmac(own, b"key-wrap", b"", 32)
    root = aes_key_unwrap(kek, bytes.fromhex(described["key"]["wrapped"]))
    identity = oracle.kdf_counter_cmac(support.KEY_BYTES, b"key-id", b"", 16)
    assert described["key"]["key_id"] == identity.hex() == key.id

    derive = oracle.kdf_counter_sm3 if cipher == "sm4-gcm" else oracle.kdf_counter_cmac

    def mac(context: bytes, message: bytes) -> bytes:
        made = oracle.hmac_sm3 if cipher == "sm4-gcm" else oracle.aes_cmac
        return made(derive(root, b"key-mac", context, 32), message)[:16]

    assert data[table : table + 16] == mac(b"pyccmem-header-1", data[:start])
    records = table + 16

    def opened(blob: str, nbytes: int, store_id: str, table_mac: str) -> bytes:
        """The plaintext of the next blob in order."""
        nonlocal records
        begin, end = places[blob]
        count = (end - begin) // PAGE
        part = data[records : records + 24 * count]
        records += 24 * count
        assert mac(bytes.fromhex(store_id), part).hex() == table_mac
        context = bytes.fromhex(store_id) + PAGE.to_bytes(4, "big")
        key = derive(root, cipher.encode(), context, 16)
        pages = []
        for page in range(count):
            version = int.from_bytes(part[8 * page : 8 * page + 8], "little")
            tag = part[8 * count + 16 * page : 8 * count + 16 * page + 16]
            at = start + begin + page * PAGE
            stored = data[at : at + PAGE]
            pages.append(oracle.open_page(cipher, key, page, version, stored, tag))
            assert version == 1
        plain = b"".join(pages)
        assert not plain[nbytes:].strip(b"\0"), "the rest of the last page is zeros"
        return plain[:nbytes]

    index = described
    if seal_names:
        place = described["index"]
        text = opened("__pyccmem_index__", place["nbytes"], place["store_id"], place["table_mac"])
        index = json.loads(text)
    assert index["metadata"] == {"a": "b"}
    for name, array in tensors().items():
        entry = index["tensors"][name]
        plain = opened(entry["blob"], entry["nbytes"], entry["store_id"], entry["table_mac"])
        assert plain == array.tobytes() and entry["shape"] == list(array.shape)
    assert records == len(data)


def test_sealed_names_do_not_show(path: Path, key: Key) -> None:
    source = {"secret.name": np.zeros((17, 19), np.float16)}
    sealed.save_file(source, path, key=key, metadata={"author": "nobody"}, seal_names=True)
    data = path.read_bytes()
    for word in (b"secret", b"nobody", b"author", b"F16"):
        assert word not in data, word
    info = sealed.inspect_file(path)
    assert info.tensors is None and info.metadata is None and info.pages == {"t0": 1}
    assert not info.authenticated and info.names_sealed
    info = sealed.inspect_file(path, key)
    assert info.tensors == {"secret.name": sealed.TensorInfo("F16", (17, 19), 646)}
    assert info.authenticated and info.metadata == {"author": "nobody"}
    sealed.save_file(source, path, key=key, metadata={"author": "nobody"})
    assert b"secret.name" in path.read_bytes(), "the twin without sealed names shows them"


# ---- plaintext on the way ----


def test_plaintext_held_at_once_is_bounded(tmp_path: Path) -> None:
    found = support.check_python(
        """
import json, sys
import pyccmem
from pyccmem import safetensors
from pyccmem.binding import wiped
src, dst = sys.argv[1], sys.argv[2]
text = json.dumps({"t": {"dtype": "U8", "shape": [20 << 20], "data_offsets": [0, 20 << 20]}})
with open(src, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text.encode() + bytes(20 << 20))
key = pyccmem.Key.generate()
safetensors.encrypt_file(src, dst, key)
safetensors.save_file(safetensors.load_file(dst, key=key), dst, key=key)
safetensors.verify_file(dst, key)
safetensors.rewrap_file(dst, key, key)
safetensors.decrypt_file(dst, src, key, overwrite=True)
stats = wiped.stats()
print(stats["plain_peak"], stats["plain_in_use"])
""",
        str(tmp_path / "plain"),
        str(tmp_path / "sealed"),
    )
    peak, in_use = map(int, found.split())
    assert 0 < peak <= 4 << 20 and in_use == 0


@linux_only
@support.not_sanitized
def test_nothing_is_left_in_memory_after_sealing(tmp_path: Path) -> None:
    audit = pytest.importorskip("pyccmem.audit")
    data = np.random.default_rng(5).integers(0, 256, 6 << 20, dtype=np.uint8)
    pytest.importorskip("safetensors.numpy").save_file({"t": data}, tmp_path / "plain")
    script = """
import sys
import pyccmem
from pyccmem import safetensors
key = pyccmem.Key.generate()
safetensors.encrypt_file(sys.argv[1], sys.argv[2], key, overwrite=True)
weights = safetensors.load_file(sys.argv[2], key=key)
found = weights["t"][...] if sys.argv[3] == "held" else None
print("ready", flush=True)
sys.stdin.readline()
"""
    import subprocess
    import sys

    for held in ("held", "not"):
        words = [str(tmp_path / "plain"), str(tmp_path / "sealed"), held]
        with subprocess.Popen(
            [sys.executable, "-c", script, *words],
            env=support.child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            samples = audit.samples_from_safetensors(tmp_path / "plain", 4096)
            report = audit.scan(child.pid, samples)
            child.communicate("\n", timeout=60)
        assert report.found == (4096 if held == "held" else 0)


def test_the_pool_is_empty_after_errors(path: Path, key: Key) -> None:
    before = wiped.stats()["plain_in_use"]

    def stop(done: int, total: int) -> None:
        raise ValueError("stopped")

    for seal_names in (False, True):
        with pytest.raises(ValueError, match="stopped"):
            sealed.save_file(tensors(), path, key=key, seal_names=seal_names, progress=stop)
    assert wiped.stats()["plain_in_use"] == before and not os.listdir(path.parent)


def test_progress(tmp_path: Path, path: Path, key: Key) -> None:
    total = sum(array.nbytes for array in tensors().values())

    def steps(work: Any) -> None:
        seen: list[tuple[int, int]] = []
        work(lambda done, whole: seen.append((done, whole)))
        assert seen and seen[-1][0] == seen[-1][1] and seen == sorted(seen)
        assert len({whole for _, whole in seen}) == 1

    plain = plain_file(tmp_path / "plain", key)
    steps(lambda report: sealed.encrypt_file(plain, path, key, progress=report))
    steps(lambda report: sealed.save_file(tensors(), path, key=key, progress=report))
    steps(lambda report: sealed.verify_file(path, key, progress=report))
    steps(lambda report: sealed.decrypt_file(path, plain, key, overwrite=True, progress=report))
    steps(lambda report: sealed.rewrap_file(path, key, key, progress=report))
    steps(lambda report: sealed.load_file(path, key=key, mmap=False, progress=report))
    assert total > 1 << 20
    with pytest.raises(errors.ArgumentTypeError):
        sealed.verify_file(path, key, progress="yes")  # type: ignore[arg-type]


def test_a_file_does_not_follow_a_fork(path: Path, key: Key) -> None:
    sealed.save_file(tensors(), path, key=key)
    with sealed.safe_open(path, key=key) as file:

        def child() -> None:
            with pytest.raises(errors.ForkError):
                file.get_tensor("matrix")

        support.in_forked_child(child)
        assert file.get_tensor("scalar")[...] == -5


def test_a_file_cannot_be_pickled(path: Path, key: Key) -> None:
    import copy
    import pickle

    sealed.save_file(tensors(), path, key=key)
    with sealed.safe_open(path, key=key) as file:
        for work in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(errors.NotPicklableError):
                work(file)
        assert str(path) in repr(file) and "open" in repr(file)
    assert "closed" in repr(file)
    with pytest.raises(errors.ArgumentTypeError):
        sealed.SealedFile()


def test_names_of_temporary_files_are_recognized(path: Path, key: Key) -> None:
    with atomic.AtomicFile(path) as out:
        names = os.listdir(path.parent)
        assert len(names) == 1 and names[0].startswith(atomic.TEMPORARY_PREFIX)
        out.write_at(b"x", 0)
    assert os.listdir(path.parent) == []


# ---- cipher suites -----------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", [name for name in support.CIPHERS if "xts" not in name])
def test_every_suite_with_tags(tmp_path: Path, key: Key, cipher: str) -> None:
    """Many tensors, more than there is room for expanded keys: read in turn, twice; a changed page
    is refused; the file says its suite."""
    arrays = {f"t{i}": np.full(3000, i, np.float32) for i in range(70)}
    path = tmp_path / "many.safetensors"
    sealed.save_file(arrays, path, key=key, cipher=cipher)
    tensors = sealed.load_file(path, key=key)
    for _ in range(2):
        for name, array in arrays.items():
            assert tensors[name].cipher == cipher
            assert np.array_equal(tensors[name][...], array)
    for tensor in tensors.values():
        tensor.close()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1  # of a page: headers and records are a hundredth of it
    path.write_bytes(raw)
    refused = 0
    for tensor in sealed.load_file(path, key=key).values():
        try:
            tensor[...]
        except errors.IntegrityError:
            refused += 1
        tensor.close()
    assert refused == 1
    for name in ("aes-256-xts", "none", 5):
        with pytest.raises(errors.PyccmemError, match="cipher"):
            sealed.save_file(arrays, path, key=key, cipher=name)  # type: ignore[arg-type]
