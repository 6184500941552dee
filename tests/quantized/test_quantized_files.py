# SPDX-License-Identifier: Apache-2.0
"""Quantised tensors in sealed and plain safetensors files: their blocks as they are, mapped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import QuantizedTensor, errors
from pyccmem import safetensors as st
from pyccmem.quantized import FORMATS, quantize_blocks, quantize_rows

stock = pytest.importorskip("safetensors.numpy")

ENTRY = "pyccmem.blocks"
ENTRY_PATTERN = r"pyccmem\.blocks"
X = np.random.default_rng(0).normal(size=(6, 2, 512)).astype(np.float32)


@pytest.fixture
def key() -> Any:
    with pyccmem.Key.generate() as made:
        yield made


@pytest.mark.parametrize("seal_names", [False, True])
def test_every_format_comes_back(key: Any, tmp_path: Path, seal_names: bool) -> None:
    path = tmp_path / "all.safetensors"
    tensors: dict[str, Any] = {
        name: QuantizedTensor.from_numpy(X, kind, key=key) for name, kind in FORMATS.items()
    }
    tensors["plain"] = np.arange(5)
    st.save_file(tensors, path, {"a": "b", ENTRY: "old"}, key=key, seal_names=seal_names)
    loaded = st.load_file(path, key=key)
    assert list(loaded) == list(tensors)
    for name, kind in FORMATS.items():
        found = loaded[name]
        assert isinstance(found, QuantizedTensor) and found.format is kind
        assert found.shape == X.shape and not found.writable
        assert np.array_equal(found[...], tensors[name][...])
        assert np.array_equal(found.raw[...], tensors[name].raw[...])
        found.close()
    assert isinstance(loaded["plain"], pyccmem.EncryptedTensor)
    with st.safe_open(path, "np", key=key) as file:
        assert file.metadata()["a"] == "b" and "int8_row.scale" in file
        one = file.get_tensor("q4_k")
        assert isinstance(one, QuantizedTensor) and np.array_equal(one[2], tensors["q4_k"][2])
        assert file.info("q4_k").dtype == "U8"
        raw = file.get_slice("q4_k")[3:4]
        assert np.array_equal(raw, tensors["q4_k"].raw[3:4])
    again = tmp_path / "again.safetensors"
    st.save_file({"x": one, "y": np.arange(3)}, again, key=key)  # of a mapped file
    assert np.array_equal(st.load_file(again, key=key)["x"][...], one[...])
    data = st.save({"x": one}, key=key)
    assert np.array_equal(st.load(data, key=key)["x"][...], one[...])


def test_loading_opens_nothing(key: Any, tmp_path: Path) -> None:
    """The blocks are mapped: no plaintext, and about the file's bytes."""
    path = tmp_path / "mapped.safetensors"
    t = QuantizedTensor.from_numpy(np.ones((2048, 2048), np.float32), "q4_k", key=key)
    st.save_file({"w": t}, path, key=key)
    del t
    reads = pyccmem.stats()["plain_in_use"]
    loaded = st.load_file(path, key=key)["w"]
    assert pyccmem.stats()["plain_in_use"] == reads
    assert loaded.nbytes == 2048 * 1152 and os.path.getsize(path) < 1.02 * loaded.nbytes
    assert loaded.raw.buffer.stats()["reads"] == 0
    assert np.allclose(loaded[5], 1, rtol=1e-3)
    with loaded.copy(key=key) as copy:
        copy[5] = 2
        assert np.allclose(copy[5], 2, rtol=1e-3) and np.allclose(loaded[5], 1, rtol=1e-3)


def test_plain_files_are_encrypted_on_the_way(key: Any, tmp_path: Path) -> None:
    """Written by safetensors itself, and decrypted to a file that it reads."""
    packed = quantize_blocks(X, "q6_k").reshape(12, -1)
    q, scale = quantize_rows(X.reshape(12, 512))
    entry = {
        "w": {"format": "q6_k", "shape": [6, 2, 512]},
        "r": {"format": "int8_row", "shape": [12, 512], "scale": "s"},
    }
    path, sealed, back = (tmp_path / f"{name}.safetensors" for name in ("plain", "sealed", "back"))
    contents = {"w": packed, "r": q.view(np.uint8), "s": scale}
    stock.save_file(contents, path, {ENTRY: json.dumps(entry)})
    st.encrypt_file(path, sealed, key)
    st.decrypt_file(sealed, back, key)
    assert path.read_bytes() == back.read_bytes()
    for file in (path, sealed):
        loaded = st.load_file(file, key=key)
        assert set(loaded) == {"w", "r"}
        assert loaded["w"].shape == (6, 2, 512)
        assert np.array_equal(loaded["w"].raw[...], packed)
        assert np.array_equal(loaded["r"][...], q * scale[:, None])


