"""A write that failed: one sentence, nothing of Orbax's threads beside it or after it."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio
from ganomaly_jax.runs import orbax_logging
orbax_logging.silence_failed_writes()
from absl import logging
logging.error("[process=0] _SignalingThread.run() raised an exception: %s", "pages")
logging.error("something else")
async def late():
    asyncio.get_running_loop().create_future().set_exception(OSError("of a write"))
asyncio.run(late())

class Late:
    def __init__(self, does):
        self.does = does
    def __del__(self):  # what is raised here is told as what a callback from C++ raises
        self.does()

def fail():
    raise ValueError("of our own")

loop = asyncio.new_event_loop()
loop.close()
Late(lambda: loop.call_soon_threadsafe(print))
Late(fail)
"""


def test_what_orbax_says_twice_is_left_out():
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert not any(words in ran.stderr for words in ("pages", "Event loop", "of a write"))
    assert "something else" in ran.stderr and "ValueError: of our own" in ran.stderr


STUCK = """
import sys, threading
from ganomaly_jax.cli import main
main._LINGER_S = 0.2
main.main = lambda: threading.Thread(target=threading.Event().wait).start() or CODE
sys.exit(main.command())
"""


def test_a_thread_that_never_ends_does_not_keep_the_process():
    """As Orbax's do where a disk has filled up; where all went well they are waited for."""
    call = [sys.executable, "-c", STUCK.replace("CODE", "2")]
    assert subprocess.run(call, check=False, timeout=60).returncode == 2
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", STUCK.replace("CODE", "0")], check=False, timeout=3)
