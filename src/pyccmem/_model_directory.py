# SPDX-License-Identifier: Apache-2.0
"""Moved to directories; for what has not followed yet."""

from .directories import decrypt_directory, encrypt_directory
from .directories.marks import METHOD, WEIGHTS_ELSEWHERE, hides_names, mark_directory, sealed_name

__all__ = [
    "METHOD",
    "WEIGHTS_ELSEWHERE",
    "decrypt_directory",
    "encrypt_directory",
    "hides_names",
    "mark_directory",
    "sealed_name",
]
