# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server over a sealed model: streams, clients that leave in the middle, pages that
are changed while it serves, a server that is killed, and servers that cannot have the key."""

from __future__ import annotations

import http.client
import importlib.util
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

from vllm_server import Server
from vllm_support import VOCABULARY, damaged, make_model

import pyccmem
from pyccmem.directories import encrypt_directory

#: Requests of the long form, and of the short one.
REQUESTS = {True: 500, False: 60}

#: Its tokens are of other pages of the embedding than the one that is changed.
OTHERS = [5, 6, 7]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm")
    make_model("llama", root / "llama")
    for name in ("key", "other"):
        (root / name).write_bytes(os.urandom(32))
        (root / name).chmod(0o600)
    with pyccmem.Key.from_file(root / "key") as key:
        encrypt_directory(root / "llama", root / "sealed", key=key)
    return root / "sealed"


@pytest.fixture(scope="module")
def server(sealed: Path) -> Iterator[Server]:
    # It logs whatever vLLM can log.
    setting = {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "true"}
    options = "--enable-log-requests --enable-log-outputs --log-error-stack"
    log, key = sealed.parent / "log", sealed.parent / "key"
    with Server(sealed, log, key=key, options=options, **setting) as started:
        started.wait()
        yield started


def tokens_of(server: Server, prompt: list[int], wanted: int = 6, **options: Any) -> list[int]:
    """The tokens of an answer that is not streamed."""
    status, answer = server.complete(prompt, wanted, **options)
    assert status == 200, answer
    found: list[int] = answer["choices"][0]["token_ids"]
    return found


def free_page(server: Server) -> int:
    """A page of the embedding, of 8 rows of 128 float32, with no token of OTHERS and its answer. Of
    two workers the second has it, and not as its first page, where it looks up what is not its
    own."""
    used = {token // 8 for token in tokens_of(server, OTHERS)}
    return next(page for page in range(21, VOCABULARY // 8) if page not in used)


def ask(server: Server, number: int) -> str:
    """Streams one answer. Every fourth client leaves in the middle, every third is a tenant's."""
    chance = random.Random(number)
    prompt = [chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(1, 120))]
    if number % 6 == 0:  # beginnings that a tenant's requests have in common
        prompt = [number % 5 + 3] * 70 + prompt[:40]
    wanted = chance.randrange(8, 60)
    options = {"cache_salt": f"tenant {number % 5}"} if number % 3 == 0 else {}
    tokens = 0
    with server.stream(prompt, wanted, **options) as events:
        for event in events:
            if "error" in event:
                return f"error: {event}"
            tokens += len(event["choices"][0].get("token_ids") or ())
            if number % 4 == 1 and tokens >= 3:
                return "left"
    return "whole" if tokens == wanted else f"{tokens} of {wanted} tokens"


def by_clients(server: Server, numbers: range) -> Counter[str]:
    """What became of requests that 8 clients send."""
    left, seen, lock = iter(numbers), Counter[str](), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            try:
                found = ask(server, number)
            except (OSError, http.client.HTTPException, ValueError) as error:
                found = repr(error)
            with lock:
                seen[found] += 1

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.full)])
def test_streams_and_clients_that_leave(server: Server, long: bool) -> None:
    count = REQUESTS[long]
    assert by_clients(server, range(count)) == {"whole": count * 3 // 4, "left": count // 4}
    log = server.log()
    assert "lies in memory as ciphertext" in log and "a block was looked at" in log


def test_what_a_server_logs(server: Server) -> None:
    """Ids of prompts, answers, and what is no request, are not in a log of everything."""
    prompt, stop = [271, 272, 273, 274, 275], "Zebrafinch"
    body = {"model": "m", "prompt": prompt, "max_tokens": 9, "detokenize": False}
    answer = tokens_of(server, prompt, 9)
    bad: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {**body, "max_tokens": stop}),
        ("/v1/completions", {**body, "prompt": {stop: stop}}),
        ("/v1/completions", {**body, stop: stop}),
        ("/v1/completions", {**body, "stop": [stop]}),
        ("/v1/completions", {**body, "structured_outputs": {"choice": [stop]}}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": stop}]}),
        ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": stop}]}),
        ("/tokenize", {"model": "m", "prompt": stop}),
    ]
    for path, given in bad:
        server.post(path, given)
    log = server.log()
    # Such lines there are.
    assert "JSON body: [hidden]" in log and "response_body={[hidden]}" in log
    assert stop not in log
    for ids in (prompt, answer):
        for spelled in (str(ids)[1:-1], str(ids)[1:-1].replace(" ", "")):
            assert spelled not in log


