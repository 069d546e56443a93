"""The connection to a Ray cluster: one that runs already, or a local one for a single call."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ganomaly_jax.core.errors import UserError, last_line
from ganomaly_jax.deploy.ray_inputs import import_package

_CONNECT_TIMEOUT_S = 60  # seconds


@contextlib.contextmanager
def connect(address: str, workers: int) -> Iterator[Any]:
    """Connects to Ray; a cluster that is started here is stopped at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = import_package("ray", "ray")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # losses are reported below, without tracebacks
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in ("", "local"):
        cpus = max(workers, os.cpu_count() or 1)
        settings |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        check_reachable(address)
        settings["address"] = address
    try:
        try:
            with _no_log_lines():
                ray.init(**settings)
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise UserError(f"Ray cannot be started or joined: {last_line(error)}") from None
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_log_lines() -> Iterator[None]:
    """Silences Ray's core, which writes to standard error even about its own log level."""
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        os.dup2(devnull, 2)
        yield
    finally:
        del os.environ["RAY_BACKEND_LOG_LEVEL"]
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def check_reachable(address: str) -> None:
    """Joins the cluster from another process first: `ray.init` itself tries for two minutes and cannot be stopped."""
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: expected HOST:PORT or auto, on a machine of the cluster")
    script = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40)"
    host, _, port = address.rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), 10).close()
        call = [sys.executable, "-W", "ignore", "-c", script, address]
        ran = subprocess.run(
            call, capture_output=True, text=True, errors="replace", timeout=_CONNECT_TIMEOUT_S, check=False
        )
        why = "" if ran.returncode == 0 else (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
    except subprocess.TimeoutExpired:
        why = f"no Ray cluster answered within {_CONNECT_TIMEOUT_S} s"
    except (OSError, ValueError, OverflowError) as error:
        why = last_line(error)
    if why:
        raise UserError(
            f"--address {address}: {why}; expected HOST:PORT of a running cluster (`ray start --head`), or auto"
        )
