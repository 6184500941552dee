# SPDX-License-Identifier: Apache-2.0
"""Looks for a file's weights in the clear in the memory of a process.

    samples = audit.samples_from_safetensors("model.safetensors", 32768)
    report = audit.scan(pid, samples)
    print(report.found, "of", report.samples)

takes thousands of 16-byte samples from the data of a safetensors file and looks for them in all
memory of the process, at every byte offset. `pyccmem audit PID --weights FILE` does the same on the
command line. samples_from_parts() makes samples of anything else, scan_file() searches core dumps
and swap files. The process may be this one, or its parent: the scanner keeps the samples under a
random mask and wipes what it reads, so it does not find itself.

Linux only. A user can read the memory of their own processes, unless the process has forbidden it
(PR_SET_DUMPABLE) or kernel.yama.ptrace_scope does. With CAP_SYS_PTRACE all can be read.
"""

from __future__ import annotations

from .command import add_arguments, run
from .dumps import scan_file
from .report import Hit, Report, Unreadable
from .samples import (
    DEFAULT_SAMPLES,
    MAX_SAMPLES,
    Samples,
    samples_from_parts,
    samples_from_safetensors,
)
from .scanner import scan

__all__ = [
    "DEFAULT_SAMPLES",
    "MAX_SAMPLES",
    "Hit",
    "Report",
    "Samples",
    "Unreadable",
    "add_arguments",
    "run",
    "samples_from_parts",
    "samples_from_safetensors",
    "scan",
    "scan_file",
]
