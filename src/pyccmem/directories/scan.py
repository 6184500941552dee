# SPDX-License-Identifier: Apache-2.0
"""Lists what lies in a model's directory, and refuses what cannot be sealed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .. import errors

__all__ = [
    "CONFIG",
    "GGUF_SUFFIX",
    "SEALED_GGUF_SUFFIX",
    "SUFFIX",
    "Tree",
    "read_config",
    "read_error",
    "read_json",
    "scan",
    "siblings",
    "source_of",
]

#: The file of transformers that describes a model.
CONFIG = "config.json"

SUFFIX = ".safetensors"

#: The endings of GGUF files, plain and sealed.
GGUF_SUFFIX = ".gguf"
SEALED_GGUF_SUFFIX = ".gguf.sealed"

#: Endings of files that hold, or may hold, weights in forms that cannot be sealed.
_OTHER_WEIGHTS = frozenset(
    f".{ending}"
    for ending in (
        *("bin", "ckpt", "ggml", "h5", "keras", "mlmodel", "msgpack", "npy", "npz", "onnx"),
        *("onnx_data", "ot", "pb", "pickle", "pkl", "pt", "pt2", "pte", "pth", "tflite"),
    )
)

#: First bytes of such files, for files with other names: pickles of protocol 2 and later, and
#: containers.
_MAGIC = {
    **{bytes((0x80, protocol)): "pickled" for protocol in range(2, 6)},
    b"GGUF": "GGUF",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "NumPy",
}
_ZIP, _PICKLE_IN_ZIP = b"PK\x03\x04", b"data.pkl"


@dataclass(frozen=True)
class Tree:
    """What must be copied: paths relative to the directory, folders before their contents."""

    folders: list[Path]
    weights: list[Path]  # safetensors
    ggufs: list[Path]  # GGUF, plain ones and sealed ones
    others: list[Path]


def source_of(src: str | os.PathLike[str]) -> Path:
    """Returns the directory to copy. Raises ArgumentError, ArgumentTypeError."""
    if not isinstance(src, (str, os.PathLike)):
        raise errors.ArgumentTypeError(
            f"A directory must be given by its name, a str, and not {type(src).__name__}."
        )
    if not os.fspath(src):
        raise errors.ArgumentError("The name of the directory is empty; '.' is the current one.")
    source = Path(src)
    if not source.is_dir():
        raise errors.ArgumentError(
            f"{str(source)!r} is not a directory; name the directory of a model."
        )
    return source


def scan(source: Path, exclude: Sequence[str]) -> Tree:
    """Returns everything in the directory that must be copied. Raises FileReadError,
    FileFormatError."""
    tree = Tree([], [], [], [])
    for folder, names, files in os.walk(source, onerror=_cannot_read):
        here = Path(folder).relative_to(source)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in list(names):
            path = here / name
            if _excluded(path, exclude):
                names.remove(name)
            elif (source / path).is_symlink():
                raise errors.FileFormatError(
                    f"{str(source / path)!r} is a link to a directory, which may lead anywhere; "
                    f"put the directory itself in its place, or exclude it."
                )
            else:
                tree.folders.append(path)
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or _excluded(path, exclude):
                continue
            if not (source / path).is_file():  # a link may lead to a file, as in caches of models
                raise errors.FileFormatError(
                    f"{str(source / path)!r} is neither file nor directory; remove or exclude it."
                )
            if name.endswith(SUFFIX):
                tree.weights.append(path)
            elif name.endswith((GGUF_SUFFIX, SEALED_GGUF_SUFFIX)):
                tree.ggufs.append(path)
            else:
                _refuse_other_weights(source / path)
                tree.others.append(path)
    return tree


def _excluded(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(str(path), p) or fnmatchcase(path.name, p) for p in patterns)


def _cannot_read(error: OSError) -> None:
    raise read_error(error) from None


def read_error(error: OSError, path: Path | None = None) -> errors.FileReadError:
    """Returns the exception for a failed read. `path` names the file if `error` does not."""
    name = error.filename if path is None else str(path)
    return errors.FileReadError(
        f"{str(name)!r} cannot be read: {error.strerror}; check its permissions and the disk."
    ).of_system(error.errno, name)


def _refuse_other_weights(path: Path) -> None:
    """Raises FileFormatError for a file that may hold weights but cannot be sealed."""
    kind = None
    if path.suffix.lower() in _OTHER_WEIGHTS:
        kind = f"*{path.suffix.lower()}"
    else:
        try:
            with path.open("rb") as file:
                start = file.read(4096)
        except OSError as error:
            raise read_error(error, path) from None
        kind = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if start.startswith(_ZIP) and _PICKLE_IN_ZIP in start:
            kind = "pickled"
    if kind is not None:
        raise errors.FileFormatError(
            f"{str(path)!r} ({kind}) may hold weights in a form that cannot be sealed, and a copy "
            f"would leave them in the clear; save the model as safetensors and remove this file, "
            f"or exclude it from the copy."
        )


def siblings(path: Path, others: Sequence[Path]) -> list[Path]:
    """Returns those of `others` that lie in the same directory."""
    return [other for other in others if other.parent == path.parent]


def read_config(path: Path) -> dict[str, Any]:
    """Returns the contents of a config.json. Raises FileReadError, FileFormatError."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise errors.FileFormatError(f"{str(path)!r} is not a configuration; it must be an object.")
    return found


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file. Raises FileReadError, FileFormatError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise read_error(error, path) from None
    except (ValueError, RecursionError) as error:
        raise errors.FileFormatError(f"{str(path)!r} is not JSON: {error}.") from None
