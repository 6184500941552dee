# SPDX-License-Identifier: Apache-2.0
"""The self-test: it notices every function of every table of kernels when that is broken, before a
result of it is handed out; only the tier in use is tested at the start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import native_build
import pytest
import support

import pyccmem
from pyccmem import errors, hazmat, process
from pyccmem.cli import main

SOURCE = Path(__file__).with_name("kernels.c")


def run_controls(objects: dict[Path, Path], folder: Path) -> subprocess.CompletedProcess[str]:
    own = native_build.compile_objects([SOURCE], folder)
    made = folder / "controls"
    files = [str(path) for path in (*objects.values(), *own.values())]
    subprocess.run(
        [*native_build.compiler(), "-pthread", *files, "-o", str(made), "-lm"], check=True
    )
    return subprocess.run(
        [str(made)], capture_output=True, text=True, check=False, timeout=120, cwd=folder
    )


def test_every_broken_kernel_is_noticed(native_objects: dict[Path, Path], tmp_path: Path) -> None:
    """Each function of each table in turn does nothing, or all but the last bit right; a tier that
    is broken at the start is left out, and one broken later is refused at its first use."""
    done = run_controls(native_objects, tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, [line for line in lines if "MISSED" in line]
    assert not [line for line in lines[:-1] if not line.startswith("noticed: ")]
    tiers = len(support.TIERS)
    # Of portable alone: 8 of XTS, 2 of AES, 8 of AEGIS, 5 of products with one row, 11 of those
    # with several, 13 of those of int8, 24 of attention.
    assert len(lines) > 71 * tiers and lines[-1].endswith(" functions")
    for name in support.TIER_NAMES:
        assert f"noticed: asked for by name: {name}" in lines
        assert f"noticed: all repaired: {name}" in lines


def test_a_self_test_that_does_not_compare_is_told(
    native_objects: dict[Path, Path], tmp_path: Path
) -> None:
    """The control of the test above."""
    source = native_build.CSRC / "selftest/data.c"
    text, comparison = source.read_text(encoding="utf-8"), "return !memcmp(a, b, n);"
    assert text.count(comparison) == 1
    blind = tmp_path / source.name
    blind.write_text(text.replace(comparison, "return a && b && n;"), encoding="utf-8")
    made = native_build.compile_objects([blind], tmp_path)[blind]
    done = run_controls({**native_objects, source: made}, tmp_path)
    assert done.returncode == 1
    missed = [line for line in done.stdout.splitlines() if line.startswith("MISSED: ")]
    assert any(" aegis." in line for line in missed), missed


class Broken:
    """The native library, where one tier's self-test fails."""

    def __init__(self, number: int) -> None:
        self.number, self.status = number, int(support.lib.CCMEM_ERR_SELFTEST)

    def __getattr__(self, name: str) -> Any:
        return getattr(support.lib, name)

    def ccmem_tier_check(self, tier: int) -> int:
        return self.status if tier == self.number else int(support.lib.ccmem_tier_check(tier))

    def ccmem_selftest(self, tier: int) -> int:
        return self.ccmem_tier_check(tier)


def test_a_tier_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyccmem.binding.startup.lib", Broken(0))
    with pytest.raises(errors.SelfTestError, match="portable tier"):
        hazmat.aes_cmac(bytes(16), b"", tier="portable")
    assert hazmat.aes_cmac(bytes(16), b"")


def test_the_command_tells_of_a_tier_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text, JSON, exit status; the others are tested all the same."""
    monkeypatch.setattr(process, "lib", Broken(0))
    assert main(["selftest", "--json"]) == 1
    printed = capsys.readouterr()
    assert '"passed": false' in printed.out and '"portable": "failed"' in printed.out
    assert printed.out.count('"passed"') >= len(support.TIERS)
    assert "portable" in printed.err
    assert main(["selftest"]) == 1
    assert "failed" in capsys.readouterr().out
    with pytest.raises(errors.SelfTestError) as caught:
        pyccmem.selftest()
    assert caught.value.result["tiers"]["portable"] == "failed"
    assert set(caught.value.result["buffers"].values()) == {"passed"}


def test_a_tier_that_the_processor_lacks_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Broken(0)
    lacking.status = support.lib.CCMEM_ERR_TIER
    monkeypatch.setattr(process, "lib", lacking)
    assert pyccmem.selftest()["tiers"]["portable"] == "unusable"


#: What costs more than pyccmem itself.
HEAVY = set(
    "torch cffi json asyncio inspect importlib.metadata ml_dtypes hashlib safetensors transformers "
    "rich argparse subprocess multiprocessing email".split()
)


def test_the_import_loads_nothing_heavy() -> None:
    script = (
        "import sys, numpy\nbefore = set(sys.modules)\nimport pyccmem\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    loaded = set(support.check_python(script).split())
    assert "pyccmem.tensor" in loaded
    assert not loaded & HEAVY
    assert not [name for name in loaded if name.startswith(("pyccmem.torch", "pyccmem.bench"))]
