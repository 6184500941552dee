# SPDX-License-Identifier: Apache-2.0
"""Encrypted keys and values in vLLM: logits are those of the plain cache, requests of different
tenants share nothing, and what a request had is gone with its key."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

import ctypes

import secret_search
import torch
import vllm_support
from support import child_environment
from vllm_support import PROMPTS, VOCABULARY, answer, engine, furthest, make_model, prompts_of

import pyccmem
from pyccmem import errors
from pyccmem.core.kv_tables import Attention, Rows
from pyccmem.vllm import attention, proof, settings, start, steps, tenants
from pyccmem.vllm.requests import Ledger, Request

#: One prompt, which fills blocks of 32 tokens.
LONG = [13 * n % VOCABULARY for n in range(100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm")
    for name in ("llama", "mistral-window"):
        make_model(name, root / name)
    return root


def encrypted(path: Path, **options: Any) -> Any:
    return engine(path, quantization="pyccmem", **options)


def runner_of(llm: Any) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def ledger_of(llm: Any) -> Ledger:
    found: Ledger = runner_of(llm).pyccmem_ledger
    return found


def settle(llm: Any) -> None:
    """Lets the worker know who has ended. An engine in a process of its own does so at once."""
    llm.llm_engine.engine_core.get_output()


# ---- the same answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_prompts_in_chunks_beside_requests_that_write(folder: Path, name: str) -> None:
    options = {"max_num_batched_tokens": 40, "max_num_seqs": 3, "enable_chunked_prefill": True}
    prompts = [*PROMPTS, LONG, LONG[::-1], [1, 2]]
    with engine(folder / name, **options) as llm:
        plain = answer(llm, prompts, 10)
    with encrypted(folder / name, **options) as llm:
        assert furthest(plain, answer(llm, prompts, 10)) < 1e-3


def test_requests_that_have_to_make_room(folder: Path) -> None:
    prompts = [[*LONG[n : n + 60], n] for n in range(6)]
    # Room for 8 blocks of 32 tokens: 2 layers, K and V, 2 heads of 32 float32.
    options = {"kv_cache_memory_bytes": 9 * 2 * 2 * 32 * 2 * 32 * 4, "max_model_len": 128}
    with engine(folder / "llama") as llm:
        plain = answer(llm, prompts, 40)
    with encrypted(folder / "llama", **options) as llm:
        resumed = []
        ledger = ledger_of(llm)
        step = ledger.step

        def noted(output: Any) -> None:
            resumed.extend(output.scheduled_cached_reqs.resumed_req_ids)
            step(output)

        ledger.step = noted  # type: ignore[method-assign]
        assert furthest(plain, answer(llm, prompts, 40)) < 1e-3
        assert resumed


def test_the_window_matters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(folder / "mistral-window") as llm:
        plain = answer(llm, [LONG])
    made = attention.EncryptedAttentionImpl.__init__

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._window = 0

    monkeypatch.setattr(attention.EncryptedAttentionImpl, "__init__", without)
    with encrypted(folder / "mistral-window") as llm, pytest.raises(AssertionError):
        assert furthest(plain, answer(llm, [LONG])) < 1e-3


# ---- tenants -------------------------------------------------------------------------------------


def cached(llm: Any, prompt: list[int], salt: str | None) -> tuple[int, Any]:
    """How many tokens of a prompt vLLM did not compute, and the answer."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        max_tokens=3, temperature=0, logprobs=20, detokenize=False, ignore_eos=True
    )
    (result,) = llm.generate(prompts_of([prompt], [salt]), sampling, use_tqdm=False)
    output = result.outputs[0]
    scores = [{token: one.logprob for token, one in at.items()} for at in output.logprobs]
    return result.num_cached_tokens or 0, [(list(output.token_ids), scores)]


