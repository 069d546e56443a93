"""The lock of a run's folder: one writer at a time, and none that a dead process holds."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.runs import lock
from ganomaly_jax.training import trainer
from tests.support import blobs, tiny_config

HOLDER = """
import sys
from ganomaly_jax.runs import lock
with lock.held("train", *sys.argv[1:]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that holds the locks of folders until its input ends."""
    started = []

    def start(*folders):
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])},
        )
        started.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_every_writer_is_refused_at_once_with_who_holds_it(trained, holder, tmp_path, capsys):
    folder, data = trained[0], str(tmp_path / "none.npz")  # not read before the refusal
    child = holder(folder)
    words = (
        ["train", data, "--workdir", str(folder)],
        ["evaluate", "--workdir", str(folder)],
        ["recalibrate", "--workdir", str(folder), "--quantile", "0.9"],
        ["recalibrate", "--workdir", str(folder / "detector"), "--quantile", "0.9"],
        ["update", "--workdir", data, "--data", data, "--out", str(folder)],
    )
    before = (folder / "metrics.json").stat().st_mtime_ns if (folder / "metrics.json").exists() else 0
    for line in words:
        assert main.main(line) == 2, line
        said = capsys.readouterr().err
        assert re.search(
            rf"is in use: `train` \(process {child.pid} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC\) writes to "
            r"it; wait until it has finished, or use another folder",
            said,
        ), said
        assert said.count("\n") == 1
    np.testing.assert_array_equal(gj.load(folder)(blobs(3, 5)), trained[1](blobs(3, 5)))  # readers take no lock
    assert before == ((folder / "metrics.json").stat().st_mtime_ns if (folder / "metrics.json").exists() else 0)


def test_a_lock_that_a_dead_process_left_is_taken_over(tmp_path, holder):
    child = holder(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == child.pid
    with pytest.raises(UserError, match=f"process {child.pid}"), lock.held("update", tmp_path):
        pass
    child.kill()
    child.wait()
    assert (tmp_path / lock.NAME).exists()
    with lock.held("update", tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["verb"] == "update"
    assert not list(tmp_path.iterdir())


FORKED = """
import os, signal, sys
from ganomaly_jax.runs import lock
with lock.held("train", sys.argv[1]):
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    print("alone", flush=True)
    sys.stdin.read()
    os._exit(0)
"""


def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])},
    ) as parent:
        assert parent.stdout.readline() == "alone\n"
        parent.wait()
        with lock.held("train", tmp_path):
            pass


def test_threads_exclude_one_another_and_one_thread_may_hold_it_twice(tmp_path):
    refused = []

    def other():
        try:
            with lock.held("evaluate", tmp_path):
                pass
        except UserError as error:
            refused.append(str(error))

    with lock.held("train", tmp_path), lock.held("evaluate", tmp_path, tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"`train` (process {os.getpid()}" in refused[0]
    with lock.held("train", tmp_path):
        pass


def test_folders_are_created_and_removed_again_if_nothing_came_of_it(tmp_path):
    with pytest.raises(KeyError), lock.held("train", tmp_path / "runs" / "a", create=True):
        assert (tmp_path / "runs" / "a").is_dir()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with lock.held("train", tmp_path / "runs" / "a", create=True):
        (tmp_path / "runs" / "a" / "config.json").touch()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["config.json"]
    with lock.held("recalibrate", tmp_path / "none"):
        assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    wrong = pytest.raises(UserError, match="cannot be written: Not a directory")
    with wrong, lock.held("train", tmp_path / "file" / "a", create=True):
        pass


def test_the_file_that_a_holder_removes_while_another_waits_is_no_lock(tmp_path, monkeypatch):
    flock, calls = lock.fcntl.flock, []

    def removed_first(descriptor, operation):
        flock(descriptor, operation)
        if not calls:
            (tmp_path / lock.NAME).unlink()
        calls.append(None)

    monkeypatch.setattr(lock.fcntl, "flock", removed_first)
    with lock.held("train", tmp_path):
        assert len(calls) == 2 and (tmp_path / lock.NAME).exists()


def test_a_holder_that_has_not_said_who_it_is(tmp_path, holder):
    child = holder(tmp_path)
    for content in (b"", b"{", b"[1]", b'{"verb": "\x1b[2J"}', bytes(range(256))):
        (tmp_path / lock.NAME).write_bytes(content)
        with pytest.raises(UserError, match="in use: another process writes to it"), lock.held("train", tmp_path):
            pass
    child.kill()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys, code):
    def unsupported(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with lock.held("train", tmp_path):
        pass
    assert "has no locks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_sweep_holds_its_members(tmp_path, monkeypatch):
    settings = tiny_config()
    settings.members.seeds = "0,1"
    refused = []

    def recalibrated(settings, workdir, dataset, team, log, fall_back):
        for folder in (workdir, *(workdir / "members" / member.name for member in team)):
            folder.mkdir(parents=True, exist_ok=True)
            thread = threading.Thread(target=lambda folder=folder: refused.append(_is_refused(folder)))
            thread.start()
            thread.join()
        return {}

    monkeypatch.setattr(trainer, "_train_team", recalibrated)
    trainer.train_members(settings, tmp_path, blobs(64, 0))
    assert refused == [True] * 3
    assert not _is_refused(tmp_path)


def _is_refused(folder):
    try:
        with lock.held("recalibrate", folder):
            return False
    except UserError:
        return True
