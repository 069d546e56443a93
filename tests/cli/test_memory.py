"""A process that may not have the memory it needs ends in a sentence: it neither hangs nor aborts."""

import errno
import os
import resource
import subprocess
import sys
import threading

import pytest

from ganomaly_jax.cli import export, main
from ganomaly_jax.core import memory
from ganomaly_jax.core.errors import UserError


@pytest.mark.parametrize("limit", [700_000, 1_300_000, 1_700_000])
def test_too_few_addresses_are_refused_before_anything_is_loaded(limit, tmp_path):
    call = [sys.executable, "-m", "ganomaly_jax", "train", "--config", "smoke", "--workdir", str(tmp_path / "run")]
    limited = ["sh", "-c", f'ulimit -v {limit}; exec "$@"', "sh", *call]
    environment = os.environ | {"GLIBC_TUNABLES": ""}
    ran = subprocess.run(limited, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"ganomaly: `ulimit -v` allows {limit * 1024 / 1e9:.2f} GB of address space: JAX ")
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_enough_addresses_or_no_limit_pass(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    for limit, passes in ((resource.RLIM_INFINITY, True), (2**31, True), (2**31 - 1, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        if passes:
            memory.check_address_space()
        else:
            with pytest.raises(UserError, match=r"need 2\.15 GB"):
                memory.check_address_space()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_an_exhausted_memory_is_a_sentence_and_leaves_no_process_waiting(error, monkeypatch, capsys):
    """In the training as anywhere: Orbax, for one, leaves threads behind where it cannot start another."""

    def run(args, overrides):
        raise error

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(export, "run", run)
    monkeypatch.setattr(sys, "argv", ["ganomaly", "export", "--workdir", "W", "--out", "O"])
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit, match="2"):
        main.command()
    printed = capsys.readouterr().err
    assert printed.startswith("ganomaly: out of memory (") and len(printed.splitlines()) == 1


def test_another_error_is_none_of_memory_and_ends_the_process_as_well(monkeypatch, capsys):
    started, left = [], []
    monkeypatch.setattr(export, "run", lambda *_: {}["a defect"])
    monkeypatch.setattr(sys, "argv", ["ganomaly", "export", "--workdir", "W", "--out", "O"])
    monkeypatch.setattr(threading.Timer, "start", lambda self: started.append(self))
    assert main.command() == 1
    assert len(started) == 1

    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", start)
    monkeypatch.setattr(os, "_exit", left.append)
    assert main.command() == 1
    assert left == [1]
    assert "KeyError: 'a defect'" in capsys.readouterr().err