def test_only_a_tenant_s_own_prompts_begin_alike(folder: Path) -> None:
    other = [*LONG[:70], 7, 7, 7]
    with engine(folder / "llama") as llm:
        plain = answer(llm, [LONG, other], 3)
        assert cached(llm, LONG, None)[0] == 96  # what plain vLLM does without salts
    with encrypted(folder / "llama") as llm:
        assert cached(llm, LONG, None)[0] == 0
        assert cached(llm, LONG, None)[0] == 0
        assert cached(llm, LONG, "alice")[0] == 0
        tokens, found = cached(llm, LONG, "alice")
        assert tokens == 96 and furthest(plain[:1], found) < 1e-3
        tokens, found = cached(llm, other, "alice")
        assert tokens == 64 and furthest(plain[1:], found) < 1e-3
        assert cached(llm, LONG, "bob")[0] == 0
        assert cached(llm, LONG, "")[0] == 0


def test_what_is_kept_of_a_tenant_goes_with_its_blocks(folder: Path) -> None:
    options = {"kv_cache_memory_bytes": 9 * 2 * 2 * 32 * 2 * 32 * 4, "max_model_len": 128}
    with encrypted(folder / "llama", **options) as llm:
        cached(llm, LONG, "alice")
        settle(llm)
        assert ledger_of(llm).stats()["kept"] == 1
        for start_at in range(3):
            cached(llm, LONG[start_at + 1 :], None)
        settle(llm)
        assert ledger_of(llm).stats() == {"running": 0, "kept": 0, "ciphertext_bytes": 0}
        assert cached(llm, LONG, "alice")[0] == 0


def test_tenants_have_names_of_this_process() -> None:
    assert tenants.tenant_of("alice") == tenants.tenant_of("alice") != tenants.tenant_of("bob")
    assert tenants.tenant_of(None) is None and tenants.tenant_of("") is None
    assert "alice" not in str(tenants.tenant_of("alice"))


def test_two_prompts_of_a_tenant_that_come_at_once(folder: Path) -> None:
    with engine(folder / "llama") as llm:
        plain = answer(llm, [LONG, LONG], 3)
    with encrypted(folder / "llama") as llm:
        assert furthest(plain, answer(llm, [LONG, LONG], 3, ["alice", "alice"])) < 1e-3


@pytest.mark.parametrize("how", ["the cache is reset", "nothing is kept", "nothing is shared"])
def test_what_a_tenant_had_is_erased_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    options = {}
    if how == "nothing is kept":
        monkeypatch.setenv("PYCCMEM_VLLM_KEEP", "nothing")
    if how == "nothing is shared":
        options["enable_prefix_caching"] = False
    with encrypted(folder / "llama", **options) as llm:
        caches = pyccmem.stats()["caches"]
        _, first = cached(llm, LONG, "alice")
        settle(llm)
        if how == "the cache is reset":
            assert ledger_of(llm).stats()["kept"] == 1 and pyccmem.stats()["caches"] == caches + 1
            assert llm.reset_prefix_cache()
        assert ledger_of(llm).stats() == {"running": 0, "kept": 0, "ciphertext_bytes": 0}
        assert pyccmem.stats()["caches"] == caches
        tokens, found = cached(llm, LONG, "alice")
        assert tokens == 0 and found == first


def test_what_is_to_be_kept_is_one_of_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCCMEM_VLLM_KEEP", "all")
    with pytest.raises(errors.ConfigError, match="prefixes or nothing"):
        settings.keeps_ended(Space(cache_config=Space(enable_prefix_caching=True)))


# ---- the end of a request ------------------------------------------------------------------------


def is_gone(request: Request) -> bool:
    return request.tables.closed


@pytest.mark.parametrize("how", ["ends", "is aborted"])
def test_a_request_s_key_goes_with_it(folder: Path, how: str) -> None:
    from vllm import SamplingParams

    with encrypted(folder / "llama") as llm:
        sampling = SamplingParams(max_tokens=4, detokenize=False, ignore_eos=True)
        name = llm.llm_engine.add_request("one", prompts_of([LONG])[0], sampling)
        llm.llm_engine.step()
        llm.llm_engine.step()
        (request,) = ledger_of(llm)._requests.values()
        sharing = request.tables.fork()  # another holder of the key
        assert ledger_of(llm).stats()["running"] == 1 and sharing.stats()["blocks"]
        if how == "is aborted":
            llm.llm_engine.abort_request([name or "one"])
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        settle(llm)
        assert ledger_of(llm).stats()["running"] == 0 and is_gone(request) and sharing.erased
        with pytest.raises(errors.ClosedError, match="erased"):
            sharing.fork().crop(0, 0, 5)


