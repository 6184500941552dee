# SPDX-License-Identifier: Apache-2.0
"""The bare primitives under pyccmem, to be checked against published vectors.

They protect nothing by themselves. Keys are ordinary Python objects here. XTS never detects a
change, and without a fresh tweak for every write it shows what changed. AEGIS gives its state away
when a nonce is used twice under one key, and so does GCM the key of its tags. Use EncryptedBuffer.

`tier` names the code to run ("portable", "aesni", "vaes256", "vaes512"); None is the one in use.
Every function takes any C-contiguous bytes-like objects. Wrong types raise BufferTypeError or
ArgumentTypeError, an unusable tier TierError.
"""

from __future__ import annotations

from typing import Any

from . import errors
from .binding import Call, check, ffi, lib, tier_number
from .binding.arguments import exact_bytes, input_buffer, integer
from .binding.status import UnwrapCall

__all__ = [
    "aegis128l_decrypt",
    "aegis128l_encrypt",
    "aegis128x2_decrypt",
    "aegis128x2_encrypt",
    "aegis256_decrypt",
    "aegis256_encrypt",
    "aegis256x2_decrypt",
    "aegis256x2_encrypt",
    "aes_cmac",
    "aes_gcm_decrypt",
    "aes_gcm_encrypt",
    "aes_key_unwrap",
    "aes_key_wrap",
    "hmac_sm3",
    "kdf_counter_cmac",
    "kdf_counter_sm3",
    "sm3",
    "sm4_decrypt",
    "sm4_encrypt",
    "sm4_gcm_decrypt",
    "sm4_gcm_encrypt",
    "sm4_xts_decrypt",
    "sm4_xts_encrypt",
    "xts_decrypt",
    "xts_encrypt",
]

_BLOCK = 16
#: By name: the number of lanes, and bytes of a key and of a nonce.
_AEGIS = {
    "AEGIS-128L": (1, 16),
    "AEGIS-128X2": (2, 16),
    "AEGIS-256": (1, 32),
    "AEGIS-256X2": (2, 32),
}
_AEGIS_TAG_SIZES = (16, 32)
_GCM_TAG_SIZES = (4, 8, 12, 13, 14, 15, 16)
_KDF_BYTES_MAX = 8160  # what the native function takes, far more than keys need
_KDF_FIELD_MAX = 64
_KW_BYTES_MIN, _KW_BYTES_MAX = 16, 2**16  # of the key that is wrapped


def _xts(encrypt: int, key: Any, tweak: Any, data: Any, tier: str | None) -> bytes:
    number = tier_number(tier)
    with (
        exact_bytes("The XTS key", key, (32, 64), errors.InvalidKeyError) as key_buffer,
        exact_bytes("tweak", tweak, (_BLOCK,), errors.ArgumentError) as tweak_buffer,
        input_buffer("data", data) as source,
    ):
        length = len(source)
        if length < _BLOCK:
            raise errors.ArgumentError(
                f"data has {length} bytes; an XTS data unit must have {_BLOCK} or more."
            )
        out = bytes(length)  # nothing else refers to it yet, so it may be filled in place
        status = lib.ccmem_xts(
            number,
            encrypt,
            key_buffer,
            len(key_buffer),
            tweak_buffer,
            source,
            ffi.from_buffer("uint8_t[]", out),
            length,
        )
    check(status, Call("AES-XTS"))
    return out


def xts_encrypt(key: Any, tweak: Any, data: Any, *, tier: str | None = None) -> bytes:
    """Encrypts one data unit of 16 bytes or more by AES-XTS (IEEE 1619-2018), with ciphertext
    stealing if its length is not a multiple of 16.

    `key` is K1 || K2 of 32 bytes (AES-128) or 64 (AES-256), K1 != K2; `tweak` the data unit number
    as 16 bytes, little-endian. NIST SP 800-38E limits a data unit to 2**20 blocks (16 MiB), which
    is not enforced here. Raises InvalidKeyError, ArgumentError.
    """
    return _xts(1, key, tweak, data, tier)


