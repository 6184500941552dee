# SPDX-License-Identifier: Apache-2.0
"""A forked child opens sealed files anew by a key that it asks for itself; what it cannot open is
named in a warning before the fork."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import in_forked_child

import pyccmem
from pyccmem import EncryptedBuffer, Key, errors
from pyccmem.core import fork_warning, forks
from pyccmem.core.store import registered
from pyccmem.safetensors import KeyProvider, Passphrase, WrappedKey, load_file, safe_open, save_file

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # Python 3.12 warns of a fork in a process with threads, which is what is tested here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

ARRAYS = {
    "weight": np.arange(128 * 64, dtype=np.float32).reshape(128, 64) / 4096,
    "bias": np.linspace(-1, 1, 128, dtype=np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


class Service:
    """A key service that notes which processes asked it, and refuses as often as it is told."""

    name = "test-service"

    def __init__(self, log: Path) -> None:
        self.log, self.refusals, self.pause = log, 0, 0.0

    def wrap_key(self, key: memoryview) -> WrappedKey:
        return WrappedKey("k", bytes(byte ^ 0x5A for byte in key))

    def unwrap_key(self, wrapped: WrappedKey) -> bytearray:
        with open(self.log, "a", encoding="ascii") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(self.pause)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("the service is busy")
        return bytearray(byte ^ 0x5A for byte in wrapped.blob)

    def asked(self) -> int:
        """How often this process has asked."""
        return self.log.read_text(encoding="ascii").split().count(str(os.getpid()))


@pytest.fixture(autouse=True)
def only_own_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings name the stores of this test alone: what others have left open in the same process,
    such as in fixtures of a session, is not looked at."""
    gc.collect()
    left = {id(store): store for store in registered()}  # which they keep, so ids stay their own
    monkeypatch.setattr(
        fork_warning, "registered", lambda: (s for s in registered() if id(s) not in left)
    )
    others = list(fork_warning._others)  # arenas and caches
    named = {name for names in others for name in names()}
    monkeypatch.setattr(
        fork_warning,
        "_others",
        [lambda: [n for names in others for n in names() if n not in named]],
    )


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.key"
    path.write_bytes(support.KEY_BYTES)
    path.chmod(0o600)
    return path


@pytest.fixture
def service(tmp_path: Path) -> Service:
    found = Service(tmp_path / "asked")
    found.log.touch()
    assert isinstance(found, KeyProvider)
    return found


@pytest.fixture
def path(tmp_path: Path, key_file: Path) -> Path:
    found = tmp_path / "model.safetensors"
    save_file(ARRAYS, found, key=Key.from_file(key_file))
    return found


@contextlib.contextmanager
def fork_warnings() -> Iterator[list[str]]:
    """The texts of the warnings that the block's forks give."""
    found: list[str] = []
    gc.collect()  # buffers of other tests
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(one.message) for one in caught if one.category is errors.ForkWarning]


def check_values(tensors: dict[str, Any]) -> None:
    """All that the tensors can be asked for, with the right values."""
    for name, array in ARRAYS.items():
        tensor = tensors[name]
        assert np.array_equal(tensor[...], array), name
        assert tensor.verify() == []
    x = np.ones(64, np.float32)
    wanted = ARRAYS["weight"].astype(np.float64) @ x
    assert np.allclose(pyccmem.linear(x, tensors["weight"]), wanted, rtol=1e-5)
    assert tensors["weight"].buffer.read(4, 4) == ARRAYS["weight"].tobytes()[4:8]
    with tensors["bias"].map(window="256KiB") as mapped:
        assert np.array_equal(mapped, ARRAYS["bias"])
    with pytest.raises(errors.ReadOnlyError):
        tensors["bias"][0] = 1


FIRST_USES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "index": lambda t: t["weight"][3, 5],
    "rows": lambda t: t["weight"][[5, 3, 1]],
    "read": lambda t: t["weight"].buffer.read(0, 8),
    "read_into": lambda t: t["weight"].buffer.read_into(bytearray(8)),
    "linear": lambda t: pyccmem.linear(np.ones((3, 64), np.float32), t["weight"]),
    "matmul": lambda t: t["weight"] @ np.ones(64, np.float32),
    "verify": lambda t: t["weight"].verify(),
    "ciphertext": lambda t: t["weight"].buffer.ciphertext,
    "versions": lambda t: t["weight"].buffer.versions,
    "stats": lambda t: t["weight"].buffer.stats(),
    "open": lambda t: t["weight"].open().__enter__(),
    "map": lambda t: t["weight"].map(window="256KiB").__enter__(),
    "copy": lambda t: t["weight"].copy(key=Key.from_bytes(support.KEY_BYTES)),
    "context": lambda t: t["weight"].__enter__(),
}


