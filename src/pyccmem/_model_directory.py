# SPDX-License-Identifier: Apache-2.0
"""A model's directory as a whole, sealed and opened again.

    encrypt_directory("MiniLM", "MiniLM-sealed", key=key)

    *.safetensors            sealed, under its own name; shards one by one, their index as it is
    config.json              of transformers, beside sealed files: says that they are sealed
    everything else          copied: tokenizers, and what sentence-transformers keeps beside them
    names that begin with .  left out: version control and caches may hold the weights once more

Weights of any other kind (pickled ones, GGUF, HDF5, ...) are refused, since a copy would lie in the
clear beside the sealed files.

How config.json says it: `quantization_config` names "pyccmem", for which pyccmem.transformers is
registered, and `transformers_weights`, the name of the file to load, becomes one that does not
exist. transformers skips an unknown quantization with a warning and would go on to load; without
the plug-in, which puts the right name back, it finds no such file instead.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import errors
from .binding.owned import Descriptor
from .files.safetensors_header import open_file, read_header

__all__ = [
    "METHOD",
    "WEIGHTS_ELSEWHERE",
    "decrypt_directory",
    "encrypt_directory",
    "hides_names",
    "mark_directory",
    "sealed_name",
]

#: `quant_method` in config.json, and the name that the plug-in is registered under.
METHOD = "pyccmem"

#: A name of weights that no directory has; it is what the error of transformers shows.
WEIGHTS_ELSEWHERE = "sealed-by-pyccmem--import-pyccmem.transformers-to-load-it.safetensors"

_QUANTIZATION = "quantization_config"
_WEIGHTS = "transformers_weights"
_CONFIG = "config.json"
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"

#: With sealed names the file that transformers would look for gets another name, too: all tensors
#: would be missing in it, and missing ones are made up at random. For the plain name, the other.
_RENAMED = {
    f"model{_SUFFIX}": f"model.sealed{_SUFFIX}",
    f"model{_INDEX_SUFFIX}": f"model.sealed{_INDEX_SUFFIX}",
}
_RENAMED_BACK = {sealed: plain for plain, sealed in _RENAMED.items()}

#: Endings of files that hold weights, or may, in forms that cannot be sealed.
_OTHER_WEIGHTS = frozenset(
    f".{ending}"
    for ending in (
        *("bin", "ckpt", "ggml", "gguf", "h5", "keras", "mlmodel", "msgpack", "npy", "npz", "onnx"),
        *("onnx_data", "ot", "pb", "pickle", "pkl", "pt", "pt2", "pte", "pth", "tflite"),
    )
)

#: First bytes of such files under other names: pickles of protocol 2 and later, and containers.
_MAGIC = {
    **{bytes((0x80, protocol)): "pickled" for protocol in range(2, 6)},
    b"GGUF": "GGUF",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "NumPy",
}
_ZIP, _PICKLE_IN_ZIP = b"PK\x03\x04", b"data.pkl"

Key = Any  # whatever pyccmem.safetensors takes: a Key, a Passphrase, a key provider
Progress = Any  # handed on to it as well


@dataclass(frozen=True)
class _Tree:
    """What is to be copied: paths relative to the directory, folders before what is in them."""

    folders: list[Path]
    weights: list[Path]  # safetensors
    others: list[Path]


def encrypt_directory(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    key: Key,
    progress: Progress = None,
    seal_names: bool = False,
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """Makes `dst`, which must not exist, a sealed copy of the model directory `src`.

    The copy appears all at once when it is complete: it grows in a temporary directory beside it
    and is renamed. `key` and `progress` are those of pyccmem.safetensors.encrypt_file(), which is
    called for each safetensors file; `seal_names` hides the tensors' names as well. Files whose
    name or path within `src` matches a pattern of `exclude` are left out. Every file and directory
    gets the mode of its original, and belongs to who calls this.

    Returns what pins the sealed files, by their paths within `dst`: see `expect` of load_file().

    Raises ArgumentError for directories that cannot be these, FileFormatError for weights that are
    not in safetensors, that are sealed or quantized already, or without their index or shards,
    FileReadError, FileWriteError, and what encrypt_file() raises.
    """
    from .safetensors import encrypt_file, is_sealed

    source = _source(src)
    tree = _scan(source, exclude)
    if not tree.weights:
        raise errors.FileFormatError(
            f"{str(source)!r} has no safetensors file; name the directory of a model that has its "
            f"weights in *.safetensors."
        )
    for path in tree.weights:
        if is_sealed(source / path):
            raise errors.FileFormatError(
                f"{str(source / path)!r} is sealed already; decrypt the directory first."
            )
    indexes = {path: _index(source, path) for path in tree.others if _is_index(path)}
    configs = {path: _config(source / path) for path in tree.others if path.name == _CONFIG}
    models = {
        path: config
        for path, config in configs.items()
        if "model_type" in config and _siblings(path, tree.weights)
    }
    for path, config in models.items():
        _refuse_quantized(source / path, config)
        if seal_names:
            _refuse_several(source / path.parent, path, tree)

    renamed = {}
    if seal_names:
        for path in models:
            for plain, sealed in _RENAMED.items():
                renamed[path.parent / plain] = path.parent / sealed

    pins: dict[str, str] = {}
    with _published(dst, source) as new:
        _make_folders(source, new, tree.folders)
        for path in tree.weights:
            target = renamed.get(path, path)
            pins[str(target)] = encrypt_file(
                source / path,
                new / target,
                key,
                progress=progress,
                seal_names=seal_names,
            )
        for path in tree.others:
            target = new / renamed.get(path, path)
            if path in models:
                entry = _entry(path.parent, renamed, tree)
                _write_json(target, _sealed_config(models[path], weights=entry), source / path)
            elif path in indexes and seal_names:
                _write_json(target, _index_without_names(indexes[path]), source / path)
            else:
                _copy(source / path, target)
    return pins


def decrypt_directory(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    key: Key,
    progress: Progress = None,
) -> None:
    """Makes `dst`, which must not exist, a plain copy of the sealed model directory `src`: all
    weights in the clear, and config.json as it was.

    Raises ArgumentError for directories that cannot be these, FileFormatError when nothing in `src`
    is sealed, FileReadError, FileWriteError, and what pyccmem.safetensors.decrypt_file() raises.
    """
    from .safetensors import decrypt_file, is_sealed

    source = _source(src)
    tree = _scan(source, ())
    sealed = {path for path in tree.weights if is_sealed(source / path)}
    if not sealed:
        raise errors.FileFormatError(
            f"{str(source)!r} has no sealed file; name a directory that encrypt_directory() made."
        )
    models: dict[Path, dict[str, Any]] = {}
    for path in tree.others:
        if path.name == _CONFIG:
            config = _config(source / path)
            if _method(config) == METHOD:
                models[path] = config
    renamed = {}
    for path in (*tree.weights, *tree.others):
        if path.name in _RENAMED_BACK and path.parent / _CONFIG in models:
            renamed[path] = path.with_name(_RENAMED_BACK[path.name])

    with _published(dst, source) as new:
        _make_folders(source, new, tree.folders)
        for path in tree.weights:
            target = new / renamed.get(path, path)
            if path in sealed:
                decrypt_file(source / path, target, key, progress=progress)
            else:
                _copy(source / path, target)
        for path in tree.others:
            target = new / renamed.get(path, path)
            if path in models:
                _write_json(target, _opened_config(models[path]), source / path)
            elif path in renamed and _is_index(path):
                index = _index_with_names(new, path, _index(source, path))
                _write_json(target, index, source / path)
            else:
                _copy(source / path, target)


def hides_names(weights: str | None) -> bool:
    """Whether a model whose config.json names `weights` has the names of its tensors hidden."""
    return weights in _RENAMED_BACK


def sealed_name(path: str, weights: str | None) -> tuple[str, bool]:
    """The name to write a file of weights under that was to be `path`, and whether to hide the
    tensors' names in it: in a model whose config.json names `weights`.

    Raises ArgumentError for shards of a model whose names are to be hidden, since their index,
    which transformers writes, has the names.
    """
    if not hides_names(weights):
        return path, False
    folder, name = os.path.split(path)
    if _RENAMED.get(name) != weights:
        raise errors.ArgumentError(
            f"The names of this model's tensors are hidden, and {name!r} would be one of several "
            f"shards, whose index shows them; save it as one file, with a larger max_shard_size."
        )
    return os.path.join(folder, _RENAMED[name]), True


def mark_directory(directory: str | os.PathLike[str]) -> None:
    """Has the config.json that transformers wrote, with our quantization, name no file of weights
    either: transformers leaves that out when it saves. Nothing where there is no such config."""
    path = Path(directory, _CONFIG)
    if not path.is_file():
        return
    config = _config(path)
    if _method(config) != METHOD or config.get(_WEIGHTS) == WEIGHTS_ELSEWHERE:
        return
    new = path.with_name(f".{_CONFIG}.part")
    try:
        _write_json(new, {**config, _WEIGHTS: WEIGHTS_ELSEWHERE}, path)
        os.replace(new, path)
    except OSError as error:
        raise _write_error(path, error) from None


def _sealed_config(config: dict[str, Any], weights: str | None = None) -> dict[str, Any]:
    """A transformers config.json's contents, with the marks of a sealed directory. `weights` is the
    name of the file that holds them, or of their index, where it is not the usual one."""
    marks: dict[str, Any] = {"quant_method": METHOD}
    if weights or config.get(_WEIGHTS):
        marks["weights"] = weights or config[_WEIGHTS]
    return {**config, _QUANTIZATION: marks, _WEIGHTS: WEIGHTS_ELSEWHERE}


def _opened_config(config: dict[str, Any]) -> dict[str, Any]:
    """The contents without the marks."""
    plain = {name: value for name, value in config.items() if name not in (_QUANTIZATION, _WEIGHTS)}
    marks = config[_QUANTIZATION]
    if marks.get("weights") and marks["weights"] not in _RENAMED_BACK:
        plain[_WEIGHTS] = marks["weights"]
    return plain


def _method(config: dict[str, Any]) -> Any:
    quantization = config.get(_QUANTIZATION)
    return quantization.get("quant_method") if isinstance(quantization, dict) else None


# ---- what there is -------------------------------------------------------------------------------


def _source(src: str | os.PathLike[str]) -> Path:
    source = Path(src)
    if not source.is_dir():
        raise errors.ArgumentError(
            f"{str(source)!r} is not a directory; name the directory of a model."
        )
    return source


def _scan(source: Path, exclude: Sequence[str]) -> _Tree:
    """Everything in the directory that is to be copied. Raises FileReadError, FileFormatError."""
    tree = _Tree([], [], [])
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
            if not (source / path).is_file():  # a link may lead to one: caches of models are so
                raise errors.FileFormatError(
                    f"{str(source / path)!r} is neither file nor directory; remove or exclude it."
                )
            if name.endswith(_SUFFIX):
                tree.weights.append(path)
            else:
                _refuse_other_weights(source / path)
                tree.others.append(path)
    return tree


def _excluded(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(str(path), p) or fnmatchcase(path.name, p) for p in patterns)


def _cannot_read(error: OSError) -> None:
    raise _read_error(error) from None


def _read_error(error: OSError) -> errors.FileReadError:
    answer = errors.FileReadError(
        f"{str(error.filename)!r} cannot be read: {error.strerror}; check its permissions."
    )
    answer.errno, answer.filename = error.errno, error.filename
    return answer


def _refuse_other_weights(path: Path) -> None:
    """Raises FileFormatError for a file that may hold weights and cannot be sealed."""
    kind = None
    if path.suffix.lower() in _OTHER_WEIGHTS:
        kind = f"*{path.suffix.lower()}"
    else:
        try:
            with path.open("rb") as file:
                start = file.read(4096)
        except OSError as error:
            raise _read_error(error) from None
        kind = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if start.startswith(_ZIP) and _PICKLE_IN_ZIP in start:
            kind = "pickled"
    if kind is not None:
        raise errors.FileFormatError(
            f"{str(path)!r} ({kind}) may hold weights in a form that cannot be sealed, and a copy "
            f"would leave them in the clear; save the model as safetensors and remove this file, "
            f"or exclude it from the copy."
        )


def _is_index(path: Path) -> bool:
    return ".safetensors.index." in path.name and path.suffix == ".json"


def _siblings(path: Path, others: Sequence[Path]) -> list[Path]:
    return [other for other in others if other.parent == path.parent]


def _config(path: Path) -> dict[str, Any]:
    found = _read_json(path)
    if not isinstance(found, dict):
        raise errors.FileFormatError(f"{str(path)!r} is not a configuration; it must be an object.")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _read_error(error) from None
    except (ValueError, RecursionError) as error:
        raise errors.FileFormatError(f"{str(path)!r} is not JSON: {error}.") from None


def _refuse_quantized(path: Path, config: dict[str, Any]) -> None:
    if config.get(_QUANTIZATION) is not None:
        raise errors.FileFormatError(
            f"{str(path)!r} has a {_QUANTIZATION} of its own ({_method(config)}), and transformers "
            f"takes only one; start from a model that is not quantized."
        )


def _refuse_several(folder: Path, config: Path, tree: _Tree) -> None:
    found = [
        path.name
        for path in _siblings(config, [*tree.weights, *tree.others])
        if path.name.startswith("model.") and (path.name.endswith(_SUFFIX) or _is_index(path))
    ]
    if len(found) > 1 or (found and found[0] not in _RENAMED):
        raise errors.ArgumentError(
            f"{str(folder)!r} has the weights as {', '.join(found)}; to hide the names, keep only "
            f"one of {', '.join(_RENAMED)}."
        )


def _index(source: Path, path: Path) -> dict[str, Any]:
    """The index of shards, whose files must all be there. Raises FileFormatError."""
    found = _read_json(source / path)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise errors.FileFormatError(
            f"{str(source / path)!r} is no index of shards; it must have a 'weight_map' of file "
            f"names."
        )
    for name in sorted(set(names.values())):
        if not (source / path.parent / name).is_file():
            raise errors.FileFormatError(
                f"{str(source / path)!r} names the shard {name!r}, which is not there; complete "
                f"the directory first."
            )
    return dict(found)


def _entry(folder: Path, renamed: dict[Path, Path], tree: _Tree) -> str | None:
    """The new name of the file to load, where it has one."""
    there = {*tree.weights, *tree.others}
    for path, target in renamed.items():
        if path.parent == folder and path in there:
            return target.name
    return None


def _index_without_names(index: dict[str, Any]) -> dict[str, Any]:
    """The index with one made-up tensor for each file: transformers asks it only for the files."""
    files = sorted(set(index["weight_map"].values()))
    return {**index, "weight_map": {f"sealed {number}": file for number, file in enumerate(files)}}


def _index_with_names(new: Path, path: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The index with the names that the opened files have."""
    names: dict[str, str] = {}
    for file in sorted(set(index["weight_map"].values())):
        with open_file(new / path.parent / file) as opened:
            names |= dict.fromkeys((entry.name for entry in read_header(opened)), file)
    return {**index, "weight_map": names}


