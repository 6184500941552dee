# SPDX-License-Identifier: Apache-2.0
"""The constants of csrc/crypto/sm4/maps.h are found again, and are what they say."""

from __future__ import annotations

import re

import sm4_maps
import support

HEADER = support.ROOT / "csrc" / "crypto" / "sm4" / "maps.h"


def words(text: str) -> list[str]:
    """Its numbers and names, however it is laid out."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.findall(r"[\w.#]+", text)


def test_the_header_is_what_the_search_finds() -> None:
    found = words(sm4_maps.header())
    assert words(HEADER.read_text()) == found
    changed = HEADER.read_text().replace("0x4f", "0x4e", 1)
    assert words(changed) != found, "the control: a changed constant is noticed"


def test_the_s_box_begins_as_the_standard_prints_it() -> None:
    """GB/T 32907-2016, table 1, its first row; and it is a permutation."""
    box = sm4_maps.sbox()
    assert bytes(box[:16]).hex() == "d690e9fecce13db716b614c228fb2c05"
    assert sorted(box) == list(range(256))


def test_the_maps_make_the_one_s_box_of_the_other() -> None:
    maps, box, aes = sm4_maps.Maps(), sm4_maps.sbox(), sm4_maps.aes_sbox()
    assert (aes[0], aes[1], aes[0x53]) == (0x63, 0x7C, 0xED)  # FIPS 197, 5.1.1
    for x in range(256):
        inner = sm4_maps.apply(maps.inner, x) ^ maps.in_added
        assert sm4_maps.apply(maps.outer, aes[inner]) ^ maps.out_added == box[x]
        by_inverse = sm4_maps.apply(maps.of_inverse, sm4_maps.AES_INVERSES[inner])
        assert by_inverse ^ sm4_maps.ADDED == box[x]


def test_l_is_made_of_the_two_terms() -> None:
    """L(s) = c + (b + c)<<<24 with c = a + b<<<16, and a and b of each byte by itself."""

    def of_bytes(m: list[int], w: int) -> int:
        return int.from_bytes(bytes(sm4_maps.apply(m, x) for x in w.to_bytes(4, "big")), "big")

    turn = sm4_maps.rotated_word
    for bit in range(32):
        w = 1 << bit
        a, b = of_bytes(sm4_maps.WITH_SHIFTED, w), of_bytes(sm4_maps.ROTATED, w)
        c = a ^ turn(b, 16)
        assert sm4_maps.mixed(w) == c ^ turn(b ^ c, 24)
        back = w
        for n in sm4_maps.inverse_rotations():
            back ^= turn(w, n)
        assert sm4_maps.mixed(back) == w
