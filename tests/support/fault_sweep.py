# SPDX-License-Identifier: Apache-2.0
"""Makes each system call and allocation of the native module fail in turn, alone and with all later
ones, around every public operation: a program for a process that was started with
fault_injection.environment().

    python fault_sweep.py [--most N] [--torch] [--list] [--control] [OPERATION ...]

A failed call may end in an error of pyccmem or in the right result; a touch of a mapping, which has
nobody to tell, also in the end of the process with a message, so operations of mappings run in a
child for each point. It may not end in another exception, a wrong result, a hang or a crash;
nothing may be left over; and what was open before works as before. Prints each thing that is not
so, and how many points were tried; the exit status is 1 when there was one. --most tries no more
than N points of an operation, evenly spread; --control runs operations that are broken on purpose.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_quantized
import numpy as np
from fault_injection import RELEASING, Injector

import pyccmem
from pyccmem import Arena, EncryptedBuffer, EncryptedTensor, Key, KVCache, audit, errors, hazmat
from pyccmem.binding import wiped
from pyccmem.safetensors import (
    Passphrase,
    decrypt_file,
    encrypt_file,
    load_file,
    rewrap_file,
    safe_open,
    save_file,
    verify_file,
)

warnings.simplefilter("ignore")  # of key files, and of what falls back

#: Seconds that one call may take; the longest takes some hundredths of one.
PATIENCE = 60

KEY = bytes(range(32))
SMALL = random.Random(1).randbytes(20_000)
LARGE = random.Random(2).randbytes(3 << 20)  # more than one thread's share
MATRIX = np.arange(192 * 256, dtype=np.float32).reshape(192, 256) % 13 - 6
ROWS = np.arange(40 * 256, dtype=np.float32).reshape(40, 256) % 7 - 3
#: Two sequences of two heads: two blocks and some records of each.
TOKENS = np.arange(2 * 2 * 37 * 64, dtype=np.float32).reshape(2, 2, 37, 64) % 11 - 5
QUERY = np.arange(2 * 4 * 64, dtype=np.float32).reshape(2, 4, 1, 64) % 5 - 2


class World:
    """What is open all the time, and must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key_file = folder / "key"
        self.key_file.write_bytes(KEY)
        self.key_file.chmod(0o600)
        self.key = Key.from_bytes(KEY)
        self.identity = self.key.id
        self.buffer = EncryptedBuffer.from_data(SMALL, key=self.key)
        self.large = EncryptedBuffer.from_data(LARGE, key=self.key)
        self.xts = EncryptedBuffer.from_data(SMALL, key=self.key, cipher="aes-128-xts")
        self.matrix = EncryptedTensor.from_numpy(MATRIX, key=self.key)
        self.double = EncryptedTensor.from_numpy(MATRIX.astype(np.float64), key=self.key)
        self.bytes = EncryptedTensor.from_numpy(MATRIX.astype(np.int8), key=self.key)
        self.bias = EncryptedTensor.from_numpy(MATRIX[:, 0].copy(), key=self.key)
        self.cache = KVCache(2, 2, 64, dtype="float32", sequences=2, key=self.key)
        for layer in range(2):
            self.cache.append(layer, TOKENS, -TOKENS)
        self.sealed = folder / "sealed.safetensors"
        noise = np.frombuffer(SMALL, np.uint8)
        save_file({"a": MATRIX, "b": ROWS, "c": noise}, self.sealed, key=self.key)
        self.loaded = load_file(self.sealed, key=self.key)
        self.plain = folder / "plain.safetensors"
        decrypt_file(self.sealed, self.plain, self.key)
        self.samples = audit.samples_from_safetensors(self.plain, 64)
        self.blocks = fault_quantized.Blocks(folder, self.key)

    def check(self) -> None:
        """That all of it is as it was. Without faults."""
        assert self.key.id == self.identity
        assert self.buffer.read() == SMALL and self.buffer.verify() == []
        assert self.large.read(1 << 20, 100) == LARGE[1 << 20 : (1 << 20) + 100]
        assert self.xts.read() == SMALL
        assert np.array_equal(self.matrix[...], MATRIX)
        assert np.array_equal(self.bytes[5], MATRIX[5].astype(np.int8))
        assert np.array_equal(self.loaded["b"][...], ROWS)
        for layer in range(2):  # which no failing call has changed
            assert self.cache.length(layer) == TOKENS.shape[2] and self.cache.sequences == 2
            assert np.array_equal(self.cache.read(layer, "k"), TOKENS)
            assert np.array_equal(self.cache.read(layer, "v"), -TOKENS)
        assert Key.from_file(self.key_file).id == self.identity
        with safe_open(self.sealed, key=self.key) as file:
            assert file.keys() == ["a", "b", "c"]
        left = {entry.name for entry in self.folder.iterdir()}
        files = {"key", "sealed.safetensors", "plain.safetensors", *self.blocks.files}
        assert left == files, left
        self.blocks.check()


