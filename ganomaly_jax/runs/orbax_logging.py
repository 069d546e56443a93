"""Of a write that failed one sentence is told: the rest of what Orbax's threads say of it is left out.

The error itself reaches who called Orbax; beside it, and sometimes after it, its threads log the same with pages of
metadata, and TensorStore calls back into an event loop that has been closed. For a process of our own only.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


def failed_writes() -> None:
    """From now on. What has nothing to do with a write of Orbax is told as before; call it once."""
    from absl import logging as absl  # Orbax logs with it.

    absl.get_absl_logger().addFilter(_of_no_thread)
    logging.getLogger("asyncio").addFilter(_awaited)  # nothing else here has tasks
    before = sys.unraisablehook

    def told(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = told


def _of_no_thread(record: logging.LogRecord) -> bool:
    return "_SignalingThread" not in record.getMessage()


def _awaited(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()
