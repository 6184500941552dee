# SPDX-License-Identifier: Apache-2.0
"""The server that is attacked, seen from the parent."""

from __future__ import annotations

import http.client
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from .. import errors
from ..demo.worker import Worker
from .job import ARM, ERASE, GO, NOTE, PAUSED, REST, Job, Rehearsal

__all__ = ["Rehearser", "Request", "Target"]

_TIMEOUT = 300.0  # seconds
_LOOK = 0.2  # seconds between looks whether a request is still under way


class Rehearser(Worker):
    """The child that computes what is looked for."""

    module = "pyccmem.attack.rehearsal"

    def rehearsed(self, text: str) -> tuple[Rehearsal, Rehearsal]:
        """Returns what a prompt gives, plain and protected."""
        self._channel.send(text)
        plain, protected = self._receive(), self._receive()
        return plain, protected


class Target(Worker):
    """A server."""

    module = "pyccmem.attack.server"

    def __init__(self, job: Job, directory: str, launcher: Sequence[str]) -> None:
        """`launcher`: the command that starts it, if any. wait_ready() must follow."""
        if launcher[:1] == ("pyccmem",):  # of this environment
            launcher = (sys.executable, "-m", *launcher)
        self.job = job
        self.port = 0
        super().__init__(
            job,
            {"TOKENIZERS_PARALLELISM": "false"},
            wait=False,
            launcher=launcher,
            directory=directory,
        )

    def wait_ready(self) -> None:
        """Waits until it answers requests."""
        self.wait_loaded()
        self.port = self._receive()

    def do(self, wish: str, *given: Any) -> Any:
        """Has the server do what job.py names, and returns its answer."""
        self._channel.send((wish, *given))
        return self._receive()

    def halted_at(self, token: int, text: str) -> Request:
        """Sends a request, and waits until its answer has come to a token, where it halts until
        go_on(). Raises DemoError."""
        self.do(ARM, token)
        request = Request(self, text)
        while not self._channel.poll(_LOOK):
            if not request.under_way and not self._channel.poll(0):
                request.answer()
                raise errors.DemoError("The server did not halt at a token of its answer.")
        if self._receive() != PAUSED:
            raise errors.DemoError("The server said something else than that it is halted.")
        return request

    def go_on(self) -> None:
        """Ends what halted_at() began."""
        self.do(GO)

    def rest(self) -> None:
        """Waits until no request is served."""
        left = self.do(REST)
        if left:
            raise errors.DemoError(f"The server still serves {left} requests that have ended.")

    def erase(self) -> None:
        """Lets it forget model and key."""
        self.do(ERASE)

    def note(self, wish: str) -> Any:
        """Has something done with the note."""
        return self.do(NOTE, wish)

    def request(self, text: str) -> str:
        """Sends a request, and returns its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request("POST", "/", body=text.encode())
            answer = connection.getresponse()
            content = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise errors.DemoError(f"The server did not answer a request: {error!r}.") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise errors.DemoError(f"The server answered a request with status {answer.status}.")
        return content

    def ended(self) -> bool:
        """True when the process is no more."""
        return self._process.poll() is not None

    def wait_end(self, timeout: float) -> None:
        """Waits for the process to end. Raises subprocess.TimeoutExpired."""
        self._process.wait(timeout)

    def signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if not self.ended():
            os.kill(self.pid, number)


class Request(threading.Thread):
    """A request under way, as a thread of its own."""

    def __init__(self, target: Target, text: str) -> None:
        super().__init__(daemon=True)
        self._target, self._text = target, text
        self._answer: str | None = None
        self._failure: str | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._target.request(self._text)
        except errors.PyccmemError as error:
            self._failure = str(error)

    @property
    def under_way(self) -> bool:
        """True until the answer is there."""
        return self.is_alive()

    def answer(self) -> str:
        """Waits for the answer. Raises DemoError."""
        self.join()
        if self._failure is not None:
            raise errors.DemoError(self._failure)
        assert self._answer is not None
        return self._answer
