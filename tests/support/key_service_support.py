# SPDX-License-Identifier: Apache-2.0
"""What the tests of key services share: a search for what a call leaves in memory, an example file,
what a client library logs, and ports of loopback servers."""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from secret_search import readable
from support import child_environment

import pyccmem
from pyccmem import errors, key_services
from pyccmem.demo.files import find_model
from pyccmem.safetensors import safe_open, save_file

CONTEXT = {"pyccmem.format": "2", "pyccmem.file_id": "00ff" * 8, "who": "tests"}

#: Unwraps a key, as opening a file does, and waits. "bare" keeps what is to be wiped.
_CHILD = """
import json, sys
import pyccmem
from pyccmem import errors, key_services
from pyccmem.demo.files import find_model
from pyccmem.binding import wiped
from pyccmem.key_services import clients, provider
uri, wrapped, context, way, rounds = json.loads(sys.argv[1])
if way == "bare":
    kept = []
    wiped.wipe = wiped.wipe_bytes = kept.append
    clients._blot = lambda body, *_: kept.append(body)
    clients._COVERS = 0
    import importlib
    name = uri.partition(":")[0].replace("-", "_")
    module = importlib.import_module("pyccmem.key_services." + name)
    for kind in [kind for kind in vars(module).values() if isinstance(kind, type)]:
        for each in [each for each in vars(kind) if each.startswith("_cover")]:
            setattr(kind, each, lambda *_: None)
source = key_services.from_uri(uri)
wrapped["blob"] = bytes.fromhex(wrapped["blob"])
wrapped = key_services.WrappedKey(**wrapped)
for _ in range(rounds):
    key = provider.unwrapped(source, wrapped, b"", context)
print(key.id, flush=True)
print("ready", flush=True)
sys.stdin.readline()
"""


def needles(key: bytes) -> dict[str, bytes]:
    """Every form of a key that a client could hold. Freed memory loses its first 16 bytes to the
    allocator, so that halves count, too."""
    text, hexadecimal = base64.b64encode(key), key.hex().encode()
    return {
        "raw, first half": key[:16],
        "raw, second half": key[16:],
        "base64, begin": text[:20],
        "base64, end": text[20:40],
        "hexadecimal, begin": hexadecimal[:32],
        "hexadecimal, end": hexadecimal[32:],
    }


def left_in(pid: int, keys: Sequence[bytes]) -> list[str]:
    """What of keys lies in another process's memory outside of the secret memory of pyccmem, and
    in which mapping."""
    found = []
    forms = [pair for key in keys for pair in needles(key).items()]
    for mapping, content in readable(pid):
        if mapping.locked:  # where a Key lies on systems without memfd_secret
            continue
        for form, needle in forms:
            at = content.find(needle)
            while at >= 0:
                found.append(f"{form} in {mapping.name or 'anonymous'} at {mapping.start + at:x}")
                at = content.find(needle, at + 1)
    return found


def left_by(
    uri: str,
    wrapped: key_services.WrappedKey,
    context: Mapping[str, str],
    key: bytes,
    *,
    search: Sequence[bytes] = (),
    way: str = "",
    rounds: int = 1,
    environment: Mapping[str, str] | None = None,
    run: bool = False,
) -> list[str]:
    """What a process that unwraps a key leaves of it in its memory. With `run` it is started by
    `pyccmem run`, which overwrites what is freed. `search` are keys to look for
    besides."""
    shown = {
        "key_id": wrapped.key_id, "blob": wrapped.blob.hex(), "parameters": wrapped.parameters,
    }  # fmt: skip
    argument = json.dumps([uri, shown, dict(context), way, rounds])
    command = [sys.executable, "-c", _CHILD, argument]
    if run:
        command = [sys.executable, "-m", "pyccmem", "run", "--", *command]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=child_environment() | dict(environment or {}), cwd="/",
    )  # fmt: skip
    try:
        with pyccmem.Key.from_bytes(key) as same:
            wanted = same.id + "\n"
        said = process.stdout.readline() + process.stdout.readline()
        if said != wanted + "ready\n":
            process.stdin.close()
            raise AssertionError(f"the child said {said!r}: {process.stderr.read()}")
        return left_in(process.pid, [key, *search])
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def wrapped_by(provider: Any, key: bytes, context: Mapping[str, str] = CONTEXT) -> Any:
    memory = bytearray(key)
    return provider.wrap_key(memoryview(memory), context)


def unwrapped_by(provider: Any, wrapped: Any, context: Mapping[str, str] = CONTEXT) -> bytes:
    """The 32 bytes that a provider gives, which is all that tests of a key need of it."""
    made = provider.unwrap_key(wrapped, context)
    if isinstance(made, pyccmem.Key):
        out = bytearray(32)
        with made:
            pyccmem.keys.copy_into(made, out)
        return bytes(out)
    assert isinstance(made, bytearray)
    return bytes(made)


def assert_unwraps_in_a_child(provider: Any, wrapped: Any, key: bytes) -> None:
    """A forked child unwraps the key through its copy of the provider."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if unwrapped_by(provider, wrapped) == key else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def in_threads(work: Callable[[], bool], times: int) -> list[bool]:
    """What four threads get, each of which calls `work` so many times."""
    found: list[bool] = []

    def several() -> None:
        for _ in range(times):
            found.append(work())

    threads = [threading.Thread(target=several) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def assert_seals_a_file(provider: Any, path: Path) -> None:
    """A sealed file that the provider's key opens again."""
    weights = {"w": np.arange(5000, dtype=np.float32)}
    save_file(weights, path, key=provider)
    with safe_open(path, key=provider) as opened:
        assert np.array_equal(opened.get_tensor("w"), weights["w"])


def assert_serves_a_model(uri: str, folder: Path) -> None:
    """all-MiniLM-L6-v2, sealed by the command for the key of a URI, and served by transformers in
    another process by the same URI, answers as the plain model does."""
    for package in ("transformers", "torch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    try:
        model = find_model(None)
    except errors.MissingPackageError as problem:
        pytest.skip(str(problem))
    program = """
import sys, torch, pyccmem.transformers
from transformers import AutoModel
plain, sealed = sys.argv[1:]
ids = torch.arange(1000, 1040).reshape(2, 20)
with torch.no_grad():
    wanted = AutoModel.from_pretrained(plain)(ids).last_hidden_state
    model = AutoModel.from_pretrained(sealed)
    found = model(ids).last_hidden_state
assert isinstance(model.embeddings.word_embeddings.weight, pyccmem.torch.EncryptedTensor)
assert torch.allclose(found, wanted, atol=1e-4), (found - wanted).abs().max()
"""
    sealed = folder / "sealed"
    try:
        for command in (
            ["-m", "pyccmem", "encrypt", str(model), str(sealed), "--key", uri],
            ["-c", program, str(model), str(sealed)],
        ):
            done = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, timeout=300,
                env=child_environment() | {"PYCCMEM_KEY": uri}, check=False, cwd=folder,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        shutil.rmtree(sealed, ignore_errors=True)


@contextmanager
def logged() -> Iterator[Callable[[], str]]:
    """Everything that any library logs, at DEBUG."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.name} {record.getMessage()} {record.args!r}")

    root = logging.getLogger()
    level, handler = root.level, Keep(logging.DEBUG)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lambda: "\n".join(lines)
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def assert_not_in(text: str, key: bytes) -> None:
    for form in (key.hex(), base64.b64encode(key).decode(), repr(key)[2:-1], str(list(key))):
        assert form not in text


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[Any], seconds: float = 20) -> None:
    """Waits until a server listens on a port."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.02)


def new_key() -> bytes:
    return os.urandom(32)
