# SPDX-License-Identifier: Apache-2.0
"""Models of sentence-transformers, as subjects of trials: texts in, vectors or scores out."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .trial import Built, Subject, randomized

TEXTS = ["w1 w2 w3 w4", "w5 w6", "w7 w8 w9 w1 w2"]


class _Texts(nn.Module):
    """One of their models as a module of torch, with the calls of transformers."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def save_pretrained(self, path: Any) -> None:
        self.inner.save_pretrained(str(path))

    @classmethod
    def opened(cls, kind: Any, path: Any, options: dict[str, Any]) -> Any:
        return cls(kind(str(path), device="cpu", model_kwargs=options))


class Vectors(_Texts):
    """A SentenceTransformer."""

    def forward(self) -> torch.Tensor:
        found: torch.Tensor = self.inner.encode(TEXTS, convert_to_tensor=True)
        return found

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Any:
        from sentence_transformers import SentenceTransformer

        return cls.opened(SentenceTransformer, path, options)


class SparseVectors(_Texts):
    """A SparseEncoder."""

    def forward(self) -> torch.Tensor:
        found: torch.Tensor = self.inner.encode(TEXTS, convert_to_sparse_tensor=False)
        return found

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Any:
        from sentence_transformers import SparseEncoder

        return cls.opened(SparseEncoder, path, options)


class Scores(_Texts):
    """A CrossEncoder."""

    def forward(self) -> torch.Tensor:
        pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2])]
        found: torch.Tensor = self.inner.predict(pairs, convert_to_tensor=True)
        return found

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Any:
        from sentence_transformers import CrossEncoder

        return cls.opened(CrossEncoder, path, options)


def _directory(path: Path, kind: str, **settings: Any) -> str:
    """A model of transformers with its tokenizer."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]
    (path / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        **settings,
    )
    torch.manual_seed(1)
    randomized(getattr(transformers, kind)(config)).save_pretrained(path)
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return str(path)


def _vectors(path: Path) -> Any:
    return Vectors.from_pretrained(_directory(path, "BertModel"))


def _with_dense(path: Path) -> Any:
    from sentence_transformers.sentence_transformer.modules import Dense

    found = Vectors.from_pretrained(_directory(path, "BertModel"))
    found.inner.append(Dense(in_features=32, out_features=16))
    return found


def _splade(path: Path) -> Any:
    return SparseVectors.from_pretrained(_directory(path, "BertForMaskedLM"))


def _scores(path: Path) -> Any:
    return Scores.from_pretrained(_directory(path, "BertForSequenceClassification", num_labels=1))


def _classes(path: Path) -> Any:
    return Scores.from_pretrained(_directory(path, "BertForSequenceClassification", num_labels=3))


MODELS = {
    "SentenceTransformer": _vectors,
    "SentenceTransformer with Dense": _with_dense,
    "SparseEncoder (SPLADE)": _splade,
    "CrossEncoder": _scores,
    "CrossEncoder, three classes": _classes,
}


def _build(name: str) -> Built:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        model = MODELS[name](Path(folder)).eval()
        return Built(model, "two layers", "text", {})


def subjects() -> list[Subject]:
    """None where sentence-transformers is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return []
    library = "sentence-transformers"
    return [Subject(name, library, lambda name=name: _build(name)) for name in MODELS]
