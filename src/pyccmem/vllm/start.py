# SPDX-License-Identifier: Apache-2.0
"""What must hold before an encrypted model starts."""

from __future__ import annotations

from typing import Any

from .. import errors
from .versions import check_version

__all__ = ["check_config"]


def check_config(config: Any) -> None:
    """Raises ArgumentError for options of vLLM under which something would lie in the clear or was
    not tried, and MissingPackageError for a version that was not tested."""
    check_version()
    parallel = config.parallel_config
    for name, found, why in (
        ("--pipeline-parallel-size", parallel.pipeline_parallel_size > 1, "was not tried"),
        ("--enable-lora", config.lora_config is not None, "was not tried"),
        ("--speculative-config", config.speculative_config is not None, "was not tried"),
    ):
        if found:
            raise errors.ArgumentError(
                f"{name} {why} with encrypted models; leave it out, or serve without pyccmem."
            )
