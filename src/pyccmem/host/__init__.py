# SPDX-License-Identifier: Apache-2.0
"""Tells what the host is, as far as a process can know: its processor, and whether hardware
encrypts its memory."""

from .encryption import ABSENT, ACTIVE, AVAILABLE, UNKNOWN, memory_encryption
from .processor import Processor, processor, processor_name

__all__ = [
    "ABSENT",
    "ACTIVE",
    "AVAILABLE",
    "UNKNOWN",
    "Processor",
    "memory_encryption",
    "processor",
    "processor_name",
]
