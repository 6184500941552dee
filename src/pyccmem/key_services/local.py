# SPDX-License-Identifier: Apache-2.0
"""Keys that this machine hands to the process: in a file, the environment, a descriptor, or a
credential of systemd. All of them give a Key, whose bytes go straight into secret memory."""

from __future__ import annotations

import contextlib
import os
import sys
from urllib.parse import unquote

from .. import errors, keys
from ..binding import ffi, lib
from ..binding.wiped import wipe_bytes
from ..keys import Key

__all__ = ["Descriptor", "Environment", "File", "SystemdCredential"]

#: The variable with the directory of a service's credentials; see systemd.exec(5).
_CREDENTIALS = "CREDENTIALS_DIRECTORY"


def _rest(uri: str, what: str) -> str:
    """Returns what follows the scheme, decoded. Raises ArgumentError if that is nothing."""
    rest = unquote(uri.partition(":")[2])
    if not rest or "\0" in rest:
        scheme = uri.partition(":")[0]
        raise errors.ArgumentError(f"The URI {scheme}: names no {what}; write it after the colon.")
    return rest


def _shown(name: str) -> str:
    """Returns a name for an error; not one that is as long as a key, since it may be one, which
    somebody wrote where its name belongs."""
    return ascii(name) if len(name) <= 40 else f"of {len(name)} characters"


class File:
    """file:PATH, a key file as `pyccmem keygen` makes it. PATH is as it stands, with %25 for a
    percent sign; it may begin with //, as in file:///etc/model.key."""

    @staticmethod
    def from_uri(uri: str) -> Key:
        """Returns the key, which a forked child reads again. Raises what Key.from_file() raises."""
        path = _rest(uri, "file")
        if path.startswith("//"):
            host, slash, path = path[2:].partition("/")
            if host not in ("", "localhost") or not slash:
                raise errors.ArgumentError(
                    f"The URI {uri[:60]!a} names a file of the host {host!a}; write file:PATH, or "
                    f"file:///PATH."
                )
            path = slash + path
        return Key.from_file(path)


class Environment:
    """env:NAME, an environment variable with 64 hexadecimal digits, or 32 bytes in base64.

    The variable is taken: it is no longer set afterwards, and its value is overwritten in the block
    that the process was given its environment in (which /proc/PID/environ shows) and in os.environ.
    What has copied it before keeps its copy: the process that set it, children that were started
    meanwhile, and code that read os.environ. It is there for systems that offer nothing better.
    """

    @staticmethod
    def from_uri(uri: str) -> Key:
        """Returns the key. Raises InvalidKeyError for a variable that is not set, or that holds
        something else; then it stays as it is. A forked child cannot read it again."""
        name = _rest(uri, "environment variable")
        if "=" in name:
            raise errors.ArgumentError(
                "The URI has a '=' in the name of an environment variable; write env:NAME, and put "
                "the key into the variable."
            )
        encoded = os.fsencode(name)
        if encoded not in os.environb:
            raise errors.InvalidKeyError(
                f"The environment variable {_shown(name)} is not set, or a key was taken from "
                f"it before; set it to 64 hexadecimal digits, or to 32 bytes in base64."
            )
        key = keys.from_text(os.environb[encoded])
        lib.ccmem_environment_wipe(ffi.from_buffer(encoded + b"\0"))
        value = os.environb.pop(encoded)
        # The object is overwritten where nothing else refers to it: this name, and the argument.
        if sys.getrefcount(value) <= 2:
            wipe_bytes(value)
        return key


class Descriptor:
    """fd:N, an open descriptor (a pipe, a file, a memfd) from which a key file's contents can be
    read up to the end."""

    @staticmethod
    def from_uri(uri: str) -> Key:
        """Returns the key, and closes the descriptor, so that nothing reads it there again; but
        for 0, 1 and 2, which programs count on. Raises ArgumentError, KeyFileError,
        InvalidKeyError. A forked child cannot read it again."""
        text = _rest(uri, "descriptor")
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise errors.ArgumentError("The URI names no descriptor; write its number, as in fd:3.")
        number = int(text)
        try:
            return keys.from_descriptor(number)
        finally:
            if number > 2:
                _close(number)


def _close(number: int) -> None:
    with contextlib.suppress(OSError):  # it is not open, as the reading has told
        os.close(number)


class SystemdCredential:
    """systemd-creds:NAME, a credential of the service (LoadCredential=, LoadCredentialEncrypted= in
    its unit), with the contents of a key file. systemd keeps them in memory that is not swapped,
    for as long as the service runs, and does not renew them."""

    @staticmethod
    def from_uri(uri: str) -> Key:
        """Returns the key, which a forked child reads again. Raises InvalidKeyError where there are
        no credentials, ArgumentError, and what Key.from_file() raises."""
        name = _rest(uri, "credential")
        if "/" in name or name in (".", ".."):
            raise errors.ArgumentError(
                f"No credential can be called {name[:60]!a}; write its name, without a directory."
            )
        directory = os.environ.get(_CREDENTIALS)
        if not directory:
            raise errors.InvalidKeyError(
                f"There are no credentials: {_CREDENTIALS} is not set. Start the program as a "
                f"service of systemd with LoadCredential={name}:FILE, or use file:PATH."
            )
        return Key.from_file(os.path.join(directory, name))
