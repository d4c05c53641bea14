"""The endpoint policy against a hostile server: every kind of trouble, limits, secrets, a game played through it."""

import gzip
import json
import math
import os
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from doubles import REPO, new_conversations
from huggingface_hub import ChatCompletionOutput
from hypothesis import given
from hypothesis import strategies as st
from training import assert_one_line, run_here

import eval as script
from context import UPDATE_SYSTEM
from engine.errors import BadInput
from environments.frozenlake.players import PLAYERS
from envs import make_pack
from evaluation import endpoint, session
from evaluation.endpoint import Endpoint
from evaluation.session import Failed
from rollout import Reply, play, run

KEY = "sk-very-secret-4711"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
            number = len(self.server.requests)
        self.number, self.conversation = number, json.loads(body)["messages"]
        self.server.answer(self)

    def send(self, status, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


def completion(text="fine", **message):
    return {"choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}]}


@contextmanager
def serving(answer):
    """A server that answers every request by `answer(handler)`; `requests` are (path, headers, JSON)."""
    server = Server(("127.0.0.1", 0), Handler)
    server.answer, server.requests, server.lock = answer, [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Short pauses, a key, a Hugging Face token, no proxies; and no threads left behind."""
    monkeypatch.setattr(session, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(session, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_another_secret")
    monkeypatch.setenv("NO_PROXY", "*")
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


def client(url, **options):
    return Endpoint(**{"url": url, "model": "m", "temperature": 1.0, "max_new_tokens": 50} | options)


def ask(answer, n=1, **options):
    """The replies of an endpoint that answers so to n conversations, in their order, and the requests it saw."""
    with serving(answer) as server, client(server.url, **options) as policy:
        episodes = new_conversations(*map(str, range(n)))
        replies = all_replies(policy, episodes)
        return [replies[episode] for episode in episodes], server.requests


def all_replies(policy, episodes):
    replies = dict(policy.reply(episodes))
    while len(replies) < len(episodes):
        replies |= policy.reply([])
    return replies


def ask_after_one(answer):
    """The replies to two conversations, the first of which is answered well, and the requests."""
    with serving(lambda h: h.send(200, completion()) if h.number == 1 else answer(h)) as server:
        with client(server.url) as policy:
            replies = [all_replies(policy, [episode])[episode] for episode in new_conversations("0", "1")]
        return replies, server.requests


def refusal(answer, **options):
    """The one line that an endpoint ends in, and the requests it saw."""
    with serving(answer) as server, client(server.url, **options) as policy:
        with pytest.raises(BadInput) as error:
            all_replies(policy, new_conversations("x"))
        message = str(error.value)
        assert len(message.splitlines()) == 1 and len(message) < 500 and KEY not in message
        assert f"url={server.url}, model='m': " in message
        return message, server.requests


# ---------------------------------------------------------------------------------------------------------
# Trouble that passes


def reset(handler):
    """Cut the connection so that the other side is told."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def without_end(handler):
    """A byte every now and then."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def cut_short(handler):
    handler.send(200, json.dumps(completion()).encode()[:40], Content_Length=4000)
    handler.close_connection = True


def huge(handler):
    handler.send(200, completion("x" * 10_000_000))


def unpacks_to_much(handler):
    handler.send(200, gzip.compress(json.dumps(completion("x" * 10_000_000)).encode()), Content_Encoding="gzip")


TROUBLE = {
    "429": lambda h: h.send(429, {"error": {"message": "slow down"}}),
    "429, Retry-After": lambda h: h.send(429, b"", Retry_After=3600),
    "429, a date": lambda h: h.send(429, b"", Retry_After="Wed, 21 Oct 2065 07:28:00 GMT"),
    "429, nonsense": lambda h: h.send(429, b"", Retry_After="soon"),
    "500": lambda h: h.send(500, b"<html>oops</html>"),
    "502, a list": lambda h: h.send(502, [1, 2]),
    "503": lambda h: h.send(503, b"\xff\xfe"),
    "half a JSON": lambda h: h.send(200, json.dumps(completion()).encode()[:50]),
    "no text": lambda h: h.send(200, b"\xff\xff"),
    "a page": lambda h: h.send(200, b"<html>Welcome!</html>"),
    "deep": lambda h: h.send(200, b"[" * 200_000),
    "long number": lambda h: h.send(200, b'{"choices": ' + b"9" * 5000 + b"}"),
    "no choice": lambda h: h.send(200, {"choices": []}),
    "an error with 200": lambda h: h.send(200, {"error": {"message": "provider down", "code": 502}}),
    "a choice of another type": lambda h: h.send(200, {"choices": ["x"]}),
    "choices of another type": lambda h: h.send(200, {"choices": "x"}),
    "no message": lambda h: h.send(200, {"choices": [{"finish_reason": "stop"}]}),
    "a message of another type": lambda h: h.send(200, {"choices": [{"message": "fine"}]}),
    "content of another type": lambda h: h.send(200, completion(5)),
    "a list": lambda h: h.send(200, [completion()]),
    "null": lambda h: h.send(200, b"null"),
    "without end": without_end,
    "cut short": cut_short,
    "10 MB": huge,
    "10 MB, packed": unpacks_to_much,
    "reset": reset,
    "closed": lambda h: setattr(h, "close_connection", True),
    "no HTTP": lambda h: (h.wfile.write(b"hello\r\n\r\n"), reset(h)),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_that_passes_is_tried_again(kind):
    """Once or twice, then an answer. (A try takes half of the patience at most.)"""
    patience, trouble = (2.0, 1) if kind == "without end" else (20.0, 2)

    def answer(handler):
        TROUBLE[kind](handler) if handler.number <= trouble else handler.send(200, completion("at last"))

    replies, requests = ask(answer, patience=patience)
    assert [reply.text for reply in replies] == ["at last"]
    assert len(requests) == trouble + 1 and all(sent == requests[0][2] for _, _, sent in requests)


@pytest.mark.parametrize(
    "kind", ["429", "429, Retry-After", "503", "500", "half a JSON", "deep", "no choice", "10 MB", "reset", "no HTTP"]
)
def test_an_endpoint_that_never_answers_is_given_up_soon(kind):
    busy = kind[:3] in ("429", "503")
    start = time.monotonic()
    message, requests = refusal(TROUBLE[kind], patience=2.0 if busy else 600.0)
    assert "the same command goes on" in message and f"{len(requests)} tries" in message
    assert time.monotonic() - start < 10
    assert len(requests) > endpoint.FEW_TRIES if busy else len(requests) == endpoint.FEW_TRIES


def test_messages_say_what_happened():
    assert "HTTP 500 Internal Server Error: oops, after 5 tries in " in refusal(TROUBLE["500"])[0]
    assert "provider down 502" in refusal(TROUBLE["an error with 200"])[0]
    assert "larger than 4 MiB" in refusal(TROUBLE["10 MB"])[0]
    assert "no whole reply within 0.2 seconds" in refusal(without_end, patience=0.4)[0]
    assert "HTTP 429 Too Many Requests: slow down, after " in refusal(TROUBLE["429"], patience=2.0)[0]


def test_an_endpoint_that_has_answered_is_waited_for():
    """As long as `patience`, for one conversation; the others go on."""
    broken = threading.Event()

    def answer(handler):
        stuck = handler.conversation[-1]["content"] == "1" and broken.is_set()
        handler.send(500, b"down") if stuck else handler.send(200, completion())

    with serving(answer) as server, client(server.url, patience=1.0) as policy:
        [first, second, third] = new_conversations("0", "1", "2")
        policy.reply([first])
        broken.set()
        start = time.monotonic()
        assert [episode for episode, _ in policy.reply([second, third])] == [third]
        with pytest.raises(BadInput, match="down, after .* tries in . seconds; the same command goes on"):
            policy.reply([])
        assert 0.9 < time.monotonic() - start < 5
        assert len(server.requests) > endpoint.FEW_TRIES + 2  # two are answered


def test_what_a_server_asks_for_is_waited(monkeypatch):
    monkeypatch.setattr(session, "LONGEST_PAUSE", 5.0)
    times = []

    def answer(handler):
        times.append(time.monotonic())
        handler.send(429, b"", Retry_After=1) if len(times) == 1 else handler.send(200, completion())

    ask(answer)
    assert 1 <= times[1] - times[0] < 4


@given(st.integers(1, 2000), st.floats(0, 1e9), st.floats(0.01, 10), st.floats(10, 100))
def test_pauses(tries, asked, first, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "FIRST_PAUSE", first)
        patch.setattr(session, "LONGEST_PAUSE", longest)
        pauses = [session.pause(tries, asked) for _ in range(20)]
    least = min(asked, longest)
    assert least <= min(pauses) and max(pauses) <= least + min(longest, first * 2 ** min(tries - 1, 1000))
    assert len(set(pauses)) > 10  # jitter


def test_jitter_is_full():
    """Uniform from nothing up to a span that doubles: of 2,000 draws the mean is its half within five deviations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "FIRST_PAUSE", 1.0)
        patch.setattr(session, "LONGEST_PAUSE", 6.0)
        for tries, span in ((1, 1), (2, 2), (3, 4), (4, 6), (9, 6)):
            draws = [session.pause(tries, 0.0) for _ in range(2000)]
            assert abs(sum(draws) / 2000 - span / 2) < 5 * span / math.sqrt(12 * 2000)


def test_retry_after_is_read():
    now = datetime.now(UTC)
    assert session.asked_pause("7") == 7 and session.asked_pause("1.5") == 1.5
    assert 58 < session.asked_pause(format_datetime(now + timedelta(seconds=60), usegmt=True)) <= 60
    assert 58 < session.asked_pause(format_datetime(now.replace(tzinfo=None) + timedelta(seconds=60))) <= 60
    for value in ("", "-5", "nan", "inf", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Foo 2015 07:28:00 GMT"):
        assert session.asked_pause(value) == 0


@given(
    st.text() | st.from_regex(r"\w{3}, \d{1,9} \w{3} \d{1,9} \d{1,3}:\d{1,3}:\d{1,3} [-+A-Z0-9]{0,6}", fullmatch=True)
)
def test_any_retry_after_is_a_finite_pause(value):
    assert 0 <= session.asked_pause(value) < math.inf


# ---------------------------------------------------------------------------------------------------------
# Trouble that stays, and secrets


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}}, "[key]"),
        (401, f"key\n{KEY}\n refused".encode(), "key [key] refused; OPENAI_API_KEY is set"),
        (401, (KEY * 10_000).encode(), "[key][key]"),
        (403, {"error": "no access"}, "HTTP 403 Forbidden: no access"),
        (400, {"error": {"message": "The model `m`\ndoes not exist"}}, "The model `m` does not exist"),
        (404, {"detail": "model not found"}, "HTTP 404 Not Found: model not found"),
        (422, {"detail": [{"msg": "bad field", "input": "the prompt is too long"}]}, "bad field"),
        (402, {"message": "pay \x1b[31mfirst"}, "pay [31mfirst"),
        (405, b"<html><title>No</title></html>", "HTTP 405 Method Not Allowed: No"),
        (404, b"x" * 20_000_000, "xxx..."),
        (400, b"<" * 3_000_000, "<<<..."),
        (400, {"error": {"message": "Unknown parameter: 'context_length'"}}, "Unknown parameter"),
        (400, {"error": {"message": "max_tokens is too large: 9. At most 8 completion tokens"}}, "max_tokens"),
        (304, b"", "HTTP 304"),
    ],
)
def test_what_cannot_be_mended_ends_at_once(status, body, expected):
    message, requests = refusal(lambda handler: handler.send(status, body))
    assert len(requests) == 1 and expected in message and "\x1b" not in message


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."),
        (400, "the request exceeds the available context size, try increasing it"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
        (400, "The input token count (70000) exceeds the maximum number of tokens allowed (65536)."),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."),
        (413, "Request Entity Too Large"),
    ],
)
def test_a_conversation_that_is_too_long_ends_its_task_only(status, message):
    [first, reply], requests = ask_after_one(lambda handler: handler.send(status, {"error": {"message": message}}))
    assert reply == Reply("", truncated=True, context_full=True) and len(requests) == 2
    assert first.text == "fine"


