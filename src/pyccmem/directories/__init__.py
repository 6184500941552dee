# SPDX-License-Identifier: Apache-2.0
"""Seals and opens a model's directory as a whole.

    encrypt_directory("MiniLM", "MiniLM-sealed", key=key)

    *.safetensors            sealed, under its own name; shards one by one, their index unchanged
    *.gguf                   sealed as *.gguf.sealed; those of a model in several files one by one
    config.json              of transformers, beside sealed files: marks them as sealed
    everything else          copied: tokenizers, and what sentence-transformers keeps beside them
    names that begin with .  left out: version control and caches may hold the weights once more

    rotate_directory("MiniLM-sealed", key, new)    for another key, all files at once
    directory_pin(pins), pins_of("MiniLM-sealed", key)    one pin for all files

Weights in other formats (pickles, HDF5, ...) are refused, because a copy would lie in the
clear beside the sealed files.
"""

from .copies import decrypt_directory, encrypt_directory
from .pins import directory_pin, expected_pins, is_directory_pin, pins_of
from .rotating import Rotated, rotate_directory

__all__ = [
    "Rotated",
    "decrypt_directory",
    "directory_pin",
    "encrypt_directory",
    "expected_pins",
    "is_directory_pin",
    "pins_of",
    "rotate_directory",
]
