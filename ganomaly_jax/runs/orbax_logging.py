"""Keeps Orbax's threads from logging failed writes, which are reported in one sentence.

The error reaches the caller of Orbax; beside it, and sometimes after it, Orbax's threads log it with pages of metadata,
and TensorStore calls back into a closed event loop. For processes of the command line only.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


def silence_failed_writes() -> None:
    """Silences logs of failed writes from now on; everything else is logged as before. Call it once."""
    from absl import logging as absl  # Orbax logs with it.

    absl.get_absl_logger().addFilter(_is_not_from_thread)
    logging.getLogger("asyncio").addFilter(_is_not_unretrieved)  # nothing else here uses tasks
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous_hook(unraisable)

    sys.unraisablehook = hook


def _is_not_from_thread(record: logging.LogRecord) -> bool:
    """Returns False for records of Orbax's signalling thread."""
    return "_SignalingThread" not in record.getMessage()


def _is_not_unretrieved(record: logging.LogRecord) -> bool:
    """Returns False for asyncio's records of exceptions that nobody retrieved."""
    return "exception was never retrieved" not in record.getMessage()
