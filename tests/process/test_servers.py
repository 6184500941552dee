# SPDX-License-Identifier: Apache-2.0
"""Real servers whose workers are forked from a process that has loaded a model: gunicorn with
--preload, uvicorn in forked processes and with workers of its own, as root and as another user with
64 KiB of locked memory."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import http.client
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from pyccmem import Key
from pyccmem.safetensors import save_file

pytestmark = support.linux_only

WORKERS, REQUESTS = 2, 100
WEIGHT = np.arange(96 * 64, dtype=np.float32).reshape(96, 64) / 1024

#: What a user would write: the model is loaded when the module is imported.
APPLICATION = """
import json, os
import numpy as np
import pyccmem
from pyccmem.safetensors import load_file

if os.environ["KEY_FROM"] == "file":
    key = pyccmem.Key.from_file(os.environ["KEY_FILE"])
else:
    with open(os.environ["KEY_FILE"], "rb") as file:
        key = pyccmem.Key.from_bytes(file.read())
model = load_file(os.environ["MODEL"], key=key)


def answer(text):
    try:
        y = pyccmem.linear(np.full(64, float(text), np.float32), model["weight"])
        return {"pid": os.getpid(), "y": y.tolist()}
    except pyccmem.errors.PyccmemError as error:
        return {"pid": os.getpid(), "error": type(error).__name__}