def test_the_context_is_full_by_its_code_too():
    error = {"error": {"message": "No.", "code": "context_length_exceeded"}}
    assert ask_after_one(lambda handler: handler.send(400, error))[0][1].context_full


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            400,
            "max_tokens is too large: 100000. This model's maximum context length is 32768 tokens and your request has "
            "300 input tokens",
        ),
        (413, "Payload Too Large"),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."),
    ],
)
def test_an_endpoint_that_has_never_answered_finds_everything_too_long(status, message):
    """That is no game that was lost."""
    line, requests = refusal(lambda handler: handler.send(status, {"error": {"message": message}}))
    assert "max_reply_tokens=50" in line and message in line and len(requests) == 1


def test_a_redirect_to_another_host_is_refused():
    with serving(lambda handler: handler.send(200, completion())) as other:
        for status in (301, 302, 303, 307, 308):
            target = f"{other.url}/chat/completions?token={KEY}"
            message, requests = refusal(lambda h, status=status, to=target: h.send(status, b"", Location=to))
            assert f"redirects to {other.url}/chat/completions, where the key must not follow" in message
            assert len(requests) == 1
        assert other.requests == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_within_the_host_is_followed(status):
    def answer(handler):
        moved = handler.path.startswith("/elsewhere")
        handler.send(200, completion()) if moved else handler.send(status, b"", Location="/elsewhere")

    replies, [(_, _, first), (path, headers, second)] = ask(answer)
    assert replies[0].text == "fine" and path == "/elsewhere" and first == second
    assert headers["authorization"] == f"Bearer {KEY}"