def xts_decrypt(key: Any, tweak: Any, data: Any, *, tier: str | None = None) -> bytes:
    """Decrypts what xts_encrypt() with the same key and tweak encrypted. Authenticates nothing: a
    changed ciphertext decrypts to something else without an error. Raises as xts_encrypt() does."""
    return _xts(0, key, tweak, data, tier)


def _taken(out: Any) -> bytes:
    """Returns the bytes of native memory, which is wiped."""
    result = bytes(ffi.buffer(out))
    lib.ccmem_wipe(out, len(out))
    return result


def _aegis(
    call: Any,
    variant: str,
    key: Any,
    nonce: Any,
    name: str,
    text: Any,
    tag: Any,
    ad: Any,
    tier: str | None,
) -> Any:
    """Calls the native function `call` for `text`, which errors call `name`, and returns native
    memory with the result. `tag` is native memory too, which the call fills or compares."""
    lanes, size = _AEGIS[variant]
    number = tier_number(tier)
    with (
        exact_bytes("The AEGIS key", key, (size,), errors.InvalidKeyError) as key_buffer,
        exact_bytes("nonce", nonce, (size,), errors.ArgumentError) as nonce_buffer,
        input_buffer(name, text) as source,
        input_buffer("ad", ad) as ad_buffer,
    ):
        out = ffi.new("uint8_t[]", len(source))
        status = call(
            number,
            lanes,
            key_buffer,
            nonce_buffer,
            ad_buffer,
            len(ad_buffer),
            source,
            out,
            len(source),
            tag,
            len(tag),
        )
    check(status, Call(variant))  # if the tag does not match, `out` is zeros
    return out


def _aegis_encrypt(
    variant: str, key: Any, nonce: Any, data: Any, ad: Any, tag_len: Any, tier: str | None
) -> tuple[bytes, bytes]:
    tag_len = integer("tag_len", tag_len)
    if tag_len not in _AEGIS_TAG_SIZES:
        raise errors.ArgumentError(f"tag_len is {tag_len}; it must be 16 or 32.")
    short = _AEGIS[variant][1] == 16
    call = lib.ccmem_aegis_encrypt if short else lib.ccmem_aegis256_encrypt
    tag = ffi.new("uint8_t[]", tag_len)
    out = _aegis(call, variant, key, nonce, "data", data, tag, ad, tier)
    return bytes(ffi.buffer(out)), bytes(ffi.buffer(tag))


def _aegis_decrypt(
    variant: str, key: Any, nonce: Any, ciphertext: Any, tag: Any, ad: Any, tier: str | None
) -> bytes:
    short = _AEGIS[variant][1] == 16
    call = lib.ccmem_aegis_decrypt if short else lib.ccmem_aegis256_decrypt
    with exact_bytes("tag", tag, _AEGIS_TAG_SIZES, errors.ArgumentError) as tag_buffer:
        out = _aegis(call, variant, key, nonce, "ciphertext", ciphertext, tag_buffer, ad, tier)
    return _taken(out)


def aegis128l_encrypt(
    key: Any,
    nonce: Any,
    data: Any,
    ad: Any = b"",
    *,
    tag_len: int = 16,
    tier: str | None = None,
) -> tuple[bytes, bytes]:
    """Encrypts `data` by AEGIS-128L (RFC 10032, 3.1). Returns the ciphertext, and a tag of 16 or 32
    bytes over it and the associated data `ad`, which is not encrypted.

    `key` and `nonce` have 16 bytes each; a nonce must never be used twice with one key.
    Raises InvalidKeyError, ArgumentError.
    """
    return _aegis_encrypt("AEGIS-128L", key, nonce, data, ad, tag_len, tier)


def aegis128l_decrypt(
    key: Any, nonce: Any, ciphertext: Any, tag: Any, ad: Any = b"", *, tier: str | None = None
) -> bytes:
    """Decrypts what aegis128l_encrypt() encrypted, if ciphertext, tag and `ad` belong together
    under this key and nonce; else returns nothing of it. Raises IntegrityError, InvalidKeyError,
    ArgumentError.
    """
    return _aegis_decrypt("AEGIS-128L", key, nonce, ciphertext, tag, ad, tier)


