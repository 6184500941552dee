# SPDX-License-Identifier: Apache-2.0
"""Holds plain libraries to the instructions of the tier they are measured against."""

from __future__ import annotations

import os

from ..cpu import cpu_info

__all__ = ["environment"]

#: What numpy's OpenBLAS, MKL, torch and oneDNN are told with these tiers.
AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
}
AVX2_TIERS = ("aesni", "vaes256")


def environment() -> dict[str, str]:
    """Returns this process's environment, with what the active tier asks for where the environment
    does not say something else already."""
    found = AVX2 if cpu_info()["tier"] in AVX2_TIERS else {}
    return {**found, **os.environ}
