"""Posts events to an http(s) address, directly or through a proxy. Uses the standard library only.

An event is delivered when the response has a status of 2xx and is complete. Redirects are never followed: after 301,
302 or 303, clients repeat the request without the event, and its response would count as a delivery.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import urllib.request
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable

PORTS = {"http": 80, "https": 443}
MAX_ANSWER = 2**16
"""Maximum number of bytes read of a response."""
ABOUT_THE_EVENT = (400, 409, 413, 422)
"""Statuses that reject an event for good; all others concern the receiver and may be temporary."""


class RefusedError(Exception):
    """The receiver rejects an event for good."""


class DeliveryError(Exception):
    """An event was not delivered. The message is a predicate, such as `cannot be reached: ...`."""


@dataclasses.dataclass(frozen=True)
class Address:
    """A checked http(s) address, whose `repr` contains no secrets.

    Attributes:
      scheme: `http` or `https`.
      host: host without brackets.
      port: 1 to 65535.
      path: path and query.
      authorization: value of the header for user and password; empty for none.
    """

    scheme: str
    host: str
    port: int
    path: str = dataclasses.field(repr=False)
    authorization: str = dataclasses.field(repr=False)

    @property
    def in_brackets(self) -> str:
        """Returns the host, an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def netloc(self) -> str:
        """Returns host and port, as in the header `Host`."""
        return self.in_brackets if self.port == PORTS[self.scheme] else f"{self.in_brackets}:{self.port}"

    @property
    def origin(self) -> str:
        """Returns `scheme://host:port`, the only part of the address that is printed."""
        return f"{self.scheme}://{self.netloc}"


@dataclasses.dataclass(frozen=True)
class Webhook:
    """An address and how it is reached.

    Attributes:
      address: the receiver.
      proxy: proxy that connects to it, or None.
      tls: settings for TLS; None for http.
    """

    address: Address
    proxy: Address | None
    tls: ssl.SSLContext | None


def parse(url: str, option: str = "--sink") -> Address:
    """Returns an address after checking it.

    Args:
      url: http(s) URL, which may contain `user:password@`.
      option: its name in messages.

    Raises:
      UserError: the address is invalid. The message shows only the scheme, since the rest may be secret.
    """

    def refused(why: str) -> UserError:
        shown = re.match(r"[\w+.-]*", url, re.ASCII)
        return UserError(
            f"{option} {shown[0] if shown else ''}://...: {why}; expected http://HOST/PATH or https://HOST/PATH"
        )

    if not (url.isascii() and url.isprintable()) or " " in url:
        raise refused("spaces, control characters and characters beyond ASCII must be percent-encoded (host: xn--...)")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:  # brackets that do not match
        raise refused("the host is invalid") from None
    if parts.scheme not in PORTS:
        raise refused("unknown scheme" if parts.scheme else "no scheme")
    if not host:
        raise refused("no host")
    if not _is_host(host):
        raise refused("the host is invalid")
    try:
        port = PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise refused("the port is not a number from 1 to 65535")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return Address(parts.scheme, host, port, path, _authorization(parts))
    except ValueError as error:
        raise refused(str(error)) from None


def _is_host(host: str) -> bool:
    """Returns True for a name of valid labels, or an IP address."""
    try:
        if ":" in host:
            return bool(ipaddress.IPv6Address(host))
        host.encode("idna")  # as the look-up does: no label is empty or longer than 63
    except ValueError:
        return False
    return bool(re.fullmatch(r"\w[\w.-]{,252}", host, re.ASCII))


def _authorization(parts: SplitResult) -> str:
    """Returns the value of the header Authorization (RFC 7617); empty without user and password."""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user and not password:
        return ""
    if ":" in user or not (user + password).isprintable():
        raise ValueError("the user has a colon, or user or password have control characters")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def connect_through(address: Address) -> Webhook:
    """Returns the address with the proxy that the environment names for it.

    As in `urllib` and curl: `http_proxy` and `https_proxy`, in either case, except for the hosts in `no_proxy`.

    Raises:
      UserError: the proxy's own address is invalid.
    """
    name, proxy = f"{address.scheme}_proxy", None
    url = urllib.request.getproxies().get(address.scheme, "")
    if url and not urllib.request.proxy_bypass(address.netloc):
        proxy = parse(url if "://" in url else f"http://{url}", name)
        if proxy.scheme != "http":
            raise UserError(f"{name} {proxy.origin}: expected a plain HTTP proxy, http://HOST:PORT")
    return Webhook(address, proxy, ssl.create_default_context() if address.scheme == "https" else None)


