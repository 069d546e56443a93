"""Two real processes of four devices each: what one process of eight computes, and an end in every case."""

import csv  # noqa: I001
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tests.support import blobs

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import pack
from ganomaly_jax.parallel import processes
from ganomaly_jax.runs import checkpoint, resolution, run_folder
from ganomaly_jax.training.training_run import TrainingRun

STEPS = 6
TRAIN = (
    *("--data", "generated", "--config.data.height=16", "--config.data.width=16", "--config.model.features=4"),
    *("--config.model.latent_size=4", "--config.train.batch_size=16", "--config.train.save_every=3"),
    "--config.train.picture_every=0",
)


def begin(workdir, devices, *more, program=None):
    """`ganomaly train` in a process of its own, its output kept in one pipe."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "GLIBC_TUNABLES": "",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    start = ("-c", program) if program else ("-m", "ganomaly_jax")
    command = [sys.executable, *start, "train", "--workdir", str(workdir), *TRAIN, *more]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def begin_two(workdir, *more, second=(), programs=(None, None)):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ("--coordinator-address", address, "--num-processes", "2", "--wait", "100", *more)
    return [
        begin(workdir, 4, *common, "--process-id", "0", program=programs[0]),
        begin(workdir, 4, *common, "--process-id", "1", *second, program=programs[1]),
    ]


def end(process, limit=200.0):
    """(exit code, output); a process that outlives the limit has failed the test."""
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it hung: {process.communicate()[0][-2000:]}")
    return process.returncode, output


def until(process, word):
    """Its output up to the line that has the word in it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return
    pytest.fail("".join(lines)[-2000:])


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    pytest.importorskip("array_record", reason="array_record is not installed")
    pytest.importorskip("grain", reason="grain is not installed")
    path = tmp_path_factory.mktemp("packed") / "set.array_record"
    pack.pack(config.Data(source="generated", height=16, width=16), path)
    return path


@pytest.fixture(scope="module")
def one(shard, tmp_path_factory):
    """All of the images held in memory."""
    workdir = tmp_path_factory.mktemp("one")
    more = ("--data", str(shard), "--config.data.stream=never")
    code, output = end(begin(workdir, 8, f"--config.train.steps={STEPS}", *more))
    assert code == 0, output
    return workdir


# Writes down which packed images a process reads.
NOTED = """
import sys
from ganomaly_jax.cli import main
from ganomaly_jax.data.formats import array_record
given = lambda name: sys.argv[sys.argv.index(name) + 1]
made = array_record._reader
def noting(*of):
    read = made(*of)
    def noted(indices):
        with open(given("--workdir") + "/read" + given("--process-id"), "a") as file:
            file.write("".join(f"{i}\\n" for i in indices))
        return read(indices)
    return noted
array_record._reader = noting
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def two(shard, tmp_path_factory):
    """(workdir, outputs) of two processes that went on at step 3 after both had ended there, each reading its own
    images while it trains."""
    workdir = tmp_path_factory.mktemp("two")
    more = ("--data", str(shard), "--config.data.stream=always")
    for steps in (3, STEPS):
        begun = begin_two(workdir, f"--config.train.steps={steps}", *more, programs=(NOTED, NOTED))
        found = [end(process) for process in begun]
        assert [code for code, _ in found] == [0, 0], found
    return workdir, [output for _, output in found]


def test_two_processes_give_the_weights_of_one(one, two):
    found, wanted = (checkpoint.restore(workdir / "checkpoints", None)[1] for workdir in (two[0], one))
    assert int(found["step"]) == STEPS
    for name, relative in (("batch_stats", 1e-5), ("params", 1e-4)):
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(wanted[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=relative, atol=1e-6, err_msg=name)


def test_each_process_reads_its_part_only(two):
    """Of the training images those of its places, of the test set its blocks; all read the calibration images."""
    this = resolution.resolve(run_folder.stored_config(two[0]))
    places = TrainingRun(this, two[0]).places
    half = len(places) // 2
    own = [set(this.split.train[places[part].ravel()].tolist()) for part in (slice(half), slice(half, None))]
    trained, held_out = set(this.split.train.tolist()), set(this.split.calibration.tolist())
    read = [set(map(int, (two[0] / f"read{i}").read_text().split())) for i in (0, 1)]
    for i in (0, 1):
        # Ten of eleven rows are an epoch's first six steps and what is read ahead of them.
        assert len(read[i] & own[i]) > 0.3 * len(own[i])
        assert not (read[i] & trained) - own[i]
        assert held_out <= read[i]
    assert read[1] >= set(this.split.test.tolist())  # less than a block, which is the last process's


def test_only_process_0_speaks_and_writes(two):
    workdir, (first, second) = two
    assert "8 of 8 devices in 2 processes" in first and "AUROC" in first
    assert "images are read during training" in first
    assert "step" not in second and "AUROC" not in second
    assert (workdir / "report.html").exists() and (workdir / "detector" / "manifest.json").exists()
    steps = [json.loads(line)["step"] for line in (workdir / "history.jsonl").read_text().splitlines()]
    assert steps == [3, 3, STEPS, STEPS]  # losses, and the check at the end of each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are grey in the first part and not all of them in the second, one damaged, many to test on."""
    folder = tmp_path_factory.mktemp("files")
    for name, images in (("bad", blobs(300, 1, anomalous=True)), ("good", blobs(100, 0))):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            colour = image[..., 0] if (name, i) != ("good", 90) else np.repeat(image, 3, axis=2)
            Image.fromarray(colour).save(folder / name / f"{i:03}.png")
    (folder / "good" / "050.png").write_bytes(b"\x89PNG")
    return folder


