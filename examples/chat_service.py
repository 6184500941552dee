# SPDX-License-Identifier: Apache-2.0
"""A chat service: answers are streamed, and each user has an encrypted key-value cache.

    pip install 'pyccmem[transformers,examples]'
    pyccmem keygen model.key
    pyccmem encrypt MODEL SEALED --key-file model.key
    PYCCMEM_KEY_FILE=model.key MODEL=SEALED \\
        pyccmem run -- uvicorn chat_service:app --app-dir examples

    curl -N http://127.0.0.1:8000/messages -H 'x-user: alice' -H 'content-type: application/json' \\
        -d '{"text": "Once upon a time"}'
    curl -X DELETE http://127.0.0.1:8000/messages -H 'x-user: alice'

What a user has said lies in her cache alone, as ciphertext under a random key of that cache, and
DELETE destroys the key. USERS bounds how many caches there are: the one that was not used for
longest is erased. The header x-user stands for whatever a proxy in front has found out about who
asks: never let it through from outside. One process serves all users of a cache, so start one
worker, or send a user to the same worker each time.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

import pyccmem.transformers
from pyccmem.transformers import EncryptedCache

USERS = int(os.environ.get("USERS", "100"))
TOKENS = int(os.environ.get("TOKENS", "200"))

User = Annotated[str, Header(alias="x-user", min_length=1, max_length=100)]


class Stopped(StoppingCriteria):
    """Ends generate() when nobody listens any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        return torch.full((len(ids),), self.event.is_set())


class Conversation:
    """One user's cache. Of the text it keeps one token: the last one of an answer, which the model
    has said and not yet read."""

    def __init__(self, config: Any) -> None:
        self.cache = EncryptedCache(config)
        self.busy = threading.Lock()
        self.last: torch.Tensor | None = None


class Chat:
    """The model, and the conversations."""

    def __init__(self, directory: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
        pyccmem.transformers.protect_inputs(self.model)
        self.users: OrderedDict[str, Conversation] = OrderedDict()
        self.lock = threading.Lock()

    def conversation(self, user: str) -> Conversation:
        """The conversation of a user, locked. Raises HTTPException while she is being answered."""
        with self.lock:
            found = self.users.get(user)
            if found is None:
                found = self.users[user] = Conversation(self.model.config)
            self.users.move_to_end(user)
            while len(self.users) > USERS:
                self.users.popitem(last=False)[1].cache.erase()
            if not found.busy.acquire(blocking=False):
                raise HTTPException(409, "the last message is still being answered")
        return found

    def forget(self, user: str) -> None:
        """Destroys the key of a user's cache: nothing opens what was said any more."""
        with self.lock:
            found = self.users.pop(user, None)
        if found is not None:
            found.cache.erase()

    def answer(self, conversation: Conversation, text: str) -> Iterator[str]:
        """The pieces of an answer, as they are made, behind an empty one: whoever takes that has
        begun, and the conversation is unlocked however it goes on. The new tokens alone go to the
        model: the cache has the others."""
        stopped = Stopped()
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)
        failed: list[BaseException] = []

        def work() -> None:
            try:
                ids = self.tokenizer(text, return_tensors="pt").input_ids
                if conversation.last is not None:
                    ids = torch.cat((conversation.last, ids), 1)
                seen = conversation.cache.get_seq_length() + ids.shape[1]
                whole = self.model.generate(
                    ids,
                    attention_mask=torch.ones(1, seen, dtype=torch.long),
                    cache=conversation.cache,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([stopped]),
                    max_new_tokens=TOKENS,
                    do_sample=False,
                    pad_token_id=self.tokenizer.eos_token_id,
                )
                conversation.last = whole[:, -1:].clone()
            except BaseException as error:  # a cache that was erased meanwhile, for one
                failed.append(error)
                streamer.end()

        worker = threading.Thread(target=work)
        try:
            yield ""
            worker.start()
            yield from streamer
        finally:
            stopped.event.set()
            if worker.ident is not None:
                worker.join()
            conversation.busy.release()
        if failed:
            raise failed[0]


#: The chat, once the service has started.
loaded: dict[str, Chat] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Opens the model, and looks whether the process is protected as it should be."""
    loaded["chat"] = Chat(os.environ["MODEL"])
    pyccmem.posture(require=os.environ.get("REQUIRE", "minimal").split(","))
    yield
    for user in list(loaded["chat"].users):
        loaded["chat"].forget(user)


app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)


class Message(BaseModel):
    """What a user says."""

    text: str = Field(min_length=1, max_length=4000)


@app.post("/messages")
def messages(message: Message, user: User) -> StreamingResponse:
    """Streams the answer as plain text."""
    chat = loaded["chat"]
    pieces = chat.answer(chat.conversation(user), message.text)
    next(pieces)
    return StreamingResponse(pieces, media_type="text/plain")


@app.delete("/messages", status_code=204)
def forget(user: User) -> None:
    """Forgets what a user has said."""
    loaded["chat"].forget(user)


@app.get("/health")
def health() -> dict[str, str]:
    """Answers once the model is there."""
    return {"status": "ok"}
