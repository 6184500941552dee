# SPDX-License-Identifier: Apache-2.0
"""A batch job: a file of sentences, a line each, becomes a sealed file of vectors.

    PYCCMEM_KEY_FILE=model.key python examples/batch_job.py SEALED sentences.txt vectors.safetensors

The model is a sealed directory, run by sentence-transformers as it is: nothing is exported to
another format (ONNX), which would lie on the disk in the clear. The vectors are ciphertext in
memory as soon as they are computed, and in the file, which is sealed for the same key.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import pyccmem
import pyccmem.transformers
from pyccmem.safetensors import save_file


def batches(path: Path, size: int) -> Iterator[list[str]]:
    """The lines of a file, `size` at a time: of a large one, never all are in memory."""
    with open(path, encoding="utf-8") as file:
        lines = (line.rstrip("\n") for line in file)
        while batch := list(itertools.islice(lines, size)):
            yield batch


def main(arguments: list[str]) -> int:
    """Runs the job; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a sealed directory of sentence-transformers")
    parser.add_argument("texts", type=Path, help="a file of sentences, a line each")
    parser.add_argument("vectors", type=Path, help="the sealed file to make")
    parser.add_argument("--batch", type=int, default=64, help="sentences at a time (%(default)s)")
    given = parser.parse_args(arguments)

    with open(given.texts, encoding="utf-8") as file:
        count = sum(1 for _ in file)
    with pyccmem.Key.from_file(os.environ["PYCCMEM_KEY_FILE"]) as key:
        with pyccmem.transformers.using_key(key):
            model = SentenceTransformer(given.model, device="cpu")
        width = model.get_embedding_dimension()
        vectors = pyccmem.EncryptedTensor.zeros((count, width), np.float32, key=key)
        done = 0
        for batch in batches(given.texts, given.batch):
            with torch.inference_mode():
                made = model.encode(batch, normalize_embeddings=True)
            vectors[done : done + len(batch)] = made
            made.fill(0)
            done += len(batch)
            print(f"\r{done} of {count}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        pin = save_file({"vectors": vectors}, given.vectors, key=key)
        vectors.close()
    print(f"{given.vectors}  {pin}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