@support.linux_only
def test_a_forked_child_opens_the_file_anew(tmp_path: Path) -> None:
    done = support.check_python(
        """
import os, sys, numpy as np, pyccmem
from pyccmem import safetensors as st
path = sys.argv[1]
open(path + ".key", "wb").write(os.urandom(32)); os.chmod(path + ".key", 0o600)
key = pyccmem.Key.from_file(path + ".key")
t = pyccmem.QuantizedTensor.from_numpy(np.ones((4, 64), "f4"), "q8_0", key=key)
st.save_file({"w": t}, path, key=key)
w = st.load_file(path, key=key)["w"]
if os.fork() == 0:
    os._exit(0 if abs(w[...] - 1).max() < 1e-3 else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
""",
        str(tmp_path / "forked.safetensors"),
    )
    assert done.split() == ["0"]


BAD: dict[str, Any] = {
    "not JSON": "{",
    "deep": "[" * 100_000,
    "a list": [],
    "no tensor": {"z": {"format": "q8_0", "shape": [4, 64]}},
    "no entry": {"w": 5},
    "no shape": {"w": {"format": "q8_0"}},
    "no format": {"w": {"shape": [4, 64]}},
    "unknown": {"w": {"format": "q9_0", "shape": [4, 64]}},
    "format a list": {"w": {"format": ["q8_0"], "shape": [4, 64]}},
    "other shape": {"w": {"format": "q8_0", "shape": [4, 32]}},
    "part of a block": {"w": {"format": "q8_0", "shape": [4, 63]}},
    "no dimension": {"w": {"format": "q8_0", "shape": []}},
    "negative": {"w": {"format": "q8_0", "shape": [-4, -64]}},
    "a truth": {"w": {"format": "q8_0", "shape": [True, 64]}},
    "fraction": {"w": {"format": "q8_0", "shape": [4.0, 64]}},
    "huge": {"w": {"format": "q8_0", "shape": [2**70, 64]}},
    "many dimensions": {"w": {"format": "q8_0", "shape": [1] * 40 + [4, 64]}},
    "text for a shape": {"w": {"format": "q8_0", "shape": "4"}},
    "scale of blocks": {"w": {"format": "q8_0", "shape": [4, 64], "scale": "s"}},
    "not bytes": {"s": {"format": "q8_0", "shape": [1, 32]}},
    "no scale": {"w": {"format": "int8_row", "shape": [4, 68]}},
    "scale not there": {"w": {"format": "int8_row", "shape": [4, 68], "scale": "t"}},
    "scale of a wrong shape": {"w": {"format": "int8_row", "shape": [2, 2, 68], "scale": "s5"}},
    "scale of a wrong type": {"w": {"format": "int8_row", "shape": [4, 68], "scale": "d"}},
    "itself": {"w": {"format": "int8_row", "shape": [4, 68], "scale": "w"}},
    "shared": {
        "w": {"format": "int8_row", "shape": [4, 68], "scale": "s"},
        "v": {"format": "int8_row", "shape": [4, 68], "scale": "s"},
    },
}


@pytest.mark.parametrize("name", BAD)
def test_metadata_that_cannot_be_is_refused(name: str, key: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    text = BAD[name] if isinstance(BAD[name], str) else json.dumps(BAD[name])
    contents = {
        "w": np.zeros((4, 68), np.uint8),
        "v": np.zeros((4, 68), np.uint8),
        "s": np.zeros(4, np.float32),
        "s5": np.zeros(5, np.float32),
        "d": np.zeros(4, np.float64),
    }
    stock.save_file(contents, path, {ENTRY: text})
    with pytest.raises(errors.FileFormatError, match=ENTRY_PATTERN):
        st.load_file(path, key=key)
    with (
        st.safe_open(path, "np", key=key) as file,
        pytest.raises(errors.FileFormatError, match=ENTRY_PATTERN),
    ):
        file.get_tensor("w")


def test_a_name_for_the_scales_that_is_taken_is_refused(key: Any, tmp_path: Path) -> None:
    t = QuantizedTensor.from_numpy(np.ones((2, 8)), "int8_row", key=key)
    with pytest.raises(errors.ArgumentError, match=r"'w\.scale'"):
        st.save_file({"w": t, "w.scale": np.ones(2)}, tmp_path / "f", key=key)


def test_a_changed_block_of_a_file_is_told(key: Any, tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    t = QuantizedTensor.from_numpy(np.ones((64, 1024), np.float32), "q4_k", key=key)
    st.save_file({"weights": t}, path, key=key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = st.load_file(path, key=key)["weights"]
    with pytest.raises(errors.IntegrityError, match=r"weights.*q4_k blocks"):
        found.dequantize()
    assert len(found.verify()) == 1
