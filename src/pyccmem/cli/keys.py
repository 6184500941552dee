# SPDX-License-Identifier: Apache-2.0
"""The options that name a key, and the way from them to the key."""

from __future__ import annotations

import argparse
import getpass
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .. import errors
from ..console.command import complain
from ..files.safetensors_header import open_file
from ..key_services import from_uri
from ..keys import Key
from ..safetensors.providers import AnyKey, Passphrase, provider_named

__all__ = [
    "add_context_option",
    "add_key_options",
    "close",
    "context_of",
    "key_of",
    "with_warnings",
]

_MAX_PASSPHRASE = 1 << 16


def add_key_options(
    parser: argparse.ArgumentParser,
    title: str = "the key",
    *,
    prefix: str = "",
    sealing: bool = False,
    required: bool = True,
) -> None:
    """Adds --key-file and the other options for a key, each with `prefix` before its name.
    `sealing` also adds the choice of how a passphrase becomes a key."""
    group = parser.add_argument_group(title)
    one = group.add_mutually_exclusive_group(required=required)
    one.add_argument(
        f"--{prefix}key-file", metavar="FILE", help="a key file, as `pyccmem keygen` makes them"
    )
    one.add_argument(
        f"--{prefix}key",
        metavar="URI",
        help="a key's URI: file:PATH, env:NAME, fd:N, systemd-creds:NAME, or that of a key service",
    )
    one.add_argument(f"--{prefix}passphrase", action="store_true", help="ask for a passphrase")
    one.add_argument(
        f"--{prefix}passphrase-file", metavar="FILE", help="a passphrase: the file's first line"
    )
    one.add_argument(
        f"--{prefix}provider", metavar="NAME", help="a key service of an installed package"
    )
    if sealing:
        group.add_argument(
            f"--{prefix}kdf",
            choices=("scrypt", "argon2id"),
            default="scrypt",
            help="how a passphrase becomes a key (scrypt)",
        )


@contextmanager
def key_of(arguments: argparse.Namespace, prefix: str = "") -> Iterator[AnyKey | None]:
    """Gives the key that the options name to a block, or None if they name none. Raises
    KeyFileError, InvalidKeyError, FileReadError, ArgumentError."""

    def option(name: str) -> str | None:
        value: str | None = getattr(arguments, f"{prefix}{name}".replace("-", "_"), None)
        return value

    kdf = option("kdf")
    key: AnyKey | None = None
    if option("key-file"):
        key = with_warnings(lambda: Key.from_file(option("key-file") or ""))
    elif option("key"):
        key = with_warnings(lambda: from_uri(option("key") or ""))
    elif option("passphrase"):
        key = Passphrase(_ask(prefix, twice=kdf is not None), kdf=kdf or "scrypt")
    elif option("passphrase-file"):
        key = Passphrase(_first_line(option("passphrase-file") or ""), kdf=kdf or "scrypt")
    elif option("provider"):
        key = provider_named(option("provider") or "")
    try:
        yield key
    finally:
        close(key)


def close(key: object) -> None:
    """Closes a key, a passphrase, or a provider that can be closed."""
    if hasattr(key, "close"):
        key.close()


_Made = TypeVar("_Made")


def with_warnings(make: Callable[[], _Made]) -> _Made:
    """Returns what `make` returns, and says on standard error what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    for warning in caught:
        complain(str(warning.message))
    return made


def add_context_option(parser: argparse.ArgumentParser, name: str, purpose: str) -> None:
    """Adds an option that names texts of a context, any number of times."""
    parser.add_argument(
        name, metavar="NAME=VALUE", action="append", default=None, help=f"{purpose} (repeatable)"
    )


def context_of(values: list[str] | None) -> dict[str, str] | None:
    """Returns the context that such options give, None for none. Raises ArgumentError."""
    if values is None:
        return None
    found: dict[str, str] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise errors.ArgumentError(
                f"A context is NAME=VALUE, and not {text[:60]!a}; write a '=' between the two."
            )
        if found.setdefault(name, value) != value:
            raise errors.ArgumentError(
                f"The context has {name[:60]!a} twice, with two values; name it once."
            )
    return found


def _ask(prefix: str, *, twice: bool) -> str:
    what = f"{prefix.replace('-', ' ')}passphrase".capitalize()
    try:
        text = _asked(what)
        if twice and _asked(f"{what} again") != text:
            raise errors.ArgumentError("The two passphrases differ; type the same one twice.")
    except EOFError:
        raise errors.ArgumentError(
            "No passphrase can be asked for: standard input has ended; use --passphrase-file."
        ) from None
    return text


def _asked(what: str) -> str:
    """Returns what the user types at the terminal, or else the next line of standard input. Raises
    EOFError."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(f"{what}: ")
        except getpass.GetPassWarning:  # no terminal, so nothing shows the input
            pass
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _first_line(path: str) -> str:
    with open_file(path, "a file whose first line is the passphrase") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            complain(
                f"The passphrase file {path!r} can be read by other users "
                f"(mode {stat.S_IMODE(mode):04o}); give it mode 0600."
            )
        try:
            data = bytes(file.read(_MAX_PASSPHRASE) or b"")
        except OSError as error:
            raise errors.FileReadError(
                f"The passphrase file {path!r} cannot be read: {error.strerror}."
            ).of_system(error.errno, path) from None
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
    # Raised outside the except block, because the UnicodeError holds the passphrase.
    raise errors.InvalidKeyError(f"Byte {at} of the passphrase in {path!r} is not UTF-8.")
