# SPDX-License-Identifier: Apache-2.0
"""What a request leaves behind in a server of transformers, as another process finds it: keys and
values, token ids and the prompt's text without guard(), and none of them with it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import resource
import secrets
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import child_environment, linux_only, not_sanitized

pytest.importorskip("transformers")

pytestmark = [linux_only, not_sanitized]

SERVER = Path(__file__).parent.parent / "support" / "guarded_server.py"
SAMPLE = 16
PROMPT = 200  # characters
REQUESTS, CLIENTS = 20, 8

#: The ways to start the server: words before the command, and whether it calls guard() itself.
WAYS: dict[str, tuple[list[str], str]] = {
    "plain": ([], "0"),
    "guard": ([], "1"),
    "run": ([sys.executable, "-m", "pyccmem", "run", "--debuggable", "--"], "0"),
}


def memory(pid: int) -> Iterator[bytes]:
    """Yields all memory of a process that it may write to and that exists."""
    with open(f"/proc/{pid}/mem", "rb", 0) as file, open(f"/proc/{pid}/maps") as lines:
        for line in lines:
            place, permissions, *_ = line.split()
            start, end = (int(number, 16) for number in place.split("-"))
            if "w" not in permissions or start >= 2**63:
                continue
            try:
                yield os.pread(file.fileno(), end - start, start)
            except OSError:
                continue


def pieces(data: bytes) -> list[bytes]:
    """Returns distinctive samples of some bytes, spread over them."""
    found = [data[at : at + SAMPLE] for at in range(0, len(data) - SAMPLE, len(data) // 6)]
    return [piece for piece in found if len(set(piece)) >= 8]


def in_steps(tokens: bytes) -> bool:
    """Returns True for numbers of eight bytes that lie equally far from each other."""
    return len({*np.diff(np.frombuffer(tokens, np.int64)).tolist()}) == 1


class Server:
    """The server, as an attacker sees it who may read its memory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stdin is not None
        self.process = process
        self.port = int(process.stdout.readline())
        self.keys: list[bytes] = []  # samples of keys and values
        self.ids: list[bytes] = []  # runs of token ids
        self.prompts: list[bytes] = []
        self.talk = threading.Lock()

    def look(self) -> None:
        """Reads what a request that waits has in memory, and lets it end."""
        assert self.process.stdout is not None and self.process.stdin is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        assert ready, "the server hangs"
        places = json.loads(self.process.stdout.readline())
        with open(f"/proc/{self.process.pid}/mem", "rb", 0) as file:
            tokens, *states = [os.pread(file.fileno(), size, at) for at, size in places]
        # Four tokens of eight bytes, in the answer, too. Numbers that go up one by one lie in
        # tables of libraries as well.
        places = [*range(0, len(tokens) - 31, 160), len(tokens) - 32]
        self.ids += [tokens[at : at + 32] for at in places if not in_steps(tokens[at : at + 32])]
        self.keys += [piece for state in states for piece in pieces(state)]
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def ask(self, prompt: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/", prompt)
        with connection.getresponse() as answer:
            assert answer.status == 200 and answer.read()
        connection.close()

    def serve(self, requests: int, clients: int) -> None:
        """Sends requests by several clients at once, and looks at each while it runs."""
        prompts = [secrets.token_hex(PROMPT // 2) for _ in range(requests)]
        self.prompts += [prompt[at : at + 32].encode() for prompt in prompts for at in (0, 100)]
        left: queue.SimpleQueue[str] = queue.SimpleQueue()
        for prompt in prompts:
            left.put(prompt)

        def client() -> None:
            while True:
                try:
                    prompt = left.get_nowait()
                except queue.Empty:
                    return
                self.ask(prompt)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for _ in prompts:
            self.look()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/")
        with connection.getresponse() as answer:
            assert answer.status == 204
        connection.close()

    def found(self) -> dict[str, tuple[int, int]]:
        """Returns how many samples of each kind lie in its memory, and of how many."""
        found: dict[str, set[bytes]] = {"keys": set(), "ids": set(), "text": set()}
        wanted = {"keys": {*self.keys}, "ids": {*self.ids}, "text": {*self.prompts}}
        for part in memory(self.process.pid):
            found["keys"] |= numbers_in(part, wanted["keys"], 4)
            found["ids"] |= numbers_in(part, wanted["ids"], 8)
            found["text"] |= {one for one in wanted["text"] if one in part}
        return {name: (len(found[name]), len(wanted[name])) for name in wanted}


def numbers_in(part: bytes, wanted: set[bytes], step: int) -> set[bytes]:
    """Returns which samples lie in some bytes at multiples of `step`."""
    shift, mask = np.uint64(8 if step == 4 else 0), np.uint64(0xFFFF)
    first = np.array([int.from_bytes(one[:8], "little") for one in wanted], np.uint64)
    rest = np.array([int.from_bytes(one[8:16], "little") for one in wanted], np.uint64)
    begins, goes_on = np.zeros((2, 1 << 16), bool)
    begins[first >> shift & mask] = True
    goes_on[rest >> shift & mask] = True
    found = set()
    for start in range(0, 8, step):
        words = np.frombuffer(part, np.uint64, (len(part) - start) // 8, start)
        like = begins[words[:-1] >> shift & mask] & goes_on[words[1:] >> shift & mask]
        for at in (start + 8 * np.flatnonzero(like)).tolist():
            for size in (SAMPLE, 32):
                if part[at : at + size] in wanted:
                    found.add(part[at : at + size])
    return found


@contextmanager
def server(way: str) -> Iterator[Server]:
    """Runs the server, which may lock 64 KiB of memory."""
    before, guarded = WAYS[way]
    with subprocess.Popen(
        [*before, sys.executable, str(SERVER), guarded],
        env=child_environment(OMP_NUM_THREADS="1", HOME="/nonexistent", HF_HUB_OFFLINE="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@pytest.mark.parametrize("way", WAYS)
def test_what_requests_leave_behind(way: str) -> None:
    with server(way) as served:
        served.serve(1, 1)
        served.serve(REQUESTS - 1, CLIENTS)
        found = served.found()
    print(way, found)
    assert found["keys"][1] > 20 * REQUESTS and found["ids"][1] > 10 * REQUESTS
    if way == "plain":
        assert found["keys"][0] and found["ids"][0] and found["text"][0]
        return
    assert found["keys"][0] == 0
    assert found["ids"][0] == 0
    if way == "run":
        assert found["text"][0] == 0
