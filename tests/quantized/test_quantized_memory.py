# SPDX-License-Identifier: Apache-2.0
"""What another process finds of quantised weights after they were made, read, written, multiplied
and loaded: neither floats nor blocks, unless the program keeps them. A child does it; this process
knows what is in it, and searches all its memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from secret_search import child, find
from support import linux_only, not_sanitized

from pyccmem.quantized import FORMATS, dequantize_blocks, quantize_blocks, quantize_rows

pytestmark = [linux_only, not_sanitized]

ROWS, COLS = 96, 2048

HOLDER = """
import gc, sys
import numpy as np
import pyccmem
from pyccmem.binding import wiped
from pyccmem.safetensors import load_file, save_file
path, name, action = sys.argv[1:]
pyccmem.set_num_threads(2)
key = pyccmem.Key.generate()

def floats():
    found = wiped.empty((ROWS, COLS), np.float32)
    with open(path, "rb", buffering=0) as file:
        assert file.readinto(found) == found.nbytes
    return found

x = floats()
arena = pyccmem.Arena(key=key, frozen=True)
t = pyccmem.EncryptedTensor.from_numpy(x, dtype=name, key=key)
frozen = pyccmem.QuantizedTensor.from_numpy(x, name, arena=arena)
save_file({"w": t}, path + ".sealed", key=key)
loaded = load_file(path + ".sealed", key=key)["w"]
kept = []

def use(tensor):
    whole = tensor.dequantize()
    rows = tensor[[5, 3]], tensor[7:90, 3:1000], tensor[..., 2], tensor[::2]
    for part in tensor.blocks(1 << 18):
        pass
    pyccmem.linear(np.ones((1, COLS), np.float32), tensor)
    pyccmem.linear(np.ones((9, COLS), np.float32), tensor)
    pyccmem.linear(np.ones((2, COLS)), tensor)
    np.ones((2, ROWS), np.float32) @ tensor
    if action == "plain" and not kept:
        kept.extend([np.array(whole), np.array(tensor.raw[...]), np.array(x)])

for tensor in (t, frozen, loaded, t.copy(key=key)):
    use(tensor)
t[3:50] = x[3:50]
t[[60, 2]] = x[[60, 2]] if action == "plain" else t[[60, 2]]
del x, tensor
gc.collect()
print("ready", flush=True)
input()
"""


def needles(x: np.ndarray, name: str) -> dict[str, bytes]:
    """16 bytes here and there: of the floats, of what blocks stand for, and of blocks."""
    kind = FORMATS[name]
    if kind.scaled_rows:
        q, scale = quantize_rows(x)
        packed, back = q.view(np.uint8), q.astype(np.float32) * scale[:, None]
    else:
        packed = quantize_blocks(x, kind)
        back = dequantize_blocks(packed, kind)
    found = {}
    for row in range(4, ROWS, 9):
        for at in range(0, COLS, 512):
            found[f"float {row} {at}"] = x[row, at + 4 : at + 8].tobytes()
            found[f"opened {row} {at}"] = back[row, at + 4 : at + 8].tobytes()
            begin = at // kind.elements * kind.nbytes
            head = {"q4_k": 16, "int4_g32": 4}.get(name, 0)
            found[f"block {row} {at}"] = packed[row, begin + head : begin + head + 16].tobytes()
    return found


@pytest.mark.parametrize(
    "name", ["q4_k", "int8_row", pytest.param("int4_g32", marks=pytest.mark.full)]
)
def test_nothing_of_the_weights_is_left(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(ROWS, COLS)).astype(np.float32)
    path = tmp_path / "floats"
    path.write_bytes(x.tobytes())
    script = HOLDER.replace("ROWS", str(ROWS)).replace("COLS", str(COLS))
    wanted = needles(x, name)
    with child(script, str(path), name, "wiped") as pid:
        found = find(pid, wanted)
        assert not found, [(what, where.name) for what, where in found[:5]]
    with child(script, str(path), name, "plain") as pid:  # the control
        found_kinds = {what.split()[0] for what, _ in find(pid, wanted)}
    assert found_kinds == {"float", "opened", "block"}
