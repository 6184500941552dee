# SPDX-License-Identifier: Apache-2.0
"""What the requests of a worker have in their key-value caches.

vLLM counts blocks of tokens, and says which request has which. Here each request has encrypted
tables under a random key of its own, and the blocks are only counted: they tell where a request
begins that shares the beginning of another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import errors
from ..core.kv_tables import KVTables

__all__ = ["Ledger", "Request"]

#: vLLM's number of the block that stands for none.
_NO_BLOCK = 0


class Request:
    """One request's tables. `tenant` names whose it is; None: nobody's, and nothing is shared."""

    __slots__ = ("claims", "failed", "layers", "running", "tables", "tenant")

    def __init__(self, tenant: str | None) -> None:
        self.tenant = tenant
        self.tables = KVTables(1)
        self.layers: dict[str, int] = {}  # numbers in the tables, by vLLM's names
        self.running = True
        self.failed = False  # something that it needs could not be opened
        self.claims: set[tuple[int, int]] = set()

    @property
    def tokens(self) -> int:
        """How many tokens all layers have."""
        counts = [self.tables.length(number, 0)[0] for number in self.layers.values()]
        return min(counts, default=0)

    def share(self, source: Request, tokens: int) -> None:
        """Begins with the first tokens of another request, which the two share under one key."""
        self.tables.close()
        self.tables = source.tables.fork()
        self.layers = dict(source.layers)
        self.crop(tokens)

    def crop(self, tokens: int) -> None:
        """Forgets all tokens from `tokens` on."""
        for number in self.layers.values():
            if self.tables.length(number, 0)[0] > tokens:
                self.tables.crop(number, 0, tokens)

    def layer(self, name: str, past: int, dtype: str, heads: int, sizes: tuple[int, int]) -> int:
        """Returns the number of a layer that has `past` tokens, and makes it when it is first used.
        Raises ClosedError when there are fewer."""
        number = self.layers.get(name)
        if number is None:
            number = self.layers[name] = self.tables.add_layer(dtype, heads, *sizes)
        tokens = self.tables.length(number, 0)[0]
        if tokens > past:
            self.tables.crop(number, 0, past)
        elif tokens < past:
            raise errors.ClosedError(
                f"vLLM goes on behind token {past} of a request, whose encrypted cache has "
                f"{tokens} in layer {name!r}."
            )
        return number

    def end(self) -> None:
        """Destroys the key, unless another request shares it."""
        if not self.tables.closed:
            if self.tenant is None:
                self.tables.erase()
            self.tables.close()


class Ledger:
    """The requests of a worker by vLLM's ids. `block_sizes` are tokens of a block in each of
    vLLM's groups of layers. `keeps`: what a tenant's request had stays when it has ended, for its
    next one."""

    def __init__(self, block_sizes: Sequence[int], *, keeps: bool = True) -> None:
        self._sizes = list(block_sizes)
        self._keeps = keeps
        self._requests: dict[str, Request] = {}
        self._owners: dict[tuple[int, int], Request] = {}

    def __getitem__(self, request_id: str) -> Request:
        """Returns a request that runs. Raises ClosedError."""
        found = self._requests.get(request_id)
        if found is None:
            raise errors.ClosedError(
                "vLLM computes with a request that has ended, or that its scheduler did not name."
            )
        return found

    def step(self, output: Any) -> None:
        """Takes over what vLLM's scheduler says of one step: who has ended, begins, and goes on.
        Raises ArgumentError, ClosedError, and what KVTables() raises."""
        for request_id in output.finished_req_ids:
            self.end(request_id)
        if output.kv_cache_block_copies:
            raise errors.ArgumentError(
                "vLLM wants to copy blocks of its key-value cache, which lie nowhere in the clear; "
                "serve with --no-enable-prefix-caching."
            )
        for new in output.scheduled_new_reqs:
            self._begin(new)
        going_on = output.scheduled_cached_reqs
        for at, request_id in enumerate(going_on.req_ids):
            blocks = going_on.new_block_ids[at]
            if request_id in going_on.resumed_req_ids:
                past = going_on.num_computed_tokens[at]
                request = self[request_id]
                if request.tokens < past:
                    request.share(self._source(request.tenant, blocks, past), past)
                else:
                    request.crop(past)
                self._claim(request, blocks, past)
            elif blocks is not None:
                self._claim(self[request_id], blocks, 0)

    def _begin(self, new: Any) -> None:
        if new.req_id in self._requests:
            raise errors.ArgumentError(
                "A request whose prompt comes in parts was not tried with encrypted caches."
            )
        try:
            tenant: str | None = new.pyccmem_tenant
        except AttributeError:
            raise errors.ArgumentError(
                "vLLM's engine did not say which tenant a request is of: the plug-in of pyccmem "
                "was not called there."
            ) from None
        past = new.num_computed_tokens
        source = self._source(tenant, new.block_ids, past) if past else None
        request = self._requests[new.req_id] = Request(tenant)
        if source is not None:
            request.share(source, past)
        self._claim(request, new.block_ids, past)

    def _source(self, tenant: str | None, blocks: Sequence[Sequence[int]], past: int) -> Request:
        """Returns the request whose first `past` tokens are in these blocks. Raises ClosedError."""
        for group, numbers in enumerate(blocks):
            last = numbers[-(-past // self._sizes[group]) - 1]
            found = self._owners.get((group, last))
            if found is not None and found.tenant == tenant is not None and found.tokens >= past:
                return found
        raise errors.ClosedError(
            "vLLM takes the beginning of a request for one that it knows, and no encrypted cache "
            "of this tenant has it."
        )

    def _claim(self, request: Request, blocks: Sequence[Sequence[int]], past: int) -> None:
        """Notes that blocks, apart from those of the first `past` tokens, are this request's."""
        for group, numbers in enumerate(blocks):
            for number in numbers[-(-past // self._sizes[group]) :]:
                if number == _NO_BLOCK:
                    continue
                place = (group, number)
                before = self._owners.get(place)
                self._owners[place] = request
                request.claims.add(place)
                if before is not None and before is not request:
                    before.claims.discard(place)
                    self._let_go(before)

    def end(self, request_id: str) -> None:
        """The request has ended, or was aborted. Without a tenant its key is destroyed, and so is
        that of one that has failed; a tenant's stays as long as vLLM may take one of its blocks for
        the beginning of another request, if the ledger keeps any."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        request.running = False
        if request.tenant is None or request.failed or not self._keeps:
            self._drop(request)
        self._let_go(request)

    def _drop(self, request: Request) -> None:
        for place in request.claims:
            self._owners.pop(place, None)
        request.claims.clear()

    def _let_go(self, request: Request) -> None:
        if not request.running and not request.claims:
            request.end()

    def forget(self) -> None:
        """Destroys the keys of all requests that do not run. vLLM must not take one of their
        blocks for the beginning of another request any more."""
        for request in {one for one in self._owners.values() if not one.running}:
            self._drop(request)
            request.end()

    def stats(self) -> dict[str, int]:
        """Returns how many requests run, how many tenants' ones are kept, and the bytes of all."""
        kept = {one for one in self._owners.values() if not one.running}
        every = [*self._requests.values(), *kept]
        return {
            "running": len(self._requests),
            "kept": len(kept),
            "ciphertext_bytes": sum(one.tables.stats()["ciphertext_bytes"] for one in every),
        }