def test_redirects_in_a_circle_end():
    message, requests = refusal(lambda handler: handler.send(307, b"", Location=handler.path))
    assert "HTTP 307" in message and len(requests) == session.MOST_REDIRECTS


def test_where_a_key_may_follow():
    def place(url):
        return session.place(session.httpx.URL(url))

    assert place("http://a/x") == place("http://A:80/y?z") != place("http://a:8080/x")
    assert place("https://a") == ("https", "a", 443) != place("http://a:443")


def test_the_key_is_sent_and_no_other_secret(monkeypatch):
    def authorization():
        [(_, headers, _)] = ask(lambda handler: handler.send(200, completion()))[1]
        assert "hf_another_secret" not in str(headers)
        return headers.get("authorization", headers.get("Authorization"))

    assert authorization() == f"Bearer {KEY}"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert authorization() is None


def test_what_is_sent(monkeypatch):
    body = {"thinking": {"budget": 7}, "max_tokens": None, "max_completion_tokens": 9}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with serving(lambda handler: handler.send(200, completion())) as server:
        for url in (server.url, server.url.removesuffix("/v1"), f"{server.url}/", f"{server.url}/chat/completions"):
            with client(url, temperature=0.5) as policy:
                policy.reply(new_conversations("hello"))
        with client(f"{server.url}?version=3", extra_body=body) as policy:
            policy.reply(new_conversations("hello"))
    messages = [{"role": "system", "content": "R"}, {"role": "user", "content": "hello"}]
    expected = {"model": "m", "messages": messages, "temperature": 0.5, "max_tokens": 50, "stream": False}
    assert [(path, sent) for path, _, sent in server.requests[:4]] == [("/v1/chat/completions", expected)] * 4
    path, _, sent = server.requests[4]
    assert path == "/v1/chat/completions?version=3" and sent["thinking"] == {"budget": 7}
    assert "max_tokens" not in sent and sent["max_completion_tokens"] == 9 and sent["temperature"] == 1.0


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a/", "http://", "http://[::1", "https://me:pw@a/v1"])
def test_urls_that_are_none(url):
    with pytest.raises(BadInput, match="^url: must look like") as error:
        client(url)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("url", ["http://a:99999/v1", "http://a:0/v1", "https://a:-1", "http://a:65536/?key=pw"])
