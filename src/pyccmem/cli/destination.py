# SPDX-License-Identifier: Apache-2.0
"""Checks the destination of commands that make a file or directory."""

from __future__ import annotations

import argparse
import os

from .. import errors

__all__ = ["add_force", "check_destination"]


def add_force(parser: argparse.ArgumentParser) -> None:
    """Adds --force."""
    parser.add_argument(
        "--force", action="store_true", help="replace a file DST; a directory is never replaced"
    )


def check_destination(src: str, dst: str, *, force: bool) -> None:
    """Raises ArgumentError for a DST that exists and must not be replaced. Called before a
    passphrase is asked for."""
    if os.path.isdir(src):
        if force:
            raise errors.ArgumentError(
                "--force is for a file; name a new directory, or remove the old one first."
            )
    elif os.path.isdir(dst):
        raise errors.ArgumentError(
            f"{dst!r} is a directory, and {src!r} is not; name the file to make, perhaps "
            f"{os.path.join(dst, os.path.basename(src))!r}."
        )
    elif os.path.exists(dst) and not force:
        raise errors.ArgumentError(f"{dst!r} is there already; name another file, or use --force.")
