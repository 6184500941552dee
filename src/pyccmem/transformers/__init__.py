# SPDX-License-Identifier: Apache-2.0
"""Sealed directories for transformers: import this, and from_pretrained() loads them.

    import pyccmem.transformers
    from transformers import AutoModel

    with pyccmem.transformers.using_key(key):
        model = AutoModel.from_pretrained("MiniLM-sealed")   # made by `pyccmem encrypt`

Each parameter is a pyccmem.torch.EncryptedTensor over the pages of the file. Nothing is decrypted,
or even read, before the model works with it. save_pretrained() writes sealed files.
SentenceTransformer("MiniLM-sealed") does the same. A plain directory is encrypted while it is
loaded, if from_pretrained() is given `quantization_config=PyccmemConfig(key=key)`.

The key is that of PyccmemConfig, else that of using_key(), else that of the URI in the environment
variable PYCCMEM_KEY, else that of the file which PYCCMEM_KEY_FILE names. It is never written to a
config.json.

transformers sees a method of quantization, "pyccmem", which its own decorators register:

config      PyccmemConfig, which from_pretrained() takes, and its part of config.json
keys        where the key comes from
quantizer   answers transformers at each step of loading and saving
files       a sealed file in place of the one that transformers would open or write
hooks       replaces functions of transformers by these
heads       encrypts the output embedding that transformers makes anew
adapters    PEFT, which reads and writes its adapters itself
sentences   modules of sentence-transformers that read and write weights themselves
save        save_pretrained() for a model that was encrypted in memory
gguf        from_gguf(), and sealed GGUF files in from_pretrained(); gguf_config, gguf_names,
            gguf_weights, gguf_quantizer, what they are made of

What a user says is encrypted as well, while generate() works with it:

    pyccmem.transformers.protect_inputs(model)

cache            EncryptedCache, for generate(cache=...); protect_inputs() makes one for each call
layers           its layers, with and without a sliding window; tables, what is native of them
handles          what update() returns: keys and values by name, which stay encrypted
attention        the implementation "pyccmem" that takes these; plain_attention, over plain ones
masks            as few numbers as say the same; deferred, tensors that are made when looked at
ids              the text that a cache is of, encrypted
batching         continuous batching; batch_cache, its cache; batch_attention, over many requests
protect          protect_inputs()
"""

from __future__ import annotations

from .. import errors

try:
    import torch as _torch
    import transformers as _transformers
except ImportError as error:
    raise errors.MissingPackageError(
        f"pyccmem.transformers needs torch and transformers ({error}); "
        f"pip install 'pyccmem[transformers]'."
    ) from None

from . import adapters, attention, batching, hooks
from .cache import EncryptedCache, EncryptedEncoderDecoderCache
from .config import PyccmemConfig
from .gguf import from_gguf, tokenizer_from_gguf
from .keys import KEY_FILE_VARIABLE, KEY_VARIABLE, using_key
from .protect import protect_inputs, protected_inputs, unprotect_inputs
from .quantizer import PyccmemQuantizer
from .save import save_pretrained

__all__ = [
    "KEY_FILE_VARIABLE",
    "KEY_VARIABLE",
    "EncryptedCache",
    "EncryptedEncoderDecoderCache",
    "PyccmemConfig",
    "PyccmemQuantizer",
    "from_gguf",
    "protect_inputs",
    "protected_inputs",
    "save_pretrained",
    "tokenizer_from_gguf",
    "unprotect_inputs",
    "using_key",
]

hooks.install()
adapters.install()
attention.register()
batching.register()

del _torch, _transformers
