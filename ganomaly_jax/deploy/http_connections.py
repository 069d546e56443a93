"""Connections of `ganomaly serve`: accepts a limited number and closes those that keep the server waiting.

Uvicorn handles HTTP on each connection. If it also accepted them, there would be no limit on their number or on the
time for headers, and asyncio would log thousands of tracebacks a second when file descriptors run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import http_log
from ganomaly_jax.deploy.http_limits import Limits

if TYPE_CHECKING:
    import uvicorn

# File descriptors needed in addition to the connections.
_OTHER_FILES = 128
# Connections accepted in one turn of the event loop.
_AT_ONCE = 64
# Share of the connections closed together at the limit, since finding them means checking all.
_SHARE = 16
# Seconds in which the first request of a connection may still be arriving.
_FRESH_S = 0.2
# Seconds to wait when file descriptors have run out or all connections are in use.
_REST_S = 0.1
# Seconds from the end of listening to that of idle connections, in which connected clients may send requests.
_SETTLE_S, _DOOR_S = 0.2, 0.001
_Phase = tuple[str, object]
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 34\r\n"
    b"Connection: close\r\n\r\nThe headers did not arrive in time"
)


def check_files(limits: Limits) -> None:
    """Raises the limit on open files, if necessary, to that on connections and some more.

    Raises:
      UserError: the system does not allow it.
    """
    wanted = limits.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UserError(
            f"--max-connections {limits.connections}: this process may open {hard} files (ulimit -n); expected at most "
            f"{max(1, hard - _OTHER_FILES)}, or a higher limit"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Connections:
    """Accepts and monitors the connections of a server."""

    def __init__(self, listener: socket.socket, limits: Limits) -> None:
        """Creates it for a listening socket; `watch` begins to accept."""
        self.listener, self.limits = listener, limits
        self.server: uvicorn.Server
        """Uvicorn's server, to be set before the first `watch`."""
        self._arriving = 0
        self._listening = self._left = False
        self._since: dict[Any, tuple[_Phase, float]] = {}
        listener.setblocking(False)

    @property
    def _open(self) -> set[Any]:
        return self.server.server_state.connections

    async def watch(self) -> None:
        """Closes connections that keep the server waiting too long. Uvicorn calls it every second.

        The first call, when the application has started, begins to accept connections.
        """
        if not self._listening:
            self._listening = True
            self._listen()
        now = asyncio.get_running_loop().time()
        self._look(now)
        for protocol, ((phase, _), since) in list(self._since.items()):
            if phase == "head" and now - since > self.limits.header_s:
                _say_goodbye(protocol)
            elif phase == "rest" and now - since > self.limits.body_s:
                protocol.transport.abort()

    def leave(self, tries: int = 1000) -> None:
        """Stops listening and ends the server.

        Waiting connections are accepted and answered first: closing the socket would reset them.
        """
        loop = asyncio.get_running_loop()
        if tries and select.select([self.listener], [], [], 0)[0]:
            loop.call_later(_DOOR_S, self.leave, tries - 1)
            return
        self._left = True
        loop.remove_reader(self.listener)
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        loop.call_later(_SETTLE_S, setattr, self.server, "should_exit", True)

    def _listen(self) -> None:
        if not (self._left or self.server.should_exit):
            asyncio.get_running_loop().add_reader(self.listener, self._accept)

    def _rest(self) -> None:
        """Pauses accepting for a moment; clients wait in the system's queue."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.listener)
        loop.call_later(_REST_S, self._listen)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        if self.server.should_exit:
            loop.remove_reader(self.listener)
            return
        for _ in range(_AT_ONCE):
            try:
                # The limit is checked first: a client without a place waits in the system's queue.
                if len(self._open) + self._arriving >= self.limits.connections and not self._make_room():
                    # Arriving requests can soon be distinguished from active ones.
                    return None if self._arriving else self._rest()
                accepted = accept(self.listener)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more file descriptors or memory
                http_log.seldom("accept", f"cannot accept connections: {(error.strerror or str(error)).lower()}")
                return self._rest()
            accepted.setblocking(False)
            self._arriving += 1
            task = loop.create_task(self._hand_over(accepted))
            self.server.server_state.tasks.add(task)
            task.add_done_callback(self.server.server_state.tasks.discard)

    async def _hand_over(self, accepted: socket.socket) -> None:
        """Hands a connection to Uvicorn."""
        server = self.server

        def protocol() -> asyncio.Protocol:
            made: Any = server.config.http_protocol_class
            return made(config=server.config, server_state=server.server_state, app_state=server.lifespan.state)

        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.connect_accepted_socket(protocol, accepted)
            self._since[made] = _phase(made), loop.time()
        except OSError:  # the client has gone
            accepted.close()
        finally:
            self._arriving -= 1

    def _make_room(self) -> bool:
        """Closes the connections that have waited longest for their clients, and returns whether there were any.

        A client that sends a request therefore gets a place, however many idle connections others keep open.
        Connections that wait for a response are never closed.
        """
        gone = [protocol for protocol in self._open if _is_gone(protocol)]
        if gone:
            self._open.difference_update(gone)
            return True
        now = asyncio.get_running_loop().time()
        self._look(now)
        waiting = [
            (phase, since, protocol)
            for protocol, ((phase, last), since) in self._since.items()
            if phase != "work" and (last is not None or now - since > _FRESH_S)
        ]
        waiting.sort(key=lambda item: item[:2])  # "head" before "rest"
        for _, _, protocol in waiting[: max(1, len(waiting) // _SHARE)]:
            protocol.transport.abort()
            self._open.discard(protocol)
        what = f"{self.limits.connections} connections are open, the maximum"
        http_log.seldom("full", f"{what}: the longest idle are closed, new ones wait")
        return bool(waiting)

    def _look(self, now: float) -> None:
        """Records the state of each connection, and since when."""
        found = {}
        for protocol in self._open:
            phase = _phase(protocol)
            last, timer = self._since.get(protocol), protocol.timeout_keep_alive_task
            if timer is not None:  # since its last answer
                found[protocol] = phase, timer.when() - self.server.config.timeout_keep_alive
            else:
                found[protocol] = last if last is not None and last[0] == phase else (phase, now)
        self._since = found


def accept(listener: socket.socket) -> socket.socket:
    """Accepts a connection."""
    return listener.accept()[0]


def _phase(protocol: Any) -> _Phase:
    """Returns the state of a connection and its last request.

    `head`: waiting for a request; `work`: waiting for the response of the application; `rest`: the client is still
    sending unread data, or does not read the response.
    """
    import h11

    cycle, transport = protocol.cycle, protocol.transport
    if cycle is not None and not cycle.response_complete:
        return "rest" if cycle.response_started else "work", cycle
    busy = protocol.conn.their_state is not h11.IDLE or transport.get_write_buffer_size() or transport.is_closing()
    return "rest" if busy else "head", cycle


def _is_gone(protocol: Any) -> bool:
    """Returns whether a connection is closed although the event loop has not reported it yet."""
    return bool(protocol.transport.is_closing() and not protocol.transport.get_write_buffer_size())


def _say_goodbye(protocol: Any) -> None:
    """Closes a connection that waits for a request; a client that has sent part of one is told why."""
    if protocol.conn.trailing_data[0]:
        protocol.transport.write(_TOO_SLOW)
    protocol.transport.close()
