"""A server in this process that answers as `aggregate-po serve` does, or misbehaves on request."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lightning_modules.rollouts.protocol import model_sizes

TOKEN = "a-token-for-the-tests"
STOP = 7


def sampled_tokens(prompt, seed, index, longest):
    """Tokens that depend on all parameters of a request; odd lengths end with the stop token."""
    length = 1 + (sum(prompt) + index) % longest
    tokens = [10 + (seed + index + place) % 90 for place in range(length)]
    return [*tokens[:-1], STOP] if length < longest else tokens


def completion_of(request):
    """The answer to a request for completions, as vLLM words it."""
    choices = []
    for index in range(request["n"]):
        tokens = sampled_tokens(request["prompt"], request["seed"] or 0, index, request["max_tokens"])
        noted = {"token_logprobs": [-token / 100 for token in tokens], "tokens": [str(token) for token in tokens]}
        reason = "stop" if tokens[-1] == STOP else "length"
        choices.append({"index": index, "token_ids": tokens, "logprobs": noted, "finish_reason": reason})
    return {"choices": choices[::-1]}  # the order of an answer means nothing


class FakeServer:
    """One server of a model with this configuration.

    `script` is called with each request for completions and its number, and may return another answer than the usual.
    A script returns None for the usual answer, a status, a body (str or dict), or a callable that takes the handler.
    """

    def __init__(self, config, script=None):
        self.script = script
        self.state = {
            "version": "none",
            "logprobs_mode": "processed_logprobs",
            "dtype": "torch.float32",
            "max_model_len": 256,
            "sizes": model_sizes(config),
        }
        self.requests, self.loads, self.refusals = [], [], 0
        self.prompt_log_probs = None
        self._lock = threading.Lock()
        self._http = None
        self.start()

    def start(self, port=0, tls=None):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                owner.handle(self, None)

            def do_POST(self):
                owner.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *args):
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 128  # beyond it a connection waits a second
            daemon_threads = True

            def handle_error(self, request, client_address):
                """A client that has hung up is none."""

        self._http = Listener(("127.0.0.1", port), Handler)
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def handle(self, handler, body):
        if handler.headers["Authorization"] != f"Bearer {TOKEN}":
            self.refusals += 1
            self.answer(handler, 401, {"error": "Unauthorized"})
        elif handler.path == "/aggregate_po/state":
            self.answer(handler, 200, self.state)
        elif handler.path == "/aggregate_po/weights":
            self.loads.append(body["version"])
            self.state["version"] = body["version"]
            self.answer(handler, 200, self.state)
        elif "prompt_logprobs" in body:
            self.answer(handler, 200, {"choices": [{"index": 0, "prompt_logprobs": self.read(body["prompt"])}]})
        else:
            self.complete(handler, body)

    def read(self, prompt):
        values = self.prompt_log_probs
        return [None, *({str(t): {"logprob": v}} for t, v in zip(prompt[1:], values, strict=True))]

    def complete(self, handler, body):
        with self._lock:
            self.requests.append(body)
            number = len(self.requests)
        answer = self.script(body, number) if self.script else None
        if callable(answer):
            answer(handler)
        elif isinstance(answer, int):
            self.answer(handler, answer, {"error": {"message": f"status {answer} for a test"}})
        else:
            self.answer(handler, 200, completion_of(body) if answer is None else answer)

    def answer(self, handler, status, body):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Content-Type", "application/json")
        handler.send_header("x-policy-version", self.state["version"])
        handler.end_headers()
        handler.wfile.write(data)


def never_answers(handler):
    time.sleep(60)


def trickles(handler):
    """A byte now and then, for ever: each one arrives in time, the answer never does."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def trickles_headers(handler):
    """As above, before the answer has even begun."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-padding: ")
    for _ in range(600):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def breaks_off(handler):
    """The first half of an answer, and then nothing more."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