_CHILD = """
import sys
import pyccmem, torch
pyccmem.guard(debuggable=True)
import vllm_support
import pyccmem.vllm.attention as attention
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
out, sys.stdout = sys.stdout, sys.stderr
needles = []
def note(layer, key, value, past):
    for states in (key, value):
        if states.shape[0] == 100:
            rows = states[:, 0].contiguous().view(torch.uint8)[:96:3, :16] ^ 0xA5
            needles.extend(bytes(row.tolist()).hex() for row in rows)
append = attention._append
attention._append = lambda run, name, key, value: (
    note(name, key[run.begin:run.end], value[run.begin:run.end], run.past),
    append(run, name, key, value))[1]
update = CPUAttentionBackendImpl.do_kv_cache_update
def noted(self, layer, key, value, cache, slots):
    note(layer, key, value, 0)
    update(self, layer, key, value, cache, slots)
CPUAttentionBackendImpl.do_kv_cache_update = noted
folder, options = sys.argv[1], eval(sys.argv[2])
with vllm_support.engine(folder, **options) as llm:
    vllm_support.answer(llm, [[13 * n % vllm_support.VOCABULARY for n in range(100)]], 2)
    llm.llm_engine.engine_core.get_output()
    print("ready", file=out, flush=True)
    sys.stdin.readline()
"""


def rows_in_memory(folder: Path, options: dict[str, Any], tmp_path: Path) -> tuple[int, int]:
    """How many rows of K and V there were, and how many another process finds."""
    file = tmp_path / "needles"
    script = f"import os\nos.environ.update({vllm_support.SETTINGS!r})\n" + _CHILD.replace(
        'print("ready"', f'open({str(file)!r}, "w").write("\\n".join(needles)); print("ready"'
    )
    environment = child_environment(VLLM_LOGGING_LEVEL="ERROR")
    with secret_search.child(script, str(folder), repr(options), environment=environment) as pid:
        lines = file.read_text().split()
        needles = {
            str(at): bytes(byte ^ 0xA5 for byte in bytes.fromhex(line))
            for at, line in enumerate(lines)
        }
        return len(needles), len({name for name, _ in secret_search.find(pid, needles)})


def test_no_key_and_value_of_an_ended_request_lies_in_memory(folder: Path, tmp_path: Path) -> None:
    there, found = rows_in_memory(folder / "llama", {"quantization": "pyccmem"}, tmp_path)
    assert there == 2 * 2 * 32 and found == 0
    there, found = rows_in_memory(folder / "llama", {}, tmp_path)
    assert there == 2 * 2 * 32 and found >= 32


def test_vllm_has_no_memory_for_keys_and_values(folder: Path) -> None:
    with encrypted(folder / "llama") as llm:
        answer(llm, PROMPTS)
        runner = runner_of(llm)
        layers = runner.compilation_config.static_forward_context.values()
        assert runner.kv_caches and all(one.is_meta for one in runner.kv_caches)
        assert all(layer.kv_cache.is_meta for layer in layers)
    with engine(folder / "llama") as llm:
        assert not any(one.is_meta for one in runner_of(llm).kv_caches)


# ---- what does not go on -------------------------------------------------------------------------


def finished(llm: Any) -> dict[str, tuple[str, list[int]]]:
    """Goes on until all requests have ended. Returns why each has, and its tokens."""
    found = {}
    while llm.llm_engine.has_unfinished_requests():
        for result in llm.llm_engine.step():
            if result.finished:
                (output,) = result.outputs
                found[result.request_id] = (output.finish_reason, list(output.token_ids))
    return found


def damage(request: Request) -> None:
    place = request.tables.places(1, 0)[0]
    ctypes.c_ubyte.from_address(place.data + 5).value ^= 1


