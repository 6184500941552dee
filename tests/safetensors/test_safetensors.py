# SPDX-License-Identifier: Apache-2.0
"""load_file: every dtype, hostile and changing files, what is left of the plaintext."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import linux_only

import pyccmem
from pyccmem import EncryptedTensor, Key, errors
from pyccmem import safetensors as loader
from pyccmem.binding import wiped
from pyccmem.safetensors import _open

NUMPY = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], **extra: Any) -> Path:
    """A safetensors file of (dtype, shape, data) by name; `extra` goes into the header."""
    header: dict[str, Any] = dict(extra)
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        end = len(data) + len(content)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def random_bytes(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(count)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Tensors smaller than a page, larger than the loader's block, empty, of no dimensions."""
    return write(
        tmp_path / "model.safetensors",
        {
            "bias": ("F32", [384], random_bytes(1536)),
            "matrix": ("F32", [1000, 700], random_bytes(2_800_000, 2)),
            "nothing": ("F32", [0, 5], b""),
            "scalar": ("I64", [], (-5).to_bytes(8, "little", signed=True)),
        },
        __metadata__={"format": "pt"},
    )


@pytest.mark.parametrize("name", [*NUMPY, *ML_DTYPES])
def test_every_dtype(tmp_path: Path, key: Key, name: str) -> None:
    if name in ML_DTYPES:
        dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), ML_DTYPES[name]))
    else:
        dtype = np.dtype(NUMPY[name])
    data = random_bytes(3 * 5 * dtype.itemsize)
    if name == "BOOL":
        data = bytes(byte & 1 for byte in data)
    path = write(tmp_path / "file", {"t": (name, [3, 5], data)})
    tensor = loader.load_file(path, key=key)["t"]
    assert isinstance(tensor, EncryptedTensor)
    assert (tensor.shape, tensor.dtype) == ((3, 5), dtype)
    assert tensor[...].tobytes() == data
    assert data not in bytes(tensor.buffer.ciphertext)


def test_shapes_and_options(model: Path, key: Key, cipher: str) -> None:
    weights = loader.load_file(str(model), key=key, cipher=cipher, page_size=8192)
    assert list(weights) == ["bias", "matrix", "nothing", "scalar"]
    assert [weight.name for weight in weights.values()] == list(weights)
    assert {weight.cipher for weight in weights.values()} == {cipher}
    assert {weight.buffer.page_size for weight in weights.values()} == {8192}
    assert weights["matrix"][...].tobytes() == random_bytes(2_800_000, 2)
    assert weights["bias"][...].tobytes() == random_bytes(1536)
    assert weights["nothing"].shape == (0, 5) and weights["scalar"][()] == -5
    weights["bias"].close()
    assert weights["matrix"][0, 0] == weights["matrix"][:1][0, 0], "each has a buffer of its own"


def test_the_cipher_is_one_with_tags_unless_another_is_named(model: Path, key: Key) -> None:
    weights = loader.load_file(model, key=key)
    assert {weight.cipher for weight in weights.values()} == {"aegis-128x2"}
    assert all(weight.verify() == [] for weight in weights.values())
    support.damage(weights["matrix"].buffer, 100)
    assert weights["matrix"].verify() == [100] and weights["bias"].verify() == []
    with pytest.raises(errors.IntegrityError, match="'matrix'"):
        weights["matrix"][...]


def test_every_page_is_written_once(model: Path, key: Key) -> None:
    for weight in loader.load_file(model, key=key).values():
        assert (weight.buffer.versions == 1).all()


def test_no_tensors(tmp_path: Path, key: Key) -> None:
    assert loader.load_file(write(tmp_path / "file", {}), key=key) == {}


def test_same_as_the_safetensors_package(tmp_path: Path, key: Key) -> None:
    package = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(3)
    tensors = {
        "a": rng.standard_normal((300, 400)).astype(np.float32),
        "b.c": rng.integers(-9, 9, 7),
        "d": rng.standard_normal(9).astype(np.float16),
        "e": rng.integers(0, 2, (4, 4)).astype(bool),
    }
    package.save_file(tensors, tmp_path / "file", metadata={"x": "y"})
    weights = loader.load_file(tmp_path / "file", key=key)
    assert set(weights) == set(tensors)
    for name, expected in package.load_file(tmp_path / "file").items():
        assert weights[name].dtype == expected.dtype
        assert np.array_equal(weights[name][...], expected)


# ---- files that are not right ----

T = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: Any, data: bytes = b"12345678") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        raw(b"[]"),
        raw(b'{"t": '),
        raw({"t": T}, b"1234"),
        raw({"t": T}, b"12345678 and more"),
        raw({"t": T | {"data_offsets": [0, 2**63]}}),
        raw({"t": T | {"data_offsets": [8, 0]}}),
        raw({"t": T | {"data_offsets": [-8, 0]}}),
        raw({"t": T | {"shape": [2**62, 2**62]}}),
        raw({"t": T | {"shape": [-2]}}),
        raw({"t": T | {"shape": [3]}}),
        raw({"t": T | {"dtype": "F33"}}),
        raw({"t": T, "u": T}),
        raw({"t": T, "u": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]}}, b"1" * 16),
        raw({"t": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\0\1\2"),
    ],
)
def test_hostile_files(tmp_path: Path, key: Key, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    before = pyccmem.stats()["buffers"]
    with pytest.raises(errors.FileFormatError):
        loader.load_file(path, key=key)
    assert pyccmem.stats()["buffers"] == before


def test_any_cut_of_a_file_is_refused(tmp_path: Path, key: Key) -> None:
    whole = raw({"t": T})
    path = tmp_path / "file"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.FileFormatError):
            loader.load_file(path, key=key)


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "F6_E3M2"])
def test_elements_smaller_than_a_byte(tmp_path: Path, key: Key, name: str) -> None:
    nbytes = 4 if name == "F4" else 6
    path = write(tmp_path / "file", {"t": (name, [8], bytes(nbytes))})
    with pytest.raises(errors.ArgumentTypeError, match="smaller than a byte"):
        loader.load_file(path, key=key)


