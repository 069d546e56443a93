"""Requests to the HTTP application of `ganomaly serve`, within this process: no socket, the same answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from benchmarks.faults import fuzz_corpus
from ganomaly_jax.core.errors import UserError

_CHUNK = 4096


def requests() -> list[bytes]:
    """Returns requests as they are fuzzed: method and path, headers, an empty line, the body."""
    heads = [b"POST /score\ncontent-type: application/octet-stream", b"POST /explain\naccept: image/png"]
    found = [heads[k % 7 == 0] + b"\n\n" + image for k, image in enumerate(fuzz_corpus.images())]
    png = fuzz_corpus.images()[0]
    for disposition in (b'name="file"; filename="a.png"', b"name=image", b"name=\"x\"; filename*=utf-8''%e2%82%ac.png"):
        part = b"--b\r\ncontent-disposition: form-data; " + disposition + b"\r\ncontent-type: image/png\r\n\r\n" + png
        found.append(b"POST /score\ncontent-type: multipart/form-data; boundary=b\n\n" + part + b"\r\n--b--\r\n")
    paths = (b"/", b"/docs", b"/healthz", b"/readyz", b"/metrics", b"/openapi.json", b"/nothing")
    found += [b"GET " + path + b"\naccept: */*\n\n" for path in paths]
    found.append(b"POST /score\ncontent-encoding: gzip\ncontent-length: 99999\nauthorization: Bearer x\n\nabc")
    return found


def parsed(data: bytes) -> tuple[str, str, list[tuple[bytes, bytes]], bytes]:
    """Returns method, path, headers and body of a request; lengths are numbers, as every server in front ensures."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, path = first.decode("latin-1").partition(" ")
    headers = [(b"host", b"127.0.0.1:8000")]
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip()
        if name and (name not in (b"content-length", b"host") or value.isdigit()):
            headers.append((name, value))
    if b"content-length" not in dict(headers):
        headers.append((b"content-length", str(len(body)).encode()))
    return method or "POST", path or "/score", headers, body


def served(run: Path) -> Callable[[bytes], Any]:
    """Starts the application of a run's detector in a thread; returns what sends it a request and checks the answer."""
    from ganomaly_jax.deploy import http_app
    from ganomaly_jax.scoring import scorer

    app = http_app.application(scorer.load(run))
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def begin() -> None:
        await app.router.lifespan_context(app).__aenter__()
        while (await answered(b"GET /readyz\n\n"))[0] != 200:
            await asyncio.sleep(0.05)

    async def answered(data: bytes) -> tuple[int, bytes]:
        method, path, headers, body = parsed(data)
        chunks = [body[i : i + _CHUNK] for i in range(0, len(body), _CHUNK)] or [b""]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not chunks:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        plain, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": plain,
            "raw_path": plain.encode("latin-1"), "query_string": query.encode("latin-1"), "headers": headers,
            "scheme": "http", "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 8000), "root_path": "", "state": {},
        }  # fmt: skip
        await app(scope, receive, send)
        return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent)

    def parse(data: bytes) -> bytes:
        pending: Future[tuple[int, bytes]] = asyncio.run_coroutine_threadsafe(answered(data), loop)
        status, content = pending.result()
        if status >= 500:
            raise AssertionError(f"{status}: {content[:500]!r}")
        if status >= 400:
            said = json.loads(content)
            assert set(said) == {"error"}, said
            raise UserError(f"{status} {said['error']}")
        return content

    asyncio.run_coroutine_threadsafe(begin(), loop).result()
    return parse