@pytest.mark.parametrize("salt", [None, "alice"])
def test_a_block_that_was_changed_fails_its_request_alone(
    folder: Path, caplog: pytest.LogCaptureFixture, salt: str | None
) -> None:
    from vllm import SamplingParams

    with engine(folder / "llama") as llm:
        ((plain, _),) = answer(llm, [LONG], 4)
    with encrypted(folder / "llama") as llm:
        sampling = SamplingParams(max_tokens=4, temperature=0, detokenize=False, ignore_eos=True)
        for name in ("one", "two"):
            llm.llm_engine.add_request(name, prompts_of([LONG], [salt])[0], sampling)
        llm.llm_engine.step()
        requests = dict(ledger_of(llm)._requests)
        (first,) = (one for name, one in requests.items() if name.startswith("one"))
        damage(first)
        ends = finished(llm)
        assert ends["one"][0] == "error" and len(ends["one"][1]) < 4
        assert ends["two"] == ("length", plain)
        assert "keys and values of 'model.layers.1.self_attn.attn'" in caplog.text
        settle(llm)
        assert is_gone(first)  # also a tenant's
        # Nothing of it is the beginning of another request.
        assert answer(llm, [LONG], 4, [salt])[0][0] == plain


def test_a_changed_block_that_requests_of_a_tenant_share(folder: Path) -> None:
    from vllm import SamplingParams

    with encrypted(folder / "llama") as llm:
        ((whole, _),) = answer(llm, [LONG], 4, ["alice"])
        (kept,) = {one for one in ledger_of(llm)._owners.values()}
        damage(kept)
        sampling = SamplingParams(max_tokens=4, temperature=0, detokenize=False, ignore_eos=True)
        llm.llm_engine.add_request("one", prompts_of([LONG], ["alice"])[0], sampling)
        assert finished(llm)["one"] == ("error", [])
        assert answer(llm, [LONG], 4, ["alice"])[0][0] == whole


