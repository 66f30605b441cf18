"""The reward over HTTP, in the form that OpenRLHF's remote reward expects.

    python -m usp_lab.reward_server --generator generator-tiny --port 5000
    # train_ppo_ray ... --remote_rm_url http://HOST:5000/get_reward

POST /get_reward with {"query": [dialogue, ...]}, each rendered by the chat template with its system message (as
OpenRLHF joins prompt and response), answers {"rewards": [number, ...]} and under "terms" what each is made of. A
query that cannot be scored fails the whole request with status 400 and a sentence: a number made up for it would be
learned from.
"""

import argparse
import json
import math
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from usp_lab.chat import Message, profile_of
from usp_lab.data import Dialogue
from usp_lab.errors import UspError
from usp_lab.reward import CycleReward

PATH = "/get_reward"
_MESSAGE = re.compile(
    r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|(?=<\|start_header_id\|>)|\Z)",
    re.DOTALL,
)
_SPECIAL = re.compile(r"<\|(?:end_of_text|finetune_right_pad_id)\|>")


def messages_of(text: str) -> list[Message]:
    """Return the messages of a rendered dialogue; padding and what opens an empty turn are left out."""
    found = _MESSAGE.findall(_SPECIAL.sub("", text))
    return [{"role": role, "content": said.strip()} for role, said in found if said.strip()]


def rewards(reward: CycleReward, queries: list[str], lam: float) -> dict[str, list]:
    """Return {"rewards": [...], "terms": [...]} of rendered dialogues.

    Raises:
        UspError: a query that is no dialogue behind a profile's system message, or in which no profile can be
            read back.
    """
    profiles, dialogues = [], []
    for i, text in enumerate(queries):
        messages = messages_of(text) if isinstance(text, str) else []
        profile = profile_of(messages) if messages else None
        if profile is None:
            raise UspError(
                f"query {i} begins {str(text)[:60]!r}; give a dialogue rendered by USP's chat template, "
                "its system message with the profile included"
            )
        turns = [m for m in messages if m["role"] != "system"]
        profiles.append(profile)
        dialogues.append(Dialogue(id=str(i), messages=turns))
    terms = reward.score(profiles, dialogues)
    for i, t in enumerate(terms):
        if t.error or math.isnan(t.total(lam)):
            raise UspError(f"query {i}: {t.error or 'no half of its profile can be compared'}")
    told = [{"r_cc": t.r_cc, "r_ai": None if math.isnan(t.r_ai) else t.r_ai} for t in terms]
    return {"rewards": [t.total(lam) for t in terms], "terms": told}


class RewardServer(ThreadingHTTPServer):
    """Answers requests for rewards one at a time, since models are shared.

    Args:
        reward: what scores.
        lam: weight of cycle consistency.
        host, port: where; port 0 takes a free one (``server_port``).
    """

    daemon_threads = True

    def __init__(self, reward: CycleReward, lam: float = 0.8, host: str = "127.0.0.1", port: int = 5000) -> None:  # fmt: skip
        self.reward, self.lam, self.lock = reward, lam, threading.Lock()
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer

    def do_POST(self) -> None:
        try:
            if self.path != PATH:
                raise UspError(f"no {self.path} here; post to {PATH}")
            try:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                queries = body["query"]
            except (ValueError, KeyError, TypeError) as e:
                raise UspError(f'the body is no JSON object with "query" ({e!r})') from e
            if not isinstance(queries, list) or not queries:
                raise UspError(f"query is {str(queries)[:60]!r}; give a list of dialogues")
            with self.server.lock:
                self._answer(200, rewards(self.server.reward, queries, self.server.lam))
        except UspError as e:
            self._answer(400, {"error": str(e)})
        except Exception as e:  # the trainer asks again, and must be told why it should not
            self._answer(500, {"error": f"{type(e).__name__}: {e}"})
            raise

    def _answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, form: str, *args: object) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.reward_server",
        description="Serve the reward of cycle consistency to OpenRLHF (--remote_rm_url).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--generator", default="generator-tiny", help="profile generator: folder, embedded name or hub id")  # fmt: skip
    parser.add_argument("--detector", default="", help="AI detector, likewise; none: r = r_cc")
    parser.add_argument("--encoder", default="minilm", help="sentence encoder of the cosines")
    parser.add_argument("--lam", type=float, default=0.8, help="weight of cycle consistency, 0 to 1")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=5000, help="port; 0 takes a free one")
    a = parser.parse_args()
    try:
        if not 0 <= a.lam <= 1:
            raise UspError(f"lam={a.lam}; give a weight of 0 to 1")
        if not 0 <= a.port < 2**16:
            raise UspError(f"--port {a.port}; give one of 0 to 65535")
        reward = CycleReward.from_pretrained(a.generator, a.detector, a.encoder)
        server = RewardServer(reward, a.lam, a.host, a.port)
    except UspError as e:
        sys.exit(f"error: {e}")
    except OSError as e:
        sys.exit(f"error: cannot listen at {a.host}:{a.port} ({e.strerror}); choose another port")
    print(f"serving http://{a.host}:{server.server_port}{PATH}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