Operation = Callable[[World], Any]
OPERATIONS: dict[str, Operation] = {}
CONTROLS: dict[str, Operation] = {}


def operation(function: Operation) -> Operation:
    """Registers an operation; what it returns must be the same each time. What it writes to must be
    put back, or be its own."""
    OPERATIONS[function.__name__] = function
    return function


def control(function: Operation) -> Operation:
    CONTROLS[function.__name__] = function
    return function


# ---- keys ----------------------------------------------------------------------------------------


@operation
def key_generate(world: World) -> Any:
    with Key.generate() as key:
        return len(key.id)


@operation
def key_from_bytes(world: World) -> Any:
    with Key.from_bytes(KEY) as key:
        return key.id


@operation
def key_from_file(world: World) -> Any:
    with Key.from_file(world.key_file) as key:
        return key.id


@operation
def key_from_passphrase(world: World) -> Any:
    with Key.from_passphrase("words", salt=bytes(16), n=16) as key:
        return key.id


# ---- buffers -------------------------------------------------------------------------------------


def _buffer(cipher: str) -> Operation:
    def run(world: World) -> Any:
        with EncryptedBuffer.from_data(SMALL, key=world.key, cipher=cipher) as buffer:
            buffer.write(b"written", 4090)
            found = buffer.read_into(out := bytearray(5000), 3000), bytes(out)
            view = bytes(buffer.ciphertext)[:0]
            versions = buffer.versions.tolist()
            bad = buffer.verify() if buffer.authenticated else []
            count = buffer.stats()["writes"]
        return found, view, versions, bad, count

    return run


OPERATIONS["buffer_aegis"] = _buffer("aegis-128x2")
OPERATIONS["buffer_xts"] = _buffer("aes-256-xts")


@operation
def buffer_of_zeros(world: World) -> Any:
    with EncryptedBuffer(300_000, key=world.key, page_size=65536) as buffer:
        return buffer.read(299_990)


@operation
def buffer_reads(world: World) -> Any:
    return world.buffer.read(5, 9000), world.xts.read(5, 9000), world.large.read()


@operation
def buffer_writes(world: World) -> Any:
    """The same bytes once more: what is there afterwards is right, whether they were written or
    not."""
    world.buffer.write(SMALL[100:9000], 100)
    world.xts.write(SMALL[100:9000], 100)
    return world.large.write(LARGE)


@operation
def buffer_verify(world: World) -> Any:
    return world.large.verify()


# ---- tensors -------------------------------------------------------------------------------------


@operation
def tensor_made(world: World) -> Any:
    key = world.key
    with EncryptedTensor.from_numpy(MATRIX, key=key) as tensor, tensor.copy(key=key) as other:
        return other[3].tobytes()


@operation
def tensor_indexing(world: World) -> Any:
    t = world.matrix
    parts = (t[3, 5], t[7], t[2:9, ::3], t[[5, 1, 9]], t[MATRIX > 5], t[..., -1], t[...])
    return b"".join(np.asarray(part).tobytes() for part in parts)


