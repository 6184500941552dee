# SPDX-License-Identifier: Apache-2.0
"""What the providers of services share: the options of their URIs, PINs and tokens from files, and
bytes that a client library made and that are wiped when they have been used."""

from __future__ import annotations

import binascii
import importlib
import io
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from .. import errors
from ..binding import ffi, wiped
from ..binding.owned import Descriptor
from ..core.registry import Registry
from .context import words

__all__ = [
    "KEY_BYTES",
    "PerProcess",
    "answered",
    "base64_of",
    "cover_answers",
    "imported",
    "not_for_context",
    "options",
    "own_bytes",
    "private_address",
    "quiet",
    "raised",
    "secret_text",
    "taken_base64",
]

KEY_BYTES = 32

#: The most characters of a PIN or a token in a file.
_MAX_TEXT = 1 << 14

#: Buffers of 8 KiB that are overwritten after an answer.
_COVERS = 16


def options(uri: str, known: tuple[str, ...], separator: str = "&") -> tuple[str, dict[str, str]]:
    """Returns what lies between the scheme and the question mark of a URI, as it stands, and the
    options behind it, decoded. Raises ArgumentError for an option that is not one of `known`, or
    comes twice."""
    rest = uri.partition(":")[2]
    path, _, query = rest.partition("?")
    found: dict[str, str] = {}
    for part in filter(None, query.split(separator)):
        name, equals, value = part.partition("=")
        name = unquote(name)
        if name not in known or not equals or name in found:
            wrong = "has twice" if name in found else "has no value for"
            raise errors.ArgumentError(
                f"The key's URI {wrong if name in known else 'has the unknown option'} {name!a}; "
                f"options of {uri.partition(':')[0]} are {', '.join(known) or 'none'}."
            )
        found[name] = unquote(value)
    return path, found


def imported(module: str, package: str, extra: str) -> Any:
    """Returns a module of an optional package. Raises MissingPackageError."""
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise errors.MissingPackageError(
            f"Keys of this kind need the package {package}, which is not installed "
            f"({problem}); pip install 'pyccmem[{extra}]'."
        ) from None


_Made = TypeVar("_Made")


class PerProcess(Generic[_Made]):
    """What each process makes once for itself, and its threads share: connections do not survive a
    fork, nor does a lock that another thread held then."""

    def __init__(self, make: Callable[[], _Made]) -> None:
        self._make = make
        self.forget()
        _per_process.add(self)

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._made: list[_Made] = []

    def __call__(self) -> _Made:
        """Returns it. Raises what making it raises."""
        made = self._made
        if not made:
            with self._lock:
                if not made:
                    made.append(self._make())
        return made[0]


_per_process: Registry[PerProcess[Any]] = Registry(16)


def _after_fork() -> None:
    for each in list(_per_process):
        each.forget()


os.register_at_fork(after_in_child=_after_fork)


def private_address(address: str) -> str:
    """Returns the address of a service, if nobody else can read what is sent there: it begins with
    https://, or is of this machine. Raises ArgumentError."""
    parts = urlsplit(address)
    host = (parts.hostname or "").lower()
    here = host in ("localhost", "::1") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host)
    if (
        not host
        or parts.username
        or not (parts.scheme == "https" or (parts.scheme == "http" and here))
    ):
        raise errors.ArgumentError(
            f"Keys are not sent to {address[:200]!a}; use an address that begins with https://."
        )
    return address


def secret_text(source: str, what: str) -> str:
    """Returns the text of a PIN or a token, without ends of lines behind it. `source` is file:PATH,
    a path that begins with a slash, or env:NAME.

    A str cannot be wiped: let the service's own policy limit what its holder may do. Raises
    ArgumentError for another source, KeyFileError for a file that cannot be read or holds none.
    """
    if source.startswith("env:"):
        text = os.environ.get(source[4:], "")
        if not text:
            raise errors.ArgumentError(
                f"The environment variable {source[4:]!a} is not set; set it to {what}, or name a "
                f"file."
            )
        return text
    path = source[5:] if source.startswith("file:") else source
    if path.startswith("///"):
        path = path[2:]
    if not path.startswith("/") and not source.startswith("file:"):
        raise errors.ArgumentError(
            f"{what[0].upper()}{what[1:]} is read from file:PATH or env:NAME, and the URI names "
            f"neither; a secret that stands in a URI shows in lists of processes and in logs."
        )
    data = b""
    reason = ""
    try:
        with Descriptor.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) as descriptor:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                data = os.read(descriptor, _MAX_TEXT)
            else:
                reason = "it is not a regular file"
    except (OSError, ValueError) as problem:
        reason = str(problem)
    text = ""
    if not reason:
        try:
            text = data.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            reason = "it is not UTF-8"
        wiped.wipe_bytes(data)
    if not text:
        raise errors.KeyFileError(
            f"{what[0].upper()}{what[1:]} cannot be read from {path!a}: {reason or 'it is empty'}; "
            f"write it there, for this user alone."
        )
    return text


# ---- bytes of client libraries -------------------------------------------------------------------


@contextmanager
def own_bytes(view: Any) -> Iterator[bytes]:
    """Gives a copy of a buffer as bytes to a block, for client libraries that take nothing else,
    and overwrites it afterwards."""
    data = bytes(view)
    try:
        yield data
    finally:
        wiped.wipe_bytes(data)


