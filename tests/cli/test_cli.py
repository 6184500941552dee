# SPDX-License-Identifier: Apache-2.0
"""The command `pyccmem`: info, selftest, bench; text and JSON; exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support

import pyccmem


def run(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyccmem", *words],
        env=environment or support.child_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_info() -> None:
    done = run("info")
    assert done.returncode == 0 and not done.stderr
    info = pyccmem.cpu_info()
    for word in (pyccmem.__version__, info["tier"], "secret memory", "SEV", "TDX", "CSV", "SME"):
        assert word in done.stdout, word
    assert all(tier in done.stdout for tier in info["tiers"])
    assert "aegis-128x2 (default), aes-128-xts, aes-256-xts" in done.stdout


def test_info_json() -> None:
    done = run("info", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    info = pyccmem.cpu_info()
    assert found["version"] == pyccmem.__version__
    assert (found["tier"], found["tiers"]) == (info["tier"], info["tiers"])
    assert found["ciphers"] == list(support.CIPHERS)
    assert found["default_cipher"] == found["ciphers"][0] == "aegis-128x2"
    assert found["secret_memory"] in ("secretmem", "mlock", "none")
    assert {"sme", "sev", "tdx", "csv"} <= set(found["memory_encryption"])
    assert found["ceiling"] is None


def test_suites() -> None:
    """Every suite with what it promises, and speeds that are no more than the processor's."""
    done = run("suites", "--json")
    assert done.returncode == 0 and not done.stderr
    found = json.loads(done.stdout)
    assert [suite["name"] for suite in found["suites"]] == list(support.CIPHERS)
    assert found["certified"] is False
    for suite in found["suites"]:
        tagged = suite["name"] not in support.XTS_CIPHERS
        assert suite["notices_changes"] == tagged and suite["tag_bits"] == 128 * tagged
        assert suite["standards"] and suite["limit"].startswith("2^")
        for operation in ("seal", "open"):
            assert 1e6 < suite[f"{operation}_bytes_per_second"] < 1e12
    shown = run("suites", "--no-speed")
    assert shown.returncode == 0 and "GB/s" not in shown.stdout and "FIPS 140-3" in shown.stdout
    assert all(name in shown.stdout for name in support.CIPHERS)


def test_info_measure() -> None:
    done = run("info", "--json", "--measure")
    assert done.returncode == 0, done.stderr
    ceiling = json.loads(done.stdout)["ceiling"]
    assert (ceiling is None) == (pyccmem.cpu_info()["tier"] == "portable")


def test_selftest() -> None:
    done = run("selftest")
    assert done.returncode == 0 and "passed" in done.stdout and "failed" not in done.stdout
    assert all(cipher in done.stdout for cipher in support.CIPHERS)
    done = run("selftest", "--json")
    found = json.loads(done.stdout)
    assert found["passed"] is True
    assert found["buffers"] == dict.fromkeys(support.CIPHERS, "passed")
    assert {name for name, outcome in found["tiers"].items() if outcome == "passed"} == set(
        support.TIER_NAMES
    )


@pytest.mark.parametrize(
    "words",
    [(), ("bogus",), ("info", "--bogus"), ("info", "extra"), ("selftest", "extra"), ("--json",)],
)
def test_wrong_usage(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2 and "usage: pyccmem" in done.stderr and not done.stdout


@pytest.mark.parametrize("words", [("--help",), ("info", "--help"), ("selftest", "-h")])
def test_help(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 0 and "usage: pyccmem" in done.stdout


def test_version() -> None:
    assert run("--version").stdout.strip() == f"pyccmem {pyccmem.__version__}"


@pytest.mark.parametrize(
    ("name", "value"), [("PYCCMEM_TIER", "bogus"), ("PYCCMEM_NUM_THREADS", "none")]
)
def test_a_wrong_environment_is_one_line(name: str, value: str) -> None:
    for words in (("info",), ("selftest", "--json"), ("--version",)):
        done = run(*words, environment=support.child_environment(**{name: value}))
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.startswith("pyccmem: ") and name in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_the_installed_script_is_the_same_command() -> None:
    script = shutil.which("pyccmem", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed with its script beside this interpreter")
    done = subprocess.run([script, "info", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["version"] == pyccmem.__version__
    done = subprocess.run(
        [script, "info"],
        env=support.child_environment(PYCCMEM_TIER="bogus"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_a_closed_pipe_is_no_error() -> None:
    for words in (["info"], ["info", "--json"], ["selftest"]):
        read_end, write_end = os.pipe()
        os.close(read_end)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pyccmem", *words],
                env=support.child_environment(),
                cwd="/",
                stdout=write_end,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            os.close(write_end)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_output_without_utf_8() -> None:
    for encoding in ("ascii", "latin-1"):
        environment = support.child_environment(PYTHONIOENCODING=encoding, LC_ALL="C")
        for words in (("info",), ("selftest",)):
            done = run(*words, environment=environment)
            assert done.returncode == 0, done.stderr


def test_bench_help() -> None:
    done = run("bench", "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