@operation
def tensor_assignment(world: World) -> Any:
    t = world.matrix
    t[3, 5] = MATRIX[3, 5]
    t[7] = MATRIX[7].astype(np.float64)
    t[2:9, ::3] = MATRIX[2:9, ::3]
    t[[5, 1, 9]] = MATRIX[[5, 1, 9]]
    t[...] = MATRIX
    return None


@operation
def tensor_opened(world: World) -> Any:
    with world.matrix.open("r+") as array:
        array[0] = MATRIX[0]
        total = float(array.sum())
    return total, [float(block.sum()) for block in world.matrix.blocks(16384)]


@operation
def arena_tensors(world: World) -> Any:
    with Arena(key=world.key) as arena:
        tensors = [EncryptedTensor.from_numpy(MATRIX[:n], arena=arena) for n in range(1, 20)]
        tensors[3].close()
        tensors.append(EncryptedTensor.from_numpy(MATRIX, arena=arena))
        tensors[5][1] = MATRIX[7]
        tensors[5][1] = MATRIX[1]
        return [tensor[0].tobytes() for tensor in tensors if not tensor.closed]


@operation
def plain_blocks(world: World) -> Any:
    return wiped.empty(100, np.float64).sum(), wiped.empty((1000, 700), np.uint8).sum()


# ---- products ------------------------------------------------------------------------------------


@operation
def product_of_one_row(world: World) -> Any:
    return pyccmem.linear(ROWS[0], world.matrix, world.bias).tobytes()


@operation
def product_of_many_rows(world: World) -> Any:
    return pyccmem.linear(ROWS, world.matrix, world.bias).tobytes()


@operation
def product_of_int8(world: World) -> Any:
    scale = np.full(192, 0.5, np.float32)
    return pyccmem.linear(ROWS, world.bytes, scale=scale).tobytes()


@operation
def product_by_tiles(world: World) -> Any:
    return (world.double @ ROWS.T.astype(np.float64)).tobytes()


# ---- mappings ------------------------------------------------------------------------------------


@operation
def mapping_reads(world: World) -> Any:
    with world.large.map(window="256KiB") as array:
        return int(array[:: 4096 * 3].sum()), array[1 << 20 : (1 << 20) + 5000].tobytes()


@operation
def mapping_writes(world: World) -> Any:
    with world.matrix.map(window="256KiB", mode="r+") as array:
        array[5] = MATRIX[5]
        array[100] = MATRIX[100]
        return array[5].tobytes()


@operation
def mapping_of_a_file(world: World) -> Any:
    with world.loaded["a"].map(window="256KiB") as array:
        return array.tobytes()


# ---- sealed files --------------------------------------------------------------------------------


def _fresh(world: World) -> Path:
    return world.folder / f"new-{threading.get_ident()}"


@operation
def file_saved(world: World) -> Any:
    path = _fresh(world)
    try:
        save_file({"a": world.matrix, "b": ROWS}, path, key=world.key, seal_names=True)
        return sorted(load_file(path, key=world.key))
    finally:
        path.unlink(missing_ok=True)


@operation
def file_loaded(world: World) -> Any:
    found = load_file(world.sealed, key=world.key)
    return found["a"][3:5].tobytes(), found["b"][...].tobytes()


@operation
def file_read_into_memory(world: World) -> Any:
    return load_file(world.sealed, key=world.key, mmap=False)["a"][...].tobytes()


@operation
def file_of_plain_tensors(world: World) -> Any:
    return load_file(world.plain, key=world.key)["a"][...].tobytes()


@operation
def file_verified(world: World) -> Any:
    return verify_file(world.sealed, world.key) is not None


@operation
def file_encrypted_and_decrypted(world: World) -> Any:
    path, back = _fresh(world), world.folder / "back"
    try:
        encrypt_file(world.plain, path, world.key)
        decrypt_file(path, back, world.key)
        return back.read_bytes()
    finally:
        path.unlink(missing_ok=True)
        back.unlink(missing_ok=True)


