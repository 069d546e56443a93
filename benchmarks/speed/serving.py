"""`ganomaly serve` under load by wrk: requests a second, latency, refusals, memory, beside the scorer in process.

    python benchmarks/speed/serving.py --out benchmarks/speed/results/serving_DEVICE

writes NAME.json and NAME.md. It trains a small detector on generated images, starts the command itself on it and posts
PNG files. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError

SHAPE = (32, 32, 1)
_FILES = 256
_SCRIPT = Path(__file__).with_suffix(".lua")
_START_S, _END_S = 180, 60


def settings() -> config.Config:
    """Returns a short training of the demo's network; detection is not measured here."""
    found = config.Config()
    found.data.height, found.data.width, found.data.channels = SHAPE
    found.model.features = 16
    found.mesh.devices = 1
    found.optimizer.learning_rate = 1e-3
    found.train.steps, found.train.picture_every, found.train.save_every = 40, 0, 1000
    return found


def pngs(images: np.ndarray) -> list[bytes]:
    """Encodes images [n, H, W, 1] uint8 as PNG files."""
    from PIL import Image

    found = []
    for image in images[..., 0]:
        kept = io.BytesIO()
        Image.fromarray(image).save(kept, "PNG")
        found.append(kept.getvalue())
    return found


class Server:
    """The command, ready; `ended` is its exit code once it was told to end, which `serving` does."""

    def __init__(self, workdir: Path, queue: int) -> None:
        call = [sys.executable, "-m", "ganomaly_jax", "serve", "--workdir", str(workdir), "--port", "0"]
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [*call, "--queue", str(queue)], stdout=subprocess.PIPE, text=True, cwd=timing.ROOT, env=os.environ
        )
        assert self.process.stdout is not None
        found = re.search(r"http://\S+?:\d+", self.process.stdout.readline())
        if found is None:
            raise UserError(f"the server ended with exit code {self.process.wait()}")
        self.url = found[0]
        while not self._ready():
            if self.process.poll() is not None or time.perf_counter() - begin > _START_S:
                raise UserError("the server does not get ready")
            time.sleep(0.05)
        self.start_s = time.perf_counter() - begin

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def figures(self) -> dict[str, float]:
        """Returns the numbers of images and batches so far, from the server's /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return batches(answer.read().decode())

    def rss(self) -> int:
        """Returns the bytes of memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


def batches(text: str) -> dict[str, float]:
    """Reads the numbers of images and batches from the text of /metrics."""
    found = dict(re.findall(r"^ganomaly_batch_images_(sum|count) (\S+)", text, re.MULTILINE))
    return {"images": float(found["sum"]), "batches": float(found["count"])}


@contextlib.contextmanager
def serving(workdir: Path, queue: int) -> Iterator[Server]:
    """Runs the command during the block, then ends it."""
    server = Server(workdir, queue)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(_END_S)


def load(url: str, folder: Path, connections: int, seconds: float) -> dict[str, Any]:
    """Runs wrk with this many connections, each with one request at a time; times in ms. See `parsed`."""
    files = sorted(map(str, folder.glob("*.png")))
    call = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    call += ["--timeout", "20s", "--script", str(_SCRIPT), f"{url}/score", "--", *files]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if ran.returncode:
        raise UserError(f"wrk: {ran.stderr.strip()[-300:] or ran.stdout.strip()[-300:]}")
    return parsed(ran.stdout)


def parsed(text: str) -> dict[str, Any]:
    """Parses wrk's output: `requests`, `scored` (200), `refused` (429), `others`, `broken`, `scored_a_second`, ms.

    `broken` counts connections that failed. The times are those of all answers.
    """
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        raise UserError(f"wrk printed no figures: {text[-300:]!r}") from None
    statuses = {int(status): count for status, count in found["statuses"].items()}
    scored, refused, requests = statuses.get(200, 0), statuses.get(429, 0), sum(statuses.values())
    return {
        "requests": requests,
        "scored": scored,
        "refused": refused,
        "others": requests - scored - refused,
        "broken": found["broken"] + found["timeouts"],
        "scored_a_second": scored / found["seconds"],
        "requests_a_second": requests / found["seconds"],
        "ms": {name: found[name] / 1e3 for name in ("p50", "p95", "p99", "max")},
    }


def in_process(scorer: Any, files: Sequence[bytes], size: int, seconds: float) -> dict[str, float]:
    """Decodes the same files one by one and scores them in batches of `size`: images per second, ms per batch."""
    from ganomaly_jax.data.images import files as image_files
    from ganomaly_jax.deploy import batching

    height, width, _ = scorer.input_shape
    taken, begin, at = [], time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        some = [files[(at + i) % len(files)] for i in range(size)]
        read = [image_files.decode_file(io.BytesIO(one), height, width, scorer.config.data.fit) for one in some]
        batching.score_batch(scorer, read, [False] * size)
        taken.append(time.perf_counter() - start)
        at += size
    return {"images_a_second": size / float(np.median(taken)), "ms": float(np.median(taken)) * 1e3}