def post(webhook: Webhook, data: bytes, name: str, timeout: float) -> None:
    """Delivers an event.

    Args:
      webhook: the receiver.
      data: the event, JSON.
      name: its id.
      timeout: seconds for lookup, connection, sending and the complete response together.

    Raises:
      RefusedError: the receiver rejects this event for good.
      DeliveryError: it was not delivered.
    """
    try:
        _deliver(webhook, data, name, time.monotonic() + timeout)
    except TimeoutError:
        raise DeliveryError(f"did not respond completely within {timeout:g} s (--sink-timeout)") from None
    except http.client.RemoteDisconnected:
        raise DeliveryError("closed the connection without a response") from None
    except http.client.HTTPException as error:
        raise DeliveryError(
            f"sent an invalid HTTP response ({printable(f'{type(error).__name__}: {error}')})"
        ) from None
    except OSError as error:
        raise DeliveryError(f"cannot be reached: {printable(str(error))}") from None


def _deliver(webhook: Webhook, data: bytes, name: str, until: float) -> None:
    """Connects, posts and reads the response by the deadline `until` of `time.monotonic`."""
    address, proxy = webhook.address, webhook.proxy
    nearest = proxy or address
    headers = {"Content-Type": "application/json", "Idempotency-Key": name, "User-Agent": "ganomaly"}
    headers |= {"Connection": "close"} | ({"Authorization": address.authorization} if address.authorization else {})
    ours = {"Proxy-Authorization": proxy.authorization} if proxy is not None and proxy.authorization else {}
    path = address.path
    with _connect(nearest, until) as plain:
        sock: socket.socket = plain
        if webhook.tls is not None:
            if proxy is not None:
                status = _ask(plain, until, address, "CONNECT", f"{address.in_brackets}:{address.port}", None, ours)[1]
                if status // 100 != 2:
                    raise DeliveryError(f"cannot be reached: the proxy {proxy.origin} responded with HTTP {status}")
            plain.settimeout(_left(until))
            sock = webhook.tls.wrap_socket(plain, server_hostname=address.host)
        elif proxy is not None:
            headers, path = headers | ours, address.origin + path
        with sock:
            answer, status = _ask(sock, until, address, "POST", path, data, headers)
            if status in ABOUT_THE_EVENT:
                raise RefusedError(f"HTTP {status}")
            if status // 100 == 3:
                raise DeliveryError(f"responded with HTTP {status}{_moved(answer.getheader('Location'), address)}")
            if status // 100 != 2:
                raise DeliveryError(f"responded with HTTP {status}")
            body = answer.read(MAX_ANSWER)
            if answer.length and len(body) < MAX_ANSWER:
                raise DeliveryError(f"responded with HTTP {status}, but the response ends after {len(body)} bytes")


def _moved(location: str | None, address: Address) -> str:
    """Returns the target of a redirect, without possible secrets, and what to do."""
    if not location:
        return " without a Location"
    try:
        parts = urlsplit(location)
    except ValueError:
        return " with an invalid Location"
    own = address.path.partition("?")[0]
    path = parts.path.replace(own, "/...") if len(own) > 1 else parts.path
    shown = SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], path, "", "").geturl()
    return f" with Location {printable(shown)}; redirects are not followed; pass the final address to --sink"


def _ask(
    sock: socket.socket,
    until: float,
    address: Address,
    method: str,
    path: str,
    data: bytes | None,
    headers: dict[str, str],
) -> tuple[http.client.HTTPResponse, int]:
    """Sends a request on a connected socket and returns the head of the response and its status."""
    stream = _Timed(sock, until)
    connection = http.client.HTTPConnection(address.host, address.port)
    connection.sock = stream
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    if stream.ended:  # http.client takes the end of the connection for the end of the head
        raise DeliveryError("sent a response with incomplete headers")
    return answer, answer.status


class _Timed(io.RawIOBase):
    """The part of a socket that `http.client` uses, with an overall deadline instead of a timeout for each read."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        """Wraps a socket."""
        self._sock, self._until, self.ended = sock, until, False

    def close(self) -> None:
        """Does nothing: `http.client` closes its socket before it reads the rest of a response."""

    def sendall(self, data: Any) -> None:
        """Sends all of `data`."""
        rest = memoryview(data)
        while rest:
            self._sock.settimeout(_left(self._until))
            rest = rest[self._sock.send(rest) :]

    def makefile(self, _: str) -> io.BufferedReader:
        """Returns a file to read the response from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Waits for data and reads it."""
        self._sock.settimeout(_left(self._until))
        size = self._sock.recv_into(buffer)
        self.ended = self.ended or not size
        return size


def _left(until: float) -> float:
    """Returns the seconds that are left; raises a TimeoutError if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(address: Address, until: float) -> socket.socket:
    """Returns a connected socket. The remaining time is shared between the addresses of the host."""
    problem: OSError = OSError("the host has no address")
    found = _look_up(address, until)
    for i, (family, kind, protocol, _, where) in enumerate(found):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # no IPv6 on this machine
            problem = error
            continue
        try:
            sock.settimeout(_left(until) / (len(found) - i))
            sock.connect(where)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem


def _look_up(address: Address, until: float) -> list[Any]:
    """Returns the results of `getaddrinfo`, run in a thread because it has no timeout."""
    found: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = found.get(timeout=_left(until))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result
