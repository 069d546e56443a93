"""The process of `ganomaly serve`: listens, handles signals, and ends once every request is answered (Uvicorn)."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import http_app, http_connections, http_log
from ganomaly_jax.deploy.http_limits import Limits

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

# Seconds that a request in progress may take beyond the time for its body during shutdown.
_LAST_S = 10


def serve(
    make: Callable[[Callable[[], None]], Starlette],
    limits: Limits,
    host: str,
    port: int,
    drain_s: float,
    ready: Callable[[str], None],
) -> int:
    """Serves an application over HTTP until SIGTERM or SIGINT; a second signal ends it at once.

    Args:
      make: creates the application, given a callback for when it has started (`http_app.application`).
      limits: the limits of the server.
      host, port: where to listen; port 0: a free one.
      drain_s: seconds after the signal in which it reports that it is not ready, and still answers.
      ready: called with the address once requests are accepted.

    Returns:
      How many requests were cut off at the end.

    Raises:
      UserError: what `make` raises; the extra `serve` is not installed; the address is taken, or not of this machine;
        too few files may be open.
    """

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
        shared.draining = True
        http_log.say(f"draining; requests in progress: {shared.inside}")
        loop.call_later(drain_s, connections.leave)

    app = make(started)
    http_connections.check_files(limits)
    with _listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        connections = http_connections.Connections(listener, limits)
        server = prepare(app, limits, connections)
        server.run(sockets=[])
    shared = app.state.shared
    if shared.error:
        raise UserError(shared.error)
    return shared.given_up


def prepare(app: Starlette, limits: Limits, connections: http_connections.Connections) -> uvicorn.Server:
    """Returns Uvicorn's server, independent of optional packages; run it without sockets, as `connections` accepts.

    It uses h11, which limits headers to 16 KiB, the event loop of asyncio, and no websockets.

    Raises:
      UserError: Uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise http_app.missing(error) from None
    last = math.ceil(limits.body_s + _LAST_S)
    how: dict[str, Any] = {"http": "h11", "loop": "asyncio", "ws": "none", "access_log": False}
    how |= {"log_level": "warning", "log_config": http_log.settings(), "server_header": False}
    # Called once Uvicorn has started, and then every second.
    how |= {"callback_notify": connections.watch, "timeout_notify": 0}
    server = uvicorn.Server(uvicorn.Config(app, **how, timeout_graceful_shutdown=last))
    connections.server = server
    return server


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