def aegis128x2_encrypt(
    key: Any,
    nonce: Any,
    data: Any,
    ad: Any = b"",
    *,
    tag_len: int = 16,
    tier: str | None = None,
) -> tuple[bytes, bytes]:
    """Encrypts as aegis128l_encrypt() does, by AEGIS-128X2 (RFC 10032, 5), the cipher of pages: two
    lanes of AEGIS-128L side by side, with one tag. Raises as aegis128l_encrypt() does."""
    return _aegis_encrypt("AEGIS-128X2", key, nonce, data, ad, tag_len, tier)


def aegis128x2_decrypt(
    key: Any, nonce: Any, ciphertext: Any, tag: Any, ad: Any = b"", *, tier: str | None = None
) -> bytes:
    """Decrypts what aegis128x2_encrypt() encrypted, or returns nothing of it. Raises as
    aegis128l_decrypt() does."""
    return _aegis_decrypt("AEGIS-128X2", key, nonce, ciphertext, tag, ad, tier)


def aegis256_encrypt(
    key: Any,
    nonce: Any,
    data: Any,
    ad: Any = b"",
    *,
    tag_len: int = 16,
    tier: str | None = None,
) -> tuple[bytes, bytes]:
    """Encrypts as aegis128l_encrypt() does, by AEGIS-256 (RFC 10032, 4), whose keys and nonces have
    32 bytes each. Raises as aegis128l_encrypt() does."""
    return _aegis_encrypt("AEGIS-256", key, nonce, data, ad, tag_len, tier)


def aegis256_decrypt(
    key: Any, nonce: Any, ciphertext: Any, tag: Any, ad: Any = b"", *, tier: str | None = None
) -> bytes:
    """Decrypts what aegis256_encrypt() encrypted, or returns nothing of it. Raises as
    aegis128l_decrypt() does."""
    return _aegis_decrypt("AEGIS-256", key, nonce, ciphertext, tag, ad, tier)


def aegis256x2_encrypt(
    key: Any,
    nonce: Any,
    data: Any,
    ad: Any = b"",
    *,
    tag_len: int = 16,
    tier: str | None = None,
) -> tuple[bytes, bytes]:
    """Encrypts as aegis256_encrypt() does, by AEGIS-256X2 (RFC 10032, 5): two lanes of AEGIS-256
    side by side, with one tag. Raises as aegis128l_encrypt() does."""
    return _aegis_encrypt("AEGIS-256X2", key, nonce, data, ad, tag_len, tier)


def aegis256x2_decrypt(
    key: Any, nonce: Any, ciphertext: Any, tag: Any, ad: Any = b"", *, tier: str | None = None
) -> bytes:
    """Decrypts what aegis256x2_encrypt() encrypted, or returns nothing of it. Raises as
    aegis128l_decrypt() does."""
    return _aegis_decrypt("AEGIS-256X2", key, nonce, ciphertext, tag, ad, tier)


#: By what they encrypt with: the native functions of both directions, and the sizes of keys.
_GCM = {
    "AES": (lib.ccmem_aes_gcm_encrypt, lib.ccmem_aes_gcm_decrypt, (16, 24, 32)),
    "SM4": (lib.ccmem_sm4_gcm_encrypt, lib.ccmem_sm4_gcm_decrypt, (16,)),
}


def _gcm(
    block: str, opening: int, key: Any, iv: Any, text: Any, tag: Any, ad: Any, tier: str | None
) -> Any:
    """Encrypts `text` by the GCM of a block cipher, or decrypts it, and returns native memory with
    the result. `tag` is native memory too, which is filled or compared."""
    number = tier_number(tier)
    name, sizes = "ciphertext" if opening else "data", _GCM[block][2]
    call: Any = _GCM[block][opening]
    with (
        exact_bytes(f"The {block} key", key, sizes, errors.InvalidKeyError) as key_buffer,
        input_buffer("iv", iv) as iv_buffer,
        input_buffer(name, text) as source,
        input_buffer("ad", ad) as ad_buffer,
    ):
        if not len(iv_buffer):
            raise errors.ArgumentError("iv is empty; it must have at least one byte.")
        out = ffi.new("uint8_t[]", len(source))
        status = call(
            number,
            key_buffer,
            len(key_buffer),
            iv_buffer,
            len(iv_buffer),
            ad_buffer,
            len(ad_buffer),
            source,
            out,
            len(source),
            tag,
            len(tag),
        )
    check(status, Call(f"{block}-GCM"))  # if the tag does not match, `out` is zeros
    return out


