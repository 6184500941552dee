# SPDX-License-Identifier: Apache-2.0
"""What another process finds while an index is searched: no vector that is stored, in float32 or as
int8, and no payload, but a row or two in the tiles of that moment; those of the plain twin are all
found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from secret_search import child, find
from support import child_environment, linux_only, not_sanitized

pytestmark = [linux_only, not_sanitized]

COUNT, DIM = 20_000, 64

HOLDER = """
import gc, sys, threading
import numpy as np
import pyccmem
from pyccmem import Key
from pyccmem.binding import wiped
from pyccmem.vectors import EncryptedIndex
path, bodies, dtype, action = sys.argv[1:]
vectors = wiped.empty((COUNT, DIM), np.float32)
with open(path, "rb", buffering=0) as file:
    assert file.readinto(vectors) == vectors.nbytes
text = wiped.empty(COUNT * 32, np.uint8)
with open(bodies, "rb", buffering=0) as file:
    assert file.readinto(text) == text.nbytes
dtype, _, fine = dtype.partition("+")
index = EncryptedIndex(DIM, key=Key.generate(), metric="l2", dtype=dtype, rerank=fine or None)
index.add(vectors, payloads=[memoryview(text[at : at + 32]) for at in range(0, COUNT * 32, 32)])
kept = [np.array(vectors), np.array(text)] if action == "plain" else []
vectors.fill(0), text.fill(0)
del vectors, text
gc.collect()
stop, count = threading.Event(), [0]
queries = np.random.default_rng(9).standard_normal((70, DIM)).astype("f4")
def search():
    while not stop.is_set():
        for many in (1, 70):
            index.search(queries[:many], 10)
        count[0] += 1
thread = threading.Thread(target=search)
thread.start()
while count[0] < 3:
    stop.wait(0.01)
print("ready", flush=True)
input()
stop.set()
thread.join()
assert count[0] > 3 and len(kept) in (0, 2)
"""


@pytest.mark.parametrize("action", ["encrypted", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "int8+float32"])
def test_what_another_process_finds(tmp_path: Path, dtype: str, action: str) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((COUNT, DIM)).astype("f4")
    bodies = os.urandom(COUNT * 32)
    (tmp_path / "vectors").write_bytes(vectors.tobytes())
    (tmp_path / "bodies").write_bytes(bodies)
    script = HOLDER.replace("COUNT", str(COUNT)).replace("DIM", str(DIM))
    wanted = {f"vector {at}": vectors[at, 8:12].tobytes() for at in range(0, COUNT, 37)}
    wanted |= {f"payload {at}": bodies[at * 32 : at * 32 + 16] for at in range(0, COUNT, 37)}
    arguments = (str(tmp_path / "vectors"), str(tmp_path / "bodies"), dtype, action)
    with child(script, *arguments, environment=child_environment(LD_BIND_NOW="1")) as pid:
        found = {name for name, _ in find(pid, wanted)}
    if action == "plain":  # the control
        assert len(found) >= len(wanted) - 4
    else:
        assert not {name for name in found if name.startswith("payload")}
        # A tile of 64 KiB to 304 KiB in each thread.
        assert len(found) <= 2 * (304 << 10) // (DIM * 4) // 37 + 2
        if dtype == "int8":
            assert not found
