# SPDX-License-Identifier: Apache-2.0
"""The root key: 32 bytes in secret memory, from which every buffer derives keys of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import warnings
from typing import Any

from . import errors
from .binding import CIPHERS, LEVELS, Call, anchor, check, ffi, lib
from .binding.arguments import exact_bytes, input_buffer, integer, output_buffer
from .binding.owned import KEY, Descriptor
from .binding.status import KeyCall, KeyFileCall, UnwrapCall
from .binding.wiped import wipe_bytes
from .core.forks import opening
from .core.resource import Resource
from .core.secret_level import native_level, wanted_level

__all__ = ["Key", "KeyFile"]

_SALT_SIZE_MIN = 16  # NIST SP 800-132, 5.1: at least 128 bits


_KEY = Call(subject="key")


def _scrypt() -> Any:
    """Returns hashlib's scrypt, imported here because it loads OpenSSL, which nothing else needs.

    Its own extension module is asked first: where that cannot be loaded, hashlib is imported
    without scrypt, prints a page of tracebacks, and stays so for good.

    Raises OutOfMemoryError, MissingPackageError.
    """
    try:
        import _hashlib  # noqa: F401
        import hashlib

        return hashlib.scrypt
    except (ImportError, AttributeError) as problem:
        reason = str(problem)
    except MemoryError:
        reason = "Cannot allocate memory"
    if "map segment" in reason or "allocate memory" in reason:  # the words of the loader
        raise errors.OutOfMemoryError(
            f"scrypt could not get the memory that OpenSSL takes ({reason}); free some memory."
        )
    raise errors.MissingPackageError(
        f"A key from a passphrase needs scrypt, and this Python has none ({reason}); use one that "
        f"was built with OpenSSL, or another key."
    )


class KeyFile:
    """A file from which a key can be read again: its name, and the id of the key that it held."""

    __slots__ = ("_id", "_name", "_require")

    def __init__(self, name: str | bytes, require: str | None, identity: str) -> None:
        self._name, self._require, self._id = name, require, identity
        with contextlib.suppress(OSError):  # the working directory is gone
            self._name = os.path.abspath(name)

    @property
    def name(self) -> str | bytes:
        """The file's name, absolute."""
        return os.path.abspath(self._name)

    def obstacle(self) -> str | None:
        """Returns why the file cannot be read, as the end of a sentence; None when it seems that it
        can."""
        if os.access(self._name, os.R_OK):
            return None
        return f"its key file {os.fsdecode(self._name)!r} cannot be read any more"

    def key(self) -> Key:
        """Reads the key again. Raises ForkError if the file now holds another key, and what
        Key.from_file() raises."""
        key, _ = Key._read(self._name, self._require)
        if key.id != self._id:
            key.close()
            raise errors.ForkError(
                f"The key file {os.fsdecode(self._name)!r} holds another key than it did before "
                f"this process was forked; start the server again, or load what it has sealed in "
                f"this process."
            )
        key._source = self
        return key


