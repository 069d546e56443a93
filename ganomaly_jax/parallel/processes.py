"""Coordination of the processes of a distributed run: start-up, collectives on small host values, and exit."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core.errors import UserError

# Seconds without a heartbeat after which the other processes end.
_HEARTBEAT_S = 30
# JAX aborts a process when another one is gone, and no code in it survives that: a watcher process prints the reason.
_WATCHER_PROGRAM = """import sys
if not sys.stdin.read():
    print("ganomaly: this process was killed, or another process of this training is gone; restart all processes to "
          "resume from the last checkpoint", file=sys.stderr)
"""
_watcher: list[subprocess.Popen[str]] = []


def initialize(address: str = "", processes: int = 0, index: int = -1, wait_s: int = 300) -> None:
    """Joins the other processes of a distributed run; call it before any other use of JAX.

    Without arguments JAX detects the cluster: SLURM, Open MPI, Cloud TPU, GKE and Kubernetes are supported.

    Args:
      address: HOST:PORT of process 0, the same in every process.
      processes: number of processes.
      index: index of this process, from 0.
      wait_s: seconds to wait for all processes. After that this process prints a message and exits with code 2,
        since JAX offers no other way to leave that wait.

    Raises:
      UserError: only some of the arguments are given, one is out of range, or no cluster is detected.
    """
    provided = (bool(address), processes > 0, index >= 0)
    if any(provided) and not all(provided):
        raise UserError(
            "--coordinator-address, --num-processes and --process-id have to be given together or not at all"
        )
    if all(provided):
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"--coordinator-address {address!r}: expected HOST:PORT, such as 10.0.0.1:8476")
        if index >= processes:
            raise UserError(f"--process-id {index}: expected a number from 0 to {processes - 1}")
        if index == 0:
            _check_port(int(port))

    def give_up() -> None:
        which = f"the {processes} processes at {address}" if address else "the processes of this job"
        print(
            f"ganomaly: not all of {which} connected within {wait_s} s: check that process 0 is running, that its port "
            "is open, and that every process was started with the same address and number of processes",
            file=sys.stderr,
            flush=True,
        )
        _dismiss_watcher()
        os._exit(UserError.exit_code)

    _watcher.append(
        subprocess.Popen(
            [sys.executable, "-S", "-c", _WATCHER_PROGRAM], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
    )
    atexit.register(_dismiss_watcher)
    # On CPUs concurrent programs can deadlock across processes; on other platforms the option has no effect.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    timer = threading.Timer(wait_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address or None,
            processes if address else None,
            index if address else None,
            initialization_timeout=wait_s + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"--distributed: {reason}; with a launcher other than SLURM, Open MPI, Cloud TPU, GKE or Kubernetes pass "
            "--coordinator-address, --num-processes and --process-id"
        ) from None
    finally:
        timer.cancel()
        # JAX treats SIGTERM as a notice of preemption and passes it on late; `loop.run` has its own handler.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_port(port: int) -> None:
    """Raises a UserError if the port cannot be opened; JAX would crash the process instead."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be opened on this machine, which runs process 0 ({error.strerror}): pass another "
                "port in the --coordinator-address of every process"
            ) from None


def is_primary() -> bool:
    """Returns True in process 0, the only one that prints and writes files."""
    return jax.process_index() == 0


def all_gather(numbers: Any) -> np.ndarray:
    """Gathers a small array from every process; a collective that all processes have to call.

    Args:
      numbers: array [n] of int32 or uint8, of the same shape in every process.

    Returns:
      Array [processes, n], the same in every process.
    """
    local = np.asarray(numbers)
    if not is_distributed():
        return local[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(local))


def all_gather_bytes(work: Callable[[], bytes]) -> list[bytes]:
    """Runs `work` in every process and gathers the results; a collective.

    Args:
      work: returns the bytes of this process, less than 2 GiB.

    Returns:
      The bytes of every process, in the order of the processes.

    Raises:
      UserError: `work` failed in another process. The process in which it failed raises the original error.
    """
    local, error = b"", None
    try:
        local = work()
    except Exception as raised:
        error = raised
    lengths_and_failures = all_gather(np.array([len(local), error is not None], np.int32))
    if error is not None:
        raise error
    if lengths_and_failures[:, 1].any():
        raise UserError(f"process {lengths_and_failures[:, 1].argmax()} cannot go on; its local message says why")
    padded = np.zeros(max(int(lengths_and_failures[:, 0].max()), 1), np.uint8)
    padded[: len(local)] = np.frombuffer(local, np.uint8)
    return [row[:length].tobytes() for row, length in zip(all_gather(padded), lengths_and_failures[:, 0], strict=True)]


def local_range(count: int) -> range:
    """Returns the contiguous share of `range(count)` that belongs to this process."""
    processes, index = jax.process_count(), jax.process_index()
    return range(count * index // processes, count * (index + 1) // processes)


def is_preempted(step: int) -> bool:
    """Returns True once JAX has announced to all processes that one of them is about to be preempted.

    SIGTERM, JAX's own source of such notices, is handled by `loop.run`; other sources reach JAX through its
    coordination service.

    Args:
      step: number of previous calls, the same in every process.
    """
    if not is_distributed():
        return False
    from jax.experimental import multihost_utils

    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # JAX_ENABLE_PREEMPTION_SERVICE=0
        return False


def broadcast(number: float) -> float:
    """Returns the number that process 0 passed, in every process; a collective."""
    local = np.frombuffer(np.float64(number).tobytes(), np.uint8)
    return float(np.frombuffer(all_gather(local)[0].tobytes(), np.float64)[0])


def check_same(**texts: str) -> None:
    """Checks that all processes pass the same texts; a collective.

    Args:
      **texts: what is compared, by the name under which the message mentions it.

    Raises:
      UserError: a text differs from that of process 0; the message names the text and the process.
    """
    for name, text in texts.items():
        digests = all_gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
        others = np.flatnonzero((digests != digests[0]).any(axis=1))
        if len(others):
            raise UserError(
                f"process {others[0]} has a different {name} than process 0: start every process with the same "
                "command, data and versions of all packages"
            )


def run_on_primary(work: Callable[[], Any]) -> Any:
    """Runs `work` in process 0 while the others wait; a collective.

    Returns:
      The result of `work` in process 0, None in the others.

    Raises:
      UserError: in the other processes, if `work` failed in process 0, which raises the original error.
    """
    try:
        result, error = (work() if is_primary() else None), None
    except Exception as raised:
        result, error = None, raised
    failed = all_gather(np.array([error is not None], np.int32))[0, 0]
    if error is not None:
        raise error
    if failed:
        raise UserError("process 0 failed; see its own message")
    return result


def is_distributed() -> bool:
    """Returns True if the run has more than one process."""
    return jax.process_count() > 1


def exit_now(code: int) -> None:
    """Exits immediately with `code` in a distributed run: a normal exit could wait for other processes for minutes."""
    if is_distributed():
        _dismiss_watcher()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _dismiss_watcher() -> None:
    """Tells the watcher process that this process exits on purpose, so that it prints nothing."""
    for watcher in _watcher:
        if watcher.stdin is not None and not watcher.stdin.closed:
            with contextlib.suppress(OSError):
                watcher.communicate("done")
