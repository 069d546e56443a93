"""Several processes of one training: how they find each other, agree, and part."""

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

# A process that does not answer for so long ends the others.
_HEARTBEAT_S = 30
# JAX ends a process whose fellows are gone by aborting it, which no code in it outlives: a second one has to say why.
_WATCH = """import sys
if not sys.stdin.read():
    print("ganomaly: this process was ended from outside, or because another process of this training is gone; start "
          "all of them again to go on from the last checkpoint", file=sys.stderr)
"""
_watcher: list[subprocess.Popen[str]] = []


def start(address: str = "", processes: int = 0, index: int = -1, wait_s: int = 300) -> None:
    """Join the other processes; before anything else is asked of JAX.

    Without arguments JAX finds them where SLURM, Open MPI, Cloud TPU, GKE or Kubernetes started them.

    Args:
      address: HOST:PORT of process 0, the same for all.
      processes: how many there are.
      index: of this one, from 0.
      wait_s: seconds to wait for all of them. Then this process ends with a message and exit code 2, whatever the
        others do: JAX gives no other way out of that wait.

    Raises:
      UserError: arguments that do not go together, or no arguments where none can be found.
    """
    given = (bool(address), processes > 0, index >= 0)
    if any(given) and not all(given):
        raise UserError("wanted --coordinator-address, --num-processes and --process-id together, or none of them")
    if all(given):
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"--coordinator-address {address!r}: wanted HOST:PORT, such as 10.0.0.1:8476")
        if index >= processes:
            raise UserError(f"--process-id {index}: wanted one from 0 to {processes - 1}")
        if index == 0:
            _check_port(int(port))

    def give_up() -> None:
        who = f"the {processes} processes at {address}" if address else "the processes of this job"
        print(
            f"ganomaly: not all of {who} came within {wait_s} s: is process 0 running, its port open, and every "
            "process started with the same address and number?",
            file=sys.stderr,
            flush=True,
        )
        _ends_well()
        os._exit(UserError.exit_code)

    _watcher.append(
        subprocess.Popen([sys.executable, "-S", "-c", _WATCH], stdin=subprocess.PIPE, text=True, start_new_session=True)
    )
    atexit.register(_ends_well)
    # On CPUs programs under way at once can wait for each other across the processes; elsewhere it says nothing.
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
        said = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"--distributed: {said}; under another launcher than SLURM, Open MPI, Cloud TPU, GKE or Kubernetes give "
            "--coordinator-address, --num-processes and --process-id"
        ) from None
    finally:
        timer.cancel()
        # To JAX it is a notice of preemption, which it would tell on late; `loop.advance` has a handler of its own.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_port(port: int) -> None:
    """Refuse a port that cannot be opened, on which JAX would end the process by a fault."""
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            here.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be opened on this machine, which is that of process 0 ({error.strerror}): give "
                "all processes a --coordinator-address with another one"
            ) from None


def is_primary() -> bool:
    """Whether this process is the one that prints and writes: process 0, or the only one."""
    return jax.process_index() == 0


def all_gather(numbers: Any) -> np.ndarray:
    """What each process says: [processes, n] of int32 or uint8 numbers [n]. All have to ask."""
    own = np.asarray(numbers)
    if not is_distributed():
        return own[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(own))


def all_gather_bytes(work: Callable[[], bytes]) -> list[bytes]:
    """What `work()` gives in every process, told to all of them; it has less than 2 GiB.

    Raises:
      UserError: where it did not go well in another process, which raises its own error.
    """
    own, error = b"", None
    try:
        own = work()
    except Exception as raised:
        error = raised
    said = all_gather(np.array([len(own), error is not None], np.int32))
    if error is not None:
        raise error
    if said[:, 1].any():
        raise UserError(f"process {said[:, 1].argmax()} cannot go on; its own message says why")
    filled = np.zeros(max(int(said[:, 0].max()), 1), np.uint8)
    filled[: len(own)] = np.frombuffer(own, np.uint8)
    return [row[:length].tobytes() for row, length in zip(all_gather(filled), said[:, 0], strict=True)]


def own_part(count: int) -> range:
    """Which of so many things are this process's, where each has about as many, in order."""
    processes, index = jax.process_count(), jax.process_index()
    return range(count * index // processes, count * (index + 1) // processes)


def is_preempted(asked: int) -> bool:
    """Whether JAX has told all processes that one of them is to be preempted; `asked` counts the calls, in all alike.

    JAX's own source of such notices is SIGTERM, which ends here in `loop.advance`; others reach it by its coordination
    service.
    """
    if not is_distributed():
        return False
    from jax.experimental import multihost_utils

    try:
        return bool(multihost_utils.reached_preemption_sync_point(asked))
    except RuntimeError:  # JAX_ENABLE_PREEMPTION_SERVICE=0
        return False


def broadcast(number: float) -> float:
    """The number that process 0 has. All have to ask."""
    own = np.frombuffer(np.float64(number).tobytes(), np.uint8)
    return float(np.frombuffer(all_gather(own)[0].tobytes(), np.float64)[0])


def check_same(**what: str) -> None:
    """Refuse to begin where the processes do not have the same text under one of these names.

    Raises:
      UserError: naming what differs, and which process differs from process 0.
    """
    for name, text in what.items():
        digests = all_gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
        others = np.flatnonzero((digests != digests[0]).any(axis=1))
        if len(others):
            raise UserError(
                f"process {others[0]} has another {name} than process 0: start all with the same command on the same "
                "data, and the same version of everything"
            )


def run_on_primary(work: Callable[[], Any]) -> Any:
    """`work()` in process 0 alone, while the others wait; None there.

    Raises:
      UserError: there, where it did not go well in process 0, which raises its own error.
    """
    try:
        result, error = (work() if is_primary() else None), None
    except Exception as raised:
        result, error = None, raised
    failed = all_gather(np.array([error is not None], np.int32))[0, 0]
    if error is not None:
        raise error
    if failed:
        raise UserError("process 0 cannot go on; its own message says why")
    return result


def is_distributed() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def leave(code: int) -> None:
    """End this process at once where there are others: they might wait for it for minutes at the end of theirs."""
    if is_distributed():
        _ends_well()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ends_well() -> None:
    """Whatever there is to say is said: the watcher need not."""
    for watcher in _watcher:
        if watcher.stdin is not None and not watcher.stdin.closed:
            with contextlib.suppress(OSError):
                watcher.communicate("done")