class Key(Resource):
    """A root key of 32 bytes, which is kept out of dumps, swap files, child processes and pickles.

    Made by generate(), from_bytes(), from_file() or from_passphrase(). The bytes lie in
    memfd_secret memory where the system has it, else in locked memory that is left out of dumps;
    the property `level` says which. `require="secretmem"` raises SecretMemoryError instead of
    falling back. `level="mlock"` takes locked memory even where the system has better: a system
    cannot hibernate while it has secretmem. The environment variable PYCCMEM_SECRET (mlock or
    secretmem) sets the level of keys for which the program names neither.

    Buffers derive their keys when they are made, so a Key may be closed before its buffers. A Key
    does not follow a fork: using it in the child raises ForkError. Only a key from a file can be
    used, because the child reads it again.
    """

    __slots__ = ("_anchor", "_key", "_level", "_source")

    _instead_of_a_copy = "load the key again in the other process"

    _key: Any
    _anchor: Any
    _level: str
    _source: KeyFile | None

    def __init__(self) -> None:
        self._key = None
        self._anchor = None
        raise errors.ArgumentTypeError(
            "Key() makes no key; use Key.generate(), Key.from_bytes(), Key.from_file() or "
            "Key.from_passphrase()."
        )

    @classmethod
    def _adopt(cls, out: Any) -> Key:
        """Takes over the native key in a cell."""
        self = cls.__new__(cls)
        # Closing only drops this reference. A call in another thread holds its own, and the end of
        # the last reference wipes and frees the native key.
        self._key = KEY.own(out)
        self._anchor = anchor(self._key)
        self._level = LEVELS[lib.ccmem_key_level(self._key)]
        self._source = None
        return self

    @classmethod
    def generate(cls, *, require: str | None = None, level: str | None = None) -> Key:
        """Makes a new random key.

        Raises SecretMemoryError, LockedMemoryError, OutOfMemoryError, EntropyError.
        """
        require = wanted_level(require, level)
        out = KEY.cell()
        status = lib.ccmem_key_generate(native_level(require), out)
        check(status, KeyCall("a key", require))
        return cls._adopt(out)

    @classmethod
    def from_bytes(cls, data: Any, *, require: str | None = None, level: str | None = None) -> Key:
        """Returns a key made of exactly 32 bytes (any contiguous bytes-like object), which are
        copied.

        The caller's copy stays as it is; a bytearray can be overwritten afterwards, bytes cannot.
        Raises InvalidKeyError for another length, BufferTypeError, and what generate() raises.
        """
        require = wanted_level(require, level)
        native = native_level(require)
        out = KEY.cell()
        size = (lib.CCMEM_ROOT_KEY_SIZE,)
        with exact_bytes("The key", data, size, errors.InvalidKeyError) as source:
            status = lib.ccmem_key_from_bytes(source, native, out)
        check(status, KeyCall("a key", require))
        return cls._adopt(out)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        require: str | None = None,
        level: str | None = None,
    ) -> Key:
        """Returns the key in a regular file of exactly 32 bytes, or of 64 hexadecimal digits. Up to
        16 spaces, tabs and ends of lines (CRLF too) may follow the digits, and a UTF-8 byte order
        mark may precede them. The bytes go straight into secret memory, never through the Python
        heap.

        Raises KeyFileError when the file cannot be read, InvalidKeyError when it holds something
        else, and what generate() raises. Warns with InsecureKeyFileWarning when the file's mode
        lets its group or others read it.
        """
        require = wanted_level(require, level)
        try:
            name = os.fspath(path)
        except TypeError:
            raise errors.ArgumentTypeError(
                f"path must be a file's name, not {type(path).__name__}."
            ) from None
        key, mode = cls._read(name, require)
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            warnings.warn(
                f"The key file {os.fsdecode(name)!r} can be read by other users "
                f"(mode {stat.S_IMODE(mode):04o}); give it mode 0600.",
                errors.InsecureKeyFileWarning,
                stacklevel=2,
            )
        key._source = KeyFile(name, require, key.id)
        return key

    @classmethod
    def _read(cls, name: str | bytes, require: str | None) -> tuple[Key, int]:
        """Returns the key in a file, and the file's mode."""
        level = native_level(require)
        out = KEY.cell()
        mode = 0
        try:
            # O_NONBLOCK: opening a FIFO without a writer must not hang.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            with Descriptor.open(name, flags) as descriptor:
                mode = os.fstat(descriptor).st_mode
                if not stat.S_ISREG(mode):
                    raise errors.KeyFileError(
                        f"{os.fsdecode(name)!r} is not a regular file; a key is read from one "
                        f"only, never from a pipe, device or directory."
                    ).of_system(errno.EINVAL, name)
                status = lib.ccmem_key_from_fd(descriptor, level, out)
                number = ffi.errno
        except errors.KeyFileError:
            raise
        except ValueError as problem:  # a null byte in the name
            raise errors.ArgumentError(f"path is not a file's name: {problem}.") from None
        except OSError as problem:
            status, number = lib.CCMEM_ERR_IO, problem.errno
        check(status, KeyFileCall("a key", require, os.fsdecode(name), number))
        return cls._adopt(out), mode

    @classmethod
    def _from_text(cls, data: Any, require: str | None = None) -> Key:
        """Returns the key in a buffer of text: 64 hexadecimal digits, or 32 bytes in base64. The
        buffer is left as it is. Raises InvalidKeyError for other text, BufferTypeError, and what
        generate() raises."""
        require = wanted_level(require, None)
        level = native_level(require)
        out = KEY.cell()
        with input_buffer("data", data) as source:
            status = lib.ccmem_key_from_text(source, len(source), level, out)
            length = len(source)
        if status == lib.CCMEM_ERR_KEYFILE:
            raise errors.InvalidKeyError(
                f"The text of {length} bytes is no key; it must be 64 hexadecimal digits, or 32 "
                f"bytes in base64."
            )
        check(status, KeyCall("a key", require))
        return cls._adopt(out)

    @classmethod
    def _from_descriptor(cls, number: int, require: str | None = None) -> Key:
        """Returns the key that can be read from an open descriptor up to its end, as a key file
        has it. The descriptor stays open. Raises KeyFileError, InvalidKeyError for other contents,
        and what generate() raises."""
        require = wanted_level(require, None)
        level = native_level(require)
        out = KEY.cell()
        status = lib.ccmem_key_from_fd(number, level, out)
        check(status, KeyFileCall("a key", require, f"descriptor {number}", ffi.errno))
        return cls._adopt(out)

    @classmethod
    def from_passphrase(
        cls,
        text: str,
        *,
        salt: Any,
        n: int = 2**17,
        r: int = 8,
        p: int = 1,
        require: str | None = None,
        level: str | None = None,
    ) -> Key:
        """Returns a key derived from a passphrase by scrypt (RFC 7914): from the UTF-8 form of
        `text`, unchanged, and a `salt` of 16 bytes or more, which is unique to this key but not
        secret.

        `n`, `r` and `p` are scrypt's cost, block size and parallelism; the defaults take 128 MiB
        and a fraction of a second. The same passphrase, salt and parameters give the same key.

        The derived bytes and the encoded passphrase are overwritten after use. `text` itself cannot
        be, like any str, nor can copies that the str or OpenSSL keep.

        Raises InvalidKeyError for an empty passphrase or a short salt, ArgumentError for scrypt
        parameters out of range, MissingPackageError where Python has no OpenSSL, and what
        generate() raises.
        """
        require = wanted_level(require, level)
        native = native_level(require)
        if not isinstance(text, str):
            raise errors.ArgumentTypeError(
                f"A passphrase must be a str, not {type(text).__name__}; for key bytes use "
                f"Key.from_bytes()."
            )
        if not text:
            raise errors.InvalidKeyError("The passphrase is empty; use a long, random one.")
        with input_buffer("salt", salt) as source:
            salt_bytes = bytes(ffi.buffer(source))
        if len(salt_bytes) < _SALT_SIZE_MIN:
            raise errors.InvalidKeyError(
                f"The salt has {len(salt_bytes)} bytes; use {_SALT_SIZE_MIN} random bytes or more."
            )
        n, r, p = integer("n", n), integer("r", r), integer("p", p)
        if n < 2 or n & (n - 1) or r < 1 or p < 1 or r * p >= 2**30 or 128 * n * r >= 2**40:
            raise errors.ArgumentError(
                f"scrypt cannot use n={n}, r={r}, p={p}; n must be a power of two from 2, r and p "
                f"at least 1, and the memory of 128 * n * r bytes below 1 TiB."
            )
        scrypt = _scrypt()
        encoded = None
        with contextlib.suppress(UnicodeEncodeError):
            encoded = text.encode("utf-8")
        if encoded is None:
            # Raised outside the except block: the UnicodeError holds the passphrase, which would
            # stay in __context__ even with `from None`.
            raise errors.InvalidKeyError(
                "The passphrase has a character that UTF-8 cannot encode (a lone surrogate); use "
                "whole characters."
            )
        out_of_memory = (
            f"scrypt could not get its {128 * n * r} bytes of memory; free some memory or use a "
            f"smaller n."
        )
        out = KEY.cell()
        derived = b""
        try:
            derived = scrypt(
                encoded,
                salt=salt_bytes,
                n=n,
                r=r,
                p=p,
                maxmem=128 * r * (n + p + 2) + 2**20,
                dklen=lib.CCMEM_ROOT_KEY_SIZE,
            )
            status = lib.ccmem_key_from_bytes(ffi.from_buffer(derived), native, out)
        except MemoryError:
            raise errors.OutOfMemoryError(out_of_memory) from None
        except (ValueError, OverflowError) as problem:
            if "malloc failure" in str(problem):  # OpenSSL's words for MemoryError
                raise errors.OutOfMemoryError(out_of_memory) from None
            raise errors.ArgumentError(
                f"scrypt refused n={n}, r={r}, p={p} ({problem}); use the defaults."
            ) from None
        finally:
            wipe_bytes(derived)
            wipe_bytes(encoded)
        check(status, KeyCall("a key", require))
        return cls._adopt(out)

    # ---- keys of files ----

    @property
    def id(self) -> str:
        """A public name of the key: 32 hexadecimal digits derived from it, which tell keys apart
        and reveal nothing else. Raises ClosedError, ForkError."""
        out = ffi.new("uint8_t[]", lib.CCMEM_KEY_ID_SIZE)
        check(lib.ccmem_key_id(self._opened(), out), Call("the key's id", "key"))
        return bytes(ffi.buffer(out)).hex()

    def _wrap(self, data_key: Key) -> bytes:
        """Returns `data_key` encrypted under this key (AES-256 key wrap, RFC 3394), 40 bytes.

        Raises ClosedError, ForkError, LockedMemoryError, OutOfMemoryError.
        """
        out = ffi.new("uint8_t[]", lib.CCMEM_WRAPPED_KEY_SIZE)
        status = lib.ccmem_key_wrap(self._opened(), data_key._opened(), out)
        check(status, Call("wrapping a key", "key"))
        return bytes(ffi.buffer(out))

    def _unwrap(self, wrapped: Any, require: str | None = None) -> Key:
        """Returns the key that _wrap() encrypted, in secret memory.

        Raises IntegrityError when it was wrapped under another key or changed, ArgumentError for
        another length, ClosedError, ForkError, and what generate() raises.
        """
        level = native_level(require)
        sizes = (lib.CCMEM_WRAPPED_KEY_SIZE,)
        out = KEY.cell()
        with exact_bytes("The wrapped key", wrapped, sizes, errors.ArgumentError) as source:
            status = lib.ccmem_key_unwrap(self._opened(), source, level, out)
        check(status, UnwrapCall("unwrapping a key", require))
        return self._adopt(out)

    def _another(self) -> Key:
        """Returns another object for this key. Raises ClosedError, ForkError."""
        native = self._opened()
        new = Key.__new__(Key)
        new._key, new._anchor = native, self._anchor
        new._level, new._source = self._level, self._source
        return new

    def _for_context(self, digest: Any) -> Key:
        """Returns the key that is derived from this one for the context of this SHA-256, 32 bytes.

        Raises ArgumentError, BufferTypeError, ClosedError, ForkError, LockedMemoryError,
        OutOfMemoryError.
        """
        out = KEY.cell()
        size = (lib.CCMEM_CONTEXT_DIGEST_SIZE,)
        with exact_bytes("digest", digest, size, errors.ArgumentError) as source:
            status = lib.ccmem_key_for_context(self._opened(), source, out)
        check(status, KeyCall("a key for a context", None))
        return self._adopt(out)

    def _mac(self, cipher: str, context: Any, data: Any) -> bytes:
        """Returns the MAC of `data`, which tells of pages under the suite `cipher`: AES-CMAC, under
        SM4 half of HMAC-SM3. Its key is derived from this one for `context` of 16 bytes.

        Raises ArgumentError, BufferTypeError, ClosedError, ForkError, LockedMemoryError.
        """
        tag = ffi.new("uint8_t[]", lib.CCMEM_MAC_SIZE)
        size = (lib.CCMEM_STORE_ID_SIZE,)
        with (
            exact_bytes("context", context, size, errors.ArgumentError) as purpose,
            input_buffer("data", data) as source,
        ):
            status = lib.ccmem_key_mac(
                self._opened(), CIPHERS[cipher], purpose, source, len(source), tag
            )
        check(status, Call("the key that checks the tables of a sealed file", "key"))
        return bytes(ffi.buffer(tag))

    def _copy_into(self, out: Any) -> None:
        """Copies the key's bytes to `out`, a writable buffer of 32 bytes that the caller wipes, for
        a key service that wraps them itself.

        Raises ArgumentError, BufferTypeError, ClosedError, ForkError.
        """
        with output_buffer("out", out) as target:
            if len(target) != lib.CCMEM_ROOT_KEY_SIZE:
                raise errors.ArgumentError(
                    f"out has {len(target)} bytes; it must have {lib.CCMEM_ROOT_KEY_SIZE}."
                )
            status = lib.ccmem_key_copy(self._opened(), target)
        check(status, Call("a copy of the key", "key"))

    # ---- what it is ----

    @property
    def level(self) -> str:
        """How well the key's memory is hidden: "secretmem" (memfd_secret, which not even root sees
        in /proc/PID/mem) or "mlock" (locked, not dumped, not inherited)."""
        return self._level

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._key is None

    def close(self) -> None:
        """Wipes the key, at once or when the last call that uses it returns. May be repeated."""
        self._key = None
        self._anchor = None

    def _opened(self) -> Any:
        """Returns the native key for one call; the caller's reference keeps it alive. Raises
        ClosedError, ForkError."""
        native = self._key
        if native is None:
            raise errors.ClosedError("This key is closed; make a new one or close it later.")
        status = lib.ccmem_key_check(native)
        if status == lib.CCMEM_ERR_FORK and self._source is not None:
            return self._read_again(self._source)
        check(status, _KEY)
        return native

    def _usable(self) -> bool:
        """Returns True while the key is open, in the process that made it."""
        native = self._key
        return native is not None and lib.ccmem_key_check(native) == lib.CCMEM_OK

    def _read_again(self, source: KeyFile) -> Any:
        """Returns the native key in a forked child, read from its file. Raises ClosedError,
        ForkError."""
        with opening():
            if not self._usable() and self._key is not None:
                try:
                    new = source.key()
                except OSError as error:
                    raise errors.ForkError(
                        f"This key belongs to the process that this one was forked from, and "
                        f"cannot be read again: {error}"
                    ) from error
                self._level, self._anchor, self._key = new._level, new._anchor, new._key
        return self._opened()

    def _description(self) -> str:
        return self._level