def _gcm_encrypt(
    block: str, key: Any, iv: Any, data: Any, ad: Any, tag_len: Any, tier: str | None
) -> tuple[bytes, bytes]:
    tag_len = integer("tag_len", tag_len)
    if tag_len not in _GCM_TAG_SIZES:
        raise errors.ArgumentError(f"tag_len is {tag_len}; it must be 4, 8, or from 12 to 16.")
    tag = ffi.new("uint8_t[]", tag_len)
    out = _gcm(block, 0, key, iv, data, tag, ad, tier)
    return bytes(ffi.buffer(out)), bytes(ffi.buffer(tag))


def _gcm_decrypt(
    block: str, key: Any, iv: Any, ciphertext: Any, tag: Any, ad: Any, tier: str | None
) -> bytes:
    with exact_bytes("tag", tag, _GCM_TAG_SIZES, errors.ArgumentError) as tag_buffer:
        out = _gcm(block, 1, key, iv, ciphertext, tag_buffer, ad, tier)
    return _taken(out)


def aes_gcm_encrypt(
    key: Any, iv: Any, data: Any, ad: Any = b"", *, tag_len: int = 16, tier: str | None = None
) -> tuple[bytes, bytes]:
    """Encrypts `data` by AES-GCM (NIST SP 800-38D). Returns the ciphertext, and a tag of `tag_len`
    bytes (4, 8, or 12 to 16) over it and the associated data `ad`, which is not encrypted.

    `key` has 16, 24 or 32 bytes, the nonce `iv` any number but zero, usually 12; it must never be
    used twice with one key. Raises InvalidKeyError, ArgumentError.
    """
    return _gcm_encrypt("AES", key, iv, data, ad, tag_len, tier)


def aes_gcm_decrypt(
    key: Any, iv: Any, ciphertext: Any, tag: Any, ad: Any = b"", *, tier: str | None = None
) -> bytes:
    """Decrypts what aes_gcm_encrypt() encrypted, if ciphertext, tag and `ad` belong together under
    this key and nonce; else returns nothing of it. Raises IntegrityError, InvalidKeyError,
    ArgumentError.
    """
    return _gcm_decrypt("AES", key, iv, ciphertext, tag, ad, tier)


def aes_cmac(key: Any, message: Any, *, tier: str | None = None) -> bytes:
    """Returns the 16-byte AES-CMAC tag (NIST SP 800-38B, RFC 4493) of `message` under a key of 16,
    24 or 32 bytes. Raises InvalidKeyError."""
    number = tier_number(tier)
    tag = ffi.new("uint8_t[16]")
    with (
        exact_bytes("The AES key", key, (16, 24, 32), errors.InvalidKeyError) as key_buffer,
        input_buffer("message", message) as source,
    ):
        status = lib.ccmem_cmac(number, key_buffer, len(key_buffer), source, len(source), tag)
    check(status, Call("AES-CMAC"))
    return bytes(ffi.buffer(tag))


def _key_wrap(wrap: int, kek: Any, name: str, key: Any, tier: str | None) -> bytes:
    number = tier_number(tier)
    with (
        exact_bytes("The wrapping key", kek, (16, 24, 32), errors.InvalidKeyError) as kek_buffer,
        input_buffer(name, key) as source,
    ):
        length, extra = len(source), 0 if wrap else 8
        least, most = _KW_BYTES_MIN + extra, _KW_BYTES_MAX + extra
        if length % 8 or not least <= length <= most:
            raise errors.ArgumentError(
                f"{name} has {length} bytes; it must have a multiple of 8, from {least} to {most}."
            )
        size = length + 8 if wrap else length - 8
        out = ffi.new("uint8_t[]", size)
        status = lib.ccmem_aes_kw(number, wrap, kek_buffer, len(kek_buffer), source, length, out)
    check(status, UnwrapCall("AES key wrap", None))
    return _taken(out)


