"""The limits of `ganomaly serve`, and the error of a request that is refused."""

from __future__ import annotations

import dataclasses

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the server."""

    body: int = 16 * 2**20
    """Bytes of the body of a request."""
    pixels: int = decode.MAX_PIXELS
    """Pixels of an image."""
    batch: int = 64
    """Images scored together."""
    queue: int = 128
    """Requests in progress, each of which may hold a body. Further ones are told to retry."""
    body_s: float = 30.0
    """Seconds within which a body must arrive."""
    header_s: float = 10.0
    """Seconds within which the headers of a request must arrive, and that a connection may be idle."""
    connections: int = 512
    """Open connections. Beyond it, those idle longest are closed."""
    large: int = 8
    """Images of more than `decode.LARGE` pixels in progress, which share one thread. Further ones are told to retry."""
    files: int = 32
    """Files in a form."""


DEFAULT = Limits()
"""The default limits of the command."""


class RefusedError(Exception):
    """A request is refused with an HTTP status and a message."""

    def __init__(self, status: int, message: str, retry_s: int | None = None) -> None:
        """Creates the error; `retry_s` is the number of seconds after which the client may retry, if it may."""
        super().__init__(message)
        self.status, self.retry_s = status, retry_s


def check(limits: Limits) -> None:
    """Checks the limits.

    Raises:
      UserError: a limit is out of range.
    """
    for name in ("body", "pixels", "queue", "body_s", "header_s", "connections", "large", "files"):
        if not getattr(limits, name) > 0:
            raise UserError(f"limit {name} {getattr(limits, name)}: expected more than 0")
    if limits.pixels > decode.MAX_PIXELS:
        raise UserError(f"limit pixels {limits.pixels:,}: expected at most {decode.MAX_PIXELS:,}")
