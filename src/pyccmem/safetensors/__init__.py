# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, plain and sealed.

    weights = load_file("model.safetensors", key=key)

gives EncryptedTensors for either kind. The bytes of a plain file pass through one block of 1 MiB of
plaintext, which is wiped. The file itself stays as it was: its weights can still be read on disk
and in the kernel's page cache. A sealed file holds the weights as they lie in memory, and is
mapped:

    encrypt_file(src, dst, key)       a plain file, sealed
    save_file(tensors, path, key=)    tensors, sealed
    save, load                        the bytes of a sealed file, and back
    load_file, safe_open              ... and mapped, with no decryption
    inspect_file, verify_file         what it says, and whether it is whole
    rewrap_file(path, old, new)       for another key
    reencrypt_file(path, old, new)    for another key, and under a new data key
    decrypt_file(src, dst, key)       back in the clear, on disk

`key` is a pyccmem.Key, a Passphrase, or a KeyProvider. The format: see _format.

The functions of safetensors and safetensors.numpy are here under their names, with their arguments
in their order, and a `key` besides; those of safetensors.torch are in pyccmem.torch.

    header dtype            dtype of the tensor
    F64 F32 F16             float64 float32 float16
    C64                     complex64
    I64 I32 I16 I8          int64 int32 int16 int8
    U64 U32 U16 U8          uint64 uint32 uint16 uint8
    BOOL                    bool
    BF16                    bfloat16 of ml_dtypes, like all that follow
    F8_E4M3 F8_E5M2         float8_e4m3fn float8_e5m2
    F8_E4M3FNUZ F8_E5M2FNUZ float8_e4m3fnuz float8_e5m2fnuz
    F8_E8M0                 float8_e8m0fnu
    F4 F6_E2M3 F6_E3M2      sealed and decrypted as files, but not loaded: NumPy has no type for
                            elements of less than a byte (torch has one for F4)
"""

from __future__ import annotations

from ..errors import SafetensorError
from ..files.safetensors_header import Entry, open_file, read_header
from ._convert import decrypt_file, encrypt_file, rewrap_file
from ._dtypes import dtype_of
from ._inspect import FileInfo, inspect_file, verify_file
from ._load import deserialize, is_sealed, load, load_file
from ._open import safe_open, safe_open_handle
from ._opened_plain import PlainFile
from ._progress import Progress
from ._reader import SealedFile
from ._reencrypt import reencrypt_file
from ._save import save, save_file, serialize, serialize_file
from ._slices import TensorSlice
from ._specs import TensorSpec
from ._tensor_file import TensorFile, TensorInfo
from .providers import KeyProvider, Passphrase, WrappedKey, provider_named

#: What safetensors calls it.
_safe_open_handle = safe_open_handle

__all__ = [
    "Entry",
    "FileInfo",
    "KeyProvider",
    "Passphrase",
    "PlainFile",
    "Progress",
    "SafetensorError",
    "SealedFile",
    "TensorFile",
    "TensorInfo",
    "TensorSlice",
    "TensorSpec",
    "WrappedKey",
    "decrypt_file",
    "deserialize",
    "dtype_of",
    "encrypt_file",
    "inspect_file",
    "is_sealed",
    "load",
    "load_file",
    "open_file",
    "provider_named",
    "read_header",
    "reencrypt_file",
    "rewrap_file",
    "safe_open",
    "safe_open_handle",
    "save",
    "save_file",
    "serialize",
    "serialize_file",
    "verify_file",
]
