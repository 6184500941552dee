# SPDX-License-Identifier: Apache-2.0
"""Sealed GGUF files: the same file back byte for byte, nothing of it in the clear, changes refused,
nothing left behind by what fails."""

from __future__ import annotations

import copy
import errno
import gc
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_files as making
import numpy as np
import pytest
import support
from gguf_files import STRING, Draft, Tensor, sound

import pyccmem
from pyccmem import Key, errors, gguf
from pyccmem import safetensors as sealed
from pyccmem.quantized import QuantizedTensor

FILES = {
    "sound": sound().bytes(),
    "padding that is not zero": sound(1, filler=0xA5).bytes(),
    "bytes at the end": sound(2, behind=b"\0\0more\0").bytes(),
    "zeros at the end": sound(2, behind=bytes(5000)).bytes(),
    "metadata alone": Draft(pairs=[("general.name", STRING, "x")]).bytes(),
    "nothing": Draft().bytes(),
    "data out of order": Draft(
        tensors=[Tensor("a", 0, (8,), b"", offset=64), Tensor("b", 24, (3,), b"", offset=0)],
        behind=bytes(range(128)),
    ).bytes(),
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(FILES["padding that is not zero"])
    return path


@pytest.fixture
def there(tmp_path: Path, plain: Path, key: Key) -> Path:
    path = tmp_path / "model.gguf.sealed"
    gguf.seal(plain, path, key)
    return path


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_the_same_file_comes_back(tmp_path: Path, key: Key, name: str, page_size: int) -> None:
    plain, there, again = (tmp_path / part for part in ("a.gguf", "sealed", "b.gguf"))
    plain.write_bytes(FILES[name])
    pin = gguf.seal(plain, there, key=key, page_size=page_size)
    assert sealed.is_sealed(there) and not gguf.is_gguf(there)
    gguf.unseal(there, again, key, expect=pin)
    assert again.read_bytes() == FILES[name]
    gguf.unseal(there, again, key, mmap=False, overwrite=True)
    assert again.read_bytes() == FILES[name] and stat.S_IMODE(again.stat().st_mode) == 0o600
    sealed.verify_file(there, key, expect=pin)


def test_mutants_that_are_accepted_come_back(tmp_path: Path, key: Key) -> None:
    rng, found = random.Random(5), 0
    plain, there, again = (tmp_path / part for part in ("a.gguf", "sealed", "b.gguf"))
    while found < 25:
        data = making.MUTATIONS[rng.choice(list(making.MUTATIONS))](rng, sound(1).bytes())
        plain.write_bytes(data)
        try:
            gguf.seal(plain, there, key, overwrite=True)
        except errors.FileFormatError:
            continue
        gguf.unseal(there, again, key, overwrite=True)
        assert again.read_bytes() == data
        found += 1


def test_what_it_says(there: Path, plain: Path, key: Key) -> None:
    data, theirs = plain.read_bytes(), gguf.read_header(plain)
    with gguf.open_sealed(there, key) as file:
        assert dict(file.metadata) == dict(theirs.metadata) and file.tensors == theirs.tensors
        assert file.keys() == list(theirs.tensors) and len(file) == 8 and "scalar" in file
        raws = {name: file.raw(name) for name in file}
        with pytest.raises(errors.FileRequestError, match="no tensor"):
            file.raw("none")
        metadata = file.metadata
        assert "8 tensors" in repr(file) and file.pin in repr(file)
    with pytest.raises(errors.ClosedFileError):
        metadata["general.name"]
    with pytest.raises(errors.ClosedFileError):
        file.raw("scalar")
    for name, info in theirs.tensors.items():
        raw = raws[name]
        rows = int(np.prod(info.shape[:-1], dtype=int))
        assert raw.shape == (rows if info.nbytes else 0, info.row_bytes) and not raw.writable
        assert raw[...].tobytes() == data[info.start : info.end]


def test_nothing_of_it_shows(there: Path, plain: Path, key: Key, tmp_path: Path) -> None:
    header = gguf.read_header(plain)
    words = [b"llama", b"model", b"blk.0", b"tokenizer", b"word", b"Q8_0", b"scalar"]
    data = plain.read_bytes()
    pieces = [data[t.start : t.start + 8] for t in header.tensors.values() if t.nbytes > 8]
    cipher = there.read_bytes()
    assert not [piece for piece in (*words, *pieces) if piece in cipher]
    assert all(piece in data for piece in (*words[:5], *pieces))  # the control
    info = sealed.inspect_file(there)
    assert info.names_sealed and info.tensors is None and info.metadata is None
    with pytest.raises(errors.InvalidKeyError):
        gguf.open_sealed(there, Key.generate())


def test_the_metadata_lie_in_wiped_memory(there: Path, key: Key) -> None:
    gc.collect()
    before = pyccmem.stats()["plain_in_use"]
    file = gguf.open_sealed(there, key)
    assert pyccmem.stats()["plain_in_use"] > before
    raw = file.header.raw
    assert b"general.name" in raw.tobytes()
    file.close()
    assert not raw.any()
    del raw, file
    assert pyccmem.stats()["plain_in_use"] == before


def test_changes_are_refused(there: Path, key: Key, tmp_path: Path) -> None:
    data = there.read_bytes()
    again = tmp_path / "again"
    step = max(1, len(data) // 150)
    refused = 0
    for at in range(0, len(data), step):
        there.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            gguf.unseal(there, again, key)
        except (errors.IntegrityError, errors.FileFormatError, errors.InvalidKeyError):
            refused += 1
            assert not again.exists()
        else:  # in the zeros behind the end of a blob, which belong to no page that is read
            raise AssertionError(f"a bit of byte {at} was not noticed")
    assert refused > 100
    there.write_bytes(data)
    gguf.unseal(there, again, key)


def test_a_change_while_it_is_mapped_raises(there: Path, plain: Path, key: Key) -> None:
    data = plain.read_bytes()
    with gguf.open_sealed(there, key) as file:
        info = file.info("blk.0.Q4_K.weight")
        raw = file.raw(info.name)
    assert raw[...].tobytes() == data[info.start : info.end]
    with there.open("r+b") as changing:
        whole = there.read_bytes()
        page = bytes(raw.buffer.ciphertext[:64])
        changing.seek(whole.index(page))
        changing.write(bytes([page[0] ^ 1]))
    with pytest.raises(errors.IntegrityError, match="Q4_K"):
        raw[...]


def test_older_and_other_files_are_refused(there: Path, plain: Path, key: Key) -> None:
    pin = gguf.open_sealed(there, key).pin
    old = there.read_bytes()
    new = gguf.seal(plain, there, key, overwrite=True)
    assert new.endswith(":2")
    there.write_bytes(old)
    gguf.open_sealed(there, key, expect=pin).close()
    with pytest.raises(errors.IntegrityError, match="another file"):
        gguf.open_sealed(there, key, expect=new)


def test_rewrapped_for_another_key(there: Path, plain: Path, key: Key, tmp_path: Path) -> None:
    other = Key.generate()
    pin = sealed.rewrap_file(there, key, other)
    gguf.unseal(there, tmp_path / "again", other, expect=pin)
    assert (tmp_path / "again").read_bytes() == plain.read_bytes()
    with pytest.raises(errors.InvalidKeyError):
        gguf.open_sealed(there, key)


def test_a_passphrase_opens_it(plain: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    phrase = sealed.Passphrase("correct horse")
    gguf.seal(plain, there, phrase)
    gguf.decrypt(there, tmp_path / "again", phrase)
    assert (tmp_path / "again").read_bytes() == plain.read_bytes()


def test_other_files_are_told_apart(there: Path, plain: Path, key: Key, tmp_path: Path) -> None:
    tensors = tmp_path / "tensors"
    sealed.save_file({"a": np.ones(3)}, tensors, key=key)
    for work in (gguf.open_sealed, gguf.inspect):
        with pytest.raises(errors.FileFormatError, match="not a sealed GGUF"):
            work(tensors, key)
    with pytest.raises(errors.FileFormatError, match="sealed GGUF file; use"):
        sealed.decrypt_file(there, tmp_path / "x", key)
    with pytest.raises(errors.FileFormatError, match="plain GGUF file"):
        sealed.load_file(plain, key=key)
    with pytest.raises(errors.FileFormatError, match="plain GGUF file"):
        gguf.open_sealed(plain, key)
    with pytest.raises(errors.FileFormatError, match="not a valid GGUF"):
        gguf.seal(there, tmp_path / "x", key)
    with pytest.raises(errors.ArgumentTypeError):
        gguf.seal(plain, tmp_path / "x", None)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    # encrypt() and decrypt() look what a file is.
    gguf.decrypt(tensors, tmp_path / "plain tensors", key)
    assert gguf.encrypt(tmp_path / "plain tensors", tensors, key, overwrite=True)
    assert sealed.load_file(tensors, key=key)["a"][1] == 1


@pytest.mark.parametrize("name", ["gguf/header", "gguf/gaps", "__metadata__", "__pyccmem_x"])
def test_names_that_sealed_files_use(tmp_path: Path, key: Key, name: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(Draft(tensors=[Tensor(name, 0, (1,), bytes(4))]).bytes())
    with pytest.raises(errors.FileFormatError, match="use for themselves"):
        gguf.seal(path, tmp_path / "x", key)


@pytest.mark.parametrize("part", ["metadata", "header", "tensor", "gaps", "size"])
def test_containers_of_others_are_refused(
    plain: Path, there: Path, key: Key, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound sealed files that say they hold a GGUF file, and do not."""
    with sealed.safe_open(there, key=key) as file:
        tensors = {name: file.get_slice(name)[...] for name in file.offset_keys()}
        metadata = file.metadata()
    sealed.save_file(tensors, there, key=key, metadata=metadata, seal_names=True)
    gguf.open_sealed(there, key).close()  # the control: it can be made this way
    if part == "metadata":
        metadata["pyccmem.gguf"] = "[]"
    elif part == "header":
        tensors["gguf/header"] = np.append(tensors["gguf/header"], np.uint8(0))
    elif part == "tensor":
        tensors["blk.0.Q8_0.weight"] = tensors["blk.0.Q8_0.weight"][:-1]
    elif part == "gaps":
        tensors["gguf/gaps"] = tensors["gguf/gaps"][1:]
    else:
        metadata["pyccmem.gguf"] = '{"format":1,"size":100}'
    sealed.save_file(tensors, there, key=key, metadata=metadata, seal_names=True)
    with pytest.raises(errors.FileFormatError):
        gguf.open_sealed(there, key)
    metadata["pyccmem.gguf"] = '{"format":2}'
    sealed.save_file(tensors, there, key=key, metadata=metadata, seal_names=True)
    with pytest.raises(errors.FileFormatError, match="upgrade"):
        gguf.open_sealed(there, key)


def test_modes_and_files_that_are_there(plain: Path, tmp_path: Path, key: Key) -> None:
    there = tmp_path / "there"
    plain.chmod(0o640)
    gguf.seal(plain, there, key)
    assert stat.S_IMODE(there.stat().st_mode) == 0o640
    for work in (lambda: gguf.seal(plain, there, key), lambda: gguf.unseal(there, plain, key)):
        with pytest.raises(errors.FileWriteError) as caught:
            work()
        assert caught.value.errno == errno.EEXIST
    data = plain.read_bytes()
    gguf.seal(plain, plain, key, overwrite=True)
    assert sealed.is_sealed(plain)
    gguf.unseal(plain, plain, key, overwrite=True)
    assert plain.read_bytes() == data


@pytest.mark.parametrize("work", ["seal", "unseal"])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "preadv"])
def test_a_failing_disk_leaves_nothing(
    plain: Path, there: Path, key: Key, monkeypatch: pytest.MonkeyPatch, call: str, work: str
) -> None:
    if call == "preadv" and work == "unseal":
        pytest.skip("a sealed file is mapped, not read")
    before = sorted(os.listdir(plain.parent))

    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = plain.parent / "target"
    target.write_bytes(b"what was there")
    gc.collect()
    in_use = pyccmem.stats()["plain_in_use"]
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises((errors.FileWriteError, errors.FileReadError), match="No space left"):
            if work == "seal":
                gguf.seal(plain, target, key, overwrite=True)
            else:
                gguf.unseal(there, target, key, overwrite=True)
    assert target.read_bytes() == b"what was there"
    assert sorted(os.listdir(plain.parent)) == sorted([*before, "target"])
    gc.collect()
    assert pyccmem.stats()["plain_in_use"] == in_use


def test_a_file_that_gets_shorter(tmp_path: Path, plain: Path, key: Key) -> None:
    def cut(done: int, total: int) -> None:
        os.truncate(plain, len(FILES["sound"]) // 2)

    with pytest.raises(errors.FileFormatError, match="became shorter"):
        gguf.seal(plain, tmp_path / "x", key, progress=cut)
    assert not (tmp_path / "x").exists()


def test_progress(plain: Path, tmp_path: Path, key: Key) -> None:
    calls: list[tuple[int, int]] = []
    gguf.seal(plain, tmp_path / "x", key, progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] and len({total for _, total in calls}) == 1
    calls.clear()
    gguf.unseal(tmp_path / "x", tmp_path / "y", key, progress=lambda *call: calls.append(call))
    size = plain.stat().st_size
    assert calls[-1] == (size, size) and calls == sorted(calls)
    with pytest.raises(errors.ArgumentTypeError):
        gguf.unseal(tmp_path / "x", tmp_path / "z", key, progress=7)  # type: ignore[arg-type]


def test_the_plaintext_in_memory_is_bounded(tmp_path: Path, key: Key) -> None:
    plain = tmp_path / "a.gguf"
    data = np.random.default_rng(1).integers(0, 256, 8 << 20, dtype=np.uint8).tobytes()
    plain.write_bytes(Draft(tensors=[Tensor("a", 24, (8 << 20,), data)]).bytes())
    peaks: list[int] = []

    def watch(done: int, total: int) -> None:
        peaks.append(pyccmem.stats()["plain_in_use"])

    gc.collect()
    before = pyccmem.stats()["plain_in_use"]
    gguf.seal(plain, tmp_path / "x", key, progress=watch)
    gguf.unseal(tmp_path / "x", tmp_path / "y", key, progress=watch)
    assert len(peaks) >= 16 and max(peaks) - before < 3 << 20
    assert pyccmem.stats()["plain_in_use"] == before
    assert (tmp_path / "y").read_bytes() == plain.read_bytes()


LARGE = """if True:
    import resource, sys
    import numpy as np
    from pyccmem import Key, gguf

    sys.path.insert(0, sys.argv[2])
    import gguf_files

    folder, key = sys.argv[1], Key.generate()
    size = (1 << 30) // 8
    blocks, step = size // 34, size
    kinds = [gguf_files.Tensor(str(n), 8, (32 * blocks, 1), b"", n * step) for n in range(8)]
    draft = gguf_files.Draft(tensors=kinds)
    with open(folder + "/a.gguf", "wb") as file:
        file.write(draft.bytes())
        block = np.random.default_rng(1).bytes(1 << 20)
        for _ in range((1 << 10) + 1):
            file.write(block)
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    before = peak()
    gguf.seal(folder + "/a.gguf", folder + "/b", key)
    sealed = peak()
    gguf.unseal(folder + "/b", folder + "/c.gguf", key, mmap=True)
    print(before, sealed - before)
"""


@pytest.mark.full
def test_a_file_of_a_gibibyte_takes_little_memory(tmp_path: Path) -> None:
    """Sealing. (Writing it in the clear maps the ciphertext, which the kernel counts, too.)"""
    out = support.check_python(LARGE, str(tmp_path), str(Path(making.__file__).parent), timeout=600)
    _, more = map(int, out.split())
    assert more < 64 << 20
    first, second = (tmp_path / name for name in ("a.gguf", "c.gguf"))
    subprocess.run(["cmp", first, second], check=True)
    for path in tmp_path.iterdir():
        path.unlink()


# ---- of the package gguf -------------------------------------------------------------------------


def test_files_of_the_package_gguf_come_back(tmp_path: Path, key: Key) -> None:
    package = pytest.importorskip("gguf", reason="needs the package gguf")
    rng = np.random.default_rng(2)
    plain = tmp_path / "real.gguf"
    writer = package.GGUFWriter(plain, "llama")
    writer.add_name("real")
    writer.add_token_list(["a", "b"])
    kinds = [kind for kind, (n, _) in package.GGML_QUANT_SIZES.items() if n > 1 and kind.value != 9]
    for kind in kinds:
        nbytes = package.GGML_QUANT_SIZES[kind][1]
        data = rng.integers(0, 256, (6, 2 * nbytes), dtype=np.uint8)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gguf.seal(plain, tmp_path / "s", key)
    gguf.unseal(tmp_path / "s", tmp_path / "again.gguf", key)
    assert (tmp_path / "again.gguf").read_bytes() == plain.read_bytes()
    theirs = {tensor.name: tensor.data for tensor in package.GGUFReader(plain).tensors}
    with gguf.open_sealed(tmp_path / "s", key) as file:
        for kind in kinds:
            assert np.array_equal(file.raw(kind.name)[...], theirs[kind.name])


@pytest.fixture
def every_type(tmp_path: Path, key: Key) -> tuple[Any, Path]:
    """A file of every type that the package dequantises, of random blocks: the package's reader of
    the plain file, and the sealed one."""
    package = pytest.importorskip("gguf", reason="needs the package gguf")
    rng, plain = np.random.default_rng(3), tmp_path / "types.gguf"
    writer = package.GGUFWriter(plain, "llama")
    for kind, (elements, nbytes) in package.GGML_QUANT_SIZES.items():
        if elements > 1 and kind.name not in ("Q8_1", "Q8_K"):
            values = rng.standard_normal((5, 2 * elements)).astype(np.float32)
            try:
                packed = package.quantize(values, kind)
                packed[2:] = rng.integers(0, 256, (3, packed.shape[1]), dtype=np.uint8)
            except NotImplementedError:
                packed = rng.integers(0, 256, (5, 2 * nbytes), dtype=np.uint8)
            writer.add_tensor(kind.name, packed, raw_dtype=kind)
    writer.add_tensor("F32", rng.standard_normal((2, 3)).astype(np.float32))
    writer.add_tensor("F16", rng.standard_normal((2, 3)).astype(np.float16))
    writer.add_tensor("I32", np.arange(7, dtype=np.int32))
    halves = rng.standard_normal((2, 3)).astype(np.float32)
    writer.add_tensor(
        "BF16",
        package.quantize(halves, package.GGMLQuantizationType.BF16),
        raw_dtype=package.GGMLQuantizationType.BF16,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gguf.seal(plain, tmp_path / "types.sealed", key)
    return package.GGUFReader(plain), tmp_path / "types.sealed"


def test_tensors_have_the_values_that_the_package_gives(
    every_type: tuple[Any, Path], key: Key
) -> None:
    package = pytest.importorskip("gguf", reason="needs the package gguf")
    reader, there = every_type
    computed, refused = set(), set()
    with gguf.open_sealed(there, key) as file, np.errstate(all="ignore"):
        for theirs in reader.tensors:
            info = file.info(theirs.name)
            if info.type.elements > 1 and gguf.block_format(info) is None:
                with pytest.raises(errors.FileRequestError, match="cannot compute"):
                    file.tensor(theirs.name)
                refused.add(theirs.name)
                continue
            tensor = file.tensor(theirs.name)
            assert tensor.shape == info.shape and not tensor.writable
            expected = (
                theirs.data
                if theirs.name.startswith("I") and info.type.elements == 1
                else package.dequantize(theirs.data, theirs.tensor_type)
            )
            found = tensor[...]
            # Random scales are infinite or none here and there.
            assert np.array_equal(found.astype(expected.dtype), expected, equal_nan=True)
            if isinstance(tensor, QuantizedTensor):
                assert tensor.raw[...].tobytes() == theirs.data.tobytes()
                computed.add(theirs.name)
    assert {"Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"} <= computed
    assert {"IQ2_XXS", "TQ1_0", "MXFP4"} <= refused and len(computed | refused) > 20


def test_a_product_with_a_tensor_of_the_file(every_type: tuple[Any, Path], key: Key) -> None:
    _, there = every_type
    with gguf.open_sealed(there, key) as file:
        tensor = file.tensor("Q4_K")
    x = np.random.default_rng(4).standard_normal((3, tensor.shape[1])).astype(np.float32)
    found = pyccmem.linear(x, tensor)[:, :2]
    weights = tensor[:2].astype(np.float64)
    bound = 0.02 * np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weights, axis=1)
    assert (np.abs(found - x @ weights.T) <= bound).all() and np.abs(found).max() > 0


# ---- the command ---------------------------------------------------------------------------------


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyccmem", *words],
        cwd=folder,
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command(tmp_path: Path, plain: Path) -> None:
    assert command(tmp_path, "keygen", "key").returncode == 0
    assert command(tmp_path, "keygen", "new").returncode == 0
    key = ["--key-file", "key"]
    done = command(tmp_path, "encrypt", "model.gguf", "s", *key)
    assert done.returncode == 0, done.stderr
    pin = done.stdout.split()[-1]
    shown = command(tmp_path, "inspect", "s", *key, "--expect", pin)
    for words in ("GGUF version 3", "architecture   llama", "Q8_0 2", "3 x 512", pin):
        assert words in shown.stdout, shown.stdout
    assert "gguf/header" not in shown.stdout and "pyccmem.blocks" not in shown.stdout
    blind = command(tmp_path, "inspect", "s")
    assert blind.returncode == 0 and "llama" not in blind.stdout and "Q8_0" not in blind.stdout
    assert '"Q4_K": 1' in command(tmp_path, "inspect", "s", *key, "--json").stdout
    assert command(tmp_path, "verify", "s", *key, "--expect", pin).returncode == 0
    assert command(tmp_path, "rewrap", "s", *key, "--new-key-file", "new").returncode == 0
    assert command(tmp_path, "decrypt", "s", "again", *key).returncode == 2
    assert command(tmp_path, "decrypt", "s", "again", "--key-file", "new").returncode == 0
    assert (tmp_path / "again").read_bytes() == plain.read_bytes()
    plainly = command(tmp_path, "inspect", "model.gguf")
    assert plainly.returncode == 2 and "plain GGUF file" in plainly.stderr
    data = bytearray((tmp_path / "s").read_bytes())
    data[-5000] ^= 1
    (tmp_path / "s").write_bytes(data)
    broken = command(tmp_path, "verify", "s", "--key-file", "new")
    assert broken.returncode == 1 and "DAMAGED" in broken.stdout


def test_a_directory_with_gguf_files(tmp_path: Path, key: Key) -> None:
    from pyccmem.directories import decrypt_directory, encrypt_directory

    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    contents = {
        "model-00001-of-00002.gguf": sound(1).bytes(),
        "model-00002-of-00002.gguf": sound(2, behind=b"x").bytes(),
        "sub/mmproj.gguf": sound(3).bytes(),
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
    }
    for name, data in contents.items():
        (source / name).write_bytes(data)
    pins = encrypt_directory(source, tmp_path / "sealed", key=key)
    assert set(pins) == {f"{name}.sealed" for name in contents if name.endswith("gguf")}
    for name, pin in pins.items():
        gguf.open_sealed(tmp_path / "sealed" / name, key, expect=pin).close()
    assert not list((tmp_path / "sealed").rglob("*.gguf"))
    assert (tmp_path / "sealed" / "config.json").read_bytes() == contents["config.json"]
    decrypt_directory(tmp_path / "sealed", tmp_path / "again", key=key)
    found = {
        str(path.relative_to(tmp_path / "again")): path.read_bytes()
        for path in (tmp_path / "again").rglob("*")
        if path.is_file()
    }
    assert found == contents
    with pytest.raises(errors.FileFormatError, match="sealed already"):
        encrypt_directory(tmp_path / "sealed", tmp_path / "twice", key=key)
    (source / "model-00001-of-00002.gguf").write_bytes(sound(1).bytes()[:500])
    with pytest.raises(errors.FileFormatError, match="not a valid GGUF"):
        encrypt_directory(source, tmp_path / "broken", key=key)
    assert not (tmp_path / "broken").exists()


def test_commands_of_a_directory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.gguf").write_bytes(sound(1).bytes())
    assert command(tmp_path, "keygen", "key").returncode == 0
    key = ["--key-file", "key"]
    assert command(tmp_path, "encrypt", "source", "sealed", *key).returncode == 0
    shown = command(tmp_path, "inspect", "sealed", *key)
    assert shown.returncode == 0 and "a.gguf.sealed" in shown.stdout
    assert command(tmp_path, "verify", "sealed", *key).returncode == 0
    (tmp_path / "sealed" / "b.gguf").write_bytes(sound(2).bytes())
    beside = command(tmp_path, "verify", "sealed", *key)
    assert beside.returncode == 1 and "plain GGUF file" in beside.stdout


INTERRUPTED = """if True:
    import os, signal, sys
    from pyccmem import Key, gguf

    key = Key.generate()
    gguf.seal("model.gguf", "there", key)
    def press(done, total):
        os.kill(os.getpid(), signal.SIGINT)
    try:
        if sys.argv[1] == "seal":
            gguf.seal("model.gguf", "new", key, progress=press)
        else:
            gguf.unseal("there", "new", key, progress=press)
    except KeyboardInterrupt:
        print(sorted(os.listdir()))
"""


@pytest.mark.parametrize("work", ["seal", "unseal"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, plain: Path, work: str) -> None:
    out = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, work],
        cwd=tmp_path,
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert out.strip() == "['model.gguf', 'there']"


def test_a_forked_child_opens_the_file_anew(plain: Path, there: Path, tmp_path: Path) -> None:
    from pyccmem.cli.commands.keygen import write_key_file

    write_key_file(tmp_path / "key", Key.generate())
    key = Key.from_file(tmp_path / "key")
    gguf.seal(plain, there, key, overwrite=True)
    data = plain.read_bytes()
    with gguf.open_sealed(there, key) as file:
        info = file.info("blk.0.Q8_0.weight")
        raw = file.raw(info.name)

    def work() -> None:
        assert raw[...].tobytes() == data[info.start : info.end]

    support.in_forked_child(work)


def test_wrong_arguments(there: Path, key: Key) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="open_sealed"):
        gguf.SealedGGUF()
    with pytest.raises(errors.ArgumentError):
        gguf.open_sealed(there, key, expect="x")
    with gguf.open_sealed(there, key) as file, pytest.raises(errors.NotPicklableError):
        copy.copy(file)
    for name in (7, None, "x" * 1000):
        with gguf.open_sealed(there, key) as file, pytest.raises(errors.FileRequestError):
            file.info(name)  # type: ignore[arg-type]