def test_a_folder_in_parts_is_the_folder(folder, tmp_path):
    """Each process looks through half of it and decodes what it needs: data, weights and scores are those of one."""
    data = ("--data", str(folder), f"--config.train.steps={STEPS}")
    code, output = end(begin(tmp_path / "one", 8, *data))
    assert code == 0, output
    both = [end(process) for process in begin_two(tmp_path / "two", *data)]
    assert [code for code, _ in both] == [0, 0], both
    stored = [json.loads((tmp_path / name / "env.json").read_text()) for name in ("one", "two")]
    assert stored[0]["data_hash"] == stored[1]["data_hash"] and stored[0]["images"] == stored[1]["images"] == 399
    found, wanted = (checkpoint.restore(tmp_path / name / "checkpoints", None)[1] for name in ("two", "one"))
    for a, b in zip(jax.tree.leaves(found["batch_stats"]), jax.tree.leaves(wanted["batch_stats"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("one", "two")]
    rows = [list(csv.DictReader(table.splitlines())) for table in tables]
    assert len(rows[0]) > 256 and [row["path"] for row in rows[0]] == [row["path"] for row in rows[1]]
    scores = [np.array([float(row["score"]) for row in part]) for part in rows]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3)
    assert "1 files could not be read" in both[0][1]


def test_another_image_in_one_process_is_refused(folder, tmp_path):
    """One that process 0 looked at and process 1 would train on, or the other way round; where they lie is free."""
    shutil.copytree(folder, tmp_path / "files")
    for path in sorted((tmp_path / "files" / "good").glob("*.png"))[::5]:
        Image.fromarray(blobs(1, 99)[0, ..., 0]).save(path)
    data = ("--data", str(folder), f"--config.train.steps={STEPS}")
    both = [end(process) for process in begin_two(tmp_path / "run", *data, second=("--data", str(tmp_path / "files")))]
    assert 2 in [code for code, _ in both] and 0 not in [code for code, _ in both]
    assert "differs from the image that one of the processes read at the start" in "".join(output for _, output in both)


def test_another_file_in_one_process_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "files")
    (tmp_path / "files" / "good" / "007.png").unlink()
    data = ("--data", str(folder), f"--config.train.steps={STEPS}")
    for code, output in map(end, begin_two(tmp_path / "run", *data, second=("--data", str(tmp_path / "files")))):
        assert code == 2
        assert "process 1 has a different list of images than process 0" in output


