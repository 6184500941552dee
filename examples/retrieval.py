# SPDX-License-Identifier: Apache-2.0
"""Retrieval: passages that fit a question, of an index whose vectors and passages are ciphertext.

    export PYCCMEM_KEY_FILE=model.key
    python examples/retrieval.py build SEALED passages.txt index.sealed
    python examples/retrieval.py ask SEALED index.sealed 'Where does a cat sleep?'

A passage is a line of the file. Embeddings give away the texts that they were made of, so both are
sealed, for the same key. The index is mapped: asking opens the rows in the caches of the cores that
multiply them, and of the passages only those that are answered.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import pyccmem
import pyccmem.transformers
from pyccmem.vectors import EncryptedIndex


def embedded(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """A vector of length 1 for each text."""
    with torch.inference_mode():
        return model.encode(texts, normalize_embeddings=True)


def build(model: SentenceTransformer, passages: Iterable[str], key: pyccmem.Key, to: Path) -> str:
    """Makes an index of passages, and saves it; its pin, which tells it from an older one."""
    with EncryptedIndex(model.get_embedding_dimension(), key=key, metric="ip") as index:
        texts = [text.strip() for text in passages if text.strip()]
        for first in range(0, len(texts), 64):
            batch = texts[first : first + 64]
            vectors = embedded(model, batch)
            index.add(vectors, payloads=[text.encode() for text in batch])
            vectors.fill(0)
        return index.save(to)


def ask(
    model: SentenceTransformer, index: EncryptedIndex, question: str, count: int
) -> list[tuple[float, str]]:
    """The passages that fit best, each with its score."""
    scores, ids = index.search(embedded(model, [question])[0], count)
    ids = ids[ids >= 0]
    passages = index.payloads(ids)
    return [(float(s), text.decode()) for s, text in zip(scores, passages, strict=False)]


def main(arguments: list[str]) -> int:
    """Builds or asks; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    builder = actions.add_parser("build", help="make an index of a file of passages")
    builder.add_argument("model", help="a sealed directory of sentence-transformers")
    builder.add_argument("passages", type=Path, help="a file of passages, a line each")
    builder.add_argument("index", type=Path, help="the sealed file to make")
    asker = actions.add_parser("ask", help="find the passages that fit a question")
    asker.add_argument("model", help="the directory that the index was built with")
    asker.add_argument("index", type=Path, help="the sealed index")
    asker.add_argument("question")
    asker.add_argument("--count", type=int, default=3, help="passages (%(default)s)")
    asker.add_argument("--expect", help="the pin that was printed: refuses an older index")
    given = parser.parse_args(arguments)

    with pyccmem.Key.from_file(os.environ["PYCCMEM_KEY_FILE"]) as key:
        with pyccmem.transformers.using_key(key):
            model = SentenceTransformer(given.model, device="cpu")
        if given.action == "build":
            with open(given.passages, encoding="utf-8") as file:
                print(f"{given.index}  {build(model, file, key, given.index)}")
            return 0
        with EncryptedIndex.load(given.index, key=key, expect=given.expect) as index:
            for score, text in ask(model, index, given.question, given.count):
                print(f"{score:.3f}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
