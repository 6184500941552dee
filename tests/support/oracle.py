# SPDX-License-Identifier: Apache-2.0
"""The independent implementations the tests compare with: pyca/cryptography over OpenSSL, and
pyaegis, which is libaegis.

Import it with pytest.importorskip: without the [test] extra the comparisons are skipped.
"""

from __future__ import annotations

from typing import Any

import pytest
import support
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode


def xts_encrypt(key: bytes, tweak: bytes, data: bytes) -> bytes:
    """AES-XTS of one data unit; key is K1 || K2."""
    encryptor = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def xts_decrypt(key: bytes, tweak: bytes, data: bytes) -> bytes:
    """The inverse of xts_encrypt."""
    decryptor = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
    return decryptor.update(data) + decryptor.finalize()


def aes_cmac(key: bytes, message: bytes) -> bytes:
    """AES-CMAC, a tag of 16 bytes."""
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def kdf_counter_cmac(key: bytes, label: bytes, context: bytes, nbytes: int) -> bytes:
    """SP 800-108 in counter mode over AES-CMAC with 32-bit big-endian counter and length."""
    kdf = KBKDFCMAC(
        algorithm=algorithms.AES,
        mode=Mode.CounterMode,
        length=nbytes,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    )
    return kdf.derive(key)


def sm4(key: bytes, data: bytes, decrypt: bool = False) -> bytes:
    """SM4 of each 16 bytes by themselves."""
    cipher = Cipher(algorithms.SM4(key), modes.ECB())
    crypt = cipher.decryptor() if decrypt else cipher.encryptor()
    return crypt.update(data) + crypt.finalize()


def sm4_xts(
    key: bytes, tweak: bytes, data: bytes, *, standard: str = "gb", decrypt: bool = False
) -> bytes:
    """SM4-XTS of one data unit, straight from GB/T 17964-2021, or with the tweaks of IEEE 1619."""
    t = sm4(key[16:], tweak)
    tweaks = []
    for _ in range(-(-len(data) // 16)):
        tweaks.append(t)
        if standard == "gb":
            number = int.from_bytes(t, "big")
            t = (number >> 1 ^ (number & 1) * (0xE1 << 120)).to_bytes(16, "big")
        else:
            number = int.from_bytes(t, "little") << 1
            t = ((number ^ (number >> 128) * 0x87) & (2**128 - 1)).to_bytes(16, "little")

    def crypt(text: bytes, masks: list[bytes]) -> bytes:
        mask = int.from_bytes(b"".join(masks), "big")
        size = len(text)
        inner = (int.from_bytes(text, "big") ^ mask).to_bytes(size, "big")
        done = int.from_bytes(sm4(key[:16], inner, decrypt), "big")
        return (done ^ mask).to_bytes(size, "big")

    tail = len(data) % 16
    if not tail:
        return crypt(data, tweaks)
    whole = len(data) // 16 - 1
    first, last = (tweaks[-1], tweaks[-2]) if decrypt else (tweaks[-2], tweaks[-1])
    start = crypt(data[: 16 * whole], tweaks[:whole]) if whole else b""
    full = crypt(data[16 * whole : 16 * whole + 16], [first])
    return start + crypt(data[-tail:] + full[tail:], [last]) + full[:tail]


def hmac_sm3(key: bytes, message: bytes) -> bytes:
    """HMAC over SM3, a tag of 32 bytes."""
    mac = hmac.HMAC(key, hashes.SM3())
    mac.update(message)
    return mac.finalize()


def kdf_counter_sm3(key: bytes, label: bytes, context: bytes, nbytes: int) -> bytes:
    """SP 800-108 in counter mode over HMAC-SM3, written out."""
    fixed = label + b"\0" + context + (8 * nbytes).to_bytes(4, "big")
    blocks = (hmac_sm3(key, i.to_bytes(4, "big") + fixed) for i in range(1, 2 + nbytes // 32))
    return b"".join(blocks)[:nbytes]


def subkey(cipher: str, store_id: bytes, page_size: int) -> bytes:
    """What a buffer under the tests' root key derives for its pages."""
    context = store_id + page_size.to_bytes(4, "big")
    size = support.SUBKEY_BYTES[cipher]
    derive = kdf_counter_sm3 if cipher.startswith("sm4-") else kdf_counter_cmac
    return derive(support.KEY_BYTES, cipher.encode(), context, size)


class SM4GCM:
    """What AESGCM of `cryptography` is to AES."""

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.SM4(key)

    def encrypt(self, nonce: bytes, data: bytes, ad: bytes) -> bytes:
        crypt = Cipher(self._key, modes.GCM(nonce)).encryptor()
        crypt.authenticate_additional_data(ad)
        return crypt.update(data) + crypt.finalize() + crypt.tag

    def decrypt(self, nonce: bytes, sealed: bytes, ad: bytes) -> bytes:
        crypt = Cipher(self._key, modes.GCM(nonce, sealed[-16:])).decryptor()
        crypt.authenticate_additional_data(ad)
        return crypt.update(sealed[:-16]) + crypt.finalize()


#: What GCM pages are of, by the name of their suite.
GCM: dict[str, Any] = {"aes-256-gcm": AESGCM, "sm4-gcm": SM4GCM}


def gcm_nonce(page: int, version: int) -> bytes:
    """The nonce of a page under GCM; its associated data is the whole place."""
    return (page % 2**48).to_bytes(6, "little") + (version % 2**48).to_bytes(6, "little")


def _aegis(cipher: str, place: bytes) -> tuple[Any, bytes]:
    """pyaegis's object for pages, and the nonce of one: its place, and zeros where it is longer."""
    pyaegis = pytest.importorskip("pyaegis", reason="AEGIS pages are compared with pyaegis")
    if cipher == "aegis-256x2":
        return pyaegis.Aegis256X2(tag_size=16), place + bytes(16)
    return pyaegis.Aegis128X2(tag_size=16), place


def seal_page(cipher: str, key: bytes, page: int, version: int, data: bytes) -> tuple[bytes, bytes]:
    """The ciphertext of a page and its tag, which is zeros for XTS."""
    place = support.page_tweak(page, version)  # the tweak of XTS, the nonce of AEGIS
    if cipher in GCM:
        sealed = GCM[cipher](key).encrypt(gcm_nonce(page, version), data, place)
        return sealed[:-16], sealed[-16:]
    if cipher == "sm4-xts":
        return sm4_xts(key, place, data), bytes(16)
    if not cipher.startswith("aegis"):
        return xts_encrypt(key, place, data), bytes(16)
    aegis, nonce = _aegis(cipher, place)
    ciphertext, tag = aegis.encrypt_detached(key, nonce, data)
    return bytes(ciphertext), bytes(tag)


def open_page(
    cipher: str, key: bytes, page: int, version: int, ciphertext: bytes, tag: bytes
) -> bytes:
    """The plaintext of a page. An exception of the library's when it does not match its tag."""
    place = support.page_tweak(page, version)
    if cipher in GCM:
        try:
            return GCM[cipher](key).decrypt(gcm_nonce(page, version), ciphertext + tag, place)
        except InvalidTag as error:
            raise ValueError("the page does not match its tag") from error
    if cipher == "sm4-xts":
        assert tag == bytes(16)
        return sm4_xts(key, place, ciphertext, decrypt=True)
    if not cipher.startswith("aegis"):
        assert tag == bytes(16)
        return xts_decrypt(key, place, ciphertext)
    aegis, nonce = _aegis(cipher, place)
    return bytes(aegis.decrypt_detached(key, nonce, ciphertext, tag))