def wsgi(environ, start_response):
    body = json.dumps(answer(environ["QUERY_STRING"])).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = json.dumps(answer(scope["query_string"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

#: A server of one's own: the parent loads and binds, its forked children serve.
FORKING = """
import multiprocessing, socket, sys
import uvicorn
import application

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]} is open", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("fork")

    def serve():
        uvicorn.Server(uvicorn.Config(application.asgi, log_level="warning")).run([listener])

    workers = [context.Process(target=serve, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""

COMMANDS = {
    "gunicorn": ["-m", "gunicorn", "--preload", "-w", "2", "-b", "127.0.0.1:0",
                 "--worker-tmp-dir", ".", "application:wsgi"],
    "uvicorn": ["-m", "uvicorn", "--workers", "2", "--port", "0", "application:asgi"],
    "uvicorn-forked": ["forking.py"],
}  # fmt: skip


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place that any user can read: pytest's own is its user's."""
    path = Path(tempfile.mkdtemp(prefix="pyccmem-server-"))
    try:
        path.chmod(0o777)
        key_file = path / "model.key"
        key_file.write_bytes(support.KEY_BYTES)
        key_file.chmod(0o600)
        save_file({"weight": WEIGHT}, path / "model.safetensors", key=Key.from_file(key_file))
        (path / "application.py").write_text(APPLICATION)
        (path / "forking.py").write_text(FORKING)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Server:
    """A running server; `log` is what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log, self.port = process, log, 0

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            found = re.search(r"http://127\.0\.0\.1:([1-9][0-9]*)", self.log)
            if found:
                self.port = int(found[1])
                # uvicorn says so before a worker listens.
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", self.port), 10).close()
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log}")

    def ask(self, x: int) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", f"/?{x}", headers={"Connection": "close"})
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


def ordinary(user: int) -> None:
    """In a child before it starts a program: has that run with 64 KiB of locked memory, as another
    user, or for 0 as this one without any capability, so that the limit counts."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
    if os.getuid() != 0:
        return
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        return
    libc, drop_from_bounding_set = ctypes.CDLL(None), 24
    number = 0
    while libc.prctl(drop_from_bounding_set, number, 0, 0, 0) == 0:
        number += 1
    assert number > 14  # CAP_IPC_LOCK


def environment(directory: Path, key_from: str) -> dict[str, str]:
    found = support.child_environment(
        KEY_FROM=key_from,
        KEY_FILE=str(directory / "model.key"),
        MODEL=str(directory / "model.safetensors"),
        PYTHONUNBUFFERED="1",
        HOME=str(directory),
    )
    path = [str(directory), *sys.path, found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return found


def interpreter_of(user: int, directory: Path) -> str:
    """An interpreter that another user may run; skips the test where there is none."""
    minor = sys.version_info.minor
    for path in (sys.executable, f"/usr/bin/python3.{minor}", f"/usr/local/bin/python3.{minor}"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [path, "-c", "import pyccmem, gunicorn"],
                cwd=directory,
                env=environment(directory, "file"),
                preexec_fn=lambda: ordinary(user),
                capture_output=True,
                timeout=60,
            )
            if done.returncode == 0:
                return path
    pytest.skip("no interpreter here that another user may run has the packages")


@contextlib.contextmanager
def serving(
    command: str, directory: Path, *, key_from: str = "file", user: int | None = None
) -> Iterator[Server]:
    python = interpreter_of(user, directory) if user else sys.executable
    log = directory / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [python, *COMMANDS[command]],
            cwd=directory,
            env=environment(directory, key_from),
            stdout=out,
            stderr=out,
            preexec_fn=None if user is None else lambda: ordinary(user),
            start_new_session=True,
        )
    try:
        server = Server(process, log)
        server.wait(120)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def answers(server: Server) -> list[dict[str, Any]]:
    """Asks from some threads at once until each worker has answered REQUESTS times."""
    found: list[dict[str, Any]] = []
    served: collections.Counter[int] = collections.Counter()
    with ThreadPoolExecutor(8) as threads:
        while len(served) < WORKERS or min(served.values()) < REQUESTS:
            assert len(found) < 100 * WORKERS * REQUESTS, f"one worker served nearly all: {served}"
            batch = list(threads.map(server.ask, range(len(found), len(found) + 50)))
            for x, one in enumerate(batch, len(found)):
                one["x"] = x
            found += batch
            served.update(one["pid"] for one in batch)
    assert len(served) == WORKERS, served
    return found


def check_answers(server: Server) -> None:
    rows = WEIGHT.astype(np.float64).sum(axis=1)
    for one in answers(server):
        assert "error" not in one, (one, server.log)
        assert np.allclose(one["y"], rows * one["x"], rtol=1e-5, atol=1e-3)


def needs(command: str) -> None:
    for package in {"uvicorn" if "uvicorn" in command else "gunicorn"}:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install 'pyccmem[test]'")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_worker_serves(command: str, directory: Path) -> None:
    needs(command)
    with serving(command, directory) as server:
        check_answers(server)
        assert "ForkWarning" not in server.log


@pytest.mark.parametrize("user", [0, 65534], ids=["no-capabilities", "nobody"])
def test_little_locked_memory(user: int, directory: Path) -> None:
    needs("gunicorn")
    if user and os.getuid() == 0:
        for path in (directory / "model.key", directory / "model.safetensors"):
            os.chown(path, user, user)
    with serving("gunicorn", directory, user=user) as server:
        check_answers(server)
        assert "ForkWarning" not in server.log
        for pid in {one["pid"] for one in answers(server)}:
            status = Path(f"/proc/{pid}/status").read_text()
            assert os.getuid() != 0 or f"Uid:\t{user}\t" in status, status
            assert "CapEff:\t0000000000000000\n" in status, status
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max locked memory +65536 ", limits), limits


@pytest.mark.parametrize("command", ["gunicorn", "uvicorn-forked"])
def test_a_key_that_cannot_be_asked_for_again(command: str, directory: Path) -> None:
    """The control: the warning comes before the first request, and every request fails."""
    needs(command)
    with serving(command, directory, key_from="bytes") as server:
        end = time.monotonic() + 60
        while "ForkWarning" not in server.log and time.monotonic() < end:
            time.sleep(0.05)
        assert re.search(r"ForkWarning.*model\.safetensors.*post_fork", server.log), server.log
        assert {one.get("error") for one in answers(server)} == {"ForkError"}


def test_the_application_of_the_documentation(directory: Path) -> None:
    """docs/servers.md: with --preload, and with its post_fork."""
    needs("gunicorn")
    page = support.ROOT / "docs" / "servers.md"
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert [name for name, _ in blocks] == ["app.py", "gunicorn.conf.py"]
    weight = np.arange(32 * 32, dtype=np.float32).reshape(32, 32) / 512
    (directory / "sealed.safetensors").unlink(missing_ok=True)
    save_file(
        {"pooler.dense.weight": weight},
        directory / "sealed.safetensors",
        key=Key.from_file(directory / "model.key"),
    )
    (directory / "application.py").write_text(blocks[0][1] + "\nwsgi = application\n")
    (directory / "gunicorn.conf.py").write_text(
        "import pyccmem\nfrom pyccmem.safetensors import load_file\n" + blocks[1][1]
    )
    with serving("gunicorn", directory) as server:
        for x in range(20):
            assert np.allclose(server.ask(x), weight.sum(axis=1) * x, rtol=1e-5)
        assert "ForkWarning" not in server.log
