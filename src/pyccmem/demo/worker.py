# SPDX-License-Identifier: Apache-2.0
"""A child process that holds the model, seen from the parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Protocol, TypeVar

from .. import errors
from .layers import Array
from .model import Config

__all__ = ["Job", "Passage", "Worker"]

_Self = TypeVar("_Self", bound="Worker")

#: A passage as the child takes it: token ids, or text.
Passage = Sequence[int] | str

#: Environment variables that bound the threads of OpenBLAS, MKL, BLIS, OpenMP and pyccmem.
_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYCCMEM_NUM_THREADS",
)


class AnyJob(Protocol):
    """What the parent itself must know of a job."""

    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Job:
    """What a child must load."""

    weights: str
    config: Config
    cipher: str | None  # None: plain weights
    progress: bool | None
    threads: int  # of the BLAS and of pyccmem


class Worker:
    """Runs the model in a process of its own, so that its memory is that of one kind of run."""

    #: The module that the child runs.
    module: ClassVar[str] = "pyccmem.demo.child"

    def __init__(
        self,
        job: AnyJob,
        environment: Mapping[str, str] | None = None,
        *,
        wait: bool = True,
        launcher: Sequence[str] = (),
        directory: str | None = None,
    ) -> None:
        """Starts the child, with further environment variables, and lets it load the weights. If
        not `wait`, wait_loaded() must follow. `launcher`: a command that starts the child's, which
        comes behind it. `directory`: where the child works. Raises DemoError with what the child
        reports."""
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [*launcher, sys.executable, "-m", self.module, str(there.fileno())],
                cwd=directory,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    **dict.fromkeys(_THREADS, str(job.threads)),
                    **(environment or {}),
                },
            )
        self._channel: Connection = Connection(here.detach())
        #: Seconds that loading the weights took.
        self.load_seconds = 0.0
        #: The most plaintext bytes that pyccmem ever handed out at once in the child.
        self.peak_plaintext = 0
        try:
            self._channel.send(job)
            if wait:
                self.wait_loaded()
        except BaseException:
            self.close()
            raise

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_loaded(self) -> None:
        """Waits until the weights are loaded. Raises DemoError with what the child reports."""
        answer = self._receive()
        if isinstance(answer, str):
            raise errors.DemoError(f"The demo's process could not load the model: {answer}")
        self.load_seconds = float(answer)

    def ask(self, passages: Any) -> None:
        """Lets the child start to embed passages, a list of them, or to do what else a child of
        another module does. answer() must follow."""
        self._channel.send(passages)

    def answered(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds. Returns True when answer() would not wait."""
        return self._channel.poll(timeout)

    def answer(self) -> tuple[Array, float]:
        """Returns the vectors of the passages asked for, and the seconds the model took."""
        vectors, seconds, self.peak_plaintext = self._receive()
        return vectors, float(seconds)

    def embed(self, passages: Sequence[Passage]) -> tuple[Array, float]:
        """Does ask() and answer()."""
        self.ask(passages)
        return self.answer()

    def peak_memory(self) -> int:
        """Returns the most bytes of RAM that the child had at once (VmHWM of proc(5))."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise errors.DemoError("The system does not tell a process's peak memory.")

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stops the child for the length of a `with` block."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            while self._state() not in "TtZX":
                time.sleep(0.0005)
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _state(self) -> str:
        with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]

    def _receive(self) -> Any:
        try:
            return self._channel.recv()
        except (EOFError, ConnectionResetError):
            status = self._process.wait()
            raise errors.DemoError(
                f"The demo's process ended with status {status} instead of an answer; what it "
                f"printed says why."
            ) from None

    def close(self) -> None:
        """Ends the child. May be repeated."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