def test_a_killed_process_ends_the_other_with_a_sentence(tmp_path):
    """However the end is noticed: by a broken connection at once, or by the heartbeat within about a minute."""
    first, second = begin_two(tmp_path, "--config.train.steps=100000")
    try:
        until(first, "step 1/")
        second.kill()
        began = time.monotonic()
        code, output = end(first, 150)
    finally:
        second.kill()
        second.communicate()
    assert code not in (0, 2) and time.monotonic() - began < 150
    assert "another process of this training is gone" in output
    assert "start all" in output


def test_a_signal_to_one_process_saves_and_stops_both(shard, tmp_path):
    """Within 10 s, also while both read what they train on."""
    more = ("--config.train.steps=100000", "--config.train.save_every=100000")
    both = begin_two(tmp_path, "--data", str(shard), "--config.data.stream=always", *more)
    until(both[0], "step 1/")
    both[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    for code, output in map(end, both):
        assert code == 128 + signal.SIGTERM
        assert "stopped by SIGTERM" in output
    assert time.monotonic() - began < 10
    assert len(checkpoint.steps(tmp_path / "checkpoints")) == 1


# What a service that watches for preemption would do, in process 0 once it trains.
NOTICE = """
import sys, threading
from jax._src import distributed
from ganomaly_jax.cli import main
from ganomaly_jax.parallel import processes
begun, preempted = threading.Event(), processes.is_preempted
def noted(asked):
    if asked == 3:
        begun.set()
    return preempted(asked)
processes.is_preempted = noted
def tell():
    begun.wait()
    distributed.global_state.client.key_value_set("RECEIVED_PREEMPTION_NOTICE", "2020-01-01T00:00:00+00:00")
threading.Thread(target=tell, daemon=True).start()
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_notice_by_jax_saves_and_stops_both(tmp_path):
    both = begin_two(
        tmp_path, "--config.train.steps=100000", "--config.train.save_every=100000", programs=(NOTICE, None)
    )
    for code, output in map(end, both):
        assert code == 128 + signal.SIGTERM
        assert "saved, run it again to resume" in output
    assert len(checkpoint.steps(tmp_path / "checkpoints")) == 1


def test_a_port_in_use_is_refused():
    """JAX would end the process by a segmentation fault."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="pass another port"):
        processes.initialize(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)


def test_another_configuration_in_one_process_is_refused(tmp_path):
    for code, output in map(end, begin_two(tmp_path, second=("--config.loss.contextual=49",))):
        assert code == 2
        assert "process 1 has a different configuration than process 0" in output
    assert not (tmp_path / "config.json").exists()


def test_a_coordinator_that_is_not_there_is_waited_for_and_no_longer(tmp_path):
    more = ("--coordinator-address", "127.0.0.1:9", "--num-processes", "2", "--process-id", "1", "--wait", "2")
    code, output = end(begin(tmp_path, 1, *more), 60)
    assert code == 2
    assert output.splitlines()[-1].startswith(
        "ganomaly: not all of the 2 processes at 127.0.0.1:9 connected within 2 s"
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("here:1", 0, -1), "together or not at all"),
        (("here", 2, 0), "expected HOST:PORT"),
        (("here:99999", 2, 0), "expected HOST:PORT"),
        (("here:80", 2, 2), "expected a number from 0 to 1"),
    ],
)
def test_arguments_that_do_not_go_together(given, wanted):
    with pytest.raises(UserError, match=wanted):
        processes.initialize(*given)


def test_one_process_agrees_with_itself():
    np.testing.assert_array_equal(processes.all_gather([1, 2]), [[1, 2]])
    processes.check_same(anything="at all")
    assert processes.is_primary() and not processes.is_distributed()
    assert processes.run_on_primary(lambda: 3) == 3
    assert processes.all_gather_bytes(lambda: b"so") == [b"so"]
    assert processes.local_range(7) == range(7)
    with pytest.raises(KeyError):
        processes.run_on_primary(lambda: {}["absent"])
