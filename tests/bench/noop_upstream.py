"""`python -m tests.bench.noop_upstream ADDRESS`: answers every call with the same chat completion, and does nothing."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

BODY = (
    b'{"id":"noop","object":"chat.completion","created":1,"model":"gpt-4o-mini","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"ok"}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(_scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    address = sys.argv[1]
    host, _colon, port = address.rpartition(":")
    place = {"uds": address[5:]} if address.startswith("unix:") else {"host": host, "port": int(port)}
    uvicorn.run(app, **place, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning")
