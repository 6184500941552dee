# SPDX-License-Identifier: Apache-2.0
"""A model's directory as a whole, sealed and opened again.

    encrypt_directory("MiniLM", "MiniLM-sealed", key=key)

    *.safetensors            sealed, under its own name; shards one by one, their index as it is
    config.json              of transformers, beside sealed files: says that they are sealed
    everything else          copied: tokenizers, and what sentence-transformers keeps beside them
    names that begin with .  left out: version control and caches may hold the weights once more

Weights of any other kind (pickled ones, GGUF, HDF5, ...) are refused, since a copy would lie in the
clear beside the sealed files.
"""

from .copies import decrypt_directory, encrypt_directory

__all__ = ["decrypt_directory", "encrypt_directory"]
