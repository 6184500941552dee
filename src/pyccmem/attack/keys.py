# SPDX-License-Identifier: Apache-2.0
"""What a root key becomes in memory: the round keys of AES-256 (FIPS 197, 5.2) and the subkeys of
its CMAC (SP 800-38B), by which all other keys are derived. Written for a search, not to encrypt."""

from __future__ import annotations

__all__ = ["schedule"]


def _times_x(byte: int) -> int:
    return ((byte << 1) ^ 0x11B) & 0xFF if byte & 0x80 else byte << 1


def _substitutes() -> list[int]:
    """The S-box: inverses in GF(2^8), found as powers of 3, then an affine map."""
    power, powers = 1, []
    for _ in range(255):
        powers.append(power)
        power ^= _times_x(power)
    table = [0x63] * 256
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        for turn in range(5):
            table[value] ^= (inverse << turn | inverse >> (8 - turn)) & 0xFF
    return table


_SUBSTITUTES = _substitutes()
_MIX = ((2, 3, 1, 1), (1, 2, 3, 1), (1, 1, 2, 3), (3, 1, 1, 2))


def _expanded(key: bytes) -> list[bytes]:
    words = [key[at : at + 4] for at in range(0, 32, 4)]
    constant = 1
    while len(words) < 60:
        word, place = words[-1], len(words) % 8
        if place == 0:
            word = bytes(_SUBSTITUTES[b] for b in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = _times_x(constant)
        elif place == 4:
            word = bytes(_SUBSTITUTES[b] for b in word)
        words.append(bytes(a ^ b for a, b in zip(words[-8], word, strict=True)))
    return [b"".join(words[at : at + 4]) for at in range(0, 60, 4)]


def _encrypted(round_keys: list[bytes], block: bytes) -> bytes:
    def product(factor: int, byte: int) -> int:
        return {1: byte, 2: _times_x(byte), 3: _times_x(byte) ^ byte}[factor]

    state = bytes(a ^ b for a, b in zip(block, round_keys[0], strict=True))
    for number, round_key in enumerate(round_keys[1:], 1):
        state = bytes(_SUBSTITUTES[state[(5 * at) % 16]] for at in range(16))  # and ShiftRows
        if number < len(round_keys) - 1:
            mixed = bytearray(16)
            for at in range(16):
                column, row = at // 4 * 4, _MIX[at % 4]
                for factor, byte in zip(row, state[column : column + 4], strict=True):
                    mixed[at] ^= product(factor, byte)
            state = bytes(mixed)
        state = bytes(a ^ b for a, b in zip(state, round_key, strict=True))
    return state


def _doubled(block: bytes) -> bytes:
    number = int.from_bytes(block, "big") << 1
    return (number ^ (0x87 | 1 << 128) if number >> 128 else number).to_bytes(16, "big")


def schedule(key: bytes) -> dict[str, bytes]:
    """Returns all blocks of 16 bytes that give a key of 32 bytes away, by name."""
    round_keys = _expanded(key)
    blocks = {f"round key {number}": block for number, block in enumerate(round_keys)}
    first = _doubled(_encrypted(round_keys, bytes(16)))
    return {**blocks, "CMAC subkey 1": first, "CMAC subkey 2": _doubled(first)}