def measure(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures everything; rounds alternate between the server and this process."""
    from ganomaly_jax.deploy import batching
    from ganomaly_jax.training import trainer

    images = timing.pictures(_FILES, SHAPE)
    files = pngs(images)
    with tempfile.TemporaryDirectory() as scratch:
        folder, workdir = Path(scratch) / "files", Path(scratch) / "run"
        folder.mkdir()
        for i, content in enumerate(files):
            (folder / f"{i:03}.png").write_bytes(content)
        scorer = trainer.train(settings(), workdir, (images, np.zeros(len(images), int)), log=lambda line: None)
        batching.warm_up(scorer, 64)
        log("trained")
        found: dict[str, Any] = {"turns": {}, "bytes": float(np.mean([len(one) for one in files]))}
        with serving(workdir, options.queue) as server:
            found |= {"start_s": server.start_s, "memory": [[0, server.rss()]]}
            load(server.url, folder, 8, 1)  # warm
            for i in range(options.rounds):
                for connections in options.connections:
                    before = server.figures()
                    one = load(server.url, folder, connections, options.seconds)
                    after = server.figures()
                    drawn = after["batches"] - before["batches"]
                    one["batch"] = (after["images"] - before["images"]) / max(drawn, 1)
                    one["alone"] = in_process(scorer, files, connections, options.seconds / 5)
                    found["turns"].setdefault(str(connections), []).append(one)
                    said = f"{one['scored_a_second']:,.0f} a second, p50 {one['ms']['p50']:.1f} ms"
                    log(f"round {i + 1}, {connections} connections: {said}")
            found["overload"] = load(server.url, folder, 2 * options.queue, options.seconds)
            log(f"{2 * options.queue} connections: {found['overload']['refused']:,} refused")
            done = 0
            while done < options.flood:
                one = load(server.url, folder, max(options.connections), options.seconds)
                if not one["scored"]:
                    raise UserError("the server answers no more")
                done += one["scored"]
                found["memory"].append([done, server.rss()])
                log(f"{done:,} requests, {found['memory'][-1][1] / 2**20:.1f} MiB")
        found["exit"] = server.process.returncode
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    found, settings = report["found"], report["settings"]
    lines = [
        *command.opening(report, "`ganomaly serve`", packages=("jax", "numpy", "starlette", "uvicorn", "h11")),
        f"The command as it is, on a detector of {SHAPE[0]}x{SHAPE[1]}x{SHAPE[2]} images with 16 features; PNG files "
        f"of {found['bytes']:,.0f} bytes on average, posted to /score by wrk, one request a connection at a time. "
        f"**wrk, the server and its device share {report['machine']['cores']} cores**: on a machine of its own the "
        f"server has more. {settings['rounds']} rounds of {settings['seconds']:g} s: median (least-greatest).",
        "",
        *command.table(
            "connections | scored a second | p50 ms | p95 | p99 | images a batch | not 200 | in process, a second"
        ),
    ]
    for connections, turns in found["turns"].items():
        spread = timing.spread([one["scored_a_second"] for one in turns])
        ms = [command.extremes(timing.spread([one["ms"][name] for one in turns])) for name in ("p50", "p95", "p99")]
        bad = sum(one["refused"] + one["others"] + one["broken"] for one in turns)
        alone = timing.spread([one["alone"]["images_a_second"] for one in turns])
        batch = timing.spread([one["batch"] for one in turns])
        lines.append(
            f"| {connections} | {command.extremes(spread, ',.0f')} | {' | '.join(ms)} | {batch['median']:.1f} | {bad} "
            f"| {command.extremes(alone, ',.0f')} |"
        )
    over, memory = found["overload"], found["memory"]
    held = [f"{done:,}: {size / 2**20:.1f}" for done, size in memory]
    lines += [
        "",
        "*In process*: the same files decoded one after another and scored in batches of as many as there are "
        "connections, without a server, while nobody asks the server.",
        "",
        f"Overload, {2 * settings['queue']} connections where {settings['queue']} requests may be in work: "
        f"{over['scored_a_second']:,.0f} scored a second, {over['refused']:,} of {over['requests']:,} answers 429, "
        f"{over['others']} others, {over['broken']} broken connections; clients came again at once, p50 of all answers "
        f"{over['ms']['p50']:.1f} ms, p99 {over['ms']['p99']:.1f} ms.",
        "",
        f"Memory of the server (VmRSS, MiB) by requests scored after all of the above: {'; '.join(held[1:])}; "
        f"when it was ready: {memory[0][1] / 2**20:.1f}. From the first of these to the last: "
        f"{(memory[-1][1] - memory[1][1]) / 2**20:+.1f} MiB.",
        "",
        f"Ready {found['start_s']:.1f} s after it was started. Told to end, it left with exit code {found['exit']}.",
    ]
    return "\n".join(lines) + "\n"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--connections", default="1,8,64", help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--queue", type=int, default=128, help="of the server (default: %(default)s)")
    parser.add_argument("--flood", type=int, default=50_000, help="requests for the memory (default: %(default)s)")
    options = parser.parse_args(argv)
    command.at_least(options, 1, "rounds", "queue", "flood")
    command.seconds(options, "seconds")
    options.connections = command.numbers(options.connections, "--connections")
    if max(options.connections) > min(64, options.queue):
        raise UserError(f"--connections: got {max(options.connections)}, expected at most 64 and --queue")
    if shutil.which("wrk") is None:
        raise UserError("wrk is not installed (Debian and Ubuntu: apt-get install wrk)")
    return options


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures and writes the files."""
    import jax

    loads = command.load(log)
    jax.local_devices()
    machine = timing.machine()
    for name in ("starlette", "uvicorn", "h11"):
        machine["versions"][name] = importlib.metadata.version(name)
    found = measure(options, log)
    loads["after"] = timing.load_average()
    kept = {name: value for name, value in vars(options).items() if name != "out"}
    report = command.begin("serving", machine=machine, load_average=loads, settings=kept, found=found)
    command.write(report, options.out, markdown)


if __name__ == "__main__":
    sys.exit(command.main(arguments, run, stopped="the files are written only at the end"))