@operation
def file_rewrapped(world: World) -> Any:
    path = _fresh(world)
    try:
        with Key.from_bytes(bytes(32)) as other:
            save_file({"b": ROWS}, path, key=world.key)
            rewrap_file(path, world.key, other)
            return load_file(path, key=other)["b"][...].tobytes()
    finally:
        path.unlink(missing_ok=True)


@operation
def file_of_a_passphrase(world: World) -> Any:
    path = _fresh(world)
    passphrase = Passphrase("words", n=16)
    try:
        save_file({"b": ROWS}, path, key=passphrase)
        return load_file(path, key=passphrase)["b"][...].tobytes()
    finally:
        passphrase.close()
        path.unlink(missing_ok=True)


# ---- key-value caches ----------------------------------------------------------------------------


@operation
def cache_life(world: World) -> Any:
    with KVCache(2, 2, 64, dtype="int8", sequences=2) as cache:
        cache.append(1, TOKENS, TOKENS)
        cache.append(1, TOKENS[:, :, :1], TOKENS[:, :, :1])
        return cache.attend(1, QUERY).shape, cache.length(1)


@operation
def cache_append(world: World) -> Any:
    """All of it or nothing, in a fork: the world's cache stays as it is."""
    with world.cache.fork() as cache:
        try:
            cache.append(0, TOKENS, TOKENS)
        except errors.PyccmemError:
            assert cache.length(0) == cache.length(0, 1) == 37
            raise
        return cache.read(0, "k", start=30).tobytes()


@operation
def cache_append_tokens(world: World) -> Any:
    with world.cache.fork() as cache:
        for token in range(12):
            cache.append(0, TOKENS[:, :, token : token + 1], TOKENS[:, :, token : token + 1])
        return cache.read(0, "v", start=33).tobytes()


@operation
def cache_attend(world: World) -> Any:
    return world.cache.attend(0, QUERY).tobytes()


@operation
def cache_attend_blocks(world: World) -> Any:
    return world.cache.attend(1, np.repeat(QUERY, 30, axis=2), causal=False).tobytes()


@operation
def cache_attend_out(world: World) -> Any:
    """On failure all of `out` is zeros."""
    out = np.ones_like(QUERY)
    try:
        world.cache.attend(0, QUERY, out=out)
    except errors.PyccmemError:
        assert not out.any() or (out == 1).all(), "neither zeros nor untouched"
        raise
    return out.tobytes()


@operation
def cache_crop(world: World) -> Any:
    """Of all layers, or of none."""
    with world.cache.fork() as cache:
        try:
            cache.crop(21)
        except errors.PyccmemError:
            assert [cache.length(n, s) for n in (0, 1) for s in (0, 1)] == [37] * 4
            raise
        return cache.read(1, "v").tobytes()


@operation
def cache_reorder(world: World) -> Any:
    with world.cache.fork() as cache:
        try:
            cache.reorder([1, 1, 0])
        except errors.PyccmemError:
            assert cache.sequences == 2 and len({cache.length(n) for n in (0, 1)}) == 1
            assert np.array_equal(cache.read(0, "k"), TOKENS)
            raise
        return cache.read(1, "k").tobytes()


@operation
def cache_evict_and_grow(world: World) -> Any:
    with world.cache.fork() as cache:
        cache.evict(16)
        for _ in range(4):
            cache.append(0, TOKENS, TOKENS)
        return cache.first(), cache.length(), cache.read(0, "k", stop=37).tobytes()


@operation
def cache_erase(world: World) -> Any:
    with KVCache(1, 2, 64, dtype="float32", sequences=2) as cache:
        cache.append(0, TOKENS, TOKENS)
        cache.erase()
        return cache.erased


@operation
def cache_export_and_load(world: World) -> Any:
    path = _fresh(world)
    try:
        world.cache.export(path)
        with KVCache.load(path, world.key) as cache:
            return cache.read(1, "k").tobytes()
    finally:
        path.unlink(missing_ok=True)


