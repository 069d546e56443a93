"""The HTTP application of `ganomaly serve`: takes images within limits, answers with verdicts and pictures.

It is built on Starlette and has metrics for Prometheus (extra `serve`); `http_process` runs it. docs/serving.md says
how it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.deploy import batching, http_body, http_gate, http_limits, http_log, modalities, openapi
from ganomaly_jax.deploy import page as deploy_page
from ganomaly_jax.deploy.http_limits import Limits, RefusedError
from ganomaly_jax.report import explanation
from ganomaly_jax.scoring.calibration import INVALID
from ganomaly_jax.scoring.scorer import Scorer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_LATENCIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LARGE_RETRY_S = 5
# Images of a form that are in memory at the same time.
_TOGETHER = 8
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _State:
    """Holds what the requests of one application share."""

    def __init__(self, scorer: Scorer, limits: Limits, fixed_batch: bool) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.scorer, self.limits, self.fixed_batch = scorer, limits, fixed_batch
        self.compiled = self.draining = False
        self.error = ""
        """Why batches are no longer scored; empty while they are."""
        self.inside = self.given_up = 0
        """Requests in progress, and those cut off at the end."""
        self.jobs: asyncio.Queue[batching.Job] = asyncio.Queue()
        self.decoders = ThreadPoolExecutor(image_files.WORKERS, "decode")
        self.large = 0
        """Large images in progress: they have a thread of their own, so small ones never wait for them."""
        self.large_decoder = ThreadPoolExecutor(1, "decode-large")
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


def application(
    scorer: Scorer,
    limits: Limits = http_limits.DEFAULT,
    started: Callable[[], None] | None = None,
    access: http_gate.Access = http_gate.LOCAL,
    fixed_batch: bool = False,
    access_log: bool = False,
) -> Starlette:
    """Builds the ASGI application; its paths and answers are those of `openapi.document`.

    Args:
      scorer: a detector of images.
      limits: the limits of the server.
      started: called once requests are accepted.
      access: who may use it.
      fixed_batch: whether every batch is padded to `limits.batch` images, so that scores do not depend on the load.
      access_log: whether every answer is a line of the log.

    Raises:
      UserError: a library is missing, a limit makes no sense, a detector of sensors.
    """
    try:
        import prometheus_client
        import python_multipart  # noqa: F401  # Starlette parses forms with it
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
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
    http_limits.check(limits)
    state = _State(scorer, limits, fixed_batch)
    description = openapi.document(with_token=access.token is not None)

    async def score(request: Request) -> Response:
        uploads, found = await _answers(state, request, mapped=False)
        for answer in found:
            if isinstance(answer, batching.Answer):
                state.verdicts.labels(answer.verdict).inc()
        shown = [_shown(scorer, answer) for answer in found]
        if uploads[0].name is None:
            return JSONResponse(shown[0])
        named = [{"name": upload.name, **result} for upload, result in zip(uploads, shown, strict=True)]
        # ASCII: the names come from clients and may contain terminal escapes.
        return Response(json.dumps({"results": named}), media_type="application/json")

    async def explained(request: Request) -> Response:
        _, (found, *others) = await _answers(state, request, mapped=True)
        assert isinstance(found, batching.Answer) and not others
        if found.verdict == INVALID:
            raise RefusedError(422, "NaN or infinite pixels cannot be explained")
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

    def page(content: str, policy: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return HTMLResponse(content, headers={"Content-Security-Policy": policy})

        return answer

    def counted(path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        """Returns a route that counts and times its requests and turns refusals into answers."""

        async def run(request: Request) -> Response:
            begin = time.monotonic()
            try:
                made = await answer(request)
            except RefusedError as refused:
                made = JSONResponse({"error": str(refused)}, refused.status)
                if refused.retry_s is not None:
                    made.headers["Retry-After"] = str(refused.retry_s)
            except Exception as error:
                what = f"the detector failed: {type(error).__name__}: {error}"[:500]
                found = f"the detector failed: {http_log.described(error)}"
                http_log.say(f"{path}: {found} id={request.scope['request_id']}")
                made = JSONResponse({"error": what}, 500)
            state.requests.labels(path, str(made.status_code)).inc()
            state.seconds.labels(path).observe(time.monotonic() - begin)
            return made

        return Route(path, run, methods=[method])

    def count_other(status: int) -> None:
        state.requests.labels("other", str(status)).inc()

    async def failed(request: Request, error: Exception) -> Response:
        """Answers requests without a route: 404 and 405."""
        assert isinstance(error, HTTPException)
        count_other(error.status_code)
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
            state.large_decoder.shutdown(cancel_futures=True)

    app = Starlette(
        routes=[
            counted("/score", score, "POST"),
            counted("/explain", explained, "POST"),
            counted("/healthz", alive),
            counted("/readyz", ready),
            counted("/metrics", metrics),
            counted("/openapi.json", described),
            counted("/docs", page(*deploy_page.docs(description))),
            counted("/", page(*deploy_page.page())),
        ],
        middleware=[Middleware(http_gate.gate, access, lambda: state.draining, count_other, access_log)],
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


def _shown(scorer: Scorer, answer: batching.Answer | RefusedError) -> dict[str, Any]:
    """Returns the JSON object of the result for one image."""
    if isinstance(answer, RefusedError):
        return {"status": answer.status, "error": str(answer)}
    numbers = {"score": _number(answer.score), "p_value": _number(answer.p_value)}
    return {**numbers, "verdict": answer.verdict, "threshold": _number(scorer.threshold)}


async def _work(state: _State) -> None:
    """Compiles, then answers jobs until it is cancelled or fails; /healthz reports the failure."""
    pad = state.limits.batch if state.fixed_batch else 0
    try:
        await asyncio.get_running_loop().run_in_executor(None, batching.warm_up, state.scorer, state.limits.batch, pad)
        state.compiled = True
        http_log.say("ready")
        await batching.serve_jobs(state.scorer, state.jobs, state.limits.batch, state.batches.observe, pad)
    except Exception as error:
        state.error = f"the detector does not work: {type(error).__name__}: {error}"[:500]
        http_log.say(state.error)


async def _answers(
    state: _State, request: Request, mapped: bool
) -> tuple[list[http_body.Upload], list[batching.Answer | RefusedError]]:
    """Returns the files in a request, each with its result or the reason why it has none.

    Raises:
      RefusedError: no image was scored, or `mapped` and there are several.
    """
    if state.error or not state.compiled:
        raise RefusedError(503, state.why_not, retry_s=1)
    if state.inside >= state.limits.queue:
        raise RefusedError(429, f"{state.inside} requests are in progress, the maximum: retry in a second", retry_s=1)
    state.inside += 1
    try:
        uploads = await http_body.read(state.limits, request)
        if mapped and len(uploads) > 1:
            raise RefusedError(422, f"{len(uploads)} files: expected one, because the response is a single picture")
        turn, found = asyncio.Lock(), []
        for begin in range(0, len(uploads), _TOGETHER):
            asked = [_answer(state, upload.content, mapped, turn) for upload in uploads[begin : begin + _TOGETHER]]
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                if not isinstance(answer, batching.Answer | RefusedError):
                    raise answer
                found.append(answer)
        if isinstance(found[0], RefusedError) and all(isinstance(answer, RefusedError) for answer in found):
            raise found[0]
        return uploads, found
    except asyncio.CancelledError:
        state.given_up += 1
        raise
    finally:
        state.inside -= 1


async def _answer(state: _State, content: bytes, mapped: bool, turn: asyncio.Lock) -> batching.Answer:
    """Returns the result for one image.

    Args:
      state: that of the application.
      content: the image file.
      mapped: whether its maps are requested.
      turn: lock held while a large image is decoded; a form decodes one at a time.

    Raises:
      RefusedError: the image was not scored.
    """
    loop = asyncio.get_running_loop()
    height, width, _ = state.scorer.input_shape
    read = functools.partial(image_files.decode_file, height=height, width=width, fit=state.scorer.config.data.fit)
    image = await loop.run_in_executor(state.decoders, _decode_small, content, read, state.limits.pixels)
    if image is None:
        async with turn:
            if state.large >= state.limits.large:
                raise RefusedError(
                    429, f"{state.large} large images are in progress, the maximum: retry later", _LARGE_RETRY_S
                )
            state.large += 1
            try:
                image = await loop.run_in_executor(state.large_decoder, read, io.BytesIO(content))
            finally:
                state.large -= 1
    if isinstance(image, str):
        raise RefusedError(422, image)
    job = batching.Job(image, mapped, loop.create_future())
    state.jobs.put_nowait(job)
    try:
        return await job.answer
    except UserError as error:
        raise RefusedError(422, str(error)) from None


def _decode_small(
    content: bytes, read: Callable[[io.BytesIO], image_files.Decoded], most: int
) -> image_files.Decoded | None:
    """Decodes an image, or returns None if it is large and must be decoded in the thread for large ones.

    Raises:
      RefusedError: it has too many pixels.
    """
    size = decode.image_size(io.BytesIO(content))
    if size and size[0] * size[1] > most:
        raise RefusedError(413, f"the image has {size[1]} x {size[0]} pixels: expected at most {most:,}")
    return None if size and size[0] * size[1] > decode.LARGE else read(io.BytesIO(content))


def _png(scorer: Scorer, found: batching.Answer) -> bytes:
    assert found.maps is not None
    title = explanation.title_of("", found.verdict, found.score, found.p_value, scorer.threshold)
    drawn, kept = explanation.picture(scorer, found.maps, 0, title.strip()), io.BytesIO()
    drawn.save(kept, "PNG")
    return kept.getvalue()