def test_an_engine_that_names_no_tenants(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.output import NewRequestData

    with encrypted(folder / "llama") as llm:
        plain = NewRequestData.from_request.__func__.__wrapped__
        monkeypatch.setattr(NewRequestData, "from_request", classmethod(plain))
        with pytest.raises(errors.ArgumentError, match="did not say which tenant"):
            answer(llm, PROMPTS)


def test_a_runner_that_tells_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with encrypted(folder / "llama") as llm:
        runner = runner_of(llm)
        plain = type(runner)._update_states.__wrapped__
        monkeypatch.setattr(type(runner), "_update_states", plain)
        steps._current = None
        with pytest.raises(errors.ClosedError, match="outside of a step"):
            answer(llm, PROMPTS)


def test_a_cache_in_the_clear(folder: Path) -> None:
    with encrypted(folder / "llama") as llm:
        for layer in runner_of(llm).compilation_config.static_forward_context.values():
            layer.kv_cache = torch.zeros_like(layer.kv_cache, device="cpu")
        with pytest.raises(errors.ArgumentError, match="in the clear"):
            answer(llm, PROMPTS)


def test_an_attention_that_vllm_does_not_ask_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    monkeypatch.setattr(
        attention.EncryptedAttentionBackend, "get_impl_cls", lambda: CPUAttentionBackendImpl
    )
    words = "model.layers.0.self_attn.attn"
    with pytest.raises(errors.ArgumentError, match=words), encrypted(folder / "llama"):
        pass


def test_what_is_looked_at_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    proof.check_cache()
    monkeypatch.setattr(proof, "is_hidden", lambda plain, lies: False)
    with pytest.raises(errors.ArgumentError, match="fault of pyccmem"):
        proof.check_cache()


# ---- the ledger ----------------------------------------------------------------------------------


def step_of(**changes: Any) -> Any:
    none = Space(req_ids=[], new_block_ids=[], resumed_req_ids=set(), num_computed_tokens=[])
    return Space(
        **{
            "finished_req_ids": set(),
            "kv_cache_block_copies": None,
            "scheduled_new_reqs": [],
            "scheduled_cached_reqs": none,
            **changes,
        }
    )


def new(name: str, tenant: str | None, blocks: list[int], past: int = 0) -> Any:
    return Space(req_id=name, pyccmem_tenant=tenant, block_ids=(blocks,), num_computed_tokens=past)


def fill(request: Request, tokens: int, value: float) -> None:
    states = torch.full((1, 1, tokens, 8), value)
    rows = Rows(states.data_ptr(), "float32", 0, 0, 8)
    number = request.layer("a", request.tokens, "float32", 1, (8, 8))
    request.tables.append(number, rows, rows, tokens)


def sums(request: Request) -> list[float]:
    q, out = torch.zeros(8), torch.zeros(8)
    request.tables.attend(
        Attention(
            layer=0, query_heads=1, rows=1, q=q.data_ptr(), q_dtype="float32", q_sequence=0,
            q_head=0, q_row=0, out=out.data_ptr(), out_sequence=0, out_head=0, out_row=0, scale=1.0,
        )
    )  # fmt: skip
    return [round(float(one), 4) for one in out[:1]]


def test_requests_share_beginnings_within_a_tenant() -> None:
    ledger = Ledger([4])
    ledger.step(step_of(scheduled_new_reqs=[new("a", "t", [1, 2, 3])]))
    fill(ledger["a"], 8, 1.0)
    fill(ledger["a"], 2, 4.0)
    ledger.step(step_of(finished_req_ids={"a"}))
    assert ledger.stats()["kept"] == 1
    ledger.step(step_of(scheduled_new_reqs=[new("b", "t", [1, 2, 4], 8)]))
    assert ledger["b"].tokens == 8 and sums(ledger["b"]) == [1.0]
    for tenant in ("u", None):
        with pytest.raises(errors.ClosedError, match="no encrypted cache of this tenant"):
            ledger.step(step_of(scheduled_new_reqs=[new("c", tenant, [1, 2, 5], 8)]))
    with pytest.raises(errors.ClosedError, match="has ended"):
        ledger["c"]
    fill(ledger["b"], 2, 7.0)
    ledger.step(step_of(scheduled_new_reqs=[new("d", None, [1, 2, 3])]))  # a's blocks go
    assert ledger.stats()["kept"] == 0 and sums(ledger["b"]) == [2.2]
    ledger.step(step_of(finished_req_ids={"b", "d"}))
    ledger.forget()
    assert ledger.stats() == {"running": 0, "kept": 0, "ciphertext_bytes": 0}


def test_steps_that_the_ledger_refuses() -> None:
    ledger = Ledger([4])
    with pytest.raises(errors.ArgumentError, match="copy blocks"):
        ledger.step(step_of(kv_cache_block_copies=[(1, 2)]))
    ledger.step(step_of(scheduled_new_reqs=[new("a", None, [1])]))
    with pytest.raises(errors.ArgumentError, match="in parts"):
        ledger.step(step_of(scheduled_new_reqs=[new("a", None, [2])]))
    fill(ledger["a"], 3, 1.0)
    with pytest.raises(errors.ClosedError, match="goes on behind token 5"):
        ledger["a"].layer("a", 5, "float32", 1, (8, 8))
    assert ledger["a"].layer("a", 2, "float32", 1, (8, 8)) == 0 and ledger["a"].tokens == 2


def test_options_that_would_take_blocks_elsewhere() -> None:
    good: dict[str, Any] = vllm_support.good_config()
    start.check_config(Space(**good))
    for name in ("kv_transfer_config", "kv_events_config"):
        with pytest.raises(errors.ArgumentError, match="--kv-"):
            start.check_config(Space(**{**good, name: Space(enable_kv_cache_events=True)}))
    for name, value in (("cache_dtype", "fp8"), ("kv_offloading_size", 1.0)):
        cache = Space(**{**vars(good["cache_config"]), name: value})
        with pytest.raises(errors.ArgumentError, match="--kv-"):
            start.check_config(Space(**{**good, "cache_config": cache}))