@operation
def tenants(world: World) -> Any:
    shape = {"layers": 1, "heads": 2, "key_size": 64, "dtype": "float32", "sequences": 2}
    with pyccmem.TenantKeys(1) as keys, keys.cache("a", **shape) as cache:
        cache.append(0, TOKENS, TOKENS)
        keys.key("b")
        return cache.erased, keys.names()


# ---- the rest ------------------------------------------------------------------------------------


@operation
def audit_samples(world: World) -> Any:
    samples = audit.samples_from_safetensors(world.plain, 64)
    return len(samples)


@operation
def primitives(world: World) -> Any:
    tag = hazmat.aes_cmac(KEY, SMALL)
    sealed = hazmat.xts_encrypt(bytes(range(64)), bytes(16), SMALL)
    wrapped = hazmat.aes_key_wrap(KEY, KEY)
    return tag, hazmat.xts_decrypt(bytes(range(64)), bytes(16), sealed), wrapped


@operation
def process_wide(world: World) -> Any:
    pyccmem.set_num_threads(3)
    pyccmem.set_num_threads(2)
    stats = pyccmem.stats()
    return stats["buffers"], pyccmem.selftest()["tier"]


fault_quantized.register(operation)


# ---- torch ---------------------------------------------------------------------------------------


def _torch_operations() -> None:
    try:
        import torch
    except ImportError:
        return
    import pyccmem.torch as encrypted

    @operation
    def torch_module(world: World) -> Any:
        torch.manual_seed(1)
        model = torch.nn.Linear(256, 32)
        model.requires_grad_(False)
        x = torch.from_numpy(ROWS)
        wanted = model(x)
        with Key.from_bytes(KEY) as key:
            model = encrypted.encrypt_module(model, key=key)
        assert torch.allclose(model(x), wanted, atol=1e-3)
        return model.weight.decrypt().numpy().tobytes()

    @operation
    def torch_tensor(world: World) -> Any:
        table = encrypted.EncryptedTensor.from_tensor(torch.from_numpy(MATRIX), key=world.key)
        rows = torch.nn.functional.embedding(torch.tensor([5, 1]), table)
        table[3].mul_(2)
        return rows.numpy().tobytes(), table[3].decrypt().numpy().tobytes()

    @operation
    def torch_quantized_module(world: World) -> Any:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Embedding(30, 256), torch.nn.Linear(256, 32))
        model.requires_grad_(False)
        ids = torch.tensor([[3, 4, 29]])
        wanted = model(ids)
        with Key.from_bytes(KEY) as key:
            model = encrypted.encrypt_module(model, key=key, quantize="q8_0")
        found = model(ids)
        assert torch.allclose(found, wanted, atol=0.05)
        return found.numpy().tobytes(), model[1].weight.decrypt().numpy().tobytes()

    @operation
    def torch_quantized_files(world: World) -> Any:
        weight = world.blocks.tensors["q4_k"].copy(key=world.key)
        tensor = encrypted.EncryptedTensor.from_core(weight, key=world.key)
        path = world.folder / "new"
        try:
            encrypted.save_file({"a": tensor}, path, key=world.key)
            return encrypted.load_file(path, key=world.key)["a"].decrypt().numpy().tobytes()
        finally:
            path.unlink(missing_ok=True)


# ---- what is broken on purpose -------------------------------------------------------------------

_leaked: list[Any] = []


@control
def leaks_a_descriptor(world: World) -> Any:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    with Key.generate():
        os.close(descriptor)


@control
def leaks_a_block(world: World) -> Any:
    _leaked.append(block := wiped.empty(5000, np.uint8))
    with Key.generate():
        _leaked.pop()
    return block.size


@control
def leaks_a_buffer(world: World) -> Any:
    _leaked.append(EncryptedBuffer(100, key=world.key))
    with Key.generate():
        return len(_leaked.pop())


@control
def raises_something_else(world: World) -> Any:
    try:
        Key.generate().close()
    except errors.PyccmemError as error:
        raise KeyError(str(error)) from None


