# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server as a child, and a client of it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from support import child_environment


class Server:
    """A server over a directory, which ends with the `with` block. Its output goes to `log`."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        key: Path | None = None,
        options: str = "",
        launcher: Sequence[str] = (),
        **setting: str,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = f"""-m vllm.entrypoints.openai.api_server --model {model}
            --host 127.0.0.1 --port {self.port} --served-model-name m
            --skip-tokenizer-init --enforce-eager --max-model-len 256 --block-size 32
            --dtype float32 --kv-cache-memory-bytes 16777216
            --enable-prompt-tokens-details {options}"""
        environment = child_environment(
            **{
                "PYCCMEM_VLLM_GUARD": "swap=ignore,debuggable",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                "VLLM_SERVER_DEV_MODE": "1",
                **({} if key is None else {"PYCCMEM_KEY_FILE": str(key)}),
                **setting,
            }
        )
        if key is None:
            environment.pop("PYCCMEM_KEY_FILE", None)
        self._log, self._environment = log, environment
        self._command = [*launcher, sys.executable, *command.split()]
        self.start()

    def start(self) -> None:
        """Starts it, for the first time or when it has ended."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=out, stderr=out
            )
        self.pid = self._process.pid

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        family = self.processes()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in family[1:]:
            until = time.monotonic() + 20
            while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
                time.sleep(0.1)

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> None:
        """Waits until it answers."""
        until = time.monotonic() + 300
        while self._process.poll() is None and time.monotonic() < until:
            try:
                if self.get("/health") == 200:
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError(self.log())

    def ends(self) -> int:
        """Waits until it has ended of itself."""
        return self._process.wait(300)

    def processes(self) -> list[int]:
        """The server's process and all below it."""
        found = [self.pid]
        for pid in found:
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (task / "children").read_text().split())
            except OSError:
                continue
        return found

    def worker(self) -> int:
        """The process with the model."""
        for pid in self.processes():
            if b"Worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("no worker")

    # ---- requests

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> tuple[int, bytes]:
        connection = self._posted(path, body)
        try:
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _posted(self, path: str, body: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection

    def complete(self, prompt: list[int], wanted: int, **options: Any) -> tuple[int, Any]:
        """The status and the answer, which is not streamed."""
        status, content = self.post("/v1/completions", _body(prompt, wanted, **options))
        return status, json.loads(content)

    @contextmanager
    def stream(
        self, prompt: list[int], wanted: int, **options: Any
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of an answer. The client leaves at the end of the `with` block."""
        body = _body(prompt, wanted, stream=True, **options)
        connection = self._posted("/v1/completions", body)
        try:
            answer = connection.getresponse()
            yield _events(answer)
        finally:
            connection.close()


def _body(prompt: list[int], wanted: int, **options: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "prompt": prompt,
        "max_tokens": wanted,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "detokenize": False,
        **options,
    }


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    if answer.status != 200:
        yield json.loads(answer.read())
        return
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
