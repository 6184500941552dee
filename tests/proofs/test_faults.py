# SPDX-License-Identifier: Apache-2.0
"""Every public operation while system calls and allocations of the native module fail; see
fault_sweep.py. `make faults` tries every point, of a mapping that reads 150 of some 500 that are
much alike; `make test` a few of each operation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fault_injection
import pytest
import support

pytestmark = [support.not_sanitized, support.linux_only]

SWEEP = support.TESTS / "support" / "fault_sweep.py"
FAULTS = ("uffd", "uffd-signal", "uffd-copy", "sigsegv")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fault_injection.build(tmp_path_factory.mktemp("faults"))


def sweep(
    library: Path, *arguments: str, timeout: float = 300, fault: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SWEEP), *arguments],
        env=fault_injection.environment(library, PYCCMEM_FAULT=fault),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def names(library: Path, *arguments: str) -> list[str]:
    listed = sweep(library, "--list", *arguments)
    assert listed.returncode == 0, listed.stderr
    return listed.stdout.split()


def check(done: subprocess.CompletedProcess[str], least: int) -> None:
    """No problem, no crash, and no fewer calls than there should be."""
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    found = re.search(r"^(\d+) calls of (\d+) operations, 0 problems$", done.stdout, re.MULTILINE)
    assert found and int(found[1]) >= least, done.stdout


def test_operations_that_are_broken_are_caught(library: Path) -> None:
    done = sweep(library, "--control")
    assert done.returncode == 1, done.stderr
    caught = re.findall(r"^(\w+): caught$", done.stdout, re.MULTILINE)
    assert sorted(caught) == sorted(names(library, "--control")), done.stdout


def test_a_few_calls_of_every_operation(library: Path) -> None:
    chosen = [name for name in names(library) if not name.startswith("mapping")]
    assert len(chosen) > 60
    check(sweep(library, "--most", "2", *chosen), 1000)


def test_a_few_calls_of_mappings(library: Path) -> None:
    check(sweep(library, "--most", "3", "mapping_reads", "mapping_writes"), 40)


@pytest.mark.full
def test_every_call_of_every_operation(library: Path) -> None:
    chosen = [name for name in names(library) if not name.startswith("mapping")]
    check(sweep(library, *chosen, timeout=1200), 300)


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
def test_calls_of_mappings_by_each_mechanism(library: Path, fault: str) -> None:
    mappings = [name for name in names(library) if name.startswith("mapping")]
    done = sweep(library, "--most", "150", *mappings, timeout=2400, fault=fault)
    if "FaultMechanismError" in done.stderr and "is not available" in done.stderr:
        pytest.skip(f"this system has no {fault}")
    check(done, 40)


@pytest.mark.full
def test_every_call_of_torch_operations(library: Path) -> None:
    pytest.importorskip("torch")
    check(sweep(library, "--torch", timeout=1200), 20)
