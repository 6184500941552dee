# SPDX-License-Identifier: Apache-2.0
"""What is looked for: samples of a kind each, and how many of a kind a search has found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .. import audit
from . import keys, words
from .job import Rehearsal, Sizes

__all__ = ["KINDS", "MARKER", "Wanted", "text_parts", "wanted"]

#: In the order of tables, with their headings.
KINDS = {
    "weights": "weights",
    "keys": "keys",
    "kv": "K and V",
    "unrotated": "K unrotated",
    "hidden": "hidden states",
    "prompt": "prompt",
    "ids": "its ids",
    "answer": "answer",
    "answer ids": "its ids",
    "earlier": "earlier prompts",
    "text": "text",
    "file": "file",
    "hex": "bytes",
}

#: The kind of what is known to lie in the process.
MARKER = "marker"

_SAMPLE = 16
_STRIDE = 8  # letters between two samples of a text
_MOST_HITS = 1_000_000


class Wanted:
    """Samples named KIND/PLACE or KIND/PLACE/FORM: a place counts once, in whatever form it is
    found. One whose first form would not be known again does not count."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        native = audit.samples_from_parts(dict(parts))
        unusable = set(native.without_samples())
        unusable |= set(parts) - set(native.per_tensor(native.usable()))
        #: For audit.scan() and audit.scan_file().
        self.native = native
        self._places = {part for part in parts if part.count("/") == 1 and part not in unusable}
        self.kinds = self._count(self._places)

    def found(self, report: audit.Report) -> dict[str, int]:
        """How many samples of each kind a report names."""
        seen = {"/".join(part.split("/")[:2]) for part in report.tensors}
        return self._count(seen & self._places)

    def places(self, report: audit.Report) -> list[str]:
        """The places that a report names, for the curious."""
        return sorted({"/".join(part.split("/")[:2]) for part in report.tensors} & self._places)

    def units(self, report: audit.Report) -> dict[str, int]:
        """Of how many units the samples of each kind are that a report names: of layers, or of
        matrices, whose name stands before the place's `[`."""
        return self._count({place.partition("[")[0] for place in self.places(report)})

    def _count(self, places: Iterable[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for place in places:
            kind = place.split("/")[0]
            counts[kind] = counts.get(kind, 0) + 1
        return counts


def text_parts(kind: str, text: str, prefix: str = "") -> dict[str, bytes]:
    """Samples of a text: as UTF-8, and where that has letters beyond Latin 1 as UTF-16 too. audit
    finds either in all widths."""
    parts = {}
    for at in range(0, len(text), _STRIDE):
        piece = text[at : at + _SAMPLE]
        in_bytes = piece.encode("utf-8", "surrogatepass")
        beyond = any(ord(letter) > 0xFF for letter in piece)
        if len(in_bytes) >= _SAMPLE and (beyond or len(piece) == _SAMPLE):
            parts[f"{kind}/{prefix}{at}"] = in_bytes[:_SAMPLE]
            if not piece.isascii():
                wide = piece.encode("utf-16-le", "surrogatepass")
                parts[f"{kind}/{prefix}{at}/UTF-16"] = wide[:_SAMPLE]
                narrow = piece.encode("latin-1", "ignore")
                if len(narrow) == _SAMPLE:
                    parts[f"{kind}/{prefix}{at}/Latin 1"] = narrow
    return {name: part for name, part in parts.items() if len(part) == _SAMPLE}


def id_parts(kind: str, ids: Sequence[int], prefix: str = "") -> dict[str, bytes]:
    """Runs of four tokens as int32; audit finds them as int64 as well."""
    run = np.asarray(ids, np.int32)
    return {f"{kind}/{prefix}{at}": run[at : at + 4].tobytes() for at in range(len(run) - 3)}


def row_parts(pieces: Mapping[str, bytes], dtype: str) -> dict[str, bytes]:
    """The beginnings of rows, in their own type and in the other one."""
    parts = {}
    for name, row in pieces.items():
        parts[name] = row[:_SAMPLE]
        if dtype == "float32":
            other = np.frombuffer(row, np.uint32)[:8]
            # Rounded to the nearest even, as processors and torch do it.
            rounded = (other + 0x7FFF + (other >> 16 & 1)) >> 16
            parts[f"{name}/bfloat16"] = rounded.astype(np.uint16).tobytes()
    return parts


def wanted(
    rehearsal: Rehearsal,
    weights: Mapping[str, bytes],
    key: bytes,
    marker: bytes,
    prompt: str,
    earlier: Sequence[str],
    sizes: Sizes,
) -> Wanted:
    """What is looked for in one server. Of the answer that is what is there when it is halted;
    `earlier` are the prompts of requests that have ended before."""
    parts = row_parts({**rehearsal.pieces, **weights}, sizes.dtype)
    parts |= {f"keys/{name}": block for name, block in keys.schedule(key).items()}
    parts |= text_parts("prompt", prompt)
    parts |= id_parts("ids", rehearsal.ids)
    for number, text in enumerate(earlier):
        parts |= text_parts("earlier", text, f"text {number}.")
        parts |= id_parts("earlier", words.to_ids(text), f"ids {number}.")
    early = rehearsal.answer_ids[: sizes.pause]
    parts |= text_parts("answer", words.to_text(early))
    parts |= id_parts("answer ids", early)
    parts |= {f"{MARKER}/{at}": marker[at : at + _SAMPLE] for at in range(0, len(marker), _SAMPLE)}
    return Wanted(parts)
