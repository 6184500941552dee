# SPDX-License-Identifier: Apache-2.0
"""A processor without AES instructions, by emulation: it works, slowly, and says so once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import support

SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pyccmem
    assert [w.category.__name__ for w in caught] == WARNINGS, [str(w.message) for w in caught]
    info = pyccmem.cpu_info()
    assert info["tier"] == "TIER" and info["tiers"] == TIERS, info
    with pyccmem.Key.from_bytes(bytes(range(32))) as key:
        for cipher in ("aegis-128x2", "aes-128-xts", "aes-256-xts"):
            with pyccmem.EncryptedBuffer(20_000, key=key, cipher=cipher) as buffer:
                data = bytes(range(250)) * 80
                buffer.write(data)
                buffer.write(b"part", 4094)
                data = data[:4094] + b"part" + data[4098:]
                assert buffer.read() == data and buffer.read(4000, 300) == data[4000:4300]
    key, tweak = bytes(range(32)), bytes(16)
    assert pyccmem.hazmat.xts_encrypt(key, tweak, bytes(35)).hex() == ANSWER
    assert len(caught) == len(WARNINGS)
    try:
        pyccmem.hazmat.xts_encrypt(key, tweak, bytes(16), tier="aesni")
    except pyccmem.errors.TierError:
        assert "aesni" not in TIERS
    else:
        assert "aesni" in TIERS
print("done")
"""


# By these a user tells a library which processor it is on. The emulated one is another: a BLAS told
# to use AVX2 there ends with an illegal instruction.
PROCESSOR_CHOICES = dict.fromkeys(
    (
        "OPENBLAS_CORETYPE",
        "NPY_ENABLE_CPU_FEATURES",
        "NPY_DISABLE_CPU_FEATURES",
        "GLIBC_TUNABLES",
        "PYCCMEM_TIER",
        "PYCCMEM_NUM_THREADS",
    )
)


def emulated(cpu: str, script: str, **changes: str) -> subprocess.CompletedProcess[str]:
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        pytest.skip("needs qemu-x86_64 (Debian's and Ubuntu's package qemu-user)")
    if os.uname().machine != "x86_64":
        pytest.skip("the module was not built for x86-64")
    return subprocess.run(
        [emulator, "-cpu", cpu, sys.executable, "-c", script],
        env=support.child_environment(**PROCESSOR_CHOICES | changes),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@support.not_sanitized
@pytest.mark.parametrize(
    ("cpu", "tiers"),
    [
        ("max,-aes,-vaes,-vpclmulqdq", ["portable"]),
        ("max,-pclmulqdq", ["portable"]),
        ("max,-avx,-avx2,-vaes", ["aesni", "portable"]),
        ("Nehalem", ["portable"]),
    ],
)
def test_older_processors(cpu: str, tiers: list[str]) -> None:
    answer = support.ffi.new("uint8_t[35]")
    key = bytes(range(32))
    assert support.lib.ccmem_xts(0, 1, key, 32, bytes(16), bytes(35), answer, 35) == support.OK
    script = (
        SCRIPT.replace("WARNINGS", repr(["PortableTierWarning"] if tiers == ["portable"] else []))
        .replace("TIERS", repr(tiers))
        .replace("TIER", tiers[0])
        .replace("ANSWER", repr(bytes(support.ffi.buffer(answer)).hex()))
    )
    done = emulated(cpu, script)
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr


@support.not_sanitized
def test_portable_by_choice_is_silent() -> None:
    environment = support.child_environment(PYCCMEM_TIER="portable")
    done = support.run_python("import pyccmem", environment=environment)
    assert done.returncode == 0 and not done.stderr
