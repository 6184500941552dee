# SPDX-License-Identifier: Apache-2.0
"""Answers that are read through a buffer which is wiped: the same bytes as http.client's own."""

from __future__ import annotations

import http.client
import io
import random
import socket
import ssl
import threading

import pytest

from pyccmem.key_services.wire import WipedResponse, _Reader, no_kept_plaintext


class Pieces(io.RawIOBase):
    """A socket's file, which gives what it has in pieces of any size."""

    def __init__(self, data: bytes, chance: random.Random) -> None:
        self.data, self.chance, self.at = data, chance, 0

    def readable(self) -> bool:
        return True

    def readinto(self, out) -> int:
        size = min(len(out), self.chance.choice([1, 7, 500, 8192]), len(self.data) - self.at)
        out[:size] = self.data[self.at : self.at + size]
        self.at += size
        return size


@pytest.mark.parametrize("seed", range(20))
def test_it_reads_as_a_buffered_reader_does(seed: int) -> None:
    chance = random.Random(seed)
    data = b"".join(
        chance.randbytes(chance.randrange(300)).replace(b"\n", b"") + b"\r\n" for _ in range(200)
    ) + chance.randbytes(20_000)
    own, wanted = _Reader(Pieces(data, chance)), io.BytesIO(data)
    for _ in range(400):
        way = chance.randrange(4)
        size = chance.choice([0, 1, 5, 100, 9000])
        if way == 0:
            assert own.readline() == wanted.readline()
        elif way == 1:
            assert own.readline(size) == wanted.readline(size)
        elif way == 2:
            assert own.read(size) == wanted.read(size)
        else:
            mine, theirs = bytearray(size), bytearray(size)
            assert own.readinto(mine) == wanted.readinto(theirs) and mine == theirs
    seen = own.peek()
    rest = wanted.read()
    assert rest.startswith(seen) and own.read() == rest
    assert own.read(5) == own.readline() == own.read1() == own.peek() == b""
    held = own._held
    assert any(held)
    own.close()
    assert own.closed and not any(held)
    own.close()


BODY = b'{"key": "' + b"QUJDREVG" * 2000 + b'"}'


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(
            b"%x\r\n%s\r\n" % (len(BODY[at : at + 999]), BODY[at : at + 999])
            for at in range(0, len(BODY), 999)
        )
        + b"0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    ],
    ids=["length", "chunked", "until the end"],
)
def test_every_way_to_send_a_body(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as near:
                near.recv(1 << 16)
                near.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = http.client.HTTPConnection(*server.getsockname(), timeout=10)
        connection.response_class = WipedResponse
        connection.request("GET", "/")
        response = connection.getresponse()
        held = response.fp._held
        assert response.read() == BODY and response.status == 200
        connection.close()
        thread.join()
        assert not any(held)


def test_contexts_say_that_nothing_is_kept() -> None:
    context = no_kept_plaintext(ssl.create_default_context())
    if ssl.OPENSSL_VERSION_INFO >= (3, 0):
        assert context.options & 0x2
    assert context.verify_mode == ssl.CERT_REQUIRED
