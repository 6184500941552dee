# SPDX-License-Identifier: Apache-2.0
"""No key is left in the memory of a process that made a key file, or sealed, opened or rewrapped a
file, once the keys are closed; another process searches all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import support

from pyccmem import Key
from pyccmem.key_services import envelope
from pyccmem.safetensors import inspect_file

pytestmark = [support.linux_only, support.not_sanitized]

SCRIPT = """
import gc, sys
import numpy as np
import pyccmem
from pyccmem import safetensors
from pyccmem.cli.commands.keygen import write_key_file

directory, held = sys.argv[1], sys.argv[2]

class Service:
    name = "service"
    def wrap_key(self, key, context):
        return safetensors.WrappedKey("id", bytes(b ^ 0x5A for b in key))
    def unwrap_key(self, wrapped, context):
        return bytearray(b ^ 0x5A for b in wrapped.blob)

class Before:  # of before contexts: what it wraps, wraps the data key
    name = "before"
    def wrap_key(self, key):
        return safetensors.WrappedKey("id", bytes(b ^ 0xA5 for b in key))
    def unwrap_key(self, wrapped):
        return bytearray(b ^ 0xA5 for b in wrapped.blob)

def work():
    with pyccmem.Key.generate() as key, pyccmem.Key.generate() as other:
        write_key_file(directory + "/hex", key)
        write_key_file(directory + "/raw", other, raw=True)
    with pyccmem.Key.from_file(directory + "/hex") as key, \\
         pyccmem.Key.from_file(directory + "/raw") as other:
        path = directory + "/sealed"
        safetensors.save_file({"t": np.arange(9000.0)}, path, key=key, seal_names=True)
        safetensors.rewrap_file(path, key, other)
        safetensors.verify_file(path, other)
        service = Service()
        before = Before()
        safetensors.rewrap_file(path, other, before)
        safetensors.rewrap_file(path, before, service)
        weights = safetensors.load_file(path, key=service)
        safetensors.rewrap_file(path, service, other)
        return weights

weights = work()
gc.collect()
control = None
if held == "held":  # the twin: the key files read as a program would without pyccmem
    control = [open(directory + "/hex").read(), open(directory + "/raw", "rb").read()]
print("ready", flush=True)
sys.stdin.readline()
"""


def memory_of(pid: int) -> bytes:
    """All that a process has mapped and that may be read."""
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r[w-]", line)
            if not found or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            begin, end = (int(text, 16) for text in found.groups())
            try:
                memory.seek(begin)
                parts.append(memory.read(end - begin))
            except (OSError, OverflowError, ValueError):
                continue
    return b"".join(parts)


@pytest.mark.parametrize("held", ["held", "not held"])
def test_keys_are_not_left_in_memory(tmp_path: Path, held: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), held],
        env=support.child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        found = memory_of(child.pid)
        child.communicate("\n", timeout=60)
    assert child.returncode == 0 and len(found) > 1 << 20
    digits, raw = (tmp_path / "hex").read_bytes(), (tmp_path / "raw").read_bytes()
    data = bytearray(32)
    with Key.from_file(tmp_path / "raw") as key:
        text = (tmp_path / "sealed").read_bytes()
        start = 8 + int.from_bytes(text[:8], "little")
        header = json.loads(text[8:start])["__metadata__"]["pyccmem"]
        entry = json.loads(header)["key"]
        with envelope.open(key, bytes.fromhex(entry["wrapped"]), entry["context"]) as data_key:
            data_key._copy_into(data)
    assert inspect_file(tmp_path / "sealed").file_id.encode() in header.encode()
    # Halves, since a copy may have been overwritten in part.
    secrets = {
        "the digits": digits,
        "the key of the digits": bytes.fromhex(digits.decode()),
        "the raw key": raw,
        "the data key": bytes(data),
    }
    left = {
        what
        for what, secret in secrets.items()
        for at in range(0, len(secret), 16)
        if secret[at : at + 16] in found
    }
    expected = {"the digits", "the raw key"} if held == "held" else set()
    assert left == expected
