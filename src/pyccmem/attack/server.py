# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.attack.server DESCRIPTOR`: a small HTTP server with a model, whose memory is
to be attacked.

The first message on the descriptor is a Job, answered by the seconds that making the model took, or
by text that says why there is none; then comes the port. Each later message is a request of job.py
as a tuple, answered once it is done; after ARM comes PAUSED when a request has come that far.
HTTP: POST / with a text is answered by a text.
"""

from __future__ import annotations

import ctypes
import gc
import http.server
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from ..demo import serving
from .job import (
    ARM,
    ERASE,
    FORK,
    GO,
    NOTE,
    OVER_READ,
    PAUSED,
    PLAIN,
    REAP,
    REST,
    Job,
)
from .keys import schedule
from .model import Model
from .note import Note

__all__ = ["serve"]

#: Blocks beyond which an over-read goes on, and how far.
_BLOCKS = (24, 100, 500, 2_000, 8_000, 50_000, 120_000, 400_000)
_REACH = 64 << 20
_STRIDE = 1 << 20


class _Service:
    """The model behind HTTP."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = Model(job)
        self._note = Note(job)
        self._held: Any = None
        if job.way == PLAIN:  # as a program without secret memory holds its key
            with open(job.key_file, "rb") as file:
                key = file.read()
            self._held = [key, *schedule(key).values()]
        self._channel: Connection
        self._pause_at = 0
        self._go = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                answer = service.answer(text).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(self, text: str) -> str:
        pause_at, self._pause_at = self._pause_at, 0

        def said(token: int) -> None:
            if token == pause_at:
                self._channel.send(PAUSED)
                self._go.wait()

        return self._model.answer(text, said, keep=self._job.way == PLAIN)

    # ---- what the parent asks

    def listen(self, channel: Connection) -> NoReturn:
        """Answers until the channel is closed."""
        self._channel = channel
        wishes: dict[str, Callable[..., Any]] = {
            ARM: self._arm,
            GO: self._go_on,
            FORK: self._fork,
            REAP: lambda pid: os.waitpid(pid, 0)[1],
            OVER_READ: self._over_read,
            REST: self._rest,
            ERASE: self._erase,
            NOTE: self._note,
        }
        while True:
            wish, *given = channel.recv()
            channel.send(wishes[wish](*given))

    def port(self) -> int:
        return int(self._http.server_address[1])

    def _arm(self, token: int) -> None:
        self._go.clear()
        self._pause_at = token

    def _go_on(self) -> None:
        self._go.set()

    def _rest(self) -> int:
        """Waits for the threads of requests. Returns how many are left after ten seconds."""
        until = time.monotonic() + 10
        while threading.active_count() > 2 and time.monotonic() < until:
            time.sleep(0.005)
        gc.collect()
        return threading.active_count() - 2

    def _erase(self) -> None:
        self._model.erase()
        self._note.close()
        self._held = None
        gc.collect()

    def _fork(self) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it forks with threads and open buffers
            pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        return pid

    def _over_read(self, path: str) -> int:
        """Writes to a file what lies behind blocks of the heap, up to the first address that is not
        mapped. The kernel reads it, which gives an error there instead of a signal. A block beside
        each has the marker, which must be found."""
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = (ctypes.c_size_t,)
        libc.free.argtypes = (ctypes.c_void_p,)
        libc.free.restype = None
        written = 0
        with open(path, "xb", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            for size in _BLOCKS:
                pair = [libc.malloc(size) for _ in range(2)]
                if None not in pair:
                    marker = self._job.marker
                    ctypes.memmove(max(pair), marker, min(size, len(marker)))
                    written += _copy(min(pair), file.fileno())
                for block in pair:
                    libc.free(block)
        return written


def _copy(address: int, file: int) -> int:
    done = 0
    while done < _REACH:
        try:
            got = os.write(file, (ctypes.c_char * _STRIDE).from_address(address + done))
        except OSError:  # the next address is not mapped
            break
        done += got
    return done


def serve() -> int:
    """Serves the descriptor. Returns the exit status."""

    def work(service: _Service, channel: Connection) -> None:
        channel.send(service.port())
        service.listen(channel)

    return serving.serve(serving.timed(_Service), work)


if __name__ == "__main__":
    sys.exit(serve())
