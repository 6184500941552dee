# SPDX-License-Identifier: Apache-2.0
"""A model whose key lies in a token (an HSM, a smart card, SoftHSM2) and never comes out of it.

    softhsm2-util --init-token --free --label models --pin 1234 --so-pin 5678
    pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --token-label models --login --pin 1234 \\
        --keygen --key-type AES:32 --label kek --sensitive
    printf 1234 > pin
    python examples/pkcs11_key.py \\
        'pkcs11:token=models;object=kek?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'

Each file has a data key of its own, which the token wraps for the file's context and unwraps when
it is opened. The PIN is read from its file when it is needed, and stands in no list of processes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import pyccmem
from pyccmem.errors import ContextError
from pyccmem.key_services import Held, from_uri
from pyccmem.safetensors import load_file, save_file


def main(uri: str) -> float:
    """Seals a matrix for the token's key, opens it, and multiplies by it; the sum of the result."""
    # For an hour at most without the token: see docs/keys.md.
    token = Held(from_uri(uri), max_age=3600, deadline=5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weight = np.full((128, 64), 0.5, np.float32)
        save_file({"weight": weight}, path, key=token, context={"model": "halves"})

        model = load_file(path, key=token, context={"model": "halves"})
        y = pyccmem.linear(np.ones(64, np.float32), model["weight"])
        print("opened, and multiplied:", y[:3])

        try:
            load_file(path, key=token, context={"model": "wholes"})
        except ContextError:
            print("refused for another context")
        return float(y.sum())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python examples/pkcs11_key.py URI", file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
