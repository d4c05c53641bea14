"""A policy that plays any OpenAI-compatible chat endpoint: vLLM, llama.cpp, Ollama, `transformers serve`, hosted ones.

Many conversations are asked at once, by an event loop in a thread of its own, so they go on between two calls of
`reply`. What may pass (a busy server, a broken connection, half an answer) is tried again; what cannot be mended ends
the evaluation in one line. The key comes from the environment variable OPENAI_API_KEY, goes to the host of the URL and
nowhere else, and is never shown. Hugging Face tokens are not sent.
"""

import asyncio
import hashlib
import math
import os
import queue
import re
import threading
import time
from urllib.request import getproxies

from huggingface_hub import AsyncInferenceClient, set_async_client_factory

from context import encodable
from engine.errors import BadInput, first_line
from evaluation.session import Failed, Refused, Session, error_text, httpx, pause, shown
from rollout import Episode, Reply

FEW_TRIES = 5  # after so many in vain an endpoint that has never answered is given up
CONNECT_SECONDS = 10.0
SHORTEST_SECRET = 16  # keys have more characters; what local servers get for one ("none", "x") may be any word

CONTEXT_FULL = re.compile(  # how servers say that a conversation is longer than their model can read
    r"(context|prompt|inputs?|messages?).{0,80}?(exceed|too (long|large)|longer)|exceed.{0,60}context"
    r"|maximum (context|model|sequence) length|reduce the length|inputs. tokens.{0,40}must be <="
    r"|(request entity|payload) too large",
    re.IGNORECASE | re.DOTALL,
)

# ---------------------------------------------------------------------------------------------------------
# Answers


