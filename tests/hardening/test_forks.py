# SPDX-License-Identifier: Apache-2.0
"""What a forked child finds of its parent's arrays and tensors, with fork="wipe" and without."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from support import child_environment, linux_only, not_sanitized

pytestmark = [linux_only, not_sanitized]

#: Prints what a child sees of large blocks: the share of bytes that are still those of the parent.
SCRIPT = """
import json, os, sys
import numpy as np
import pyccmem
from pyccmem.hardening import parts
if sys.argv[1] != "no":
    pyccmem.guard(debuggable=True, fork=sys.argv[1])
def part():
    return next(part.active for part in parts() if part.name == "fork")
earlier = part()  # also runs what takes memory for itself
data = {"malloc": np.empty(1 << 20, np.uint8), "calloc": np.zeros(1 << 20, np.uint8),
        "small": np.empty(1 << 10, np.uint8)}
data["resized"] = np.empty(100, np.uint8)
data["resized"].resize(1 << 20, refcheck=False)
if sys.argv[2] == "torch":
    import torch
    data["tensor"] = torch.empty(1 << 20, dtype=torch.uint8).numpy()
for array in data.values():
    array[:] = 7
objects = ["text %d" % number for number in range(100_000)]  # a list of 800 KiB
reading, writing = os.pipe()
if os.fork() == 0:
    found = {name: float((array == 7).mean()) for name, array in data.items()}
    found["objects"] = float(objects[5] == "text 5" and len({*objects}) == 100_000)
    os.write(writing, json.dumps(found).encode())
    os._exit(0)
os.close(writing)
found = json.loads(os.read(reading, 4096))
found["part"] = part()
assert all((array == 7).all() for array in data.values()), "the parent lost something"
# What is freed is anybody's again: a child would die without its own objects.
del data, array
again = [bytearray(b"x" * (1 << 20)) for _ in range(8)]
if os.fork() == 0:
    os._exit(any(one.count(b"x") != 1 << 20 for one in again))
assert os.wait()[1] == 0 and os.wait()[1] == 0
print(json.dumps(found))
"""


def seen(fork: str, torch: bool, *, run: bool = False) -> dict[str, float]:
    before = [sys.executable, "-m", "pyccmem", "run", "--debuggable", "--fork", fork, "--"]
    words = ["no" if run else fork, "torch" if torch else "-"]
    done = subprocess.run(
        [*(before if run else []), sys.executable, "-c", SCRIPT, *words],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("run", [False, True])
def test_a_child_finds_everything_unless_asked(run: bool) -> None:
    found = seen("keep", torch=False, run=run)
    assert found.pop("part") is False
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize("run", [False, True])
def test_large_arrays_are_zeros_in_a_child(run: bool) -> None:
    found = seen("wipe", torch=False, run=run)
    assert found["part"] is True
    # The parts of the first and of the last page, in which the allocator may keep something.
    assert max(found[name] for name in ("malloc", "calloc", "resized")) < 2 * 4096 / (1 << 20)
    assert found["small"] == found["objects"] == 1


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_tensors_are_zeros_in_a_child_under_run() -> None:
    found = seen("wipe", torch=True, run=True)
    assert found["part"] is True and found["tensor"] < 2 * 4096 / (1 << 20)
    found = seen("wipe", torch=True)
    assert found["part"] is False and found["tensor"] == 1  # as the table says