@control
def gives_a_wrong_result(world: World) -> Any:
    try:
        with EncryptedBuffer(10, key=world.key) as buffer:
            return len(buffer)
    except errors.PyccmemError:
        return 0


@control
def crops_some_layers(world: World) -> Any:
    with world.cache.fork() as cache:
        try:
            for layer in range(2):
                cache.crop(21, layer=layer)
        except errors.PyccmemError:
            assert cache.length(0) == cache.length(1) == 37, (
                "one layer was cropped, and one was not"
            )
            raise
        return cache.length()


@control
def loses_what_was_there(world: World) -> Any:
    try:
        Key.generate().close()
    except errors.PyccmemError:
        world.matrix[2] = 0


# ---- the sweep -----------------------------------------------------------------------------------


class State:
    """What a process has: it must be as before once an operation has ended and garbage is gone."""

    NAMES = ("descriptors", "threads", "locked KiB", "blocks", "bytes mapped", "plaintext reserved",
             "plaintext resident", "plain blocks", "buffers")  # fmt: skip

    def __init__(self, injector: Injector) -> None:
        gc.collect()
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        stats = pyccmem.stats()
        self.values = (
            len(os.listdir("/proc/self/fd")),
            int(fields["Threads"]),
            int(fields["VmLck"].split()[0]),
            *injector.held(),
            stats["plaintext_reserved"],
            stats["plaintext_resident"],
            stats["plain_blocks"],
            stats["buffers"],
        )

    def grown(self, before: State) -> list[str]:
        return [
            f"{name} {old} -> {new}"
            for name, old, new in zip(self.NAMES, before.values, self.values, strict=True)
            if new > old
        ]


class Sweep:
    def __init__(self, world: World) -> None:
        self.world, self.injector = world, Injector()
        self.points, self.problems = 0, 0

    def problem(self, where: str, what: str) -> None:
        self.problems += 1
        print(f"{where}: {what}", flush=True)

    def attempt(self, run: Operation, wanted: Any, where: str, **fault: Any) -> None:
        """One run with a fault, and what it did."""
        nth = fault.pop("nth")
        try:
            with self.injector.failing(nth, **fault):
                found = run(self.world)
        except errors.PyccmemError as error:
            if not str(error).strip():
                self.problem(where, f"{type(error).__name__} without a word")
        except BaseException as error:
            self.problem(f"{where} ({self.injector.failed})", f"{type(error).__name__}: {error}")
        else:
            if found != wanted:
                self.problem(f"{where} ({self.injector.failed})", "a wrong result")
            del found

    def count(self, name: str, run: Operation) -> tuple[Any, int]:
        """What an operation gives, and how many calls it makes."""
        wanted = run(self.world)
        run(self.world)  # what is made once for a process is there from now on
        with self.injector.counting(without=[*RELEASING, "write"]) as calls:
            assert run(self.world) == wanted, f"{name} is not the same each time"
        return wanted, calls.seen

    def run(self, name: str, run: Operation, most: int) -> None:
        wanted, count = self.count(name, run)
        self.points += count
        for later, nth in points(count, most):
            self.point(name, run, wanted, nth, later)
        self.give_back(name, run, wanted, most)

    def point(self, name: str, run: Operation, wanted: Any, nth: int, later: bool) -> None:
        where = f"{name}, call {nth}{' and later' if later else ''}"
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        print(where, file=sys.stderr, flush=True)  # for who finds a crash
        without = [*RELEASING, "write"]  # by which a process that ends says why
        fault = {"nth": nth, "later": later, "without": without}
        before = State(self.injector)
        self.attempt(run, wanted, where, **fault)
        if State(self.injector).grown(before):
            # What is kept for the next time is no leak, so the next times tell.
            middle = State(self.injector)
            for _ in range(3):
                self.attempt(run, wanted, where, **fault)
            again = State(self.injector).grown(middle)
            if again:
                self.problem(f"{where} ({self.injector.failed})", f"left {', '.join(again)}")
        self.works(where, run, wanted)
        faulthandler.cancel_dump_traceback_later()

    def give_back(self, name: str, run: Operation, wanted: Any, most: int) -> None:
        """What gives something back fails, which then stays; all else holds as above."""
        with self.injector.counting(RELEASING) as calls:
            run(self.world)
        for nth in {nth for _, nth in points(calls.seen, most)}:
            where = f"{name}, giving back {nth}"
            print(where, file=sys.stderr, flush=True)
            self.attempt(run, wanted, where, nth=nth, kinds=RELEASING)
            self.works(where, run, wanted)

    def works(self, where: str, run: Operation, wanted: Any) -> None:
        """That the world is as it was, and the operation works again."""
        try:
            self.world.check()
            assert run(self.world) == wanted, "a wrong result"
        except BaseException as error:
            self.problem(where, f"afterwards {type(error).__name__}: {error}")