def read_reply(answer, messages: list[dict]) -> Reply:
    """The reply in a chat completion. Raises Failed if there is none."""
    choices = part(answer, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = part(choice, "message")
    content = part(message, "content")
    if not isinstance(message, dict) or not isinstance(content, (str, list, type(None))):
        error = part(choice, "error") or part(answer, "error")  # some say with status 200 that they failed
        raise Failed(f"the answer holds no reply {error_text({'error': error})}")
    texts, thoughts = [], []
    for piece in content if isinstance(content, list) else [content or ""]:
        thinks = part(piece, "type") in ("thinking", "reasoning")
        (thoughts if thinks else texts).append(all_text(piece))
    text, thought = split_thought("".join(texts))
    beside = [part(message, name) for name in ("reasoning_content", "reasoning")]  # the same twice, if both
    thoughts += [thought, *[field for field in beside if isinstance(field, str) and field][:1]]
    usage = part(answer, "usage")
    n_tokens, n_thought = count_tokens(usage, len(text), sum(map(len, thoughts)))
    n_read = number(part(usage, "prompt_tokens"))
    if n_read is None:
        n_read = estimate(sum(len(message["content"]) for message in messages))
    cost = float(number(part(usage, "cost")) or 0)
    truncated = part(choice, "finish_reason") == "length"
    return Reply(encodable(text), n_tokens, truncated, n_read=int(n_read), n_thought=n_thought, cost=cost)


def part(value, name: str):
    """A field of an object in an answer; None if there is no such thing. (huggingface_hub makes objects of what it
    knows and leaves the rest as it is.)"""
    return value.get(name) if type(value) is dict else getattr(value, name, None)


def all_text(piece) -> str:
    """The text of a part of a reply: of strings, and of what parts hold under "text" or "thinking"."""
    if isinstance(piece, str):
        return piece
    if isinstance(piece, list):
        return "".join(map(all_text, piece))
    return all_text(part(piece, "text") or part(piece, "thinking") or "") if isinstance(piece, dict) else ""


def split_thought(text: str) -> tuple[str, str]:
    """A reply as (text, thought): its beginning may be a thought between <think> and </think>. It may miss its end,
    where the reply was cut, and its opening, which some templates put into the prompt."""
    opened = text.lstrip().startswith("<think>")
    if not opened and ("<think>" in text or "</think>" not in text):
        return text, ""
    thought, _, text = text.partition("</think>")
    return text.lstrip(), thought.lstrip().removeprefix("<think>")


def count_tokens(usage, n_text: int, n_thought: int) -> tuple[int, int]:
    """Tokens of the text and of the thought of a reply with so many characters of each. What the endpoint does not
    tell is estimated from these."""
    total = number(part(usage, "completion_tokens"))
    thought = number(part(part(usage, "completion_tokens_details"), "reasoning_tokens"))
    if total is None:
        return estimate(n_text), int(thought or estimate(n_thought))
    thought = int(thought or round(total * n_thought / max(1, n_text + n_thought)))
    return int(total) - thought if thought <= total else int(total), thought  # some do not count it in the total


def number(value) -> float | None:
    """A count or a cost; None for anything that cannot be one."""
    return value if type(value) in (int, float) and 0 <= value < 1e12 else None


def estimate(characters: int) -> int:
    """Tokens in so many characters of text."""
    return math.ceil(characters / 4)


# ---------------------------------------------------------------------------------------------------------
# Addresses


def read_url(url: str):
    """A URL as httpx takes it. Raises BadInput for what is none of an endpoint."""
    try:
        parsed = httpx.URL(url).copy_with(fragment=None)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise BadInput("url: must look like http://HOST:PORT/v1 or https://HOST/v1, without user or password")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise BadInput(f"url={shown(parsed)}: the port must be at least 1 and below 65,536")
    return parsed


def address(url: str) -> str:
    """A URL as it may be written down: a hash in place of the query, in which a key may stand. Empty if it is none."""
    try:
        parsed = read_url(url)
    except BadInput:
        return ""
    query = hashlib.sha256(parsed.query).hexdigest()[:16] if parsed.query else ""
    return shown(parsed) + (f" (query {query})" if query else "")


def check_surroundings() -> None:
    """Raise BadInput if no connection can be made with the proxies and certificates that the environment names."""
    found = getproxies()
    unused = "*" in map(str.strip, found.get("no", "").split(","))
    proxies = {} if unused else {name: found[name] for name in ("all", "http", "https") if name in found}
    for name, url in proxies.items():
        try:
            port = httpx.Proxy(url if "://" in url else f"http://{url}").url.port
            if port is not None and not 0 < port < 2**16:
                raise ValueError(f"its port is {port}")
        except (ValueError, httpx.InvalidURL) as error:
            raise BadInput(f"{name.upper()}_PROXY: cannot be used ({first_line(error)})") from error
    try:
        Session()
    except ImportError as error:
        names = ", ".join(f"{name.upper()}_PROXY" for name in proxies)
        raise BadInput(f"{names}: cannot be used ({first_line(error)})") from error
    except OSError as error:
        name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "certificates")
        raise BadInput(f"{name}={os.environ.get(name, '')!r}: cannot be read ({first_line(error)})") from error


# ---------------------------------------------------------------------------------------------------------
# The policy


