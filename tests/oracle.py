# SPDX-License-Identifier: Apache-2.0
"""The independent implementation the tests compare with: pyca/cryptography over OpenSSL.

Import it with pytest.importorskip: without the [test] extra the comparisons are skipped.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
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