@pytest.mark.parametrize("use", FIRST_USES.values(), ids=FIRST_USES)
def test_any_first_use_in_a_child_opens_the_file(path: Path, key_file: Path, use: Callable) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))

    def child() -> None:
        use(tensors)
        check_values(tensors)

    in_forked_child(child)
    check_values(tensors)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", ["file", "relative", "passphrase", "service"])
def test_every_kind_of_source(
    path: Path, key_file: Path, service: Service, kind: str, mmap: bool, monkeypatch: Any
) -> None:
    monkeypatch.chdir(path.parent)
    key: Any = {
        "file": lambda: Key.from_file(key_file),
        "relative": lambda: Key.from_file(key_file.name),
        "passphrase": lambda: Passphrase("correct horse", n=2**10),
        "service": lambda: service,
    }[kind]()
    save_file(ARRAYS, path, key=key, seal_names=kind == "service")
    tensors = load_file(path.name, key=key, mmap=mmap)
    if isinstance(key, Key):
        key.close()  # as documented: the tensors need it no longer

    def child() -> None:
        os.chdir("/")
        check_values(tensors)

    with fork_warnings() as found:
        in_forked_child(child)
    assert found == []


@support.not_sanitized  # the address sanitizer takes memory of its own
def test_nothing_is_decrypted_nor_copied_when_it_is_opened_anew(
    tmp_path: Path, key_file: Path
) -> None:
    big = np.random.default_rng(5).integers(0, 256, 24 << 20, np.uint8)
    path = tmp_path / "big.safetensors"
    save_file({"big": big}, path, key=Key.from_file(key_file))
    tensors = load_file(path, key=Key.from_file(key_file))

    def private(of: str) -> int:
        """Bytes of this process's own in the mappings of a file, or in all that have no file."""
        total, counts = 0, False
        for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                name = line.split(maxsplit=5)[5:]
                counts = name == [of] if of else not name
            elif counts and line.startswith(("Private_Dirty", "Anonymous")):
                total += int(line.split()[1]) << 10
        return total

    def child() -> None:
        before = private("")
        assert tensors["big"].buffer.stats()["pages_opened"] == 0
        assert private("") - before < big.nbytes // 3, "the pages were copied"
        assert tensors["big"][12 << 20] == big[12 << 20]
        assert private(str(path)) == 0
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")

    in_forked_child(child)


def test_grandchildren_and_threads_that_fork(path: Path, service: Service) -> None:
    save_file(ARRAYS, path, key=service)
    tensors = load_file(path, key=service)

    def grandchild() -> None:
        check_values(tensors)
        assert service.asked() == 1

    def child() -> None:
        in_forked_child(grandchild)  # through a child that never used it
        check_values(tensors)
        in_forked_child(grandchild)
        assert service.asked() == 1

    in_forked_child(child)
    failures: list[BaseException] = []

    def fork() -> None:
        try:
            in_forked_child(child)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert not failures, failures
    check_values(tensors)


def first_uses_in_threads(tensors: dict[str, Any], service: Service) -> int:
    """How often a service is asked when 20 threads use a file's tensors for the first time."""
    service.pause = 0.02
    start, failures = threading.Barrier(20), []

    def use(number: int) -> None:
        try:
            start.wait(30)
            name = ("weight", "bias")[number % 2]
            assert np.array_equal(tensors[name][...], ARRAYS[name])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return service.asked()


def test_threads_of_a_child_ask_once(path: Path, service: Service, monkeypatch: Any) -> None:
    save_file(ARRAYS, path, key=service)
    tensors = load_file(path, key=service)

    def child() -> None:
        assert first_uses_in_threads(tensors, service) == 1

    in_forked_child(child)

    def without_the_lock() -> None:
        from pyccmem.safetensors import _origin

        monkeypatch.setattr(_origin, "opening", contextlib.nullcontext)
        assert first_uses_in_threads(tensors, service) > 1

    in_forked_child(without_the_lock)