def aes_key_wrap(kek: Any, key: Any, *, tier: str | None = None) -> bytes:
    """Wraps `key`, a multiple of 8 bytes and at least 16, under `kek` of 16, 24 or 32 bytes (AES
    key wrap: KW of NIST SP 800-38F, RFC 3394). The result has 8 bytes more. Raises InvalidKeyError,
    ArgumentError."""
    return _key_wrap(1, kek, "key", key, tier)


def aes_key_unwrap(kek: Any, wrapped: Any, *, tier: str | None = None) -> bytes:
    """Unwraps what aes_key_wrap() wrapped. Raises IntegrityError if it was wrapped under another
    key or changed, InvalidKeyError, ArgumentError."""
    return _key_wrap(0, kek, "wrapped", wrapped, tier)


def _kdf(
    call: Any, key: Any, sizes: Any, label: Any, context: Any, nbytes: int, *first: Any
) -> bytes:
    """Calls the native derivation `call` with these arguments after `first`."""
    with (
        exact_bytes("The derivation key", key, sizes, errors.InvalidKeyError) as key_buffer,
        input_buffer("label", label) as label_buffer,
        input_buffer("context", context) as context_buffer,
    ):
        for name, size in (("label", len(label_buffer)), ("context", len(context_buffer))):
            if size > _KDF_FIELD_MAX:
                raise errors.ArgumentError(
                    f"{name} has {size} bytes; it must have at most {_KDF_FIELD_MAX}."
                )
        nbytes = integer("nbytes", nbytes)
        if not 1 <= nbytes <= _KDF_BYTES_MAX:
            raise errors.ArgumentError(
                f"nbytes is {nbytes}; it must be from 1 to {_KDF_BYTES_MAX}."
            )
        out = ffi.new("uint8_t[]", nbytes)
        status = call(
            *first,
            key_buffer,
            len(key_buffer),
            label_buffer,
            len(label_buffer),
            context_buffer,
            len(context_buffer),
            out,
            nbytes,
        )
    check(status, Call("the key derivation"))
    return _taken(out)


def kdf_counter_cmac(
    key: Any, label: Any, context: Any, nbytes: int, *, tier: str | None = None
) -> bytes:
    """Derives `nbytes` bytes in counter mode with AES-CMAC (NIST SP 800-108r1, 4.1): the blocks
    CMAC(key, [i]_32 || label || 0x00 || context || [8 * nbytes]_32) for i = 1, 2, ...

    `key` has 16 or 32 bytes, `label` and `context` at most 64, `nbytes` is at most 8160.
    Raises InvalidKeyError, ArgumentError.
    """
    return _kdf(lib.ccmem_kdf, key, (16, 32), label, context, nbytes, tier_number(tier))


def kdf_counter_sm3(key: Any, label: Any, context: Any, nbytes: int) -> bytes:
    """Derives as kdf_counter_cmac() does, with HMAC over SM3 in the place of AES-CMAC: what suites
    under SM4 use. `key` has 32 bytes. Raises as kdf_counter_cmac() does."""
    return _kdf(lib.ccmem_kdf_sm3, key, (32,), label, context, nbytes)


# ---- SM4 and SM3 ----


