# SPDX-License-Identifier: Apache-2.0
"""A small model with everything encrypted, beside NumPy in the clear: two layers, sealed in a file
and mapped, and an attention over an encrypted cache. Ends with an error if they differ. Needs what
pyccmem needs, and nothing else."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path

import numpy as np

import pyccmem
from pyccmem.safetensors import load_file, save_file

warnings.simplefilter("ignore", pyccmem.errors.PortableTierWarning)


def layers(path: Path) -> None:
    """Multiplies by two matrices that are ciphertext, from their file on."""
    rng = np.random.default_rng(7)
    shapes = {"up": (512, 256), "down": (256, 512)}
    plain = {name: rng.standard_normal(shape, np.float32) / 16 for name, shape in shapes.items()}
    x = rng.standard_normal((3, 256), np.float32)
    with pyccmem.Key.generate() as key:
        encrypted = {
            name: pyccmem.EncryptedTensor.from_numpy(array, key=key)
            for name, array in plain.items()
        }
        save_file(encrypted, path, key=key)
        if plain["up"].tobytes()[:64] in path.read_bytes():
            raise SystemExit("the sealed file holds a weight in the clear")
        weights = load_file(path, key=key, sealed=True)
        hidden = np.maximum(pyccmem.linear(x, weights["up"]), 0)
        y = pyccmem.linear(hidden, weights["down"])
    wanted = np.maximum(x.astype(float) @ plain["up"].T, 0) @ plain["down"].T
    if not np.allclose(y, wanted, atol=1e-4):
        raise SystemExit(f"the layers are wrong by {np.abs(y - wanted).max()}")


def attention() -> None:
    """Attends to keys and values that are ciphertext."""
    rng = np.random.default_rng(8)
    k, v, q = (rng.standard_normal((4, n, 32)).astype(np.float32) for n in (50, 50, 1))
    with pyccmem.KVCache(layers=1, heads=4, key_size=32, dtype="float32") as cache:
        cache.append(0, k, v)
        found = np.array(cache.attend(0, q))
    scores = np.exp(q.astype(float) @ k.transpose(0, 2, 1) / 32**0.5)
    wanted = scores / scores.sum(-1, keepdims=True) @ v
    if not np.allclose(found, wanted, atol=1e-5):
        raise SystemExit(f"the attention is wrong by {np.abs(found - wanted).max()}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        layers(Path(folder) / "sealed.safetensors")
    attention()
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if free and getattr(sys, "_is_gil_enabled", lambda: True)():
        raise SystemExit("importing pyccmem switched the GIL on")
    print(
        f"Python {sys.version.split()[0]}{' without the GIL' if free else ''}, numpy "
        f"{np.__version__}, tier {pyccmem.cpu_info()['tier']}: the model answers as in the clear"
    )


if __name__ == "__main__":
    main()
