# SPDX-License-Identifier: Apache-2.0
"""SealedModel: a sealed file or directory that each process opens for itself.

What travels is a path and a pin. Each node has the files, on a disk of its own or a shared one;
processes of a node share their pages in the page cache, and each asks for the key itself. A node
that comes later, or comes back, needs nothing of the others.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import errors
from ..directories import expected_pins, is_directory_pin
from ..files.safetensors_header import open_file, read_all
from ..safetensors._format import parse
from ..safetensors._frameworks import framework_named
from ..safetensors._load import load_from
from ..safetensors._open import Options
from ..safetensors._reader import Expected, expected, looks_sealed
from .keys import AnyKey, key_for

__all__ = ["SealedModel"]

#: Models that a process keeps, the last used ones.
_MOST_KEPT = 4

_kept: OrderedDict[Any, Any] = OrderedDict()
_lock = threading.RLock()


def _reset() -> None:
    """In a forked child: a thread that it does not have may have held the lock."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_reset)


@dataclass(frozen=True)
class SealedModel:
    """A sealed file, or a directory that `pyccmem encrypt` made, by its path on each node.

    `expect` is what must be there: of a file its pin ("FILE_ID:GENERATION"), of a directory the
    pins of its sealed files by their paths within, as encrypt_directory() returns them, or the
    directory's own ("dir:..."), as `pyccmem encrypt` prints it. A SealedModel is a path and a pin,
    and nothing else: pass it to tasks and actors."""

    path: str
    expect: Any = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Raises ArgumentTypeError for a path that is none, and for what are no pins."""
        if not isinstance(self.path, (str, os.PathLike)):
            raise errors.ArgumentTypeError(
                f"path must be the name of a sealed file or directory, not "
                f"{type(self.path).__name__}."
            )
        object.__setattr__(self, "path", os.fspath(self.path))
        if isinstance(self.expect, Mapping):
            object.__setattr__(self, "expect", dict(self.expect))
            for pin in self.expect.values():
                _pinned(pin)
        elif not is_directory_pin(self.expect):
            expected(self.expect)

    def tensors(self, framework: str = "np") -> dict[str, Any]:
        """Returns the tensors of a sealed file, over its pages: EncryptedTensors of pyccmem, or
        with framework="pt" those of torch. Raises InvalidKeyError in a process without its key,
        IntegrityError for another file than expected, and what load_file() raises."""
        provider, key_id, _ = _named(self.path)
        options = Options(
            key_for(provider, key_id), self.expect, True, framework=framework_named(framework)
        )
        return load_from(self.path, options, False)

    def load(self, loader: Callable[..., Any], **arguments: Any) -> Any:
        """Returns loader(path, **arguments), which loads with this process's key: AutoModel's
        from_pretrained, SentenceTransformer, a function of yours. A process keeps the last few
        models, by path, pin, loader and arguments, and the next task that asks has the same one.

        Raises MissingFileError for a directory without sealed files, InvalidKeyError in a process
        without their key, IntegrityError for other files than expected, MissingPackageError, and
        what the loader raises."""
        if not callable(loader):
            raise errors.ArgumentTypeError(
                f"loader must be a function or class that takes a path, not "
                f"{type(loader).__name__}."
            )
        pins = tuple(sorted(self.expect.items())) if isinstance(self.expect, dict) else self.expect
        at = self.path, pins, loader, tuple(sorted((k, repr(v)) for k, v in arguments.items()))
        with _lock:
            if at not in _kept:
                from ..transformers import using_key

                key = self._checked()
                with using_key(key):
                    _kept[at] = loader(self.path, **arguments)
                while len(_kept) > _MOST_KEPT:
                    _kept.popitem(last=False)
            _kept.move_to_end(at)
            return _kept[at]

    def _checked(self) -> AnyKey:
        """Returns the key of the sealed files, which are those expected."""
        if os.path.isfile(self.path):
            provider, key_id, pin = _named(self.path)
            found = {os.path.basename(self.path): pin}
            expect = (
                self.expect if self.expect is None else {os.path.basename(self.path): self.expect}
            )
        else:
            names = dict(_sealed_files(self.path))
            if not names:
                raise errors.MissingFileError(
                    f"{self.path!r} has no sealed files here; each node needs the directory that "
                    f"`pyccmem encrypt` made, at this path."
                )
            provider, key_id, _ = next(iter(names.values()))
            found = {name: pin for name, (_, _, pin) in names.items()}
            expect = self.expect
            if is_directory_pin(expect):
                key = key_for(provider, key_id)
                expected_pins(self.path, key, expect)
                return key
        if expect is not None:
            _check(self.path, found, expect)
        return key_for(provider, key_id)


def _check(path: str, found: Mapping[str, str], expect: Any) -> None:
    """Raises IntegrityError unless each expected file is there, of its id and of no earlier
    generation, and no other; ArgumentTypeError for what are no pins."""
    if not isinstance(expect, dict):
        raise errors.ArgumentTypeError(
            f"expect of a directory must be its pin, 'dir:...', or the pins of its files by name, "
            f"not {type(expect).__name__}."
        )
    for name in sorted({*found, *expect}):
        have, wanted = found.get(name), expect.get(name)
        if have is None or wanted is None:
            what = "is missing" if have is None else "was not expected"
            raise errors.IntegrityError(
                f"The sealed file {name!a} of {path!a} {what}; use the directory that was pinned."
            )
        found_pin, wanted_pin = _pinned(have), _pinned(wanted)
        if found_pin.file_id != wanted_pin.file_id or found_pin.generation < wanted_pin.generation:
            raise errors.IntegrityError(
                f"The sealed file {name!a} of {path!a} is {have}, and {wanted} was pinned: another "
                f"file, or an older one; use the directory that was pinned."
            )


def _pinned(pin: Any) -> Expected:
    found = expected(pin)
    if found is None:
        raise errors.ArgumentTypeError("A pin must be 'FILE_ID:GENERATION', not None.")
    return found


def _sealed_files(folder: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for path in sorted(Path(folder).rglob("*.safetensors")):
        try:
            yield str(path.relative_to(folder)), _named(str(path))
        except errors.FileFormatError:
            continue


def _named(path: str) -> tuple[str, str, str]:
    """Returns the provider and the key's id that a sealed file names, and its pin."""
    with open_file(path) as file:
        header = read_all(file)
    if not looks_sealed(header):
        raise errors.FileFormatError(
            f"{path!r} is not a sealed file; seal it with `pyccmem encrypt`."
        )
    found = parse(header)
    pin = f"{found.file_id.hex()}:{found.generation}"
    return found.provider, found.wrapped.key_id, pin
