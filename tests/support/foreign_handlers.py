# SPDX-License-Identifier: Apache-2.0
"""A library that sets handlers of SIGSEGV and SIGBUS, and tells Python nothing of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

#: set(0): a handler that returns; 1: one that ends the process with status 9; 2: one that asks the
#: handler before it.
FOREIGN = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <unistd.h>
static volatile int calls;
static struct sigaction old[2];
static void returns(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    calls++;
}
static void ends(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    _exit(9);
}
static void asks(int number, siginfo_t *info, void *context)
{
    calls++;
    old[number == SIGBUS].sa_sigaction(number, info, context);
}
int set(int which)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    action.sa_sigaction = which == 0 ? returns : which == 1 ? ends : asks;
    calls = 0;
    return sigaction(SIGSEGV, &action, &old[0]) || sigaction(SIGBUS, &action, &old[1]);
}
int called(void) { return calls; }
"""


def foreign_library(directory: Path) -> Path:
    """Compiles it; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = directory / "foreign.c", directory / "libforeign.so"
    source.write_text(FOREIGN)
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return library
