# SPDX-License-Identifier: Apache-2.0
"""Does the memory of a process hold a file's weights in the clear?

    samples = audit.samples_from_safetensors("model.safetensors", 32768)
    report = audit.scan(pid, samples)
    print(report.found, "of", report.samples)

takes thousands of 16-byte samples from the data of a safetensors file and looks for them in all
that the process has in memory, at every byte offset. `pyccmem audit PID --weights FILE` does the
same on the command line. It may be this very process, or the parent: the samples are kept under a
random mask, and what the scanner reads is wiped, so it does not find itself.

Linux only. The memory of another process can be read by the same user, if the process has not
forbidden it (PR_SET_DUMPABLE) and kernel.yama.ptrace_scope allows it, or with CAP_SYS_PTRACE.
"""

from __future__ import annotations

from .command import add_arguments, run
from .report import Hit, Report, Unreadable
from .samples import DEFAULT_SAMPLES, MAX_SAMPLES, Samples, samples_from_safetensors
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
    "samples_from_safetensors",
    "scan",
]
