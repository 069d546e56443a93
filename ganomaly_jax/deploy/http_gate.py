"""Checks the framing, host and token of every request to `ganomaly serve`, and adds its id to response and log."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import http_log
from ganomaly_jax.deploy.http_limits import RefusedError

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that are always accepted in `Host`."""
ANY = "*"
"""Stands for every host."""
PROBES = frozenset({"/healthz", "/readyz"})
"""Paths for load balancers and orchestrators, which need neither a host nor a token."""
PUBLIC = PROBES | {"/", "/docs", "/openapi.json"}
"""Paths without a token: public, and the same for every client."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FEWEST, _MOST = 16, 1024


@dataclasses.dataclass(frozen=True)
class Access:
    """Access rules of the server."""

    hosts: frozenset[str] = LOOPBACK
    """Names accepted in `Host`, in addition to the address the client is connected to; `*` is any."""
    token: bytes | None = dataclasses.field(default=None, repr=False)
    """Token that `Authorization: Bearer` must contain, except for `PUBLIC` paths; None: no token."""


LOCAL = Access()
"""Access from this machine, without a token."""


def allowed_hosts(names: Iterable[str]) -> frozenset[str]:
    """Returns the hosts accepted in `Host`: this machine's own names, and those given.

    Raises:
      UserError: one is not a name or an address.
    """
    found = set(LOOPBACK)
    for name in names:
        bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        if name != ANY and (not _NAME.fullmatch(bare) or (":" in bare and not _is_address(bare))):
            raise UserError(
                f"--allow-host {name!r}: expected a name or address without scheme, port or path, such as "
                "detector.example, or * for any"
            )
        found.add(_normal(bare))
    return frozenset(found)


def read_token(path: str) -> bytes:
    """Reads the token in a file, which must contain nothing else.

    Raises:
      UserError: the file cannot be read, is accessible to others, or does not contain a token.
    """
    try:
        # A named pipe is opened without waiting for its writer, and then refused.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise UserError(f"--token-file {path}: not a regular file")
            if info.st_uid not in (0, os.geteuid()):
                raise UserError(f"--token-file {path}: belongs to another user; expected your own or root's")
            if info.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise UserError(
                    f"--token-file {path}: others may read or change it (mode {stat.S_IMODE(info.st_mode):04o}); "
                    f"expected 0600 or 0640: chmod 600 {path}"
                )
            content = file.read(_MOST + 1)
    except OSError as error:
        raise UserError(f"--token-file {path}: {(error.strerror or str(error)).lower()}") from None
    token = content.strip().decode("utf-8", "replace")
    if not token:
        raise UserError(f"--token-file {path}: empty; {_EXPECTED}")
    if not _FEWEST <= len(content.strip()) <= _MOST or not _TOKEN.fullmatch(token):
        raise UserError(f"--token-file {path}: not a token; {_EXPECTED}")
    return token.encode()


_EXPECTED = (
    f"expected {_FEWEST} to {_MOST} letters, digits or ._~+/- on one line, such as the output of "
    "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
)


def gate(app: ASGIApp, access: Access, closing: Callable[[], bool], count: Callable[[int], None], log: bool) -> ASGIApp:
    """Wraps an application: refuses invalid requests and adds headers to every response.

    Every response has an `X-Request-ID`: the client's, if it is well formed, or a new one.

    Args:
      app: the application; finds the id in `scope["request_id"]`.
      access: who may use it.
      closing: returns whether responses should tell clients to close their connections.
      count: called with the status of each request that is refused here.
      log: whether each response is logged.
    """
    from starlette.datastructures import Headers, MutableHeaders

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers, begin = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        refused = _refused(scope, headers, access)

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                made = MutableHeaders(scope=message)
                made["X-Request-ID"], made["X-Content-Type-Options"] = scope["request_id"], "nosniff"
                # The unread body of a refused request is read and discarded: closing would reset a client that is still
                # sending before it sees the reason. Only clients that have stopped sending are cut off, and those with
                # ambiguous framing.
                if closing() or message["status"] == 408 or (refused is not None and refused.status == 400):
                    made["Connection"] = "close"
                if log:
                    http_log.say(_line(scope, message["status"], time.monotonic() - begin))
            await send(message)

        if refused is None:
            return await app(scope, receive, complete)
        count(refused.status)
        if not log:
            http_log.seldom(("refused", refused.status), f"{_line(scope, refused.status)}: {refused}")
        await _answer(refused)(scope, receive, complete)

    return run


def _refused(scope: Scope, headers: Headers, access: Access) -> RefusedError | None:
    """Returns why a request is refused, or None."""
    if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] != "1.1"):
        # A proxy may see the body end elsewhere, and what follows as another request (request smuggling).
        return RefusedError(400, "Transfer-Encoding with Content-Length, or in HTTP/1.0: expected only one of them")
    path = scope["path"]
    if path not in PROBES and not _is_host(headers.get("host", ""), scope, access.hosts):
        shown = headers.get("host", "")[:100].encode("ascii", "backslashreplace").decode()
        return RefusedError(
            421, f"host {shown!r}: not a name of this server; accept it with ganomaly serve --allow-host NAME"
        )
    if access.token is not None and path not in PUBLIC and not _is_authorised(headers, access.token):
        return RefusedError(401, "missing or wrong token: expected the header Authorization: Bearer TOKEN")
    return None


def _answer(refused: RefusedError) -> ASGIApp:
    from starlette.responses import JSONResponse

    headers = {"WWW-Authenticate": 'Bearer realm="ganomaly"'} if refused.status == 401 else None
    return JSONResponse({"error": str(refused)}, refused.status, headers)


def _is_host(value: str, scope: Scope, hosts: frozenset[str]) -> bool:
    """Returns whether a `Host` is one of this server's.

    By DNS rebinding, a web site gives its own name the address of a server that only its visitor can reach. The browser
    then sends that name, never the address, so addresses are accepted.
    """
    if ANY in hosts:
        return True
    found = _HOST.fullmatch(value)
    if not found:
        return False
    name = _normal(found[1] or found[2])
    return name in hosts or (_is_address(name) and name == _normal((scope.get("server") or ("",))[0]))


def _is_authorised(headers: Headers, token: bytes) -> bool:
    kind, _, sent = headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(sent.strip().encode("latin-1"), token)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _normal(name: str) -> str:
    """Returns a name or an address in normalised form."""
    return ipaddress.ip_address(name).compressed if _is_address(name) else name.lower().removesuffix(".")


def _line(scope: Scope, status: int, seconds: float | None = None) -> str:
    """Returns a line of the log: client, request, status, duration and id."""
    client: Any = scope.get("client") or ("-",)
    target = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]  # printable: h11 refuses the rest
    took = "" if seconds is None else f" {seconds * 1000:.0f} ms"
    return f"{client[0]} {scope['method']} {target} {status}{took} id={scope['request_id']}"
