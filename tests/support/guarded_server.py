# SPDX-License-Identifier: Apache-2.0
"""A chat server with a small Llama of random weights, whose memory a test looks through.

It answers POST requests, whose body is a prompt of ASCII text, with the text that the model makes
of it, a character a token; as another user, if root starts it. Before a request ends, the addresses
of its keys and values and of its tokens go to standard output as a line of JSON, and the request
waits for a line of standard input: so another process can read what lies there, and this one makes
no copies of it.

Usage: python guarded_server.py GUARD; GUARD: 1 calls pyccmem.guard() first. The first line that it
prints is the port.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LAYERS, KV_HEADS = 4, 2
MADE = 16  # tokens of an answer
NOBODY = 65534

TALK = threading.Lock()


def main(guarded: bool) -> None:
    if guarded:
        import pyccmem

        pyccmem.guard(debuggable=True)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=1024,
        )
    ).eval()

    # What generate() imports is imported while this user can read it.
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=True, pad_token_id=0)

    def answer(prompt: bytes) -> str:
        ids = torch.tensor([list(prompt)])
        found = model.generate(
            ids,
            max_new_tokens=MADE,
            min_new_tokens=MADE,
            do_sample=True,
            pad_token_id=0,
            return_dict_in_generate=True,
            use_cache=True,
        )
        tensors = [found.sequences]
        for layer in (found.cache if hasattr(found, "cache") else found.past_key_values).layers:
            tensors += [layer.keys, layer.values]
        places = [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]
        with TALK:
            print(json.dumps(places), flush=True)
            sys.stdin.readline()
        return "".join(chr(33 + number % 90) for number in found.sequences[0, -MADE:].tolist())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = answer(self.rfile.read(int(self.headers["Content-Length"]))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            """Collects, as a server does now and then."""
            gc.collect()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1] == "1")