# ---- the copy ------------------------------------------------------------------------------------


@contextmanager
def _published(dst: str | os.PathLike[str], source: Path) -> Iterator[Path]:
    """A temporary directory that becomes `dst` at the end of the block, or vanishes with it."""
    target = Path(dst)
    if os.path.lexists(target):
        raise errors.ArgumentError(f"{str(target)!r} exists already; name a new directory.")
    parent = target.resolve().parent
    if not parent.is_dir():
        raise errors.ArgumentError(f"{str(parent)!r} is not a directory; make it first.")
    if parent == source.resolve() or source.resolve() in parent.parents:
        raise errors.ArgumentError(
            f"{str(target)!r} lies within {str(source)!r}; name a directory outside of it."
        )
    new = None
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=parent))
        yield new
        _copy_mode(source, new)
        for folder, _, _ in os.walk(new):
            _synchronize(Path(folder))
        # A directory that appeared meanwhile, if not empty, makes this fail.
        os.rename(new, parent / target.name)
        _synchronize(parent)
    except BaseException as error:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, errors.PyccmemError):
            raise _write_error(target, error) from None
        raise


def _write_error(path: Path, error: OSError) -> errors.FileWriteError:
    answer = errors.FileWriteError(
        f"{str(path)!r} cannot be written: {error.strerror or error}; check the disk and its "
        f"permissions."
    )
    answer.errno, answer.filename = error.errno, error.filename
    return answer


def _make_folders(source: Path, new: Path, folders: Sequence[Path]) -> None:
    for folder in folders:
        (new / folder).mkdir()
        _copy_mode(source / folder, new / folder, stat.S_IRWXU)


def _copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)
    _copy_mode(path, target)
    _synchronize(target)


def _write_json(target: Path, contents: Any, original: Path) -> None:
    """Writes a file of the mode of `original`, whose place it takes."""
    target.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    _copy_mode(original, target)
    _synchronize(target)


def _copy_mode(source: Path, target: Path, more: int = 0) -> None:
    """Gives `target` the mode of `source` and the bits of `more`, where its file system has modes.
    Raises OSError."""
    from .files.atomic import set_mode

    set_mode(target, stat.S_IMODE(source.stat().st_mode) | more)


def _synchronize(path: Path) -> None:
    """Sees to it that the file or directory is on the disk. Raises OSError, FileWriteError."""
    from .files.atomic import sync_directory, synchronize

    if path.is_dir():
        sync_directory(os.path.join(path, ""))
        return
    with Descriptor.open(path, os.O_RDONLY) as descriptor:
        synchronize(descriptor)
