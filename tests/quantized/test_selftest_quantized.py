# SPDX-License-Identifier: Apache-2.0
"""The self-test notices a dequantiser that takes bits from elsewhere, and a quantiser that puts
them there."""

from __future__ import annotations

from pathlib import Path

import native_build
import pytest
import support

#: A file of csrc/quant/, a text that is in it once, and what is put there instead.
BROKEN = {
    "halves exchanged": ("unpack.c", "(from[i] & 15) - zero", "(from[i] >> 4) - zero"),
    "a fifth bit": ("unpack.c", "(high >> i & 1) * 16", "(high >> i & 1) * 15"),
    "scales of Q4_K": ("unpack.c", "(from[j] >> 6 << 4)", "(from[j] >> 6 << 3)"),
    "scales of Q3_K": ("unpack.c", "2 * (j / 4) & 3", "2 * (j / 8) & 3"),
    "IQ4's values": ("unpack.c", "k < 16", "k < 15"),
    "offsets": ("dequantize.c", "out[i] += offset", "out[i] -= offset"),
    "nibbles written": ("pack.c", "((q[i + n] + zero) & 15) << 4", "((q[i + n] + zero) & 7) << 4"),
    "rows of bytes": ("quantize.c", "unit.to / 127;", "unit.to / 100;"),
}

#: In a process of its own, which keeps none of the libraries.
SELFTEST = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).selftest_quant())"


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_noticed(
    name: str, native_objects: dict[Path, Path], tmp_path: Path
) -> None:
    file, old, new = BROKEN[name]
    source = native_build.CSRC / "quant" / file
    text = source.read_text(encoding="utf-8")
    assert text.count(old) == 1
    own = tmp_path / file
    own.write_text(text.replace(old, new), encoding="utf-8")
    made = native_build.compile_objects([own], tmp_path)[own]
    test = native_build.CSRC / "selftest" / "quant.c"
    seen = native_build.compile_objects([test], tmp_path, "-fvisibility=default")[test]
    for objects, expected in (({**native_objects, test: seen, source: made}, True),
                              ({**native_objects, test: seen}, False)):  # fmt: skip
        folder = tmp_path / str(expected)
        folder.mkdir()
        library = native_build.units_file(objects.values(), folder)
        assert (support.check_python(SELFTEST, str(library)).strip() != "0") is expected