def test_a_changed_page_fails_the_requests_that_need_it(server: Server, sealed: Path) -> None:
    page = free_page(server)
    prompts = {"of the page": [5, 8 * page + 3, 9], "of others": OTHERS}
    whole = {name: tokens_of(server, prompt) for name, prompt in prompts.items()}
    with damaged(sealed, "model.embed_tokens.weight", page):
        status, answer = server.complete(prompts["of the page"], 6)
        assert status == 500 and "choices" not in answer
        assert tokens_of(server, prompts["of others"]) == whole["of others"]
        # Of streams that are under way at once it ends one.
        with server.stream(prompts["of the page"], 6) as events:
            assert all("error" in event for event in events)
    log = server.log()
    assert "buffer 'model.embed_tokens.weight'" in log and "IntegrityError" not in log
    for name, prompt in prompts.items():
        assert tokens_of(server, prompt) == whole[name]


def test_a_changed_page_of_a_matrix_fails_all_of_the_batch(server: Server, sealed: Path) -> None:
    prompt = [7 * n % VOCABULARY for n in range(3, 60)]
    whole = tokens_of(server, prompt)
    name = "model.layers.1.mlp.down_proj.weight"
    with damaged(sealed, name):
        seen = by_clients(server, range(2, 34, 4))
        assert sum(seen.values()) == 8 and all("error" in one for one in seen)
    assert f"buffer '{name}'" in server.log()
    assert tokens_of(server, prompt) == whole


@pytest.mark.full  # on a fast idle machine the whole answer is there before the page is changed
def test_a_page_changed_under_a_stream_ends_it_after_what_was_right(
    server: Server, sealed: Path
) -> None:
    prompt = [7 * n % VOCABULARY for n in range(3, 60)]
    whole = tokens_of(server, prompt)
    name = "model.layers.1.mlp.down_proj.weight"
    tokens: list[int] = []
    with server.stream(prompt, 190) as events:
        change = damaged(sealed, name)
        try:
            for event in events:
                if "error" in event:
                    break
                tokens += event["choices"][0].get("token_ids") or ()
                if len(tokens) == 6:
                    change.__enter__()
        finally:
            change.__exit__(None, None, None)
    assert 6 <= len(tokens) < 190 and tokens[:6] == whole
    assert tokens_of(server, prompt) == whole


def test_the_prefixes_of_tenants_can_be_forgotten(server: Server) -> None:
    prompt = [11 * n % VOCABULARY for n in range(1, 100)]

    def cached() -> int:
        _, answer = server.complete(prompt, 2, cache_salt="one more tenant")
        return int((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)

    assert cached() == 0 and cached() == 96
    assert server.post("/reset_prefix_cache", {})[0] == 200
    assert cached() == 0


def alive(pids: list[int]) -> list[int]:
    """Those that run, and are not only waited for."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def test_a_server_that_is_killed_leaves_nothing_and_starts_again(server: Server) -> None:
    prompt = [7 * n % VOCABULARY for n in range(3, 60)]
    whole = tokens_of(server, prompt)
    family = server.processes()
    assert len(family) >= 3  # engine and worker, with the key
    with server.stream(prompt, 190) as events:
        next(iter(events))
        os.kill(server.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while time.monotonic() < until and alive(family):
        server.poll()
        time.sleep(0.2)
    assert not alive(family)
    server.start()
    server.wait()
    assert tokens_of(server, prompt) == whole


@pytest.mark.full
def test_a_changed_page_in_one_of_two_workers(server: Server, sealed: Path, tmp_path: Path) -> None:
    """The second worker has the rows of that page, and the first one's answer is what counts."""
    page = free_page(server)
    prompts = [5, 8 * page + 3, 9], OTHERS
    whole = [tokens_of(server, prompt, 3) for prompt in prompts]
    with Server(
        sealed,
        tmp_path / "log",
        key=sealed.parent / "key",
        options="--tensor-parallel-size 2",
        VLLM_CPU_OMP_THREADS_BIND="0|1",
    ) as both:
        both.wait()
        assert [tokens_of(both, prompt, 3) for prompt in prompts] == whole
        with damaged(sealed, "model.embed_tokens.weight", page):
            assert both.complete(prompts[0], 3)[0] == 500
            assert tokens_of(both, prompts[1], 3) == whole[1]
        assert [tokens_of(both, prompt, 3) for prompt in prompts] == whole


@pytest.mark.full
def test_servers_without_the_key_end(sealed: Path, tmp_path: Path) -> None:
    with (
        Server(sealed, tmp_path / "other", key=sealed.parent / "other") as other,
        Server(sealed, tmp_path / "none", key=None) as none,
    ):
        for one in (other, none):
            assert one.ends() != 0
            assert "InvalidKeyError" in one.log()
