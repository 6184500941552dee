# SPDX-License-Identifier: Apache-2.0
"""`pyccmem attack` against vLLM's server over a sealed model, with a plain server as its twin: no
weights, and no keys and values of requests that have ended."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

import vllm_support
from safetensors.torch import load_file, save_file
from support import child_environment
from vllm_server import Server
from vllm_support import VOCABULARY, make_model

import pyccmem
from pyccmem.directories import encrypt_directory

PROMPT = [13 * n % VOCABULARY for n in range(100)]

#: Without it glibc keeps what lay in small blocks, such as a token's row in so small a model.
RUN = (sys.executable, "-m", "pyccmem", "run", "--debuggable", "--swap", "ignore", "--")

#: Computes the prompt as a server does, and prints rows of its keys and values.
_REHEARSAL = f"""
import os, sys
os.environ.update({vllm_support.SETTINGS!r})
import torch, vllm_support
import pyccmem.vllm.attention as attention
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
rows = set()
def note(*states):
    for one in states:
        if one.shape[0] == {len(PROMPT)}:
            for head in range(one.shape[1]):
                for row in one[:, head].contiguous().view(torch.uint8)[::3, :16]:
                    rows.add(bytes(row.tolist()).hex())
append, update = attention._append, CPUAttentionBackendImpl.do_kv_cache_update
def noted(run, name, key, value):
    note(key[run.begin:run.end], value[run.begin:run.end])
    return append(run, name, key, value)
def noted_plain(self, layer, key, value, cache, slots):
    note(key, value)
    update(self, layer, key, value, cache, slots)
attention._append, CPUAttentionBackendImpl.do_kv_cache_update = noted, noted_plain
with vllm_support.engine(sys.argv[1]) as llm:
    vllm_support.answer(llm, [{PROMPT!r}], 2)
print("rows:", *rows)
"""


def rows_of(model: Path, key: Path) -> bytes:
    """The first 16 bytes of rows of K and V of the prompt."""
    done = subprocess.run(
        [sys.executable, "-c", _REHEARSAL, str(model)],
        env=child_environment(
            PYCCMEM_KEY_FILE=str(key), VLLM_LOGGING_LEVEL="ERROR", OMP_NUM_THREADS="1"
        ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("rows: "):
            return b"".join(map(bytes.fromhex, line.split()[1:]))
    raise AssertionError(done.stdout + done.stderr)


def attack(server: Server, twin: Server, rows: bytes, weights: Path) -> tuple[int, Any]:
    """The exit status and the document."""
    file = weights.with_name("rows")
    file.write_bytes(rows)
    words = ["--pid", str(server.worker()), "--twin", str(twin.worker()), "--way", "mem", "--way"]
    words += ["readv", "--weights", str(weights), "--file", str(file), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem", "attack", *words],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.full
def test_nothing_of_weights_and_of_ended_requests(tmp_path: Path) -> None:
    plain, sealed, key = tmp_path / "plain", tmp_path / "sealed", tmp_path / "key"
    make_model("llama", plain)
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    with pyccmem.Key.from_file(key) as opened:
        encrypt_directory(plain, sealed, key=opened)
    weights = {}
    for shard in plain.glob("*.safetensors"):
        weights |= load_file(shard)
    save_file(weights, tmp_path / "weights.safetensors")
    # Both compute the same up to rounding, so each process is looked through for rows of both.
    rows = rows_of(plain, key) + rows_of(sealed, key)
    with (
        Server(sealed, tmp_path / "log", key=key, launcher=RUN) as server,
        Server(plain, tmp_path / "twin's log") as twin,
    ):
        for one in (server, twin):
            one.wait()
            status, _ = one.complete(PROMPT, 2)
            assert status == 200
        status, found = attack(server, twin, rows, tmp_path / "weights.safetensors")
        assert status == 0 and found["passed"], found["failures"]
        counts = {(look["process"], look["way"]): look["found"] for look in found["looks"]}
        assert not any(counts["attacked", "mem"].values())
        assert counts["unprotected", "mem"]["weights"] > 100
        assert counts["unprotected", "mem"]["file"] > 32
        # The control: the plain server is found out.
        status, found = attack(twin, server, rows, tmp_path / "weights.safetensors")
        assert status != 0 and not found["passed"]
