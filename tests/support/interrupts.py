# SPDX-License-Identifier: Apache-2.0
"""Interrupts public operations and counts what is left: the child process of test_interrupts.

    interrupts.py walk|random GROUP COUNT [TWIN]

`walk` raises, in place of a signal's handler, after each call of a function of C and at the start
of each function of Python that an operation reaches, at up to COUNT such moments, one a run: where
the interpreter lets handlers run. `random` has a timer's handler raise at COUNT random moments of
each operation. GROUP is a key of GROUPS. TWIN names a mistake of TWINS to make. Prints a JSON
object: by operation how many moments there are, how many runs were interrupted, and what is left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, KVCache, QuantizedTensor, hazmat
from pyccmem import safetensors as sealed
from pyccmem.binding import ffi, lib
from pyccmem.quantized import dequantize_blocks, quantize_blocks

Operation = Callable[[], Any]


class Interrupt(BaseException):
    """What the handler raises, as KeyboardInterrupt is no Exception."""


# ---- what is counted -----------------------------------------------------------------------------


def resources() -> dict[str, int]:
    """What an operation that is over must have given back."""
    gc.collect()
    gc.collect()
    stats = pyccmem.stats()
    deadline = time.monotonic() + 2
    while len(os.listdir("/proc/self/task")) > THREADS and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that was joined may still show
    return {
        "buffers": stats["buffers"],
        "caches": stats["caches"],
        "ciphertext": stats["ciphertext_bytes"],
        "blocks": stats["plain_blocks"],
        "block bytes": stats["plain_in_use"],
        "budget": stats["plaintext_reserved"],
        "plaintext": stats["plaintext_resident"],
        "slots": int(lib.ccmem_secret_slots()),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


THREADS = 1

#: By operation, arrays that it was given and kept, which must be zeros when it is over.
SHOWN: dict[str, list[Any]] = {}


def assert_wiped(name: str) -> None:
    for plain in SHOWN.get(name, ()):
        assert not plain.any(), f"{name}: plaintext is left"


# ---- two ways to interrupt -----------------------------------------------------------------------


class Walk:
    """Interrupts an operation at one moment of those at which a handler could run."""

    def __init__(self) -> None:
        self.moments = self.at = 0

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("c_return", "call"):
            return
        self.moments += 1
        if self.moments == self.at:
            sys.setprofile(None)
            raise Interrupt

    def run(self, operation: Operation, at: int) -> bool:
        """Runs it once, interrupted at that moment, from 1; 0: at none. True if it was."""
        self.moments, self.at = 0, at
        try:
            sys.setprofile(self._event)
            operation()
            sys.setprofile(None)
        except Interrupt:
            return True
        finally:
            sys.setprofile(None)
        return False


class Timer:
    """Interrupts an operation by a signal."""

    def __init__(self) -> None:
        self.armed = False
        signal.signal(signal.SIGALRM, self._handler)

    def _handler(self, *_: Any) -> None:
        if self.armed:
            self.armed = False
            raise Interrupt

    def run(self, operation: Operation, delay: float) -> bool:
        """Runs it once, interrupted after `delay` seconds if it takes as long."""
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, delay)
            operation()
            self.armed = False
        except Interrupt:
            return True
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False


def walk(name: str, operation: Operation, count: int, result: dict[str, int]) -> None:
    walker = Walk()
    walker.run(operation, 0)
    result["moments"] = walker.moments
    step = max(walker.moments / count, 1)
    chosen = sorted({int(i * step) + 1 for i in range(min(count, walker.moments))})
    for at in chosen:
        result["interrupted"] += walker.run(operation, at)
        assert_wiped(name)


def at_random(name: str, operation: Operation, count: int, result: dict[str, int]) -> None:
    timer = Timer()
    begin = time.perf_counter()
    operation()
    length = time.perf_counter() - begin
    pick = random.Random(count)
    result["moments"] = count
    for _ in range(count):
        hit = timer.run(operation, max(pick.random() * length, 2e-6))
        length *= 1.03 if hit else 0.9  # how long it takes changes with what else runs
        result["interrupted"] += hit
        assert_wiped(name)


# ---- the operations ------------------------------------------------------------------------------


def core_operations(scratch: Path) -> dict[str, Operation]:
    key = Key.generate()
    key_file = scratch / "key"
    key_file.write_bytes(bytes(range(32)))
    key_file.chmod(0o600)
    array = np.arange(60_000, dtype=np.float32).reshape(300, 200)
    tensor = EncryptedTensor.from_numpy(array, key=key)
    large = EncryptedTensor.from_numpy(np.zeros((64, 16384), np.float32), key=key)
    buffer = EncryptedBuffer.from_data(bytes(50_000), key=key)
    out = bytearray(9000)
    shown: list[Any] = []
    SHOWN["open and keep"] = shown
    mask = np.zeros(300, bool)
    mask[::7] = True
    rows = np.arange(0, 300, 5)
    x = np.ones((3, 200), np.float32)
    long_lived = large.copy(key=key).map(window=2 << 20)
    held = long_lived.__enter__()

    def buffers() -> None:
        with EncryptedBuffer(20_000, key=key) as new:
            new.write(b"x" * 5000, 4000)
            new.read_into(out, 100)
            new.read(0, 5000)
            new.ciphertext.release()
            new.verify()

    def mapping(mode: str = "r") -> Operation:
        def work() -> None:
            with large.map(window=256 << 10, mode=mode) as mapped:
                if mode == "r+":
                    mapped[0] = 1
                float(mapped[1, 1])

        return work

    def pins() -> None:
        with long_lived.pin(slice(0, 8)) as part:
            float(part[0, 0])

    def opened(mode: str) -> Operation:
        def work() -> None:
            with tensor.open(mode) as plain:
                float(plain[0, 0])

        return work

    def kept() -> None:
        shown.clear()
        with tensor.open() as plain:
            shown.append(plain)
            assert plain.any()

    def assign(index: Any, value: Any) -> Operation:
        def work() -> None:
            tensor[index] = value

        return work

    def wrapping() -> None:
        with Key.generate() as inner, key._unwrap(key._wrap(inner)) as back:
            back._mac("aegis-128x2", bytes(16), b"message")

    def flush() -> None:
        mapping = large.map(window=1 << 20, mode="r+")
        with mapping as mapped:
            mapped[0] = 2
            mapping.flush()
            mapped[5] = 3

    tokens = np.ones((2, 2, 21, 64), np.float32)
    cache = KVCache(2, 2, 64, dtype="float32", sequences=2, key=key)
    for layer in range(2):
        cache.append(layer, tokens, tokens)
    query = np.ones((2, 4, 1, 64), np.float32)
    tenants = pyccmem.TenantKeys(2)

    def cached() -> None:
        with KVCache(2, 2, 64, dtype="int8", sequences=2) as new:
            new.append(0, tokens, tokens)
            new.attend(0, query)
            new.erase()

    def forked(work: Callable[[KVCache], Any]) -> Operation:
        def operation() -> None:
            with cache.fork() as fork:
                work(fork)
            assert cache.length(0) == cache.length(1, 1) == 21 and cache.sequences == 2

        return operation

    def convert() -> None:
        with cache.fork() as fork:
            fork.append(1, tokens.astype(np.float64), tokens.astype(np.float64))

    def tenant() -> None:
        with tenants.cache("a", 1, 2, 64, dtype="float32", sequences=2) as new:
            new.append(0, tokens, tokens)
        tenants.forget("a")

    weights = np.random.default_rng(5).standard_normal((96, 512)).astype(np.float32)
    blocks = EncryptedTensor.from_numpy(weights, dtype="q4_k", key=key)
    by_row = EncryptedTensor.from_numpy(weights, dtype="int8_row", key=key)
    packed = quantize_blocks(weights, "q8_0")
    wide = np.ones((3, 512), np.float32)

    def from_blocks() -> None:
        raw = EncryptedTensor.from_numpy(packed, key=key)
        try:
            QuantizedTensor.from_blocks(raw, "q8_0", (96, 512)).close()
        finally:
            raw.close()

    def assign_blocks() -> None:
        blocks[3:60] = weights[3:60]
        by_row[[5, 1, 9]] = weights[[5, 1, 9]]

    def frozen() -> None:
        with EncryptedTensor.from_numpy(array, key=key) as new:
            new.freeze()
            new.thaw()
            new[0] = 1

    def frozen_blocks() -> None:
        with EncryptedTensor.from_numpy(weights, dtype="int8_row", key=key) as new:
            new.freeze()
            new.thaw()

    arena = pyccmem.Arena(key=key)
    together = EncryptedTensor.from_numpy(array, arena=arena)

    assert held is not None
    return {
        "Key.generate": lambda: Key.generate().close(),
        "Key.from_bytes": lambda: Key.from_bytes(memoryview(bytes(range(32)))).close(),
        "Key.from_file": lambda: Key.from_file(key_file).close(),
        "Key.from_passphrase": lambda: Key.from_passphrase("words", salt=bytes(16), n=2).close(),
        "Key.id": lambda: key.id,
        "wrapping": wrapping,
        "EncryptedBuffer": buffers,
        "from_data": lambda: EncryptedBuffer.from_data(out, key=key).close(),
        "read": lambda: buffer.read(5, 4000),
        "read_into": lambda: buffer.read_into(memoryview(out)),
        "write": lambda: buffer.write(memoryview(out)),
        "versions": lambda: buffer.versions,
        "buffer.map": lambda: _touch(buffer.map(window="256KiB")),
        "t[3:200]": lambda: tensor[3:200],
        "t[3]": lambda: tensor[3],
        "t[3, 4]": lambda: tensor[3, 4],
        "t[rows]": lambda: tensor[rows],
        "t[mask]": lambda: tensor[mask],
        "t[:, ::3]": lambda: tensor[:, ::3],
        "t[1:3] = array": assign(slice(1, 3), array[1:3]),
        "t[1:3] = list": assign(slice(1, 3), [list(range(200))] * 2),
        "t[rows] = 5": assign(rows, 5),
        "np.asarray": lambda: np.asarray(tensor),
        "from_numpy": lambda: EncryptedTensor.from_numpy(array, key=key).close(),
        "Arena": lambda: pyccmem.Arena(key=key).close(),
        "arena from_numpy": lambda: EncryptedTensor.from_numpy(array, arena=arena).close(),
        "arena t[3:200]": lambda: together[3:200],
        "arena t[3, 4]": lambda: together[3, 4],
        "arena map": lambda: _touch(together.reshape(-1).map(window="256KiB")),
        "copy": lambda: tensor.copy(key=key).close(),
        "open r": opened("r"),
        "open r+": opened("r+"),
        "open and keep": kept,
        "blocks": lambda: [float(part[0, 0]) for part in tensor.blocks(80_000)],
        "in": lambda: 3.5 in tensor,
        "verify": tensor.verify,
        "map": mapping(),
        "map r+": mapping("r+"),
        "flush": flush,
        "pin": pins,
        "prefault": lambda: long_lived.prefault(slice(0, 2)),
        "linear": lambda: pyccmem.linear(x, tensor),
        "linear float64": lambda: pyccmem.linear(x.astype(np.float64), tensor),
        "matmul": lambda: x.astype(np.float64) @ tensor.reshape(200, 300),
        "hazmat": lambda: hazmat.aegis128x2_encrypt(bytes(16), bytes(16), memoryview(out)),
        "KVCache": cached,
        "cache append": forked(lambda fork: fork.append(0, tokens, tokens)),
        "cache append float64": convert,
        "cache attend": lambda: cache.attend(0, query, mask=np.ones(21, bool), sinks=[0.0] * 4),
        "cache read": lambda: cache.read(1, "v", stop=17),
        "cache crop": forked(lambda fork: fork.crop(10)),
        "cache beams": forked(lambda fork: fork.repeat(2)),
        "cache evict": forked(lambda fork: fork.evict(16)),
        "tenants": tenant,
        "freeze and thaw": frozen,
        "blocks freeze and thaw": frozen_blocks,
        "blocks from_numpy": lambda: EncryptedTensor.from_numpy(
            weights, dtype="q4_k", key=key
        ).close(),
        "blocks by row": lambda: EncryptedTensor.from_numpy(
            weights.astype(np.float64), dtype="int8_row", key=key
        ).close(),
        "blocks zeros": lambda: EncryptedTensor.zeros((96, 512), "int8_row", key=key).close(),
        "blocks in arena": lambda: EncryptedTensor.from_numpy(
            weights, dtype="int8_row", arena=arena
        ).close(),
        "blocks copy": lambda: by_row.copy(key=key).close(),
        "from_blocks": from_blocks,
        "quantize_blocks": lambda: quantize_blocks(weights, "q4_k"),
        "dequantize_blocks": lambda: dequantize_blocks(packed, "q8_0"),
        "dequantize": blocks.dequantize,
        "blocks[3:60]": lambda: by_row[3:60],
        "blocks element": lambda: blocks[3, 4],
        "blocks columns": lambda: blocks[:, ::3],
        "blocks elements": lambda: blocks[[1, 5, 90], [3, 4, 500]],
        "blocks[3:60] = array": assign_blocks,
        "blocks linear": lambda: pyccmem.linear(wide, blocks),
        "blocks linear one row": lambda: pyccmem.linear(wide[0], by_row),
        "blocks linear float64": lambda: pyccmem.linear(wide.astype(np.float64), blocks),
        "blocks matmul": lambda: np.ones((3, 96), np.float32) @ blocks,
        "stats": pyccmem.stats,
    }


def _touch(mapping: Any) -> None:
    with mapping as mapped:
        int(mapped[0])


def file_operations(scratch: Path) -> dict[str, Operation]:
    import gguf_files

    from pyccmem import audit, gguf

    key, other = Key.generate(), Key.generate()
    arrays = {
        "a": np.random.default_rng(1).standard_normal((50, 60)).astype(np.float32),
        "b": np.arange(7000, dtype=np.int32),
    }
    plain, there, again = (str(scratch / name) for name in ("plain", "sealed", "again"))
    sealed.save_file(arrays, there, key=key)
    sealed.decrypt_file(there, plain, key=key)

    def safe_open() -> None:
        with sealed.safe_open(there, key=key) as file:
            file.get_tensor("a")[3]

    def load() -> None:
        sealed.load_file(there, key=key)["b"][5]

    def parts_of_plain() -> None:
        with open(plain, "rb") as handle, sealed.safe_open_handle(handle, key=key) as file:
            file.get_slice("a")[3:5, 7]

    saved = sealed.save(arrays, key=key)

    def rewrap() -> None:
        sealed.save_file({"b": arrays["b"]}, again, key=key)
        sealed.rewrap_file(again, key, other)

    cache = pyccmem.KVCache(1, 2, 64, dtype="float32", key=key)
    cache.append(0, np.ones((2, 21, 64)), np.ones((2, 21, 64)))
    chat = str(scratch / "chat")
    cache.export(chat)

    def samples() -> None:
        found = audit.samples_from_safetensors(plain, 100)
        len(found)

    def process() -> None:
        with audit.processes.ProcessMemory(os.getpid()) as memory:
            memory.command()

    model, hidden = str(scratch / "model.gguf"), str(scratch / "model.gguf.sealed")
    Path(model).write_bytes(gguf_files.sound(1, filler=3).bytes())
    gguf.seal(model, hidden, key)

    def open_gguf() -> None:
        with gguf.open_sealed(hidden, key) as file:
            file.raw("blk.0.Q8_0.weight")[1]

    def open_model() -> None:
        with gguf.open_model(hidden, key) as found:
            found.tensor("blk.0.Q8_0.weight")[0]
            str(found.metadata.get("general.name"))

    weights = np.random.default_rng(5).standard_normal((96, 512)).astype(np.float32)
    blocks = {
        name: EncryptedTensor.from_numpy(weights, dtype=name, key=key)
        for name in ("q4_k", "int8_row")
    }
    packed = str(scratch / "blocks")
    sealed.save_file(blocks, packed, key=key)

    def load_blocks() -> None:
        sealed.load_file(packed, key=key)["int8_row"][5]

    return {
        "save blocks": lambda: sealed.save_file(blocks, again, key=key),
        "load blocks": load_blocks,
        "load blocks in memory": lambda: sealed.load_file(packed, key=key, mmap=False),
        "serialize": lambda: sealed.serialize({}, key=key),
        "open GGUF model": open_model,
        "inspect GGUF": lambda: gguf.inspect(hidden, key),
        "read_header GGUF": lambda: gguf.read_header(model),
        "seal GGUF": lambda: gguf.seal(model, again, key, overwrite=True),
        "open GGUF": open_gguf,
        "unseal GGUF": lambda: gguf.unseal(hidden, again, key, overwrite=True),
        "save_file": lambda: sealed.save_file(arrays, again, key=key),
        "load_file": load,
        "load_file in memory": lambda: sealed.load_file(there, key=key, mmap=False),
        "load_file plain": lambda: sealed.load_file(plain, key=key),
        "safe_open": safe_open,
        "safe_open_handle plain": parts_of_plain,
        "save": lambda: sealed.save(arrays, key=key),
        "load": lambda: sealed.load(saved, key=key)["b"][5],
        "verify_file": lambda: sealed.verify_file(there, key=key),
        "inspect_file": lambda: sealed.inspect_file(there),
        "encrypt_file": lambda: sealed.encrypt_file(plain, again, key=key, overwrite=True),
        "decrypt_file": lambda: sealed.decrypt_file(there, again, key=key, overwrite=True),
        "rewrap_file": rewrap,
        "cache export": lambda: cache.export(chat),
        "cache load": lambda: pyccmem.KVCache.load(chat, key).close(),
        "samples": samples,
        "ProcessMemory": process,
    }


def torch_operations(scratch: Path) -> dict[str, Operation]:
    import io

    import torch
    from torch import nn

    from pyccmem import torch as encrypted

    torch.set_num_threads(1)
    torch.manual_seed(1)
    key = Key.generate()
    plain = torch.randn(40, 50)
    tensor = encrypted.EncryptedTensor.from_tensor(plain, key=key)
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 20))
    encrypted.encrypt_module(model, key=key)
    x = torch.randn(3, 50)
    saved = io.BytesIO()
    with encrypted.using_key(key):
        torch.save(tensor, saved)

    def save() -> None:
        with encrypted.using_key(key):
            torch.save(tensor, io.BytesIO())

    def load() -> None:
        saved.seek(0)
        with encrypted.using_key(key):
            torch.load(saved)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def in_place() -> None:
        tensor.add_(0.0)

    def files() -> None:
        encrypted.save_file({"a": tensor}, scratch / "torch", key=key)
        encrypted.load_file(scratch / "torch", key=key)["a"].sum()

    def module() -> None:
        new = nn.Linear(30, 20)
        encrypted.encrypt_module(new, key=key)

    few = nn.Sequential(nn.Embedding(20, 64), nn.Linear(64, 40))
    encrypted.encrypt_module(few, key=key, quantize="q8_0")
    ids = torch.tensor([[1, 3, 19]])

    def module_of_blocks() -> None:
        new = nn.Linear(64, 20)
        encrypted.encrypt_module(new, key=key, quantize="int8_row")

    def forward_of_blocks() -> None:
        with torch.no_grad():
            few(ids)

    def files_of_blocks() -> None:
        encrypted.save_file({"a": few[1].weight.detach()}, scratch / "few", key=key)
        encrypted.load_file(scratch / "few", key=key)["a"].sum()

    return {
        "from_tensor": lambda: encrypted.EncryptedTensor.from_tensor(plain, key=key),
        "t[3:5]": lambda: tensor[3:5].decrypt(),
        "t + 1": lambda: tensor + 1,
        "t.add_": in_place,
        "files": files,
        "linear": forward,
        "encrypt_module": module,
        "encrypt_module blocks": module_of_blocks,
        "linear blocks": forward_of_blocks,
        "files of blocks": files_of_blocks,
        "save": save,
        "load": load,
    }


GROUPS = {"core": core_operations, "files": file_operations, "torch": torch_operations}


# ---- mistakes that must be noticed ---------------------------------------------------------------


def _gap() -> None:
    """The owner is made after the call."""
    from pyccmem.binding import owned

    def cell(self: Any) -> Any:
        return ffi.new(self._type)

    def own(self: Any, made: Any) -> Any:
        return ffi.gc(made[0], self._free)

    owned.Kind.cell, owned.Kind.own = cell, own  # type: ignore[method-assign]


def _block_gap() -> None:
    """The same of plaintext blocks."""
    from pyccmem import tensor
    from pyccmem.binding import wiped

    def block(nbytes: int) -> Any:
        out = ffi.new("uint8_t **")
        assert lib.ccmem_plain_alloc(nbytes, out) == lib.CCMEM_OK
        pointer = ffi.gc(out[0], lib.ccmem_plain_free)
        return pointer, ffi.buffer(pointer, nbytes)

    wiped.block = tensor._block = block


def _python_destructor() -> None:
    """The destructor is a function of Python."""
    from pyccmem.binding import owned

    def own(self: Any, made: Any) -> Any:
        free = self._free
        return owned.made(self._take, made, lambda native: free(native))

    owned.Kind.own = own  # type: ignore[method-assign]


def _plain_descriptor() -> None:
    """A number stands for an open file."""
    from pyccmem.binding import owned

    def begin(self: Any, make: Any, *arguments: Any) -> None:
        self._cell = [make(*arguments)]

    def close(self: Any) -> None:
        number, self._cell[0] = self._cell[0], -1
        if number >= 0:
            os.close(number)

    owned.Descriptor.__init__ = begin  # type: ignore[method-assign]
    owned.Descriptor.close = close  # type: ignore[method-assign]


def _late_wipe() -> None:
    """The plaintext of an open tensor is wiped by a function of Python."""
    from pyccmem.binding import wiped

    @contextlib.contextmanager
    def opened_as(self: Any, writable: bool) -> Iterator[Any]:
        _, memory = wiped.block(self.nbytes)
        try:
            self.buffer.read_into(memory)
            yield np.ndarray(self.shape, self.dtype, memory)
        finally:
            wiped.wipe(memory)

    EncryptedTensor._opened_as = opened_as  # type: ignore[method-assign]


TWINS = {
    "late wipe": _late_wipe,
    "gap": _gap,
    "block gap": _block_gap,
    "Python destructor": _python_destructor,
    "plain descriptor": _plain_descriptor,
}


def main() -> None:
    global THREADS
    way, group, count, *twin = sys.argv[1:]
    if twin:
        TWINS[twin[0]]()
    sys.unraisablehook = lambda _: None
    interrupt = {"walk": walk, "random": at_random}[way]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        operations = GROUPS[group](Path(scratch))
        only = os.environ.get("ONLY", "").split(", ") if os.environ.get("ONLY") else None
        for name, operation in operations.items():
            if only and name not in only:
                continue
            found[name] = result = {"moments": 0, "interrupted": 0}
            left: dict[str, Any] = {}
            try:
                operation()
                operation()
                THREADS = len(os.listdir("/proc/self/task"))
                before = resources()
                interrupt(name, operation, int(count), result)
                operation()  # it still works
            except (pyccmem.errors.PyccmemError, AssertionError) as error:
                left["error"] = str(error)  # what is left is in the way
            else:
                after = resources()
                left = {what: after[what] - n for what, n in before.items() if after[what] > n}
            result["left"] = left
    print(json.dumps(found))


if __name__ == "__main__":
    main()