def test_without_ml_dtypes(tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "file", {"t": ("BF16", [2], b"1234")})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(errors.MissingPackageError, match="pip install") as caught:
        loader.load_file(path, key=key)
    assert isinstance(caught.value, ImportError)


def test_missing_file_and_wrong_kinds(tmp_path: Path, key: Key) -> None:
    with pytest.raises(errors.FileReadError):
        loader.load_file(tmp_path / "none", key=key)
    with pytest.raises(errors.FileReadError):
        loader.load_file(tmp_path, key=key)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.FileReadError):
        loader.load_file(tmp_path / "fifo", key=key)


def test_wrong_arguments(model: Path, key: Key) -> None:
    with pytest.raises(errors.ArgumentTypeError):
        loader.load_file(model, key=b"k" * 32)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError):
        loader.load_file(model, key=key, progress="yes")  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError):
        loader.load_file(model, key=key, cipher="rot13")


def test_file_that_gets_shorter_while_it_is_read(model: Path, key: Key) -> None:
    def cut(done: int, total: int) -> None:
        os.truncate(model, os.path.getsize(model) // 2)

    before = pyccmem.stats()["buffers"]
    with pytest.raises(errors.FileFormatError, match="shorter"):
        loader.load_file(model, key=key, progress=cut)
    assert pyccmem.stats()["buffers"] == before


def test_reads_that_give_less_than_asked(
    model: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """A file whose readinto() stops early, at odd places."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def readinto(self, view: memoryview) -> int:
            self.calls += 1
            return int(self.file.readinto(view[: max(1, 100_003 % (self.calls * 7919))]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Slow:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    opened: list[Slow] = []

    def open_slow(path: Any) -> Slow:
        opened.append(Slow(real(path)))
        return opened[-1]

    real = _open.open_file
    monkeypatch.setattr(_open, "open_file", open_slow)
    weights = loader.load_file(model, key=key)
    assert weights["matrix"][...].tobytes() == random_bytes(2_800_000, 2)
    assert opened[0].calls > 10, "the reads were not cut into pieces"


def test_error_of_the_disk(model: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, file: Any) -> None:
            self.file = file

        def readinto(self, view: memoryview) -> int:
            raise OSError(5, "Input/output error")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    real = _open.open_file
    monkeypatch.setattr(_open, "open_file", lambda path: Broken(real(path)))
    with pytest.raises(errors.FileReadError, match="Input/output error") as caught:
        loader.load_file(model, key=key)
    assert caught.value.errno == 5


# ---- progress and what is left behind ----


def test_progress_is_reported(model: Path, key: Key) -> None:
    seen: list[tuple[int, int]] = []
    loader.load_file(model, key=key, progress=lambda done, total: seen.append((done, total)))
    total = 1536 + 2_800_000 + 8
    assert seen[-1] == (total, total) and {part[1] for part in seen} == {total}
    assert [part[0] for part in seen] == sorted({part[0] for part in seen})


def test_an_exception_of_the_callback_ends_the_loading(model: Path, key: Key) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = pyccmem.stats()["buffers"]
    with pytest.raises(KeyboardInterrupt):
        loader.load_file(model, key=key, progress=stop)
    assert pyccmem.stats()["buffers"] == before


def test_bar(model: Path, key: Key, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    loader.load_file(model, key=key, progress=True)
    assert "model.safetensors" in capsys.readouterr().err
    loader.load_file(model, key=key)
    loader.load_file(model, key=key, progress=False)
    assert not capsys.readouterr().err


def test_bar_without_rich(model: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(errors.MissingPackageError):
        loader.load_file(model, key=key, progress=True)


def test_plaintext_held_at_once_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "file", {"t": ("U8", [20 << 20], random_bytes(20 << 20))})
    found = support.check_python(
        """
import sys
import pyccmem
from pyccmem import safetensors
from pyccmem.binding import wiped
key = pyccmem.Key.generate()
weights = safetensors.load_file(sys.argv[1], key=key)
stats = wiped.stats()
print(stats["plain_peak"], stats["plain_in_use"])
""",
        str(path),
    )
    peak, in_use = map(int, found.split())
    assert 0 < peak <= 4 << 20 and in_use == 0


def running(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=support.child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@linux_only
@support.not_sanitized
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_file_is_left_in_memory(tmp_path: Path, fails: bool) -> None:
    audit = pytest.importorskip("pyccmem.audit")
    path = write(tmp_path / "file", {"t": ("U8", [6 << 20], random_bytes(6 << 20))})
    script = """
import sys
import pyccmem
from pyccmem import safetensors
key = pyccmem.Key.generate()
caught = None
def stop(done, total):
    if sys.argv[2] == "True" and done > 3 << 20:
        raise ValueError("stopped")
try:
    weights = safetensors.load_file(sys.argv[1], key=key, progress=stop)
except ValueError as error:
    caught = error  # with its traceback, and what the frames in it hold
assert (caught is not None) == (sys.argv[2] == "True")
print("ready", flush=True)
sys.stdin.readline()
"""
    with running(script, str(path), str(fails)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        report = audit.scan(child.pid, audit.samples_from_safetensors(path, 4096))
        child.communicate("\n", timeout=60)
    assert report.samples == 4096 and report.found == 0


def test_pool_is_empty_afterwards(model: Path, key: Key) -> None:
    before = wiped.stats()["plain_in_use"]
    loader.load_file(model, key=key)
    assert wiped.stats()["plain_in_use"] == before
