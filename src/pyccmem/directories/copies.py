# SPDX-License-Identifier: Apache-2.0
"""Makes sealed and plain copies of a model's directory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import errors, gguf
from ..checkpoints import is_known
from ..safetensors import decrypt_file, encrypt_file, is_sealed, safe_open
from .index import is_index, read_index, with_names, without_names
from .marks import (
    METHOD,
    RENAMED,
    RENAMED_BACK,
    method_of,
    opened_config,
    refuse_quantized,
    refuse_several,
    renamed_entry,
    sealed_config,
)
from .publish import copy, make_folders, published, write_json
from .quantizing import Quantizing, seal_blocks
from .scan import CONFIG, GGUF_SUFFIX, SEALED_GGUF_SUFFIX, read_config, scan, siblings, source_of

__all__ = ["decrypt_directory", "encrypt_directory"]

Key = Any  # what pyccmem.safetensors takes: a Key, a Passphrase, a key provider
Progress = Any  # passed on to pyccmem.safetensors too

#: What a sealed GGUF file has behind the name of the plain one.
_SEALED = SEALED_GGUF_SUFFIX.removeprefix(GGUF_SUFFIX)


def encrypt_directory(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    key: Key,
    progress: Progress = None,
    seal_names: bool = False,
    exclude: Sequence[str] = (),
    quantize: str | None = None,
    skip: Sequence[str] | str = (),
    context: Any = None,
) -> dict[str, str]:
    """Makes `dst`, which must not exist, a sealed copy of the model directory `src`.

    The copy appears when it is complete: it is made in a temporary directory beside `dst`, which is
    then renamed. `key`, `progress` and `context` are those of pyccmem.safetensors.encrypt_file(),
    which is called for each safetensors file; `seal_names` hides the tensors' names as well. Each
    NAME.gguf becomes NAME.gguf.sealed, by pyccmem.gguf.seal(), which hides all in any case; the
    files of a model in several, such as NAME-00001-of-00003.gguf, open only with each other. Files
    whose name or path within `src` matches a pattern of `exclude` are left out. Every file and
    directory gets the mode of its original, and belongs to the calling user.

    `quantize`: a block format, such as "q4_k", that the weights of linear layers and embeddings
    get: all tensors of two dimensions that are called "*.weight", but those whose names, or the
    names of whose modules, match a pattern of `skip`. A model that GPTQ, AWQ, compressed-tensors or
    torchao has quantised keeps its numbers as blocks. decrypt_directory() does not undo either.

    Returns the pins of the sealed files by their paths within `dst`; see `expect` of load_file().

    Raises ArgumentError for unusable directories, FileFormatError for weights that are not in
    safetensors, that are sealed or quantized already, or that lack their index or shards,
    FileReadError, FileWriteError, and what encrypt_file() raises.
    """
    source = source_of(src)
    tree = scan(source, exclude)
    if not tree.weights and not tree.ggufs:
        raise errors.FileFormatError(
            f"{str(source)!r} has no safetensors file and no GGUF file; name the directory of a "
            f"model that has its weights in *.safetensors or *.gguf."
        )
    for path in (*tree.weights, *tree.ggufs):
        if is_sealed(source / path):
            raise errors.FileFormatError(
                f"{str(source / path)!r} is sealed already; decrypt the directory first."
            )
    indexes = {path: read_index(source, path) for path in tree.others if is_index(path)}
    configs = {path: read_config(source / path) for path in tree.others if path.name == CONFIG}
    models = {
        path: config
        for path, config in configs.items()
        if "model_type" in config and siblings(path, tree.weights)
    }
    asked = Quantizing(quantize, skip)
    blocks: dict[Path, Quantizing] = {}  # by the folders of the models
    for path, config in models.items():
        entries = config.get("quantization_config")
        if quantize is None and is_known(entries):
            blocks[path.parent] = Quantizing(None, checkpoint=entries)
        else:
            refuse_quantized(source / path, config)
            if quantize is not None:
                blocks[path.parent] = asked
        if seal_names:
            refuse_several(source / path.parent, path, tree)

    renamed = {}
    if seal_names:
        for path in models:
            for plain, sealed in RENAMED.items():
                renamed[path.parent / plain] = path.parent / sealed

    pins: dict[str, str] = {}
    with published(dst, source) as new:
        make_folders(source, new, tree.folders)
        for path in tree.weights:
            target = renamed.get(path, path)
            if path.parent in blocks:
                pins[str(target)] = seal_blocks(
                    source / path,
                    new / target,
                    key,
                    blocks[path.parent],
                    seal_names=seal_names,
                    context=context,
                )
                continue
            pins[str(target)] = encrypt_file(
                source / path,
                new / target,
                key,
                progress=progress,
                seal_names=seal_names,
                context=context,
            )
        sets: dict[tuple[Path, str, int], str] = {}
        for path in tree.ggufs:
            target = path.with_name(path.name + _SEALED)
            split = gguf.split_of(path.name)
            of = None if split is None else (path.parent, split.model, split.files)
            pins[str(target)] = gguf.seal(
                source / path,
                new / target,
                key,
                progress=progress,
                context=context,
                set_id=None if of is None else sets.setdefault(of, secrets.token_hex(16)),
            )
        for path in tree.others:
            target = new / renamed.get(path, path)
            if path in models:
                entry = renamed_entry(path.parent, renamed, tree)
                write_json(target, sealed_config(models[path], weights=entry), source / path)
            elif path in indexes and seal_names:
                write_json(target, without_names(indexes[path]), source / path)
            else:
                copy(source / path, target)
    return pins


def decrypt_directory(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    key: Key,
    progress: Progress = None,
    context: Any = None,
) -> None:
    """Makes `dst`, which must not exist, a plain copy of the sealed model directory `src`, with all
    weights in the clear and the original config.json. `context` is as for load_file(), for each
    file.

    Raises ArgumentError for unusable directories, FileFormatError if nothing in `src` is sealed,
    FileReadError, FileWriteError, and what pyccmem.safetensors.decrypt_file() raises.
    """
    source = source_of(src)
    tree = scan(source, ())
    sealed = {path for path in (*tree.weights, *tree.ggufs) if is_sealed(source / path)}
    if not sealed:
        raise errors.FileFormatError(
            f"{str(source)!r} has no sealed file; name a directory that encrypt_directory() made."
        )
    for path in sorted(sealed.intersection(tree.weights)):
        with safe_open(source / path, "np", key=key, context=context) as file:
            if any(name.startswith("pyccmem.") for name in file.metadata() or ()):
                raise errors.FileFormatError(
                    f"{str(source / path)!r} holds quantised weights, which a plain directory of "
                    f"transformers cannot have; load the model and call dequantize()."
                )
    models: dict[Path, dict[str, Any]] = {}
    for path in tree.others:
        if path.name == CONFIG:
            config = read_config(source / path)
            if method_of(config) == METHOD:
                models[path] = config
    renamed = {}
    for path in (*tree.weights, *tree.others):
        if path.name in RENAMED_BACK and path.parent / CONFIG in models:
            renamed[path] = path.with_name(RENAMED_BACK[path.name])

    with published(dst, source) as new:
        make_folders(source, new, tree.folders)
        for path in tree.weights:
            target = new / renamed.get(path, path)
            if path in sealed:
                decrypt_file(source / path, target, key, progress=progress, context=context)
            else:
                copy(source / path, target)
        for path in tree.ggufs:
            if path in sealed:
                target = new / path.with_name(path.name.removesuffix(_SEALED))
                gguf.unseal(source / path, target, key, progress=progress, context=context)
            else:
                copy(source / path, new / path)
        for path in tree.others:
            target = new / renamed.get(path, path)
            if path in models:
                write_json(target, opened_config(models[path]), source / path)
            elif path in renamed and is_index(path):
                index = with_names(new, path, read_index(source, path))
                write_json(target, index, source / path)
            else:
                copy(source / path, target)