def test_forks_while_other_threads_read(path: Path, key_file: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            assert tensors["bias"][5] == ARRAYS["bias"][5]
            pyccmem.linear(np.ones((2, 64), np.float32), tensors["weight"])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            in_forked_child(lambda: check_values(tensors))
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_lock_that_is_held_at_the_fork_is_free_in_the_child() -> None:
    lock, plain = forks.Lock(), threading.Lock()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.here(), plain:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)

    def child() -> None:
        assert not plain.acquire(timeout=0.05), "the ordinary lock must stay held"
        for _ in range(2):
            with lock.here():
                assert lock._lock.locked()
        assert not lock._lock.locked()

    try:
        in_forked_child(child)
    finally:
        done.set()
        thread.join()
    with lock.here():
        pass


# ---- the file ------------------------------------------------------------------------------------


def test_a_file_that_was_replaced_or_deleted(path: Path, key_file: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    other = {name: array + 1 for name, array in ARRAYS.items()}
    save_file(other, path, key=Key.from_file(key_file))
    assert load_file(path, key=Key.from_file(key_file))["bias"][0] == 0
    in_forked_child(lambda: check_values(tensors))
    path.unlink()
    in_forked_child(lambda: check_values(tensors))


def test_descriptors_closed_by_a_daemon(path: Path, key_file: Path, tmp_path: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    kept = tensors["bias"].buffer._origin._kept.number
    assert kept >= 0

    def daemon() -> None:
        os.close(kept)
        os.dup2(2, kept)  # the number is another file's now
        check_values(tensors)
        for tensor in tensors.values():
            tensor.close()
        tensors.clear()
        gc.collect()
        os.fstat(kept)  # not ours, so still open

    in_forked_child(daemon)

    def replaced() -> None:
        os.close(kept)
        os.rename(path, tmp_path / "old")
        save_file(ARRAYS, path, key=Key.from_file(key_file))
        with pytest.raises(errors.ForkError, match=r"model\.safetensors.*not the one that was"):
            tensors["bias"][0]
        path.unlink()
        with pytest.raises(errors.ForkError, match=r"model\.safetensors.*No such file"):
            tensors["bias"][0]
        os.rename(tmp_path / "old", path)
        check_values(tensors)

    in_forked_child(replaced)


def test_a_file_that_was_changed_in_place(path: Path, key_file: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    size = path.stat().st_size

    def flip(at: int) -> None:
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    for at, wanted in ((20, errors.ForkError), (size - 1, errors.IntegrityError)):
        flip(at)

        def child(wanted: type[Exception] = wanted) -> None:
            with pytest.raises(wanted, match=r"weight|bias|model\.safetensors"):
                check_values(tensors)

        in_forked_child(child)
        flip(at)
    in_forked_child(lambda: check_values(tensors))


def test_descriptors_and_memory_are_given_back(path: Path, key_file: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def mappings() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count(path.name)

    before = descriptors(), mappings()
    tensors = load_file(path, key=Key.from_file(key_file))
    assert descriptors() == before[0] + 1, "one for the file, not one for each tensor"

    def child() -> None:
        start = mappings()
        check_values(tensors)
        assert descriptors() == before[0] + 1 and mappings() == start
        for tensor in tensors.values():
            tensor.close()
        with pytest.raises(errors.ClosedError):
            tensors["bias"][0]
        assert (descriptors(), mappings()) == before

    def counted() -> None:
        nonlocal before
        before = descriptors() - 1, before[1]  # the pipe to the parent is new
        child()

    in_forked_child(counted)
    check_values(tensors)
    for tensor in tensors.values():
        tensor.close()
    assert (descriptors(), mappings()) == before


def test_closed_before_its_first_use_in_a_child(path: Path, key_file: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    tensors["bias"].close()

    def child() -> None:
        assert tensors["bias"].closed and not tensors["weight"].closed
        assert "open" in repr(tensors["weight"].buffer)
        tensors["empty"].close()
        for name in ("bias", "empty"):
            with pytest.raises(errors.ClosedError):
                tensors[name][...]
        assert pyccmem.stats()["buffers"] == 0
        assert np.array_equal(tensors["weight"][...], ARRAYS["weight"])
        assert pyccmem.stats()["buffers"] == 1

    in_forked_child(child)


# ---- the key -------------------------------------------------------------------------------------


def test_a_key_file_that_is_gone_or_another(path: Path, key_file: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    kept = key_file.read_bytes()
    key_file.unlink()

    def child() -> None:
        with pytest.raises(errors.ForkError, match=r"model\.key.*cannot be read"):
            tensors["bias"][0]
        key_file.write_bytes(bytes(32))
        with pytest.raises(errors.ForkError, match=r"model\.key.*another key"):
            tensors["bias"][0]
        key_file.write_bytes(kept)
        check_values(tensors)  # a failure is not for ever

    with fork_warnings() as found:
        in_forked_child(child)
    assert len(found) == 1 and re.search(r"model\.safetensors.*model\.key.*any more", found[0])


def test_a_service_that_refuses_once(path: Path, service: Service) -> None:
    save_file(ARRAYS, path, key=service)
    tensors = load_file(path, key=service)
    service.refusals = 1

    def child() -> None:
        with pytest.raises(errors.ForkError, match="the service is busy") as caught:
            tensors["bias"][0]
        assert isinstance(caught.value.__cause__, ConnectionError)
        check_values(tensors)

    in_forked_child(child)


def test_a_passphrase_is_not_kept_alive(path: Path) -> None:
    passphrase = Passphrase("correct horse", n=2**10)
    save_file(ARRAYS, path, key=passphrase)
    tensors = load_file(path, key=passphrase)
    del passphrase

    def child() -> None:
        with pytest.raises(errors.ForkError, match="Passphrase object is gone"):
            tensors["bias"][0]

    with fork_warnings() as found:
        in_forked_child(child)
    assert len(found) == 1 and "Passphrase object is gone" in found[0]


def test_a_key_from_a_file_is_read_again(path: Path, key_file: Path) -> None:
    key = Key.from_file(key_file)
    identity = key.id
    kept = key_file.read_bytes()

    def child() -> None:
        key_file.write_bytes(bytes(32))
        with pytest.raises(errors.ForkError, match="another key"):
            key.id  # noqa: B018
        key_file.unlink()
        with pytest.raises(errors.ForkError, match="cannot be read"):
            EncryptedBuffer(100, key=key)
        key_file.write_bytes(kept)
        assert key.id == identity
        check_values(load_file(path, key=key))
        key.close()
        with pytest.raises(errors.ClosedError):
            key.id  # noqa: B018

    in_forked_child(child)
    assert key.id == identity


def test_an_open_file(path: Path, key_file: Path) -> None:
    with safe_open(path, key=Key.from_file(key_file)) as file:

        def child() -> None:
            assert np.array_equal(file.get_tensor("bias")[...], ARRAYS["bias"])

        in_forked_child(child)
    with safe_open(path, key=Key.from_bytes(support.KEY_BYTES)) as file:

        def refused() -> None:
            with pytest.raises(errors.ForkError):
                file.get_tensor("bias")

        in_forked_child(refused)


# ---- warnings ------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_named_once_for_each_fork(
    path: Path, key_file: Path, key: Key
) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    sourceless = load_file(path, key=key)
    memory = [EncryptedBuffer(100, key=key, name=f"layer.{n}") for n in range(6)]

    def child() -> None:
        check_values(tensors)
        for lost in (lambda: sourceless["bias"][0], memory[0].read):
            with pytest.raises(errors.ForkError):
                lost()

    with fork_warnings() as found:
        in_forked_child(child)
        in_forked_child(child)
    assert len(found) == 2 and found[0] == found[1]
    assert "post_fork" in found[0] and "key.from_file" in found[0].lower()
    assert "and others" in found[0]
    for buffer in memory[1:]:
        buffer.close()
    with fork_warnings() as found:
        in_forked_child(child)
    assert "model.safetensors" in found[0] and "bytes of its key" in found[0]
    assert "layer.0" in found[0] and "others" not in found[0]
    assert found[0].count("model.safetensors") == 1, "the file is named, not each tensor"


def test_no_warning_where_nothing_is_lost(path: Path, key_file: Path, key: Key) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    closed = EncryptedBuffer(100, key=key)
    closed.close()
    with fork_warnings() as found:
        in_forked_child(lambda: None)
        in_forked_child(lambda: in_forked_child(lambda: None))
    assert found == [] and tensors


def nothing() -> None:
    """For another process."""


def test_programs_that_are_started_do_not_warn(key: Key) -> None:
    """Neither by subprocess, with a function to call before it or without, nor by spawning."""
    buffer = EncryptedBuffer(100, key=key)
    with fork_warnings() as found:
        subprocess.run([sys.executable, "-c", ""], check=True)
        subprocess.run([sys.executable, "-c", ""], check=True, preexec_fn=lambda: None)
        os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
        for method in ("spawn", "forkserver"):
            process = multiprocessing.get_context(method).Process(target=nothing)
            process.start()
            process.join(60)
            assert process.exitcode == 0
    assert found == []
    with fork_warnings() as found:  # a positive control
        process = multiprocessing.get_context("fork").Process(target=nothing)
        process.start()
        process.join(60)
    assert len(found) == 1 and buffer.name in found[0]


def test_a_child_that_runs_another_program(path: Path, key_file: Path) -> None:
    tensors = load_file(path, key=Key.from_file(key_file))
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/true", ["true"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check_values(tensors)


def test_a_warning_that_is_an_error_does_not_stop_the_fork(key: Key) -> None:
    script = """
import os, warnings, pyccmem
warnings.simplefilter("error")
buffer = pyccmem.EncryptedBuffer(100, key=pyccmem.Key.generate(), name="lost")
pid = os.fork()
if pid == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), buffer.read(0, 1))
"""
    done = support.run_python(script)
    assert done.stdout == "7 b'\\x00'\n", done.stderr
    assert "ForkWarning" in done.stderr and "lost" in done.stderr


# ---- torch ---------------------------------------------------------------------------------------


def test_torch_modules(path: Path, key_file: Path) -> None:
    torch = pytest.importorskip("torch")
    import pyccmem.torch as encrypted

    loaded = encrypted.load_file(path, key=Key.from_file(key_file))
    model = torch.nn.Linear(64, 128)
    model.requires_grad_(False)
    state = {name: loaded[name] for name in ("weight", "bias")}
    model.load_state_dict(state, assign=True)
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64)
    wanted = torch.nn.functional.linear(
        x, torch.from_numpy(ARRAYS["weight"]), torch.from_numpy(ARRAYS["bias"])
    )
    assert torch.allclose(model(x), wanted, atol=1e-5)
    stored = loaded["bias"]._real()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with stored.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)

    def child() -> None:
        torch.set_num_threads(1)  # the parent's OpenMP threads do not follow a fork
        assert torch.allclose(model(x), wanted, atol=1e-5)
        loaded["bias"].mul_(2)  # takes the lock, and a writable copy
        assert torch.equal(loaded["bias"].decrypt(), torch.from_numpy(ARRAYS["bias"] * 2))
        assert torch.equal(loaded["weight"].clone().decrypt(), torch.from_numpy(ARRAYS["weight"]))

    try:
        with fork_warnings() as found:
            in_forked_child(child)
    finally:
        done.set()
        thread.join()
    assert found == []
    assert torch.equal(loaded["bias"].decrypt(), torch.from_numpy(ARRAYS["bias"]))
    plain = torch.nn.Linear(8, 8)
    with Key.generate() as key:
        encrypted.encrypt_module(plain, key=key)
    with fork_warnings() as found:
        in_forked_child(lambda: None)
    assert len(found) == 1 and "encrypted in memory" in found[0]


def test_transformers_models(tmp_path: Path, key_file: Path, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import pyccmem.transformers

    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    plain = transformers.BertModel(config).eval()
    pyccmem.transformers.save_pretrained(plain, tmp_path / "bert", key=Key.from_file(key_file))
    monkeypatch.setenv(pyccmem.transformers.KEY_FILE_VARIABLE, str(key_file))
    model = transformers.AutoModel.from_pretrained(tmp_path / "bert").eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        wanted = plain(ids).last_hidden_state

    def child() -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            assert torch.allclose(model(ids).last_hidden_state, wanted, atol=1e-4)

    with fork_warnings() as found:
        in_forked_child(child)
    assert found == []
    assert json.loads((tmp_path / "bert" / "config.json").read_text())["quantization_config"]