class Endpoint:
    """Plays `model` at `url` (with or without /v1/chat/completions at its end), at most `concurrency` requests at once.

    Sent are temperature and cap of the reply (`max_tokens`), no top-p, no top-k; `extra_body` is added to them and wins
    over them, None takes a field out. A try may take half of `patience` (seconds), body included; a conversation that
    has had none that succeeded for so long ends the evaluation, as does, sooner, an endpoint that has never answered.
    An endpoint that says that a conversation is too long gets a reply with `context_full`; if it has never answered
    before, its limits are too small for any, which ends the evaluation, too.

    Raises BadInput, here for what cannot be a URL or a key, in `reply` for what the endpoint refuses.
    """

    def __init__(
        self,
        url: str,
        model: str,
        temperature: float,
        max_new_tokens: int,
        concurrency: int = 16,
        extra_body: dict | None = None,
        patience: float = 600.0,
    ):
        parsed = read_url(url)
        for field in {"messages", "model", "stream", "n"} & set(extra_body or {}):
            raise BadInput(f"extra_body={field}: is set by the evaluation itself")
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not re.fullmatch("[!-~]*", self._key):
            raise BadInput("OPENAI_API_KEY: holds characters that no key has")
        check_surroundings()
        self.patience, self._name = patience, f"url={shown(parsed)}, model={model!r}"
        options = {"model": model, "temperature": temperature, "max_tokens": max_new_tokens}
        self._options = options | {"extra_body": extra_body}
        set_async_client_factory(Session)  # for this process: there is no narrower way
        self._client = AsyncInferenceClient(
            base_url=str(parsed),
            api_key=self._key or "none",  # else it would look for a Hugging Face token
            headers=None if self._key else {"authorization": None},
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        )
        self._served = False  # whether it has ever answered
        self._slots = asyncio.Semaphore(concurrency)
        self._answers: queue.SimpleQueue[tuple[Episode, Reply | Exception]] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        """Ask for replies to these conversations, too; those that have come, one at least."""
        for episode in episodes:
            asyncio.run_coroutine_threadsafe(self._deliver(episode), self._loop)
        answers = [self._answers.get()]
        while not self._answers.empty():
            answers.append(self._answers.get())
        for _, reply in answers:
            if isinstance(reply, Exception):
                raise reply
        return answers

    def close(self) -> None:
        """Give up what is under way, and end the thread."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()

    async def _deliver(self, episode: Episode) -> None:
        try:
            async with self._slots:
                reply = await self._answer(episode.messages)
        except Exception as error:
            reply = error
        self._answers.put((episode, reply))

    async def _answer(self, messages: list[dict]) -> Reply:
        """The reply to a conversation, after as many tries as it takes."""
        start, tries = time.monotonic(), 0
        while True:
            try:
                async with asyncio.timeout(self.patience / 2):
                    reply = await self._ask(messages)
                self._served = True
                return reply
            except Refused as refusal:
                return self._refused(refusal)
            except TimeoutError:
                failure = Failed(f"no whole reply within {self.patience / 2:g} seconds")
            except Failed as error:
                failure = error
            tries += 1
            left = start + self.patience - time.monotonic()
            if left <= 0 or (tries >= FEW_TRIES and not self._served and not failure.busy):
                tail = f"after {tries} tries in {self.patience - left:.0f} seconds"
                advice = "the same command goes on from the packs that are finished"
                raise BadInput(f"{self._name}: {self._line(str(failure))}, {tail}; {advice}")
            await asyncio.sleep(min(left, pause(tries, failure.wait)))

    async def _ask(self, messages: list[dict]) -> Reply:
        try:
            reply = read_reply(await self._client.chat_completion(messages, **self._options), messages)
        except (ValueError, RecursionError) as error:
            raise Failed(f"the answer is no chat completion ({first_line(error)})") from error
        if len(self._key) >= SHORTEST_SECRET:  # a server may echo it, and replies are kept
            reply.text = reply.text.replace(self._key, "[key]")
        return reply

    def _refused(self, refusal: Refused) -> Reply:
        """The reply if the conversation is too long; any other refusal ends the evaluation."""
        if refusal.status in (400, 413, 422) and CONTEXT_FULL.search(str(refusal)[:2000]):
            if self._served:
                return Reply("", truncated=True, context_full=True)
            cap = f"max_reply_tokens={self._options['max_tokens']}"
            raise BadInput(f"{self._name}: {cap}: even a first task is too long: {self._line(str(refusal))}") from None
        key = f"; OPENAI_API_KEY is {'' if self._key else 'not '}set" if refusal.status in (401, 403) else ""
        raise BadInput(f"{self._name}: {self._line(str(refusal))}{key}") from None

    def _line(self, text: str) -> str:
        """What a server says as part of a one-line message, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= 300 else f"{text[:300]}..."