@contextmanager
def base64_of(view: Any) -> Iterator[bytes]:
    """Gives a buffer's base64 to a block, and overwrites it afterwards."""
    encoded = b""
    try:
        encoded = binascii.b2a_base64(view, newline=False)
        yield encoded
    finally:
        wiped.wipe_bytes(encoded)


def taken_base64(body: bytes, field: str) -> bytearray | None:
    """Returns what a field of a JSON text holds in base64 (or base64url), and overwrites the text's
    characters with "A", so that whatever reads, prints or keeps `body` afterwards finds none of it.
    Returns None for a text without such a field. The caller wipes what is returned.

    Every such field is overwritten, and the first one is returned: a forged answer may have
    several. `body` must be bytes that nothing else relies on."""
    found: bytearray | None = None
    pattern = rb'"' + re.escape(field.encode()) + rb'"\s*:\s*"((?:[A-Za-z0-9+_=-]|\\?/)*)"'
    for match in re.finditer(pattern, body):
        start, end = match.span(1)
        if start == end:
            continue
        if found is None:
            found = _decoded(memoryview(body)[start:end])
        # re keeps `body`, not what it matched, until it is asked for that.
        _blot(body, start, end)
    return found


def _blot(body: bytes, start: int, end: int) -> None:
    with ffi.from_buffer(body) as text:
        ffi.memmove(text + start, b"A" * (end - start), end - start)


def _decoded(text: memoryview) -> bytearray:
    """Returns the bytes of a base64 text, whose letters are all allowed ones."""
    plain = bytearray(len(text) + 3)  # of its last size: growing could leave a copy behind
    try:
        used = 0
        for letter in text:
            if letter != 0x5C:  # the escape before a slash
                plain[used] = {0x2D: 0x2B, 0x5F: 0x2F}.get(letter, letter)
                used += 1
        end = used + -used % 4
        plain[used:end] = b"=" * (end - used)
        decoded = b""
        with memoryview(plain) as view:
            try:
                decoded = binascii.a2b_base64(view[:end])
                return bytearray(decoded)
            except binascii.Error:
                return bytearray()
            finally:
                wiped.wipe_bytes(decoded)
    finally:
        wiped.wipe(plain)


def cover_answers() -> None:
    """Overwrites what HTTP clients have read an answer through and freed unwiped: buffers of 8 KiB,
    and pieces of the answer's size, which is below 2 KiB. It reaches them as far as the allocator
    gives them out again; it prefers those freed last."""
    zeros = bytes(io.DEFAULT_BUFFER_SIZE)
    kept: list[Any] = []
    for _ in range(_COVERS):
        raw: Any = io.BytesIO(zeros)
        kept.append(io.BufferedReader(raw))
        kept[-1].peek(1)
        # bytearray, since bytes of zeros come from calloc(), which passes over blocks freed last.
        kept += [bytearray(size) for size in range(15, 2064, 16)]


# ---- logs and exceptions -------------------------------------------------------------------------

_calling = threading.local()


class _Mute(logging.Filter):
    """Leaves out what a client library logs below WARNING while a key is on its way."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not getattr(_calling, "depth", 0)


_MUTE = _Mute()


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Keeps the loggers of client libraries from writing requests and answers, which hold keys,
    while a block runs in this thread. Warnings and errors are still written."""
    names = [
        name
        for name in list(logging.root.manager.loggerDict)
        if name.partition(".")[0] in libraries
    ]
    for name in names:
        logger = logging.getLogger(name)
        if _MUTE not in logger.filters:
            logger.addFilter(_MUTE)
    _calling.depth = getattr(_calling, "depth", 0) + 1
    try:
        yield
    finally:
        _calling.depth -= 1


def raised(
    call: Callable[[], Any], explain: Callable[[Exception], errors.PyccmemError | None]
) -> Any:
    """Returns what `call` returns. Raises, in place of an exception of a client library, what
    `explain` makes of it, and without it: its frames hold what the library was working on. Where
    `explain` returns None, the exception is raised as it is."""
    problem: errors.PyccmemError | None = None
    try:
        try:
            return call()
        except errors.PyccmemError:
            raise
        except Exception as error:
            problem = explain(error)
            if problem is None:
                raise
        raise problem
    finally:
        del problem  # its traceback has this frame


def answered(
    libraries: Iterable[str],
    call: Callable[[], Any],
    explain: Callable[[Exception], errors.PyccmemError | None],
) -> Any:
    """Returns what `call` returns, which asks a service for a key over HTTP: `libraries` do not log
    the answer, and what they have freed of it is overwritten as cover_answers() can. Raises as
    raised() does."""
    try:
        with quiet(*libraries):
            return raised(call, explain)
    finally:
        cover_answers()


def not_for_context(context: Mapping[str, str], service: str, key_id: str, given: str) -> NoReturn:
    """Raises for a wrapped key that a service could be asked about, and that does not open:
    InvalidKeyError if it was wrapped by a key of another name, else ContextError."""
    if key_id != given:
        raise errors.InvalidKeyError(
            f"{service} does not open this file's key: it was sealed for the key {key_id[:400]!a}, "
            f"not for {given!a}; use the former."
        )
    raise errors.ContextError(
        f"{service} does not open the wrapped key for this context: {words(context)}. It was "
        f"wrapped for another one, or was changed, or is of another file; use a good copy of the "
        f"file, and the context it was sealed with.",
        found=dict(context),
    )
