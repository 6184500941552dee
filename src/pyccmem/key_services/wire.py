# SPDX-License-Identifier: Apache-2.0
"""Answers of services over HTTP that leave less behind: the buffer through which http.client reads
an answer is wiped when the answer has been read, and TLS does not keep what it has decrypted.

http.client reads through an io.BufferedReader, whose memory nobody can reach. Its response class
can be another one, also below urllib3, which requests and botocore use.
"""

from __future__ import annotations

import http.client
import io
import ssl
from typing import Any

from ..binding import wiped

__all__ = ["WipedResponse", "no_kept_plaintext"]

_BUFFER = 1 << 13

#: OpenSSL's SSL_OP_CLEANSE_PLAINTEXT (3.0 and later), which Python's ssl has no name for.
_CLEANSE_PLAINTEXT = 0x2


def no_kept_plaintext(context: ssl.SSLContext) -> ssl.SSLContext:
    """Makes connections of a TLS context overwrite what they have decrypted once it was read."""
    context.options |= _CLEANSE_PLAINTEXT
    return context


class _Reader(io.BufferedIOBase):
    """Reads from a socket through a buffer that close() wipes."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._held = bytearray(_BUFFER)
        self._view = memoryview(self._held)
        self._at = self._end = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._at = self._end = 0
            wiped.wipe(self._held)
            self._raw.close()
        super().close()

    def _fill(self) -> bool:
        """Reads on if nothing is held. Returns False at the end."""
        if self._at == self._end:
            self._at = self._end = 0
            self._end = self._raw.readinto(self._held) or 0
        return self._at < self._end

    def _taken(self, count: int) -> memoryview:
        part = self._view[self._at : min(self._at + count, self._end)]
        self._at += len(part)
        return part

    def peek(self, size: int = 0, /) -> bytes:
        self._fill()
        return bytes(self._view[self._at : self._end])

    def readline(self, size: int | None = -1, /) -> bytes:
        limit = _BUFFER * 16 if size is None or size < 0 else size
        line = b""
        while len(line) < limit and not line.endswith(b"\n") and self._fill():
            found = self._held.find(b"\n", self._at, self._end)
            stop = self._end if found < 0 else found + 1
            line += self._taken(min(stop - self._at, limit - len(line)))
        return line

    def readinto(self, out: Any, /) -> int:
        count = 0
        with memoryview(out) as whole, whole.cast("B") as view:
            while count < len(view) and self._fill():
                part = self._taken(len(view) - count)
                view[count : count + len(part)] = part
                count += len(part)
        return count

    def read1(self, size: int = -1, /) -> bytes:
        self._fill()
        return bytes(self._taken(_BUFFER if size < 0 else size))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self._rest()
        out = bytearray(size)
        try:
            count = self.readinto(out)
            with memoryview(out) as view:
                return bytes(view[:count])
        finally:
            if out:
                wiped.wipe(out)

    def _rest(self) -> bytes:
        """Returns all up to the end, of unknown length."""
        parts = []
        while self._fill():
            parts.append(self.read1())
        whole = b"".join(parts)
        for part in parts:
            if part is not whole:
                wiped.wipe_bytes(part)
        return whole


class _Source:
    """A socket whose files are read through a _Reader."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def makefile(self, mode: str, *_: Any, **__: Any) -> _Reader:
        return _Reader(self._sock.makefile(mode, buffering=0))


class WipedResponse(http.client.HTTPResponse):
    """An answer that is read through a buffer which is wiped at its end."""

    def __init__(self, sock: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(_Source(sock), *arguments, **named)  # type: ignore[arg-type]
