# SPDX-License-Identifier: Apache-2.0
"""Finds the maps between SM4's S-box and that of AES, and prints csrc/crypto/sm4/maps.h.

Both S-boxes are inversions in GF(2^8) between affine maps, in fields with other polynomials: x^8 +
x^7 + x^6 + x^5 + x^4 + x^2 + 1 for SM4 (GB/T 32907 gives a table; its algebra is public knowledge,
and sbox() is checked against the cipher's vectors). So the one is the other between affine maps:
one pair for each isomorphism of the fields and each factor in front of the inversion, 2,040 in all.
Taken is the pair with the fewest ones."""

from __future__ import annotations

SM4_FIELD, AES_FIELD = 0x1F5, 0x11B
#: The affine map on both sides of SM4's inversion: rotations of the first row, and what is added.
ROW, ADDED = 0xA7, 0xD3
#: FIPS 197, 5.1.1.
AES_ROW, AES_ADDED = 0xF1, 0x63

#: A linear map on bytes: what becomes of each bit.
Map = list[int]


def rotated(byte: int, n: int) -> int:
    return (byte << n | byte >> (8 - n)) & 255 if n % 8 else byte


def apply(m: Map, x: int) -> int:
    out = 0
    for bit in range(8):
        if x >> bit & 1:
            out ^= m[bit]
    return out


def after(outer: Map, inner: Map) -> Map:
    return [apply(outer, column) for column in inner]


def inverse(m: Map) -> Map:
    found = {apply(m, x): x for x in range(256)}
    assert len(found) == 256
    return [found[1 << bit] for bit in range(8)]


def of_rows(rows: list[int]) -> Map:
    return [sum((rows[i] >> j & 1) << i for i in range(8)) for j in range(8)]


def times(a: int, b: int, field: int) -> int:
    out = 0
    while b:
        if b & 1:
            out ^= a
        a <<= 1
        if a & 256:
            a ^= field
        b >>= 1
    return out


def powers(g: int, count: int, field: int) -> list[int]:
    out = [1]
    for _ in range(count - 1):
        out.append(times(out[-1], g, field))
    return out


def inverses(field: int) -> list[int]:
    out = [0] * 256
    for x in range(1, 256):
        out[x] = powers(x, 255, field)[254]
    return out


CIRCULANT = of_rows([rotated(ROW, i) for i in range(8)])
AES_CIRCULANT = of_rows([rotated(AES_ROW, i) for i in range(8)])
SM4_INVERSES, AES_INVERSES = inverses(SM4_FIELD), inverses(AES_FIELD)


def sbox() -> list[int]:
    """SM4's S-box."""
    return [apply(CIRCULANT, SM4_INVERSES[apply(CIRCULANT, x) ^ ADDED]) ^ ADDED for x in range(256)]


def aes_sbox() -> list[int]:
    return [apply(AES_CIRCULANT, AES_INVERSES[x]) ^ AES_ADDED for x in range(256)]


def isomorphisms() -> list[Map]:
    """From SM4's field to that of AES: x becomes a root of SM4's polynomial."""
    found = []
    for root in range(2, 256):
        of_root = powers(root, 9, AES_FIELD)
        value = 0
        for i in range(9):
            if SM4_FIELD >> i & 1:
                value ^= of_root[i]
        if not value:
            found.append(of_root[:8])
    return found


class Maps:
    """S(x) = out(A(in(x) + in_added)) + out_added, with A the S-box of AES, and with of_inverse in
    place of out, and ADDED, its inversion."""

    def __init__(self) -> None:
        best: int | None = None
        for phi in isomorphisms():
            back = inverse(phi)
            for factor in range(1, 256):
                scaled = [times(factor, 1 << i, AES_FIELD) for i in range(8)]
                inner = after(scaled, after(phi, CIRCULANT))
                of_inverse = after(CIRCULANT, after(back, scaled))
                outer = after(of_inverse, inverse(AES_CIRCULANT))
                weight = sum(bin(column).count("1") for column in inner + outer)
                if best is None or weight < best:
                    best = weight
                    self.inner, self.outer, self.of_inverse = inner, outer, of_inverse
                    self.in_added = apply(scaled, apply(phi, ADDED))
        self.out_added = ADDED ^ apply(self.outer, AES_ADDED)


# ---- what the kernels take ----

#: Of each byte: with what it shifts by two within the byte; rotated by two.
WITH_SHIFTED = [1 << i ^ (1 << i << 2 & 255) for i in range(8)]
ROTATED = [rotated(1 << i, 2) for i in range(8)]
MASK = 2**32 - 1


def rotated_word(w: int, n: int) -> int:
    return (w << n | w >> (32 - n)) & MASK if n % 32 else w


def mixed(w: int) -> int:
    """L of GB/T 32907, 6.2."""
    return w ^ rotated_word(w, 2) ^ rotated_word(w, 10) ^ rotated_word(w, 18) ^ rotated_word(w, 24)


