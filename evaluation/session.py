"""HTTP for endpoint.py: a session that returns good answers, and says of all others whether to try again."""

import json
import math
import random
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from engine.errors import first_line

try:
    import httpx2 as httpx  # what huggingface_hub sends its requests with
except ImportError:
    import httpx  # up to its version 1

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries
LARGEST_BODY = 4 * 2**20  # bytes: replies beyond it are refused
MOST_REDIRECTS = 5
JITTER = random.Random()  # apart from the generators that experiments are seeded with


class Failed(Exception):
    """A try brought no reply, but another one may. `wait`: seconds that the server asks for; `busy`: it says that it
    is only busy, or not ready yet."""

    def __init__(self, why: str, wait: float = 0.0, busy: bool = False):
        super().__init__(why)
        self.wait, self.busy = wait, busy


class Refused(Exception):
    """The server does not want to answer this. `status` is HTTP's."""

    def __init__(self, why: str, status: int):
        super().__init__(why)
        self.status = status


class Session(httpx.AsyncClient):
    """The HTTP client below huggingface_hub's, which by itself follows every redirect and reads bodies of any size.

    `send` returns whole, good answers only; otherwise it raises Failed or Refused, for what is no JSON ValueError or
    RecursionError.
    """

    def __init__(self):
        super().__init__(limits=httpx.Limits())  # as many connections as there are requests

    async def send(self, request, **options):
        for _ in range(MOST_REDIRECTS):
            try:
                response = await super().send(request, stream=True, follow_redirects=False)
                body = await read(response)
            except httpx.RequestError as error:
                reached = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                what = "the connection broke" if reached else "cannot be reached"
                raise Failed(f"{what} ({first_line(error)})") from error
            if response.next_request is None:
                break
            target = response.next_request.url
            if place(target) not in (place(request.url), ("https", request.url.host, 443)):
                why = f"redirects to {shown(target)}, where the key must not follow; give that URL if you trust it"
                raise Refused(why, response.status_code)
            # still a POST, whatever the status: a GET would leave the conversation behind
            request = httpx.Request(
                request.method, target, headers=request.headers, content=request.content, extensions=request.extensions
            )
        status = response.status_code
        if 200 <= status < 300:
            if len(body) > LARGEST_BODY:
                raise Failed(f"the reply is larger than {LARGEST_BODY // 2**20} MiB")
            answer = json.loads(body, parse_constant=lambda name: None)  # huggingface_hub recurses without end at a NaN
            return httpx.Response(status, content=json.dumps(answer).encode(), request=request)
        why = ": ".join(filter(None, [f"HTTP {status} {response.reason_phrase}", error_text(parse(body)).strip()]))
        if status in (408, 409, 425, 429) or status >= 500:
            raise Failed(why, asked_pause(response.headers.get("retry-after", "")), busy=status in (429, 503, 529))
        raise Refused(why, status)


async def read(response) -> bytes:
    """The body of a response, unpacked; no more of it than shows that it is too large."""
    body = bytearray()
    try:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > LARGEST_BODY:
                break
    finally:
        await response.aclose()
    return bytes(body)


def place(url) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def shown(url) -> str:
    """A URL as messages show it: without user, password and query, in which keys may stand."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def parse(body: bytes) -> Any:
    """The body of an error: what it says as JSON, or else its text without tags."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return re.sub("<[^<>]*>", " ", body.decode(errors="replace"))


def error_text(said: Any) -> str:
    """What an error says: its message with code and type, never the request that some servers repeat."""
    if isinstance(said, dict):
        said = next((said[key] for key in ("error", "detail", "message") if said.get(key)), "")
    parts = said if isinstance(said, list) else [said]
    keys = ("message", "msg", "code", "type")
    return " ".join(" ".join(str(p[k]) for k in keys if p.get(k)) if isinstance(p, dict) else str(p) for p in parts)


def asked_pause(value: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 if it cannot be read."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if 0 <= seconds < math.inf else 0.0


def pause(tries: int, asked: float) -> float:
    """Seconds to wait after so many failed tries: what the server asks for, and at random up to a span that doubles
    each time, so that conversations that failed together do not come back together. Each at most LONGEST_PAUSE."""
    span = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries - 1, 20))
    return min(asked, LONGEST_PAUSE) + JITTER.uniform(0, span)