def test_ports_that_are_none(url):
    with pytest.raises(BadInput, match="^url=https?://a.*: the port must be ") as error:
        client(url)
    assert "pw" not in str(error.value)


SURROUNDINGS = [
    ("ALL_PROXY", "socks5://127.0.0.1:1", "socks"),
    ("ALL_PROXY", "foo://me:pw@x", "scheme"),
    ("HTTP_PROXY", "http://x:99999", "99999"),
    ("HTTPS_PROXY", "http://[::1", "port"),
    ("ALL_PROXY", "http://\x01", "character"),
    ("SSL_CERT_FILE", "/no/such", "'/no/such'"),
    ("SSL_CERT_FILE", __file__, "certificate"),
]


@pytest.mark.parametrize(("name", "value", "named"), SURROUNDINGS)
def test_proxies_and_certificates_that_cannot_be_used_are_named(name, value, named, monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"^{name}.*: cannot be ") as error:
        client("http://127.0.0.1:9")
    assert named in str(error.value) and "\n" not in str(error.value) and "pw" not in str(error.value)


def test_secrets_that_a_server_sees_are_not_written(tmp_path):
    """Neither the key, which it echoes, nor the query; but another query is another endpoint."""

    def answer(handler):
        handler.send(200, completion(f"You sent {handler.headers['authorization']}"))

    with serving(answer) as server:
        argv = ["--policy", "endpoint", "--model", "m", "--env", REPO / "tests" / "words.py", "--packs", 1]
        argv += ["--pack-size", 2, "--output", tmp_path]
        assert run_here([*argv, "--url", f"{server.url}?token=pw-4712"], script.main) == 0
        written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert b"You sent Bearer [key]" in written["games-0.jsonl"] and b"127.0.0.1" in written["eval.json"]
        for name, text in written.items():
            assert KEY.encode() not in text and b"pw-4712" not in text, name
        assert_one_line(run_here([*argv, "--url", f"{server.url}?token=other"], script.main), "policy 'endpoint'")
        assert run_here([*argv, "--url", f"{server.url}?token=pw-4712"], script.main) == 0