def inverse_rotations() -> list[int]:
    """The rotations, but for 0, whose sum is L^31."""
    w = 1
    for _ in range(31):
        w = mixed(w)
    assert w & 1
    return [n for n in range(1, 32) if w >> n & 1]


def nibbles(m: Map) -> list[list[int]]:
    return [[apply(m, n << shift) for n in range(16)] for shift in (0, 4)]


def gfni(m: Map) -> int:
    """The matrix as GF2P8AFFINEQB takes it: the row of bit i in byte 7 - i."""
    rows = [sum((m[j] >> i & 1) << j for j in range(8)) for i in range(8)]
    return sum(row << 8 * (7 - i) for i, row in enumerate(rows))


def turned(n: int, shifted: bool) -> list[int]:
    """Byte b of each word from its byte b + n, with ShiftRows undone: row r moved left by r."""
    out = []
    for column in range(4):
        for row in range(4):
            source = (row + n) % 4
            out.append(4 * ((column - source * shifted) % 4) + source)
    return out


def inner_turn(n: int) -> list[int]:
    """What turns by n where ShiftRows is undone only afterwards, by turned(0, True)."""
    back, both = turned(0, True), turned(n, True)
    found = dict(zip(back, both, strict=True))
    return [found[i] for i in range(16)]


def numbers(values: list[int]) -> str:
    return "{" + ", ".join(f"0x{value:02x}" for value in values) + "}"


def header() -> str:
    """The text of csrc/crypto/sm4/maps.h, before clang-format."""
    m = Maps()
    a = after(m.inner, after(WITH_SHIFTED, m.outer))
    b = after(m.inner, after(ROTATED, m.outer))
    before = apply(inverse(m.inner), m.in_added)
    ga, gb = after(WITH_SHIFTED, m.of_inverse), after(ROTATED, m.of_inverse)
    tables = {
        "in": nibbles(m.inner),
        "out": nibbles(inverse(m.inner)),
        "a": nibbles(a),
        "b": nibbles(b),
        "nibble": [[15] * 16],
        "inner_turn_2": [inner_turn(2)],
        "turn_0": [turned(0, True)],
        "turn_3": [turned(3, True)],
        "byte_turn_2": [turned(2, False)],
        "byte_turn_3": [turned(3, False)],
    }
    fields = " ".join(f"uint8_t {name}[{len(rows)}][16];" for name, rows in tables.items())
    values = ",\n".join(
        f".{name} = {{{', '.join(numbers(row) for row in rows)}}}" for name, rows in tables.items()
    )
    return f"""/* SPDX-License-Identifier: Apache-2.0
 * Maps between SM4's S-box and that of AES, made by tests/support/sm4_maps.py, which
 * tests/crypto/test_sm4_maps.py runs again: S(x) = out(A(in(x) + IN_ADDED)) + OUT_ADDED. Linear
 * maps are given by what becomes of each bit of a byte, the lowest first. */
#ifndef CCMEM_SM4_MAPS_H
#define CCMEM_SM4_MAPS_H

#include <stdint.h>

#define SM4_IN_ADDED 0x{m.in_added:02x}
#define SM4_OUT_ADDED 0x{m.out_added:02x}
/* in(IN_ADDED_BEFORE) = IN_ADDED */
#define SM4_IN_ADDED_BEFORE 0x{before:02x}
static const uint8_t sm4_in[8] = {numbers(m.inner)};
static const uint8_t sm4_out[8] = {numbers(m.outer)};
static const uint8_t sm4_out_inverse[8] = {numbers(inverse(m.outer))};

/* The rotations, beside 0, that make up the inverse of L. */
static const uint8_t sm4_l_inverse[{len(inverse_rotations())}] = {{{
        ", ".join(map(str, inverse_rotations()))
    }}};

/* Matrices for GFNI: `in`; and what makes the terms a and b of L from an inversion. */
#define SM4_GFNI_IN 0x{gfni(m.inner):016x}
#define SM4_GFNI_A 0x{gfni(ga):016x}
#define SM4_GFNI_A_ADDED 0x{apply(WITH_SHIFTED, ADDED):02x}
#define SM4_GFNI_B 0x{gfni(gb):016x}
#define SM4_GFNI_B_ADDED 0x{apply(ROTATED, ADDED):02x}

/* Of the low nibble and of the high one: in and its inverse, and from the S-box of AES to the terms
 * a and b, as `in` maps them. Then shuffles: turn_n gives each byte of a word the one n after it
 * and undoes ShiftRows, inner_turn_n leaves that to turn_0, byte_turn_n does the first alone. */
static const struct {{ {fields} }} __attribute__((aligned(16))) sm4_tables = {{
{values}}};

#endif
"""


if __name__ == "__main__":
    print(header(), end="")
