# SPDX-License-Identifier: Apache-2.0
"""vLLM's attention on processors, with keys and values as ciphertext.

It stands where vLLM's own stands, for all models: those without pyccmem go on to that one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from .. import errors
from ..core.kv_tables import Attention, Batch, Rows
from .failures import FAILURES, Step, current_step
from .requests import Request
from .settings import encrypts_cache
from .steps import current_runner

__all__ = ["EncryptedAttentionBackend", "EncryptedAttentionImpl", "Run"]

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Run(NamedTuple):
    """Rows [begin, end) of a batch, which come behind `past` tokens of one request."""

    request_id: str
    request: Request
    begin: int
    end: int
    past: int


class EncryptedAttentionBackend(CPUAttentionBackend):  # type: ignore[misc]
    """What vLLM takes for CPU_ATTN."""

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return EncryptedAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return _Builder


class _Builder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Says for each batch which rows are whose."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        made = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if encrypts_cache(self.vllm_config):
            made.pyccmem_runs = _runs(common_attn_metadata)
        return made


def _runs(common: Any) -> list[Run]:
    """Returns the runs of a batch. Raises ClosedError outside of a step that the ledger knows."""
    runner = current_runner()
    count = common.num_reqs
    places = common.query_start_loc_cpu[: count + 1].tolist()
    lengths = common.seq_lens[:count].tolist()
    found = []
    for at, request_id in enumerate(runner.input_batch.req_ids[:count]):
        begin, end = places[at], places[at + 1]
        if end > begin:
            past = lengths[at] - (end - begin)
            found.append(Run(request_id, runner.pyccmem_ledger[request_id], begin, end, past))
    return found


class EncryptedAttentionImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """The attention of one layer. Raises ArgumentError for a kind that it has no encrypted form
    of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: False for a model without pyccmem, and for one whose cache is to be plain.
        self.encrypted = encrypts_cache(get_current_vllm_config())
        if not self.encrypted:
            return
        for found, what in (
            (self.attn_type != AttentionType.DECODER, f"attention of the kind {self.attn_type}"),
            (self.alibi_slopes is not None, "ALiBi"),
            (self.is_fp8_kv_cache, f"--kv-cache-dtype {self.kv_cache_dtype}"),
        ):
            if found:
                raise errors.ArgumentError(
                    f"pyccmem.vllm has no encrypted form of {what}; serve this model without "
                    f"pyccmem."
                )
        self._window = max(self.sliding_window, 0)
        self._sinks: Tensor | None = None

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        if not self.encrypted:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Seals the new rows of `key` and `value`, [tokens, heads, size], behind what each request
        has, and writes the attention of `query` to `output`. A request whose blocks were changed,
        or that has no room, fails, and its rows are zeros. Raises ClosedError, ArgumentError,
        PlaintextBudgetError."""
        if not self.encrypted:
            done: Tensor = super().forward(
                layer,
                query,
                key,
                value,
                kv_cache,
                attn_metadata,
                output,
                output_scale,
                output_block_scale,
            )
            return done
        if attn_metadata is None:  # vLLM warms up
            return output
        if kv_cache.numel() and not kv_cache.is_meta:
            raise errors.ArgumentError(
                "vLLM has made a key-value cache in the clear: the plug-in of pyccmem was not "
                "called where it is made."
            )
        if not isinstance(attn_metadata.causal, bool) or attn_metadata.dynamic_causal is not None:
            raise errors.ArgumentError("Masks of their own have no encrypted form in pyccmem.vllm.")
        if query.stride(2) != 1:
            query = query.contiguous()
        step, runs = current_step(), attn_metadata.pyccmem_runs
        if step is not None and self.kv_sharing_target_layer_name is None:
            what = self._attention(0, query, output, attn_metadata)
            runs = _attend_together(step, runs, layer.layer_name, key, value, what)
        for run in runs:
            if not run.request.failed:
                try:
                    self._attend(run, layer.layer_name, query, key, value, output, attn_metadata)
                    continue
                except FAILURES as error:
                    if step is None:
                        raise
                    step.fail(run.request_id, f"keys and values of {layer.layer_name!r}", error)
            output[run.begin : run.end] = 0
        return output

    def _attend(
        self,
        run: Run,
        name: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        metadata: Any,
    ) -> None:
        """The attention of one request."""
        target = self.kv_sharing_target_layer_name
        number = _append(run, name, key, value) if target is None else run.request.layers[target]
        rows = slice(run.begin, run.end)
        run.request.tables.attend(self._attention(number, query[rows], output[rows], metadata))

    def _attention(self, number: int, query: Tensor, output: Tensor, metadata: Any) -> Attention:
        """Says what is to be computed of all rows of `query`."""
        sinks = self._weights_of_sinks()
        q_row, q_head, _ = query.stride()
        out_row, out_head, _ = output.stride()
        return Attention(
            layer=number,
            query_heads=query.shape[1],
            rows=query.shape[0],
            q=query.data_ptr(),
            q_dtype=_NAMES[query.dtype],
            q_sequence=0,
            q_head=q_head,
            q_row=q_row,
            out=output.data_ptr(),
            out_sequence=0,
            out_head=out_head,
            out_row=out_row,
            scale=self.scale,
            softcap=float(self.logits_soft_cap),
            causal=metadata.causal,
            window=self._window,
            sinks=None if sinks is None else sinks.data_ptr(),
        )

    def _weights_of_sinks(self) -> Tensor | None:
        """Returns the sinks as float32; taken when the weights are there."""
        if self._sinks is None and self.sinks is not None:
            self._sinks = self.sinks.detach().float().contiguous()
        return self._sinks


class _Together(NamedTuple):
    """Runs of a step that one native call does in each layer."""

    runs: list[Run]
    batch: Batch


def _attend_together(
    step: Step, runs: list[Run], name: str, key: Tensor, value: Tensor, what: Attention
) -> list[Run]:
    """Appends and attends by one native call, for all runs of requests that have not failed.
    Returns the runs that it has not done, for one of many reasons: they are done again one by one,
    which raises what there is to raise."""
    found: _Together | None = step.together.get(id(runs))
    if found is None or any(run.request.failed for run in found.runs):
        good = [run for run in runs if not run.request.failed]
        given = [(run.request.tables, run.past, run.begin, run.end - run.begin) for run in good]
        found = step.together[id(runs)] = _Together(good, Batch(given))
    dtype, sizes = _NAMES[key.dtype], (key.shape[2], value.shape[2])
    try:
        layers = [_number(run, name, dtype, key.shape[1], sizes) for run in found.runs]
    except FAILURES:
        return runs
    keys, values = _dense(key), _dense(value)
    left = found.batch.attend(layers, _rows(keys), _rows(values), what)
    if not left and len(found.runs) == len(runs):
        return []
    return [found.runs[at] for at in left] + [run for run in runs if run.request.failed]


def _number(run: Run, name: str, dtype: str, heads: int, sizes: tuple[int, int]) -> int:
    number = run.request.layers.get(name)
    return run.request.layer(name, run.past, dtype, heads, sizes) if number is None else number


def _append(run: Run, name: str, key: Tensor, value: Tensor) -> int:
    """Seals a request's new rows. Returns the number of the layer."""
    heads, key_size, value_size = key.shape[1], key.shape[2], value.shape[2]
    sizes = (key_size, value_size)
    number = run.request.layer(name, run.past, _NAMES[key.dtype], heads, sizes)
    keys, values = _dense(key[run.begin : run.end]), _dense(value[run.begin : run.end])
    run.request.tables.append(number, _rows(keys), _rows(values), run.end - run.begin)
    return number


def _dense(states: Tensor) -> Tensor:
    return states if states.stride(2) == 1 else states.contiguous()


def _rows(states: Tensor) -> Rows:
    token, head, _ = states.stride()
    return Rows(states.data_ptr(), _NAMES[states.dtype], 0, head, token)
