# SPDX-License-Identifier: Apache-2.0
"""What results leave in memory when they are gone: searched from another process.

Operator k has numbers of its own, which differ from those of others in their upper halves: k in the
exponent, negative ones for results and positive ones for x. Where many neighbouring words have one
such half, numbers of that operator lie there, whatever else is in them. The twin with
activations="plain" is the control: there the results of every operator must be found, but for rows
of embeddings, which lie in wiped memory in any case.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import support

pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

CHILD = """
import gc, sys
import numpy as np, torch, pyccmem
from torch.nn import functional as F
from pyccmem.binding import wiped
from pyccmem.torch import EncryptedTensor

key = pyccmem.Key.generate()
random = np.random.default_rng(5)
N = 256
h, b, d = torch.float16, torch.bfloat16, torch.float64

def numbers(k, *shape, kind=torch.float32):
    '''Numbers of operator |k|, results where k is negative, in memory that is wiped.'''
    _, memory = wiped.block(4 * int(np.prod(shape)))
    words = np.frombuffer(memory, np.uint32)
    words[:] = 0x3D5A0000 + (abs(k) << 23) + ((k < 0) << 31)
    found = torch.frombuffer(memory, dtype=torch.float32).view(shape)
    if kind == torch.float32:
        words |= random.integers(0, 65536, len(words), dtype=np.uint32)
        return found
    _, memory = wiped.block(kind.itemsize * found.numel())
    return torch.frombuffer(memory, dtype=kind).view(shape).copy_(found)

def encrypted(tensor):
    return EncryptedTensor.from_tensor(tensor, key=key, activations=sys.argv[1])

def minus(kind=torch.float32):
    '''A matrix that makes results of x.'''
    return encrypted(-torch.eye(N, dtype=kind))

def zeros(*shape):
    return torch.zeros(shape)

def with_gradient(x, w):
    with torch.enable_grad():
        return F.linear(x.requires_grad_(), w).detach()

def autocast(x, w):
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, w)

ids = torch.arange(64)
OPERATORS = {
    "linear": lambda k: F.linear(numbers(k, 64, N), minus()),
    "bias": lambda k: F.linear(zeros(64, N), minus(), encrypted(numbers(-k, N))),
    "columns": lambda k: numbers(k, 64, N) @ minus(),
    "addmm": lambda k: torch.addmm(zeros(N), numbers(k, 64, N), minus().t()),
    "mv": lambda k: [minus() @ numbers(k, N) for _ in range(9)],
    "embedding": lambda k: F.embedding(ids, encrypted(numbers(-k, 64, N))),
    "layer_norm": lambda k: F.layer_norm(
        torch.rand(64, N), (N,), encrypted(zeros(N)), encrypted(numbers(-k, N))
    ),
    "conv2d": lambda k: F.conv2d(numbers(k, 1, N, 8, 8), minus().view(N, N, 1, 1)),
    "bmm": lambda k: torch.bmm(numbers(k, 1, 64, N), minus()[None]),
    "gradient": lambda k: with_gradient(numbers(k, 64, N), minus()),
    "bfloat16": lambda k: F.linear(numbers(k, 64, N, kind=b), minus(b)),
    "float64": lambda k: F.linear(numbers(k, 64, N, kind=d), minus(d)),
    "autocast": lambda k: autocast(numbers(k, 64, N), minus()),
    "batch_norm": lambda k: F.batch_norm(
        torch.rand(64, N), None, None, encrypted(zeros(N)), encrypted(numbers(-k, N)), True
    ),
    "maximum": lambda k: torch.maximum(encrypted(numbers(-k, 64, N)), zeros(N) - 1e30),
    "sort": lambda k: torch.sort(encrypted(numbers(-k, 64, N))),
    # These have torch make the result, or copy x as another type or in order: each so much that
    # what follows would not overwrite it all.
    "mul": lambda k: numbers(k, 4096, N) * encrypted(zeros(N) - 1),
    "add": lambda k: zeros(2048, N) + encrypted(numbers(-k, N)),
    "order": lambda k: F.linear(numbers(k, N, 1536).t(), minus()),
    "float16": lambda k: F.linear(numbers(k, 512, N, kind=h), minus(h)),
}

