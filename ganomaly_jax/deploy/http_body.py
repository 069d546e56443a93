"""Bodies of requests to `ganomaly serve`: the bytes of one file, or a form with several. Nothing is written to disk."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ganomaly_jax.deploy.http_limits import Limits, RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

# Maximum number and size of form fields that are not files; they are ignored.
_FIELDS, _FIELD_BYTES = 32, 4096
_USAGE = "expected the bytes of one image file (curl --data-binary @image.png), or a form (curl -F file=@image.png)"


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was sent."""

    content: bytes
    name: str | None = None
    """Its name in a form; None if the body is the file."""


async def read(limits: Limits, request: Request) -> list[Upload]:
    """Reads the files in the body of a request, holding no more than the limit.

    Returns:
      One file without a name, or at least one with a name.

    Raises:
      RefusedError: the body is empty, too large, too slow, encoded, or a form that cannot be read.
    """
    from starlette.requests import ClientDisconnect

    coded = request.headers.get("content-encoding", "identity")
    if coded.lower() != "identity":
        raise RefusedError(415, f"content encoding {coded[:50]!r}: {_USAGE}")
    if int(request.headers.get("content-length", 0)) > limits.body:
        raise _too_long(limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/") and kind != "multipart/form-data":
        raise RefusedError(415, f"content type {kind[:50]!r}: {_USAGE}")
    try:
        async with asyncio.timeout(limits.body_s):
            if kind == "multipart/form-data":
                return await _form(limits, request)
            body = bytearray()
            async for part in _parts(limits, request):
                body += part
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {limits.body_s:g} s") from None
    except ClientDisconnect:
        raise RefusedError(400, "the body is incomplete") from None
    if not body:
        raise RefusedError(400, f"no body: {_USAGE}")
    return [Upload(bytes(body))]


async def _parts(limits: Limits, request: Request) -> AsyncGenerator[bytes, None]:
    """Yields the body as it arrives, up to the limit."""
    taken = 0
    async for part in request.stream():
        taken += len(part)
        if taken > limits.body:
            raise _too_long(limits)
        yield part


async def _form(limits: Limits, request: Request) -> list[Upload]:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect

    ended: list[bool] = []

    async def whole() -> AsyncGenerator[bytes, None]:
        async for part in _parts(limits, request):
            yield part
        if not ended:  # the parser would omit or truncate the last file
            raise RefusedError(400, "the form is incomplete: its last boundary is missing")

    parser = MultiPartParser(
        request.headers, whole(), max_files=limits.files, max_fields=_FIELDS, max_part_size=_FIELD_BYTES
    )
    parser.spool_max_size = limits.body + 1  # a larger one would be written to a temporary file
    parser.on_end = lambda: ended.append(True)  # type: ignore[method-assign]  # it does nothing
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(400, f"the form cannot be read: {error.message}") from None
    except (RefusedError, ClientDisconnect, TimeoutError):
        raise
    except Exception as error:  # the parser's errors for invalid forms depend on its version
        raise RefusedError(400, f"the form cannot be read: {type(error).__name__}") from None
    files = []
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append(Upload(await value.read(), value.filename or ""))
            await value.close()  # one copy at a time
    if not files:
        raise RefusedError(400, "the form contains no file: expected curl -F file=@image.png, with the @")
    return files


def _too_long(limits: Limits) -> RefusedError:
    return RefusedError(413, f"more than {limits.body:,} bytes, the maximum")
