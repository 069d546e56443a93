"""The process of `ganomaly serve`: listens, handles signals, and ends once every request is answered (Uvicorn)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import http_app
from ganomaly_jax.deploy.http_app import Limits
from ganomaly_jax.scoring.scorer import Scorer

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

# Seconds that a request in work may take beyond the time for its body, once nothing new is accepted; and between the
# end of listening and that of idle connections: who has connected says what is wanted.
_LAST_S, _SETTLE_S, _DOOR_S = 10, 0.2, 0.001


def serve(
    scorer: Scorer,
    limits: Limits,
    host: str,
    port: int,
    drain_s: float,
    ready: Callable[[str], None],
    log: Callable[[str], None],
) -> int:
    """Serves a detector over HTTP until SIGTERM or SIGINT; a second signal ends it at once.

    Args:
      scorer: the detector.
      limits: what a request may take.
      host, port: where to listen; port 0: a free one.
      drain_s: seconds after the signal in which it reports that it is not ready, and still answers.
      ready: called with the address once requests are accepted.
      log: called with a line when it begins to drain.

    Returns:
      How many requests were cut off at the end.

    Raises:
      UserError: what `application` raises; the extra `serve` is not installed; the address is taken, or not of this
        machine.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise http_app.missing(error) from None

    def started() -> None:
        """Takes the signals from Uvicorn, which would stop listening at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain, loop)
        ready(address)

    def drain(loop: asyncio.AbstractEventLoop) -> None:
        shared = app.state.shared
        if shared.draining:
            server.should_exit = server.force_exit = True
            # From Python 3.12 on Uvicorn waits for open connections all the same, up to this time.
            server.config.timeout_graceful_shutdown = 0
        shared.draining = True
        log(f"draining, {shared.inside} in work")
        loop.call_later(drain_s, leave, loop, server, listener)

    app = http_app.application(scorer, limits, started)
    with _listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        server = uvicorn.Server(configuration(app, limits))
        server.run(sockets=[listener])
    shared = app.state.shared
    if shared.error:
        raise UserError(shared.error)
    return shared.given_up


def leave(loop: asyncio.AbstractEventLoop, server: uvicorn.Server, listener: socket.socket, tries: int = 1000) -> None:
    """Stops listening and ends the server.

    Waiting connections are accepted and answered first: closing the socket would reset them.
    """
    if tries and select.select([listener], [], [], 0)[0]:
        loop.call_later(_DOOR_S, leave, loop, server, listener, tries - 1)
        return
    # Server.close would drop the connections that are accepted and not yet handed to Uvicorn.
    loop.remove_reader(listener)
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    loop.call_later(_SETTLE_S, setattr, server, "should_exit", True)


def configuration(app: Starlette, limits: Limits) -> uvicorn.Config:
    """Returns the configuration of Uvicorn, the same whatever else is installed.

    It uses h11, which limits headers to 16 KiB, the event loop of asyncio, which `serve` stops listening, and no
    websockets.
    """
    import uvicorn

    last = math.ceil(limits.body_s + _LAST_S)
    how: dict[str, Any] = {"http": "h11", "loop": "asyncio", "ws": "none", "log_level": "warning", "access_log": False}
    return uvicorn.Config(app, **how, timeout_graceful_shutdown=last)


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=512)
        # Accepted connections inherit it. Without it an answer, which is written in two parts, waits for the client to
        # acknowledge the first, 40 ms on Linux; asyncio sets it only where the protocol is given by name.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:  # the latter where a label of the name is too long
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host} port {port}: {why.lower()}; expected --host and --port that are free here") from None