# ---- what the rest of the package uses of a key --------------------------------------------------


def native_key(key: Any) -> Any:
    """Returns the native key of a Key, for one call. Raises ArgumentTypeError, ClosedError,
    ForkError."""
    if not isinstance(key, Key):
        raise errors.ArgumentTypeError(
            f"key must be a pyccmem.Key, not {type(key).__name__}; for key bytes use "
            f"Key.from_bytes()."
        )
    return key._opened()


def check_open(key: Key) -> None:
    """Raises ClosedError, or ForkError for a key that cannot be read again from a file."""
    key._opened()


def is_usable(key: Key) -> bool:
    """Returns True while the key is open, in the process that made it."""
    return key._usable()


def file_of(key: Key) -> KeyFile | None:
    """Returns where the key can be read again; None for a key that did not come from a file."""
    return key._source


def wrap(key: Key, data_key: Key) -> bytes:
    """Returns `data_key` encrypted under `key` (AES-256 key wrap, RFC 3394), 40 bytes.

    Raises ClosedError, ForkError, LockedMemoryError, OutOfMemoryError.
    """
    return key._wrap(data_key)


def unwrap(key: Key, wrapped: Any) -> Key:
    """Returns the key that wrap() encrypted, in secret memory.

    Raises IntegrityError when it was wrapped under another key or changed, ArgumentError for
    another length, ClosedError, ForkError, and what Key.generate() raises.
    """
    return key._unwrap(wrapped)