def _sm4(encrypt: int, key: Any, data: Any, tier: str | None) -> bytes:
    number = tier_number(tier)
    with (
        exact_bytes("The SM4 key", key, (_BLOCK,), errors.InvalidKeyError) as key_buffer,
        input_buffer("data", data) as source,
    ):
        length = len(source)
        if length % _BLOCK:
            raise errors.ArgumentError(
                f"data has {length} bytes; it must have a multiple of {_BLOCK}."
            )
        out = ffi.new("uint8_t[]", length)
        status = lib.ccmem_sm4(number, encrypt, key_buffer, source, out, length // _BLOCK)
    check(status, Call("SM4"))
    return _taken(out)


def sm4_encrypt(key: Any, data: Any, *, tier: str | None = None) -> bytes:
    """Encrypts each 16 bytes of `data` by themselves by SM4 (GB/T 32907-2016) under a key of 16.
    Raises InvalidKeyError, ArgumentError."""
    return _sm4(1, key, data, tier)


def sm4_decrypt(key: Any, data: Any, *, tier: str | None = None) -> bytes:
    """Decrypts what sm4_encrypt() encrypted. Raises as it does."""
    return _sm4(0, key, data, tier)


def _sm4_xts(
    encrypt: int, key: Any, tweak: Any, data: Any, standard: Any, tier: str | None
) -> bytes:
    number = tier_number(tier)
    if standard not in ("gb", "ieee"):
        raise errors.ArgumentError(f"standard is {standard!r}; it must be 'gb' or 'ieee'.")
    with (
        exact_bytes("The XTS key", key, (2 * _BLOCK,), errors.InvalidKeyError) as key_buffer,
        exact_bytes("tweak", tweak, (_BLOCK,), errors.ArgumentError) as tweak_buffer,
        input_buffer("data", data) as source,
    ):
        length = len(source)
        if length < _BLOCK:
            raise errors.ArgumentError(
                f"data has {length} bytes; an XTS data unit must have {_BLOCK} or more."
            )
        out = ffi.new("uint8_t[]", length)
        ieee = int(standard == "ieee")
        status = lib.ccmem_sm4_xts(
            number, encrypt, ieee, key_buffer, tweak_buffer, source, out, length
        )
    check(status, Call("SM4-XTS"))
    return _taken(out)


def sm4_xts_encrypt(
    key: Any, tweak: Any, data: Any, *, standard: str = "gb", tier: str | None = None
) -> bytes:
    """Encrypts one data unit of 16 bytes or more by SM4-XTS, with ciphertext stealing if its length
    is not a multiple of 16. `key` is K1 || K2 of 32 bytes, K1 != K2.

    `standard` tells how one block's tweak becomes the next one's: "gb" as in GB/T 17964-2021, which
    pages use; "ieee" in the order of bits of IEEE 1619. Raises InvalidKeyError, ArgumentError.
    """
    return _sm4_xts(1, key, tweak, data, standard, tier)


def sm4_xts_decrypt(
    key: Any, tweak: Any, data: Any, *, standard: str = "gb", tier: str | None = None
) -> bytes:
    """Decrypts what sm4_xts_encrypt() encrypted. Authenticates nothing. Raises as it does."""
    return _sm4_xts(0, key, tweak, data, standard, tier)


def sm4_gcm_encrypt(
    key: Any, iv: Any, data: Any, ad: Any = b"", *, tag_len: int = 16, tier: str | None = None
) -> tuple[bytes, bytes]:
    """Encrypts as aes_gcm_encrypt() does, by SM4-GCM (RFC 8998) under a key of 16 bytes. Raises as
    it does."""
    return _gcm_encrypt("SM4", key, iv, data, ad, tag_len, tier)


def sm4_gcm_decrypt(
    key: Any, iv: Any, ciphertext: Any, tag: Any, ad: Any = b"", *, tier: str | None = None
) -> bytes:
    """Decrypts what sm4_gcm_encrypt() encrypted, or returns nothing of it. Raises as
    aes_gcm_decrypt() does."""
    return _gcm_decrypt("SM4", key, iv, ciphertext, tag, ad, tier)


def sm3(message: Any) -> bytes:
    """Returns the 32-byte SM3 digest (GB/T 32905-2016) of `message`."""
    digest = ffi.new("uint8_t[32]")
    with input_buffer("message", message) as source:
        check(lib.ccmem_sm3(source, len(source), digest), Call("SM3"))
    return bytes(ffi.buffer(digest))


def hmac_sm3(key: Any, message: Any) -> bytes:
    """Returns the 32-byte HMAC over SM3 of `message` under a key of 1 to 64 bytes. Raises
    InvalidKeyError."""
    tag = ffi.new("uint8_t[32]")
    sizes = range(1, 65)
    with (
        input_buffer("message", message) as source,
        input_buffer("key", key) as key_buffer,
    ):
        if len(key_buffer) not in sizes:
            raise errors.InvalidKeyError(
                f"The HMAC key has {len(key_buffer)} bytes; it must have from 1 to 64."
            )
        status = lib.ccmem_hmac_sm3(key_buffer, len(key_buffer), source, len(source), tag)
    check(status, Call("HMAC-SM3"))
    return bytes(ffi.buffer(tag))
