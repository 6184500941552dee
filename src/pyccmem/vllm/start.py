# SPDX-License-Identifier: Apache-2.0
"""What must hold before an encrypted model starts."""

from __future__ import annotations

from typing import Any

from .. import errors
from .settings import LORA, takes_lora
from .versions import check_version

__all__ = ["check_config"]


def check_config(config: Any) -> None:
    """Raises ArgumentError for options of vLLM under which something would lie in the clear or was
    not tried, and MissingPackageError for a version that was not tested."""
    check_version()
    parallel, cache, events = config.parallel_config, config.cache_config, config.kv_events_config
    quantised = cache.cache_dtype not in ("auto", "float32", "bfloat16", "float16", "half")
    away = config.kv_transfer_config is not None or config.ec_transfer_config is not None
    published = events is not None and events.enable_kv_cache_events
    for name, found, why in (
        ("--pipeline-parallel-size", parallel.pipeline_parallel_size > 1, "was not tried"),
        (
            "--enable-lora",
            config.lora_config is not None and not takes_lora(),
            f"keeps adapters in the clear, which {LORA}=plain accepts,",
        ),
        ("--speculative-config", config.speculative_config is not None, "was not tried"),
        ("VLLM_USE_V2_MODEL_RUNNER", config.use_v2_model_runner, "was not tried"),
        ("--kv-cache-dtype", quantised, "has no encrypted form"),
        ("--kv-transfer-config", away, "takes keys and values elsewhere in the clear"),
        ("--kv-offloading-size", bool(cache.kv_offloading_size), "has no encrypted form"),
        ("--kv-events-config", published, "publishes token ids of prompts"),
    ):
        if found:
            raise errors.ArgumentError(
                f"{name} {why} with encrypted models; leave it out, or serve without pyccmem."
            )