def stage(name):
    gc.collect()
    print(name, flush=True)
    sys.stdin.readline()

print(*OPERATORS, flush=True)
with torch.no_grad():
    kept = [operator(k) for k, operator in enumerate(OPERATORS.values(), 1)]
    stage("kept")
    del kept
    stage("after")
"""


def found(pid: int, names: list[str]) -> set[str]:
    """The operators whose numbers lie in the memory that a process writes to: `x of NAME`, or the
    bare name for results."""
    import numpy as np

    most = len(names)
    numbers: set[int] = set()

    def look(upper: np.ndarray, bias: int, bits: int, least: int) -> None:
        """In groups of 64 bytes, of which `least` words must be of one operator."""
        exponent = (upper >> 7) & ((1 << bits) - 1)
        mine = (upper & 0x7F == 0x5A) & (exponent > bias) & (exponent <= bias + most)
        enough = mine.sum(axis=1) >= least
        groups, mine = upper[enough].astype("<i8"), mine[enough]
        for one in (np.where(mine, groups, 0).max(1), np.where(mine, groups, 1 << 20).min(1)):
            for value in np.unique(one[(groups == one[:, None]).sum(axis=1) >= least]):
                number = ((int(value) >> 7) & ((1 << bits) - 1)) - bias
                numbers.add(-number if int(value) >> (7 + bits) else number)

    with open(f"/proc/{pid}/maps", encoding="ascii") as lines:
        maps = [line.split() for line in lines]
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for fields in maps:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            if "rw" not in fields[1]:
                continue
            for at in range(start, end, 1 << 20):
                try:
                    data = os.pread(memory, min(1 << 20, end - at), at)
                except OSError:
                    continue
                if not np.frombuffer(data, "<u8").any():
                    continue
                halves = np.frombuffer(data, "<u2").reshape(-1, 32)
                look(halves, 122, 8, 12)  # float32 and bfloat16
                look(halves >> 3, 10, 5, 24)  # float16
                doubles = np.frombuffer(data, "<u4").reshape(-1, 16)[:, 1::2] >> 13
                look(doubles, 1018, 11, 6)
    finally:
        os.close(memory)
    return {names[abs(k) - 1] if k < 0 else f"x of {names[k - 1]}" for k in numbers}


@support.not_sanitized
@support.linux_only
def test_results_leave_nothing() -> None:
    """Nor do conversions of x and of sums within an operator."""
    states: dict[str, dict[str, set[str]]] = {}
    for activations in ("plain", "wiped"):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, activations],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # What glibc would keep of small pieces, or give back to the system, is chance. So none
            # is kept apart, and all stays in the heap, where the control is to be found.
            env=support.child_environment(
                OMP_NUM_THREADS="1",
                PYCCMEM_NUM_THREADS="1",
                GLIBC_TUNABLES="glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=33554432"
                ":glibc.malloc.trim_threshold=1073741824",
            ),
        )
        assert child.stdin and child.stdout
        try:
            names = child.stdout.readline().split()
            for stage in ("kept", "after"):
                assert child.stdout.readline().strip() == stage
                states.setdefault(activations, {})[stage] = found(child.pid, names)
                child.stdin.write("\n")
                child.stdin.flush()
        finally:
            child.kill()
            child.communicate()
    plain, wiped = states["plain"], states["wiped"]
    everything = set(names)
    assert plain["kept"] >= everything, "the control was not found"
    assert wiped["kept"] >= everything, "the control was not found"
    left = plain["after"]
    assert left >= everything - {"embedding"}, "the control was not found"
    assert left >= {"x of float16", "x of order"}, "the control was not found"
    assert wiped["after"] == set()
