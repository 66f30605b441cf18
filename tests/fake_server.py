"""A server of the OpenAI API, or a proxy before a real one, that fails on purpose."""

import hashlib
import json
import random
import socket
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOS = "<|begin_of_text|>"
# What a request may meet instead of an answer.
FAULTS = ("500", "429", "timeout", "trickle", "drop", "cut", "empty", "blank", "invalid", "choices")


class FakeServer:
    """Answers with words that depend on prompt and seed alone.

    Args:
        fault: gets the number of the POST (from 0), returns one of `FAULTS`, a (status, error) pair
            or None.
        say: gets a request's body, returns a text, in place of the words.
        upstream: the root URL of a server to pass requests on to, where none is to fail.
        key: the one that is accepted; it is quoted to whoever brings another.
        adds_bos: as tokenizers with a post-processor do.
    """

    def __init__(
        self,
        *,
        model: str = "usp",
        owner: str = "vllm",
        fault: Callable[[int], object] = lambda n: None,
        say: Callable[[dict], str] | None = None,
        upstream: str | None = None,
        key: str | None = None,
        adds_bos: bool = True,
        bos_tokens: int = 1,
        metered: bool = True,
        retry_after: str = "0",
        paths: tuple[str, ...] = ("/v1/completions", "/v1/chat/completions", "/v1/models"),
    ) -> None:
        self.model, self.owner, self.fault, self.say = model, owner, fault, say
        self.upstream, self.key, self.paths = upstream, key, paths
        self.adds_bos, self.bos_tokens, self.metered = adds_bos, bos_tokens, metered
        self.retry_after = retry_after
        self.posts: list[dict] = []  # path, body and key of each
        self.injected: Counter = Counter()
        self.now = self.most = 0  # requests under way, and the most of them
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self) -> "FakeServer":
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def bodies(self, path: str = "") -> list[dict]:
        """Return what was posted, but for the probes of `Client.check`."""
        told = [p["body"] for p in self.posts if p["path"].endswith(path)]
        return [b for b in told if b.get("prompt", "").replace(BOS, "") or "messages" in b]


def sometimes(rate: float, seed: int, faults: tuple[str, ...] = FAULTS) -> Callable[[int], object]:
    """Return a ``fault`` that befalls a share of all requests, whatever their order."""

    def fault(n: int) -> str | None:
        rng = random.Random(f"{seed}/{n}")
        return rng.choice(faults) if rng.random() < rate else None

    return fault


class _Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def handle_error(self, *about: object) -> None:
        """A client that hung up is no error."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *about: object) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.fake
        if fake.upstream:
            return self.pass_on(None)
        if self.path == "/openapi.json" and fake.owner == "transformers":
            return self.send(200, {"paths": {"/load_model": {}}})
        if self.path not in fake.paths:
            return self.send(404, {"detail": "Not Found"})
        if self.key_is_wrong():
            return None
        entry = {"id": fake.model, "object": "model", "owned_by": fake.owner}
        self.send(200, {"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        fake = self.fake
        raw = self.rfile.read(int(self.headers["content-length"]))
        with fake.lock:
            number = len(fake.posts)
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            fake.posts.append({"path": self.path, "body": json.loads(raw), "key": key})
            fake.now += 1
            fake.most = max(fake.most, fake.now)
        try:
            self.answer(number, raw)
        finally:
            with fake.lock:
                fake.now -= 1

    def answer(self, number: int, raw: bytes) -> None:
        fake = self.fake
        if self.key_is_wrong():
            return None
        if self.path not in fake.paths:
            return self.send(404, {"detail": "Not Found"})
        if fault := fake.fault(number):
            fake.injected[fault[0] if isinstance(fault, tuple) else fault] += 1
            return self.fail(fault)
        if fake.upstream:
            return self.pass_on(raw)
        body = json.loads(raw)
        if body["model"] != fake.model:
            return self.send(404, {"error": {"message": f"no model {body['model']}"}})
        self.send(200, self.completion(body, fake.say(body) if fake.say else words(body)))

    def completion(self, body: dict, text: str) -> dict:
        fake, reason = self.fake, "stop"
        if "prompt" in body:
            choice = {"index": 0, "text": text, "finish_reason": reason}
            rest = body["prompt"].replace(BOS, " ")
            bos = body["prompt"].count(BOS) * fake.bos_tokens + fake.adds_bos
            tokens = bos + len(rest.split())
        else:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            tokens = sum(len(m["content"].split()) for m in body["messages"])
        answer = {"id": "x", "object": "x", "created": 0, "model": fake.model, "choices": [choice]}
        if fake.metered:
            spent = len(text.split())
            usage = {"prompt_tokens": tokens, "completion_tokens": spent}
            answer["usage"] = usage | {"total_tokens": tokens + spent}
        return answer

    def fail(self, fault: object) -> None:
        if isinstance(fault, tuple):
            return self.send(fault[0], {"error": fault[1]})
        if fault == "500":
            return self.send(500, {"error": {"message": "out of memory"}})
        if fault == "429":
            wait = {"Retry-After": self.fake.retry_after}
            return self.send(429, {"error": {"message": "too many requests"}}, wait)
        if fault == "empty":
            return self.send(200, self.completion({"prompt": ""}, ""))
        if fault == "choices":
            return self.send(200, {"choices": [], "usage": None})
        if fault == "blank":
            return self.send_raw(200, b"")
        if fault == "invalid":
            return self.send_raw(200, b"<html>gateway</html>")
        self.close_connection = True
        if fault in ("cut", "trickle"):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{"id":')
        if fault == "timeout":
            self.gone()
        while fault == "trickle" and not self.fake.closing.wait(0.02):
            self.wfile.write(b" ")  # breaks once the client has gone
        self.connection.shutdown(socket.SHUT_RDWR)

    def gone(self) -> None:
        """Wait until the client hangs up."""
        self.connection.settimeout(0.05)
        while not self.fake.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                pass

    def key_is_wrong(self) -> bool:
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        if self.fake.key in (None, key):
            return False
        self.send(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
        return True

    def pass_on(self, raw: bytes | None) -> None:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.fake.upstream + self.path, raw, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                self.send_raw(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            self.send_raw(error.code, error.read())

    def send(self, status: int, body: dict, headers: dict | None = None) -> None:
        self.send_raw(status, json.dumps(body).encode(), headers)

    def send_raw(self, status: int, raw: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def words(body: dict) -> str:
    """Return a few words that depend on the prompt and the seed."""
    asked = [body.get("prompt"), body.get("messages"), body.get("seed")]
    digits = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return "about " + " ".join(digits[i : i + 4] for i in range(0, 24, 4))
