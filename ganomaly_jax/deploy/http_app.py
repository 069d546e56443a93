"""The HTTP application of `ganomaly serve`: takes images within limits, answers with verdicts and pictures.

It is built on Starlette and has metrics for Prometheus (extra `serve`); `http_process` runs it. docs/serving.md says
how it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.deploy import batching, modalities, openapi
from ganomaly_jax.deploy import page as deploy_page
from ganomaly_jax.report import explanation
from ganomaly_jax.scoring.calibration import INVALID
from ganomaly_jax.scoring.scorer import Scorer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_LATENCIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that the server accepts."""

    body: int = 16 * 2**20
    """Bytes of the body of a request."""
    pixels: int = decode.MAX_PIXELS
    """Pixels of an image."""
    batch: int = 64
    """Images scored together."""
    queue: int = 128
    """Requests in progress, each of which may hold a body. Others are told to retry."""
    body_s: float = 30.0
    """Seconds within which a body must arrive."""


class _RefusedError(Exception):
    """A request is answered with an error: an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _State:
    """Holds what the requests of one application share."""

    def __init__(self, scorer: Scorer, limits: Limits) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.scorer, self.limits = scorer, limits
        self.compiled = self.draining = False
        self.error = ""
        """Why batches are no longer scored; empty while they are."""
        self.inside = self.given_up = 0
        """Requests in progress, and those cut off at the end."""
        self.jobs: asyncio.Queue[batching.Job] = asyncio.Queue()
        self.decoders = ThreadPoolExecutor(image_files.WORKERS, "decode")
        kept = self.registry = CollectorRegistry()
        self.requests = Counter(
            "ganomaly_requests", "Answers by path and HTTP status.", ["path", "status"], registry=kept
        )
        self.verdicts = Counter("ganomaly_verdicts", "Verdicts of /score.", ["verdict"], registry=kept)
        self.seconds = Histogram(
            "ganomaly_request_seconds", "From request to answer.", ["path"], buckets=_LATENCIES, registry=kept
        )
        self.batches = Histogram("ganomaly_batch_images", "Images in a batch.", buckets=_SIZES, registry=kept)
        waiting = Gauge("ganomaly_requests_in_work", "Requests that hold or await an image.", registry=kept)
        waiting.set_function(lambda: self.inside)
        ready = Gauge("ganomaly_ready", "1 where images are taken.", registry=kept)
        ready.set_function(lambda: float(not self.why_not))
        ProcessCollector(registry=kept)

    @property
    def why_not(self) -> str:
        """Returns why images are not accepted; empty while they are."""
        if self.error or not self.compiled:
            return self.error or "starting: programs are being compiled"
        return "draining: about to end" if self.draining else ""


def application(scorer: Scorer, limits: Limits = Limits(), started: Callable[[], None] | None = None) -> Starlette:
    """Builds the ASGI application; its paths and answers are those of `openapi.document`.

    Args:
      scorer: a detector of images.
      limits: the most that the server accepts.
      started: called once requests are accepted.

    Raises:
      UserError: starlette or prometheus-client is missing, a limit makes no sense, a detector of sensors.
    """
    try:
        import prometheus_client
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import HTMLResponse, JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise missing(error) from None
    if not modalities.of(scorer).served:
        raise UserError(
            f"this detector scores {scorer.words.kind}: expected one of images; `ganomaly monitor` watches sensors, "
            "`ganomaly predict` scores recordings"
        )
    batching.check_batch_size(scorer, limits.batch)
    for name in ("body", "pixels", "queue", "body_s"):
        if not getattr(limits, name) > 0:
            raise UserError(f"limit {name} {getattr(limits, name)}: expected more than 0")
    if limits.pixels > decode.MAX_PIXELS:
        raise UserError(f"limit pixels {limits.pixels:,}: expected at most {decode.MAX_PIXELS:,}, what is ever decoded")
    state = _State(scorer, limits)
    content, policy = deploy_page.page()
    description = openapi.document()

    async def score(request: Request) -> Response:
        found = await _answer(state, request, mapped=False)
        state.verdicts.labels(found.verdict).inc()
        shown = {name: _number(getattr(found, name)) for name in ("score", "p_value")}
        return JSONResponse({**shown, "verdict": found.verdict, "threshold": _number(scorer.threshold)})

    async def explained(request: Request) -> Response:
        found = await _answer(state, request, mapped=True)
        if found.verdict == INVALID:
            raise _RefusedError(422, "NaN or infinite pixels: there is nothing to explain")
        png = await asyncio.get_running_loop().run_in_executor(state.decoders, _png, scorer, found)
        return Response(png, media_type="image/png")

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": state.error or "alive"}, 500 if state.error else 200)

    async def ready(request: Request) -> Response:
        return JSONResponse({"status": state.why_not or "ready"}, 503 if state.why_not else 200)

    async def metrics(request: Request) -> Response:
        return Response(
            prometheus_client.generate_latest(state.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    async def described(request: Request) -> Response:
        return JSONResponse(description)

    async def page(request: Request) -> Response:
        return HTMLResponse(content, headers={"Content-Security-Policy": policy})

    def counted(path: str, answer: Callable[[Request], Awaitable[Response]], method: str) -> Route:
        """Returns a route that counts and times its requests and turns refusals into answers."""

        async def run(request: Request) -> Response:
            begin = time.monotonic()
            try:
                made = await answer(request)
            except _RefusedError as refused:
                made = JSONResponse({"error": str(refused)}, refused.status)
                if refused.status in (429, 503):
                    made.headers["Retry-After"] = "1"
            except Exception as error:
                what = f"the detector failed: {type(error).__name__}: {error}"[:500]
                print(f"ganomaly: {path}: {what}", file=sys.stderr, flush=True)
                made = JSONResponse({"error": what}, 500)
            # A body that a refusal leaves unread is read and discarded: closing would reset a client that is still
            # sending, which would then never see why. Only a client that has stopped sending is cut off.
            if state.draining or made.status_code == 408:
                made.headers["Connection"] = "close"
            state.requests.labels(path, str(made.status_code)).inc()
            state.seconds.labels(path).observe(time.monotonic() - begin)
            made.headers["X-Content-Type-Options"] = "nosniff"
            return made

        return Route(path, run, methods=[method])

    async def failed(request: Request, error: Exception) -> Response:
        """Answers requests without a route: 404 and 405."""
        assert isinstance(error, HTTPException)
        state.requests.labels("other", str(error.status_code)).inc()
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with decode.ignore_warnings():
            working = asyncio.create_task(_work(state))
            if started is not None:
                started()
            yield
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            state.decoders.shutdown()

    app = Starlette(
        routes=[
            counted("/score", score, "POST"),
            counted("/explain", explained, "POST"),
            counted("/healthz", alive, "GET"),
            counted("/readyz", ready, "GET"),
            counted("/metrics", metrics, "GET"),
            counted("/openapi.json", described, "GET"),
            counted("/", page, "GET"),
        ],
        exception_handlers={HTTPException: failed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # so that no body is sent twice
    app.state.shared = state
    return app


def missing(error: ImportError) -> UserError:
    """Returns the error for an extra that is not installed."""
    return UserError(f"serving needs {error.name}: pip install 'ganomaly-jax[serve]'")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


async def _work(state: _State) -> None:
    """Compiles, then answers jobs until it is cancelled or fails; /healthz reports the failure."""
    try:
        await asyncio.get_running_loop().run_in_executor(None, batching.warm_up, state.scorer, state.limits.batch)
        state.compiled = True
        print("ganomaly: ready", file=sys.stderr, flush=True)
        await batching.serve_jobs(state.scorer, state.jobs, state.limits.batch, state.batches.observe)
    except Exception as error:
        state.error = f"the detector does not work: {type(error).__name__}: {error}"[:500]
        print(f"ganomaly: {state.error}", file=sys.stderr, flush=True)


async def _answer(state: _State, request: Request, mapped: bool) -> batching.Answer:
    """Returns the answer of the detector to the image in a request.

    Raises:
      _RefusedError: the image was not scored.
    """
    if state.error or not state.compiled:
        raise _RefusedError(503, state.why_not)
    if state.inside >= state.limits.queue:
        raise _RefusedError(429, f"{state.inside} images are in work, the most that may be: ask again in a second")
    state.inside += 1
    try:
        body = await _body(state.limits, request)
        loop = asyncio.get_running_loop()
        height, width, _ = state.scorer.input_shape
        fit = state.scorer.config.data.fit
        read = functools.partial(_decoded, body, height, width, fit, state.limits.pixels)
        image = await loop.run_in_executor(state.decoders, read)
        job = batching.Job(image, mapped, loop.create_future())
        state.jobs.put_nowait(job)
        return await job.answer
    except UserError as error:
        raise _RefusedError(422, str(error)) from None
    except asyncio.CancelledError:
        state.given_up += 1
        raise
    finally:
        state.inside -= 1


async def _body(limits: Limits, request: Request) -> bytes:
    """Reads the body of a request and never holds more than the limit.

    Raises:
      _RefusedError: the body is empty, too large, too slow or encoded.
    """
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        raise _RefusedError(
            415, "a form: expected the bytes of one image file as they are (curl --data-binary @image.png)"
        )
    coded = request.headers.get("content-encoding", "identity")
    if coded.lower() != "identity":
        raise _RefusedError(415, f"a body coded as {coded[:50]!r}: expected the bytes of one image file as they are")
    too_long = f"more than {limits.body:,} bytes, which is what is taken at most"
    if int(request.headers.get("content-length", 0)) > limits.body:
        raise _RefusedError(413, too_long)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                body += part
                if len(body) > limits.body:
                    raise _RefusedError(413, too_long)
    except TimeoutError:
        raise _RefusedError(408, f"the body was not here after {limits.body_s:g} s") from None
    except ClientDisconnect:
        raise _RefusedError(400, "the body broke off") from None
    if not body:
        raise _RefusedError(400, "no body: expected the bytes of one image file (curl --data-binary @image.png)")
    return bytes(body)


def _decoded(body: bytes, height: int, width: int, fit: str, most: int) -> image_files.Decoded:
    """Decodes the image in a body.

    Raises:
      _RefusedError: it has too many pixels.
      UserError: it cannot be read.
    """
    size = decode.image_size(io.BytesIO(body))
    if size and size[0] * size[1] > most:
        raise _RefusedError(413, f"an image of {size[1]} x {size[0]} pixels: at most {most:,} are taken")
    found = image_files.decode_file(io.BytesIO(body), height, width, fit)
    if isinstance(found, str):
        raise UserError(found)
    return found


def _png(scorer: Scorer, found: batching.Answer) -> bytes:
    assert found.maps is not None
    title = explanation.title_of("", found.verdict, found.score, found.p_value, scorer.threshold)
    drawn, kept = explanation.picture(scorer, found.maps, 0, title.strip()), io.BytesIO()
    drawn.save(kept, "PNG")
    return kept.getvalue()
