# SPDX-License-Identifier: Apache-2.0
"""What a torch model with encrypted weights leaves in memory: searched from another process.

Weights are float32 numbers with one upper half, which random numbers have once in 65536: they are
found in whatever order a BLAS packs them, and as bfloat16. Where half of 16 neighbouring words have
it, weights lie there.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import support

pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

#: Makes the model with encrypted weights in a process that never has more than a row of them in
#: ordinary memory; "plain" decrypts it: the control.
CHILD = """
import gc, sys
import numpy as np, torch, pyccmem
from torch import nn
from torch.nn import functional as F
from pyccmem.binding import wiped
from pyccmem.product import blas
if sys.argv[1] == "kept":
    blas.Block.begin = blas.Block.end = lambda block: None
from pyccmem.torch import EncryptedTensor, decrypt_module

key = pyccmem.Key.generate()
random = np.random.default_rng(3)

def weight(*shape, kind=torch.float32):
    core = pyccmem.EncryptedTensor.zeros(shape, np.float32, key=key)
    for at in range(shape[0]):
        block, memory = wiped.block(4 * int(np.prod(shape[1:])))
        words = np.frombuffer(memory, np.uint32)
        words[:] = 0x3D5A0000
        words |= random.integers(0, 65536, len(words), dtype=np.uint32)
        core[at] = words.view(np.float32).reshape(shape[1:])
        words[:] = 0
    t = EncryptedTensor.from_core(core, key=key).to(kind)
    return nn.Parameter(t, requires_grad=False)

model = nn.Module()
for name, shape, kind in [
    ("wide", (512, 1536), torch.float32), ("tall", (1536, 512), torch.float32),
    ("short", (1024, 512), torch.bfloat16), ("longer", (300, 512), torch.float64),
    ("conv", (64, 64, 3, 3), torch.float32), ("table", (600, 512), torch.float32),
    ("stack", (4, 128, 128), torch.float32), ("norm", (2048,), torch.float32),
]:
    model.register_parameter(name, weight(*shape, kind=kind))

def X(*shape, kind=torch.float32):
    return torch.ones(shape, dtype=kind)

def work():
    m = model
    for n in (1, 9, 16, 33, 300):
        F.linear(X(n, 1536), m.wide)
        F.linear(X(n, 512), m.tall, X(1536))
        F.linear(X(n, 512, kind=torch.bfloat16), m.short)
        F.linear(X(n, 512, kind=torch.float64), m.longer)
        X(n, 1536) @ m.tall
        torch.addmm(X(1536), X(n, 512), m.wide)
        m.tall[:256] @ X(512, n)
        torch.bmm(X(4, n, 128), m.stack)
    F.conv2d(X(2, 64, 20, 20), m.conv)
    F.conv2d(X(1, 64, 20, 20), m.conv[:16])
    F.embedding(torch.arange(3), m.table).zero_()
    F.embedding_bag(torch.arange(30).view(3, 10), m.table, mode="sum")
    F.layer_norm(torch.arange(8192.0).view(4, 2048), (2048,), m.norm, m.norm)
    m.tall.sum(), m.tall.max(), (m.wide[0] * 2).sum()
    m.tall.to(torch.bfloat16), m.tall.clone()
    m.table[5].mul_(1.0)
    torch.einsum("ni,oi->no", X(40, 512), m.tall)

with torch.no_grad():
    for say, turn in (("before", lambda: None), ("after", lambda: [work(), work()]),
                      ("plain", lambda: decrypt_module(model))):
        turn()
        gc.collect()
        print(say, flush=True)
        sys.stdin.readline()
"""

MAGIC = 0x3D5A


def kept(pid: int) -> tuple[int, list[str]]:
    """How many groups of 16 words in a process's memory hold weights, and where."""
    import numpy as np

    total, places = 0, []
    with open(f"/proc/{pid}/maps", encoding="ascii") as lines:
        maps = lines.read().splitlines()
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for line in maps:
            fields = line.split(None, 5)
            start, end = (int(part, 16) for part in fields[0].split("-"))
            name = fields[5] if len(fields) > 5 else "[anonymous]"
            if "r" not in fields[1] or name.startswith("[v"):
                continue
            found = 0
            for at in range(start, end, 1 << 24):
                try:
                    data = os.pread(memory, min(1 << 24, end - at), at)
                except OSError:
                    continue
                words = np.frombuffer(data[: len(data) // 64 * 64], "<u4")
                marked = (words >> 16 == MAGIC).reshape(-1, 16).sum(axis=1)
                halves = np.frombuffer(data[: len(data) // 64 * 64], "<u2")
                both = (halves == MAGIC).reshape(-1, 32).sum(axis=1)
                found += int(((marked >= 8) | (both >= 16)).sum())
            if found:
                total += found
                places.append(f"{found} in {name}")
    finally:
        os.close(memory)
    return total, places


@support.not_sanitized
@support.linux_only
@pytest.mark.parametrize(("threads", "way"), [("1", "cleared"), ("2", "cleared"), ("2", "kept")])
def test_nothing_is_left_in_memory(threads: str, way: str) -> None:
    """Nor in the buffers of torch's libraries, which are full of weights unless cleared."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # glibc keeps freed pieces of up to 1032 bytes as they were in lists of each thread, as
        # pyccmem.product.blas says: whether weights lie in one is chance. Without these lists:
        env=support.child_environment(
            OMP_NUM_THREADS=threads,
            PYCCMEM_NUM_THREADS=threads,
            GLIBC_TUNABLES="glibc.malloc.tcache_count=0",
        ),
    )
    assert child.stdin and child.stdout
    found: dict[str, tuple[int, list[str]]] = {}
    try:
        for stage in ("before", "after", "plain"):
            assert child.stdout.readline().strip() == stage
            found[stage] = kept(child.pid)
            child.stdin.write("\n")
            child.stdin.flush()
    finally:
        child.kill()
        child.communicate()
    assert found["plain"][0] > 100_000, "the control was not found"
    assert found["before"] == (0, [])
    if way == "kept":
        assert found["after"][0] > 1000, "the control was not found"
    else:
        assert found["after"] == (0, [])