def test_a_word_that_local_servers_get_for_a_key_stays_in_replies(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert ask(lambda handler: handler.send(200, completion("none of them")))[0][0].text == "none of them"


def test_bad_keys_and_fields(monkeypatch):
    with pytest.raises(BadInput, match="^extra_body=stream: "):
        client("http://a", extra_body={"stream": True})
    for key in ("a\nb", "a b", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(BadInput, match="^OPENAI_API_KEY: ") as error:
            client("http://a")
        assert key not in str(error.value)


def test_a_host_that_cannot_be_reached_is_given_up_soon():
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with client(f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as policy:
            with pytest.raises(BadInput, match="cannot be reached .*5 tries"):
                policy.reply(new_conversations("x"))
        assert time.monotonic() - start < 3


# ---------------------------------------------------------------------------------------------------------
# Answers


def read(content, usage=None, finish_reason="stop", **fields):
    """The reply that an answer gives."""
    answer = completion(content, **fields)
    answer["choices"][0]["finish_reason"] = finish_reason
    return ask(lambda handler: handler.send(200, answer | ({} if usage is None else {"usage": usage})))[0][0]


def test_a_full_answer():
    usage = {"prompt_tokens": 30, "completion_tokens": 20, "cost": 0.25}
    details = {"completion_tokens_details": {"reasoning_tokens": 15}}
    expected = Reply("Go.", 5, n_read=30, n_thought=15, cost=0.25)
    assert read("Go.", usage | details, reasoning_content="hm") == expected
    assert read("Go.", usage | details, "length") == Reply("Go.", 5, True, n_read=30, n_thought=15, cost=0.25)
    assert read("Go.", usage) == Reply("Go.", 20, n_read=30, cost=0.25)


def test_reasoning_is_kept_out_and_counted():
    usage = {"prompt_tokens": 9, "completion_tokens": 40}
    thirds = Reply("four", 10, n_read=9, n_thought=30)  # 12 of 16 characters are thought
    assert read("four", usage, reasoning="x" * 12) == thirds
    assert read("four", usage, reasoning_content="x" * 12, reasoning="x" * 12) == thirds
    assert read(f"<think>{'x' * 12}</think>\n\nfour", usage) == thirds
    assert read(f"\n<think>{'x' * 12}</think>four", usage) == thirds
    assert read(f"{'x' * 12}</think>four", usage) == thirds
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "x" * 12}]}, {"type": "text", "text": "four"}]
    assert read(parts, usage) == thirds
    assert read("<think>" + "x" * 12, usage, "length") == Reply("", 0, True, n_read=9, n_thought=40)
    assert read(None, usage, reasoning="x") == Reply("", 0, n_read=9, n_thought=40)
    assert read("Go <think>x</think>", usage).text == "Go <think>x</think>"
    beside = {"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 60}}  # not in the total
    assert read("four", beside) == Reply("four", 5, n_read=1, n_thought=60)


def test_without_usage_tokens_are_estimated():
    """A quarter of the characters, rounded up; the conversation is "R" and "0"."""
    assert read("12345") == Reply("12345", 2, n_read=1)
    assert read("<think>123456789</think>1", {}) == Reply("1", 1, n_read=1, n_thought=3)
    assert read("") == Reply("", 0, n_read=1)


@pytest.mark.parametrize("nonsense", ["5", -5, True, None, [5], {"a": 5}, float("nan"), float("inf"), 10**400])
def test_numbers_that_are_none_are_ignored(nonsense):
    usage = {"prompt_tokens": nonsense, "completion_tokens": nonsense, "cost": nonsense}
    usage["completion_tokens_details"] = {"reasoning_tokens": nonsense}
    assert read("12345", usage, nonsense) == Reply("12345", 2, n_read=1)
    assert read("12345", {"completion_tokens": 7, "completion_tokens_details": nonsense}) == Reply("12345", 7, n_read=1)
    assert read("12345", cost=nonsense, reasoning=nonsense if nonsense != "5" else 5).n_thought == 0


@pytest.mark.parametrize("usage", ["many", 7, True, []])
def test_usage_of_another_type_is_ignored(usage):
    assert read("12345", usage) == Reply("12345", 2, n_read=1)


def test_content_in_parts_and_odd_characters():
    assert read([{"type": "text", "text": "a"}, "b", {"text": None}, {"type": "image"}, 5]).text == "ab"
    assert read(None).text == "" and read([]).text == ""
    assert read("a\ud800b").text == "a?b" and read("a\0\u202e\U0001f600").text == "a\0\u202e\U0001f600"


FIELDS = st.sampled_from(
    "choices message content reasoning reasoning_content usage completion_tokens prompt_tokens cost error type text "
    "completion_tokens_details reasoning_tokens thinking finish_reason get update items __dict__ tool_calls".split()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(FIELDS, JSON, max_size=6) | st.builds(lambda c: {"choices": [{"message": c}]}, JSON))
def test_any_answer_gives_a_reply_or_fails_in_a_known_way(answer):
    try:
        reply = endpoint.read_reply(ChatCompletionOutput.parse_obj_as_instance(json.dumps(answer)), [])
    except (Failed, ValueError):
        return
    assert isinstance(reply.text, str) and reply.text.encode() is not None
    assert all(type(n) is int and n >= 0 for n in (reply.n_tokens, reply.n_read, reply.n_thought))
    assert type(reply.cost) is float and 0 <= reply.cost < math.inf


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_error_has_a_text(body):
    assert isinstance(session.error_text(session.parse(body)), str)


# ---------------------------------------------------------------------------------------------------------
# Many conversations


def test_so_many_at_once_and_no_more():
    """The server lets nobody go before four are there, and counts."""
    state = {"now": 0, "most": 0}
    four = threading.Barrier(4)

    def answer(handler):
        with handler.server.lock:
            state["now"] += 1
            state["most"] = max(state.values())
        four.wait(timeout=10)
        time.sleep(0.02)
        with handler.server.lock:
            state["now"] -= 1
        handler.send(200, completion())

    replies, requests = ask(answer, n=20, concurrency=4)
    assert len(replies) == len(requests) == 20 and state["most"] == 4


def test_replies_come_as_they_are_ready_and_find_their_conversation():
    """The server answers each conversation only after the next one."""
    done = [threading.Event() for _ in range(6)]
    done[5].set()

    def answer(handler):
        n = int(handler.conversation[-1]["content"])
        assert done[n + 1].wait(10)
        handler.send(200, completion(f"to {n}"))
        time.sleep(0.05)
        done[n].set()

    with serving(answer) as server, client(server.url) as policy:
        episodes, come = new_conversations("0", "1", "2", "3", "4"), []
        asking = episodes
        while len(come) < 5:
            answers, asking = policy.reply(asking), []
            assert answers
            come += answers
    assert come[0][0] is not episodes[0] and {episode for episode, _ in come} == set(episodes)
    assert all(reply.text == f"to {episodes.index(episode)}" for episode, reply in come)


def test_conversations_go_on_between_two_calls():
    """With one request at a time the second is answered while nobody waits in `reply`."""
    with serving(lambda handler: handler.send(200, completion())) as server:
        with client(server.url, concurrency=1) as policy:
            policy.reply(new_conversations("0", "1"))
            deadline = time.monotonic() + 10
            while len(server.requests) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(server.requests) == 2


def test_a_game_through_an_endpoint_is_the_same_game():
    """The learner's replies, which follow from the conversation alone, over HTTP with trouble now and then."""

    def answer(handler):
        if handler.number % 7 == 0:
            return handler.send(503, b"")
        messages = handler.conversation
        update = messages[0]["content"] == UPDATE_SYSTEM
        learner = PLAYERS["learner"](0)
        handler.send(200, completion(learner.hint(messages) if update else learner.act(messages)))

    def games():
        return [play(make_pack("frozenlake", seed, 3, "tiny")) for seed in range(12)]

    with serving(answer) as server, client(server.url) as policy:
        rollouts = run(games(), policy, at_once=8)
    direct = run(games(), PLAYERS["learner"](0))
    assert len(server.requests) > 100

    def shown(rollout):
        return [(e.kind, e.position, e.messages, e.context, e.outcome, e.reward) for e in rollout.episodes]

    assert list(map(shown, rollouts)) == list(map(shown, direct))
    assert sum(e.outcome for r in rollouts for e in r.episodes) > 20


def test_ctrl_c_gets_through():
    hanging = threading.Event()
    with serving(lambda handler: hanging.wait(20)) as server:
        policy = client(server.url)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            policy.reply(new_conversations("x"))
        policy.close()
        policy.close()  # a second time does nothing
        assert time.monotonic() - start < 2
        hanging.set()


def test_closing_gives_up_what_is_under_way():
    hanging = threading.Event()
    with serving(lambda handler: hanging.wait(20) if handler.number > 1 else handler.send(200, completion())) as server:
        with client(server.url) as policy:
            assert len(policy.reply(new_conversations(*"abc"))) == 1
            assert [thread for thread in threading.enumerate() if thread.name == "endpoint"]
            start = time.monotonic()
        assert time.monotonic() - start < 1
        assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]
        hanging.set()