def points(count: int, most: int) -> list[tuple[bool, int]]:
    """Which calls fail: with those after it or alone, and its number."""
    chosen = range(1, count + 1)
    if most and count > most:
        chosen = sorted({1 + at * (count - 1) // max(most - 1, 1) for at in range(most)})
    return [(later, nth) for later in (False, True) for nth in chosen]


def in_child(work: Callable[[], int], folder: Path) -> tuple[int, str]:
    """What a forked child returns, or minus the signal it died of, and what it wrote to stderr."""
    log = folder / "stderr"
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, 2)
            os.close(opened)
            status = work()
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text(errors="replace")


def in_children(name: str, run: Operation, most: int, folder: Path) -> tuple[int, int]:
    """Like Sweep.run(), with a child for each point: how many calls, and how many problems. This
    process must have nothing open."""

    def sweep() -> Sweep:
        return Sweep(World(Path(tempfile.mkdtemp(dir=folder))))

    def count() -> int:
        found = sweep().count(name, run)[1]
        (folder / "count").write_text(str(found))
        return 0

    status, text = in_child(count, folder)
    assert status == 0, (status, text)
    calls, problems = int((folder / "count").read_text()), 0
    for later, nth in points(calls, most):

        def point(nth: int = nth, later: bool = later) -> int:
            one = sweep()
            wanted, _ = one.count(name, run)
            one.point(name, run, wanted, nth, later)
            return min(one.problems, 90)

        status, text = in_child(point, folder)
        told = "pyccmem: " in text and "this process ends" in text
        if status and not (status == -signal.SIGABRT and told):
            problems += 1
            print(f"{name}, call {nth}{' and later' if later else ''}: the child ended with "
                  f"{status}: {text[-600:]}", flush=True)  # fmt: skip
    return calls, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("operations", nargs="*")
    options = parser.parse_args()
    pyccmem.set_num_threads(2)
    if options.torch:
        OPERATIONS.clear()
        _torch_operations()
    chosen = CONTROLS if options.control else OPERATIONS
    if options.list:
        print("\n".join(chosen))
        return 0
    names = options.operations or list(chosen)
    calls = problems = 0
    with tempfile.TemporaryDirectory(prefix="pyccmem-faults-") as folder:
        for name in (name for name in names if name.startswith("mapping")):
            found = in_children(name, chosen[name], options.most, Path(folder))
            calls, problems = calls + found[0], problems + found[1]
        rest = [name for name in names if not name.startswith("mapping")]
        sweep = Sweep(World(Path(tempfile.mkdtemp(dir=folder)))) if rest else None
        gc.collect()
        gc.freeze()  # a collection has to look at what comes from now on
        for name in rest:
            assert sweep is not None
            before = sweep.problems
            sweep.run(name, chosen[name], options.most)
            if options.control:
                print(f"{name}: {'caught' if sweep.problems > before else 'NOT CAUGHT'}")
                sweep.world = World(Path(tempfile.mkdtemp(dir=folder)))
        if sweep is not None:
            calls, problems = calls + sweep.points, problems + sweep.problems
        print(f"{calls} calls of {len(names)} operations, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
