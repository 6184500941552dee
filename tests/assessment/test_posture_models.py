# SPDX-License-Identifier: Apache-2.0
"""posture() finds models and caches in memory: encrypted ones, a plain tensor left in one, plain
ones. It imports neither torch nor the adapters for that."""

from __future__ import annotations

import gc
import json
import re

import pytest
from support import SANITIZED, check_python, child_environment, run_python

import pyccmem

torch = pytest.importorskip("torch")

import pyccmem.torch  # noqa: E402
from pyccmem.assessment import models  # noqa: E402
from pyccmem.assessment.subject import Subject  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what other tests have left in memory."""
    look = models._alive
    there = {name: look(Subject(), name) for name in models._bases()}  # ids stay taken

    def alive(subject: Subject, name: str) -> list[object]:
        known = set(map(id, there.get(name, [])))
        return [one for one in look(subject, name) if id(one) not in known]

    monkeypatch.setattr(models, "_alive", alive)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))


def found() -> tuple[str, str]:
    line = pyccmem.posture()["models"]
    return line.state, line.seen


def test_a_model_before_and_after() -> None:
    own = model()
    state, seen = found()
    assert state == "bad" and seen.startswith("0 of 1 models encrypted")
    assert "0.weight (16384 bytes)" in seen
    with pyccmem.Key.generate() as key:
        pyccmem.torch.encrypt_module(own, key=key)
        assert found() == ("good", "1 of 1 models encrypted; no plain tensor")
        twin = model()
        state, seen = found()
        assert state == "bad" and seen.startswith("1 of 2 models encrypted")
        del twin
        gc.collect()
        assert found()[0] == "good"
        pyccmem.torch.decrypt_module(own)
        assert found()[0] == "bad"


def test_a_plain_tensor_that_is_left() -> None:
    own = model()
    with pyccmem.Key.generate() as key:
        pyccmem.torch.encrypt_module(own, key=key)
        for name, make in {
            "2.bias": lambda: setattr(own[2], "bias", torch.nn.Parameter(torch.ones(8))),
            "1.table": lambda: own[1].register_buffer("table", torch.ones(4)),
            "0.copy": lambda: setattr(own[0], "copy", [torch.ones(3)]),
        }.items():
            with pytest.raises(AssertionError):
                assert name in found()[1]
            make()
            state, seen = found()
            assert state == "weak" and name in seen
            with pytest.raises(pyccmem.errors.PostureError, match=name):
                pyccmem.posture(require="models")


def test_what_the_garbage_collector_does_not_show() -> None:
    own = model()
    gc.freeze()
    try:
        assert found()[0] == "unknown"
    finally:
        gc.unfreeze()
    assert found()[0] == "bad"
    del own


def test_a_module_that_is_not_made_yet() -> None:
    """Another thread may be in the middle of a constructor."""
    half = torch.nn.Module.__new__(torch.nn.Linear)
    assert found()[0] in ("good", "unknown")
    del half


def test_a_model_that_cannot_be_looked_at() -> None:
    class Odd(torch.nn.Module):
        def named_modules(self, *_: object, **__: object) -> None:
            raise RuntimeError("not this one")

    odd = Odd()
    state, seen = found()
    assert state == "unknown" and "not this one" in seen
    del odd


CHILD = """
import json, sys
import pyccmem
{before}
found = pyccmem.posture()
loaded = [name for name in ("torch", "transformers", "pyccmem.torch") if name in sys.modules]
print(json.dumps([found["models"].state, found["torch-memory"].state, loaded]))
"""


def test_nothing_is_imported() -> None:
    assert json.loads(check_python(CHILD.format(before=""))) == ["good", "good", []]


def test_a_model_without_the_adapter() -> None:
    """All of it is plain; the adapter is not imported to find that out."""
    text = check_python(CHILD.format(before="import torch\nmodel = torch.nn.Linear(4, 4)"))
    assert json.loads(text) == ["bad", "bad", ["torch"]]
    text = check_python(CHILD.format(before="import torch"))
    assert json.loads(text)[0] == "good"


# ---- caches --------------------------------------------------------------------------------------


def caches() -> str:
    return pyccmem.posture()["caches"].state


def encrypted_caches() -> int:
    """How many there are; other tests of this process may have left some."""
    line = pyccmem.posture()["caches"]
    assert line.state == "good"
    found = re.match(r"(\d+) encrypted", line.seen)
    return int(found[1]) if found else 0


def test_caches_of_our_own() -> None:
    gc.collect()
    before = encrypted_caches()
    with pyccmem.KVCache(layers=1, heads=1, key_size=64):
        assert encrypted_caches() == before + 1
    plain = pyccmem.KVCache(layers=1, heads=1, key_size=64, _encrypted=False)
    assert caches() == "bad"
    plain.close()
    assert caches() == "good"


def test_caches_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from pyccmem.transformers import EncryptedCache

    states = torch.ones(1, 2, 5, 16)
    plain = transformers.DynamicCache()
    assert caches() == "good"  # nothing in it
    plain.update(states, states, 0)
    assert caches() == "bad"
    del plain
    gc.collect()
    before = encrypted_caches()
    ours = EncryptedCache()
    ours.update(states, states, 0)
    assert encrypted_caches() == before + 1
    ours.close()


@pytest.mark.parametrize("kind", ["static", "encoder-decoder", "recurrent"])
def test_other_caches_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.cache_utils import LinearAttentionLayer

    states = torch.ones(1, 2, 5, 16)
    cache: object
    if kind == "static":
        config = transformers.LlamaConfig(
            hidden_size=32, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1
        )
        cache = transformers.StaticCache(config=config, max_cache_len=8)
        cache.update(states, states, 0, {"cache_position": torch.arange(5)})
    elif kind == "encoder-decoder":
        cache = transformers.EncoderDecoderCache(
            transformers.DynamicCache(), transformers.DynamicCache()
        )
        cache.cross_attention_cache.update(states, states, 0)
    else:
        cache = transformers.DynamicCache()
        layer = LinearAttentionLayer()
        layer.conv_states[0] = torch.ones(1, 4, 4)
        cache.layers.append(layer)
    assert caches() == "bad"
    del cache
    gc.collect()
    assert caches() == "good"


def test_pages_of_continuous_batching() -> None:
    pytest.importorskip("transformers")
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    from pyccmem.transformers.batch_cache import EncryptedPagedCache

    for kind, device, expected in (
        (PagedAttentionCache, "cpu", "bad"),
        (PagedAttentionCache, "meta", "good"),
        (EncryptedPagedCache, "meta", "good"),
    ):
        cache = kind.__new__(kind)
        cache.cache_tensor = torch.zeros(4096, dtype=torch.uint8, device=device)
        assert caches() == expected, (kind, device)
        del cache
        gc.collect()


def test_a_protected_llama() -> None:
    """All weights encrypted and the inputs protected: what is left in the clear is named."""
    transformers = pytest.importorskip("transformers")
    import pyccmem.transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    assert found()[0] == "bad"
    with pyccmem.Key.generate() as key:
        pyccmem.torch.encrypt_module(llama, key=key)
        pyccmem.transformers.protect_inputs(llama)
        ids = torch.arange(6)[None]
        llama.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert caches() == "good"
        state, seen = found()
        assert state in ("good", "weak") and seen.startswith("1 of 1 models encrypted")
        assert state == "good" or "inv_freq" in seen
    del llama


def test_looking_takes_little_time() -> None:
    """With torch loaded and a million objects alive."""
    script = (
        "import time, torch, pyccmem, pyccmem.torch\n"
        "kept = [[n] for n in range(1_000_000)]\n"
        "best = 9e9\n"
        "for _ in range(3):\n"
        "    start = time.perf_counter(); pyccmem.posture()\n"
        "    best = min(best, time.perf_counter() - start)\n"
        "print(best)"
    )
    done = run_python(script, environment=child_environment())
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (5 if SANITIZED else 1)