def from_text(data: Any) -> Key:
    """Returns the key in a buffer of text: 64 hexadecimal digits, or 32 bytes in base64. The buffer
    is left as it is. Raises InvalidKeyError for other text, and what Key.generate() raises."""
    return Key._from_text(data)


def from_descriptor(number: int) -> Key:
    """Returns the key that can be read from an open descriptor up to its end, as a key file has it.
    The descriptor stays open. Raises KeyFileError, InvalidKeyError for other contents, and what
    Key.generate() raises."""
    return Key._from_descriptor(number)


def another(key: Key) -> Key:
    """Returns another object for the same key, in the same memory, which is wiped when both are
    closed. Raises ClosedError, ForkError."""
    return key._another()


def for_context(key: Key, digest: Any) -> Key:
    """Returns the key that is derived from `key` for the context whose SHA-256 is `digest`, in
    secret memory: what is wrapped under it opens for no other context.

    Raises ArgumentError, BufferTypeError, ClosedError, ForkError, LockedMemoryError,
    OutOfMemoryError.
    """
    return key._for_context(digest)


def mac(key: Key, cipher: str, context: Any, data: Any) -> bytes:
    """Returns the MAC of `data`, which tells of pages under the suite `cipher`, under a key derived
    from `key` for `context` of 16 bytes.

    Raises ArgumentError, BufferTypeError, ClosedError, ForkError, LockedMemoryError.
    """
    return key._mac(cipher, context, data)


def copy_into(key: Key, out: Any) -> None:
    """Copies the key's bytes to `out`, a writable buffer of 32 bytes that the caller wipes, for a
    key service that wraps them itself, and for a key file.

    Raises ArgumentError, BufferTypeError, ClosedError, ForkError.
    """
    key._copy_into(out)
