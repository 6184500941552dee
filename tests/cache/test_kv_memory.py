# SPDX-License-Identifier: Apache-2.0
"""What another process finds of a cache: nothing of K, V, queries and results between calls, and of
the key nothing outside secret memory, and nothing at all once it was erased. A child fills a cache
from a file; this process knows what is in it, and which key it got, and searches all its memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from secret_search import aegis_secrets, child, find
from support import TIER_NAMES, c_compiler, child_environment, linux_only, not_sanitized

from pyccmem import KVCache

pytestmark = [linux_only, not_sanitized]

HEADS, TOKENS, SIZE, QUERIES, ROWS = 4, 203, 128, 8, 3

#: Once armed, every request for 16 random bytes, of which a cache's key is made, is answered with
#: those of KV_KEY.
RANDOM = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>
static int armed;
void arm_random(int on) { armed = on; }
ssize_t getrandom(void *out, size_t n, unsigned flags)
{
    const char *key = getenv("KV_KEY");
    if (!armed || n != 16)
        return syscall(SYS_getrandom, out, n, flags);
    for (int i = 0; i < 16; i++)
        sscanf(key + 2 * i, "%2hhx", (unsigned char *)out + i);
    return 16;
}
"""

HOLDER = """
import ctypes, gc, sys
import numpy as np
import pyccmem
from pyccmem import KVCache
from pyccmem.binding import wiped
path, dtype, action = sys.argv[1:]
H, T, D, Q, R = map(int, "HEADS TOKENS SIZE QUERIES ROWS".split())
pyccmem.set_num_threads(2)

def given():
    found = [wiped.empty(shape, np.float32) for shape in ((H, T, D), (H, T, D), (Q, R, D))]
    with open(path, "rb", buffering=0) as file:
        for array in found:
            assert file.readinto(array) == array.nbytes
    return found

ctypes.CDLL(None).arm_random(1)
cache = KVCache(1, H, D, dtype=dtype, level="mlock")
ctypes.CDLL(None).arm_random(0)
k, v, q = given()
cache.append(0, k[:, :190], v[:, :190])
for t in range(190, T):
    cache.append(0, k[:, t], v[:, t])
kept = []
def use():
    one = cache.attend(0, q)
    many = wiped.empty((Q, 20 * R, D), np.float32)
    many[:, :R] = q
    cache.attend(0, many, causal=False)
    cache.read(0, "v", start=5)
    cache.crop(T - 1)
    cache.append(0, k[:, T - 1], v[:, T - 1])
    return one
result = use()
if action == "plain":
    kept = [np.array(k), np.array(v), np.array(q), np.array(result)]
elif action == "erased":
    cache.erase()
del k, v, q, result
gc.collect()
print("ready", flush=True)
input()
assert len(kept) in (0, 4) and cache.length() == T
"""


@pytest.fixture(scope="module")
def known_random(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = c_compiler("the stand-in random generator")
    folder = tmp_path_factory.mktemp("known_random")
    source, library = folder / "known_random.c", folder / "known_random.so"
    source.write_text(RANDOM)
    command = [*compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return str(library)


def needles(k: np.ndarray, v: np.ndarray, q: np.ndarray, y: np.ndarray) -> dict[str, bytes]:
    """16 bytes of many rows of each, of what is stored and of what it was made of."""
    found = {}
    for name, rows in (("k", k), ("v", v), ("q", q), ("y", y)):
        flat = rows.reshape(-1, rows.shape[-1])
        for at in range(0, len(flat), 7):
            for part in (0, 37, 96):
                found[f"{name} {at} {part}"] = flat[at, part : part + 4].tobytes()
    return found


@pytest.mark.parametrize("action", ["held", "erased", "plain"])
@pytest.mark.parametrize("tier", TIER_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_another_process_finds(
    known_random: str, tmp_path: Path, dtype: str, tier: str, action: str
) -> None:
    rng = np.random.default_rng(1)
    k, v = (rng.standard_normal((HEADS, TOKENS, SIZE)).astype("f4") for _ in "kv")
    q = rng.standard_normal((QUERIES, ROWS, SIZE)).astype("f4")
    (tmp_path / "rows").write_bytes(k.tobytes() + v.tobytes() + q.tobytes())
    with KVCache(1, HEADS, SIZE, dtype=dtype) as cache:
        cache.append(0, k, v)
        y = cache.attend(0, q)
    key = os.urandom(16)
    script = HOLDER
    for name in ("HEADS", "TOKENS", "SIZE", "QUERIES", "ROWS"):
        script = script.replace(name, str(globals()[name]))
    preload = f"{os.environ.get('LD_PRELOAD', '')} {known_random}".strip()
    environment = child_environment(
        LD_PRELOAD=preload, KV_KEY=key.hex(), PYCCMEM_TIER=tier, LD_BIND_NOW="1"
    )
    # The environment's text of the key is hexadecimal, which is not what is looked for.
    wanted = needles(k, v, q, y) | aegis_secrets("cache", key)
    with child(script, str(tmp_path / "rows"), dtype, action, environment=environment) as pid:
        found = find(pid, wanted)
    keys = [mapping for what, mapping in found if what.startswith("cache")]
    assert not [one for one in keys if not {"lo", "dd", "dc"} <= one.flags]
    assert bool(keys) == (action != "erased")
    rows = {what for what, _ in found if not what.startswith("cache")}
    if action == "plain":  # the control
        same = tier == TIER_NAMES[-1]  # else the results may differ in their last bits
        assert len(rows) >= len(needles(k, v, q, y if same else y[:0])) - 3
    else:
        assert not rows, sorted(rows)[:10]
