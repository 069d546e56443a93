"""Batch scoring on a Ray cluster: Ray Data deals parts of the input out to actors, each with one scorer.

The input is cut into parts of a fixed number of rows. A part is scored by one call of an actor, comes back as Parquet
and is written whole or not at all by this process, so that a worker that dies costs at most the parts it had, and a
run that was stopped goes on with those that are missing. Only the source and the detector need a place that all
machines see. Ray and pyarrow are imported on use.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax import __version__
from ganomaly_jax.core import atomic_files, sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError, last_line
from ganomaly_jax.data.images import decode
from ganomaly_jax.deploy import modalities
from ganomaly_jax.deploy.ray_inputs import PART, Part, as_files, blocks, list_parts, package, quiet
from ganomaly_jax.evaluation.evaluate import NOT_FINITE
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.calibration import ANOMALOUS, INVALID, NORMAL

# The file in the results' folder that says what they are of; readers of Parquet folders pass over this first letter.
ABOUT = "_about.json"
_DEATHS = 3  # of workers that start, one after another
_FRUITLESS = 2  # passes that score nothing: what is left then kills its workers
_ANSWER = 60  # seconds until a cluster must have answered


@dataclasses.dataclass(frozen=True)
class Found:
    """What `predict` did: rows by verdict, parts in all, parts that were there already, parts by worker (host:pid)."""

    counts: dict[str, int]
    parts: int
    kept: int
    workers: dict[str, int]


def predict(
    workdir: str | os.PathLike[str],
    sources: Sequence[str],
    out: str | os.PathLike[str],
    workers: int = 0,
    address: str = "",
    part_size: int = PART,
    log: Callable[[str], None] = lambda line: None,
) -> Found:
    """Score images on Ray and write `out/part-000000.parquet`, ...: path, label, score, p_value, verdict, reason.

    Run again with the same arguments, it scores the parts that are missing. If Ray runs already in this process, that
    cluster is used and left running.

    Args:
      workdir: a finished run's folder or a detector folder, at the same place on every machine.
      sources: image files, folders of them, and Parquet (`image`: encoded bytes, or `path`; optional `label`, 0 or 1)
        or ArrayRecord shards (a record is an encoded image, or they are of `ganomaly pack`), or folders of those;
        likewise on every machine.
      out: folder of the results, needed on this machine only; new, empty, or of the same scoring.
      workers: actors; 0: one for each accelerator of the cluster, or for each machine where there are none.
      address: HOST:PORT or `auto`; empty: $RAY_ADDRESS, or a cluster of this machine alone, for this call.
      part_size: rows a part at most.
      say: takes a line about workers that died.

    Raises:
      UserError: Ray is not installed or not reachable, nothing to score, results of something else in `out`.
      DamagedError: the detector was altered, or rows are missing at the end.
    """
    package("ray.data", "ray")
    package("pyarrow.parquet", "pyarrow")
    if workers < 0:
        raise UserError(f"--workers {workers}: wanted a number of workers, or 0 for one each machine or accelerator")
    out, detector = Path(out), _detector_hash(workdir)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: with --engine ray it is the folder of the results")
    parts = list_parts(sources, part_size)
    _claim(out, _about(sources, parts, part_size, detector))
    missing = [index for index, part in enumerate(parts) if not _is_whole(_file(out, index), part.rows)]
    kept, done = len(parts) - len(missing), collections.Counter[str]()
    if missing:
        # Ray tells of workers that died on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr), quiet(), _cluster(address, workers) as ray:
            where = (str(Path(workdir).resolve()), detector, os.getcwd())
            for row in _all_scored(ray, parts, missing, where, workers, log):
                with atomic_files.replacing(_file(out, row["part"])) as temporary:
                    temporary.write_bytes(row["parquet"])
                done[row["worker"]] += 1
    return Found(_count(out, parts), len(parts), kept, dict(done))


def _about(sources: Sequence[str], parts: Sequence[Part], part_size: int, detector: str) -> dict[str, Any]:
    """What results are of: two that differ here may not share a folder."""
    listed = hashlib.sha256()
    for part in parts:
        # The size of a shard, but of no image: millions of them would have to be asked for it.
        size = 0 if part.kind == "images" else os.path.getsize(part.names[0])
        listed.update(repr((part, size)).encode("utf-8", "backslashreplace"))
    return {
        "format": 1,
        "source": [decode.shown(os.path.abspath(source)) for source in sources],
        "inputs": sum(part.rows for part in parts),
        "detector": detector,
        "part_size": part_size,
        "list": listed.hexdigest(),
    }


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Make the folder ours, or see that it is."""
    path = out / ABOUT
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out} holds other files: wanted a new or empty folder, or one to go on with")
        atomic_files.write_text(path, json.dumps(about, indent=1) + "\n")
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} cannot be read: delete {out} or choose another --out") from None
    for key, now in about.items():
        if stored.get(key) != now:
            name = {"list": "list of inputs", "inputs": "number of inputs"}.get(key, key.replace("_", " "))
            raise UserError(
                f"--out {out} holds results of another {name} ({_short(stored.get(key))}, asked is "
                f"{_short(now)}): choose another folder, or delete this one"
            )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _file(out: Path, index: int) -> Path:
    return out / f"part-{index:06}.parquet"


def _is_whole(path: Path, rows: int) -> bool:
    import pyarrow as pa

    try:
        return package("pyarrow.parquet", "pyarrow").read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def _count(out: Path, parts: Sequence[Part]) -> dict[str, int]:
    """Rows by verdict, as written.

    Raises:
      DamagedError: other rows than inputs.
    """
    counts = dict.fromkeys((NORMAL, ANOMALOUS, INVALID), 0)
    for index, part in enumerate(parts):
        path = _file(out, index)
        if not _is_whole(path, part.rows):
            raise DamagedError(
                f"{path} is missing or has not the {part.rows} rows of its inputs: run the command again"
            )
        column = package("pyarrow.parquet", "pyarrow").read_table(path, columns=["verdict"])["verdict"]
        for verdict in column.to_pylist():
            counts[verdict] = counts.get(verdict, 0) + 1  # `review`, where there is such a band
    return counts


def _detector_hash(workdir: str | os.PathLike[str]) -> str:
    """The sha256 of the detector's manifest, which holds those of all its files."""
    folder = Path(workdir)
    folder = folder / layout.DETECTOR if (folder / layout.DETECTOR).is_dir() else folder
    if not (folder / sealed_folder.MANIFEST).is_file():
        live = scoring_scorer.load(workdir)  # says what is wrong
        if not modalities.of(live).served:
            raise UserError(f"--engine ray scores images: wanted the local engine for {live.words.kind}")
    with sealed_folder.translated_errors(folder):
        return hashlib.sha256((folder / sealed_folder.MANIFEST).read_bytes()).hexdigest()


@contextlib.contextmanager
def _cluster(address: str, workers: int) -> Iterator[Any]:
    """Ray, connected; what is started here ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = package("ray", "ray")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is lost is told below, without tracebacks
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in ("", "local"):
        cpus = max(workers, os.cpu_count() or 1)
        settings |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        _reach(address)
        settings["address"] = address
    try:
        try:
            with _no_log_lines():
                ray.init(**settings)
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise UserError(f"Ray does not start or cannot be joined: {last_line(error)}") from None
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_log_lines() -> Iterator[None]:
    """Ray's core logs to standard error: not below the level set here, but for a line that says so."""
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        os.dup2(nowhere, 2)
        yield
    finally:
        del os.environ["RAY_BACKEND_LOG_LEVEL"]
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reach(address: str) -> None:
    """Join the cluster from another process first: `ray.init` itself tries for two minutes and cannot be stopped."""
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: wanted HOST:PORT or auto, run on a machine of the cluster")
    script = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40)"
    host, _, port = address.rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), 10).close()
        call = [sys.executable, "-W", "ignore", "-c", script, address]
        ran = subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=_ANSWER, check=False)
        why = "" if ran.returncode == 0 else (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
    except subprocess.TimeoutExpired:
        why = f"no Ray cluster answered within {_ANSWER} s"
    except (OSError, ValueError, OverflowError) as error:
        why = last_line(error)
    if why:
        raise UserError(
            f"--address {address}: {why}; wanted HOST:PORT of a running cluster (`ray start --head`), or auto"
        )


def _all_scored(
    ray: Any,
    parts: Sequence[Part],
    missing: Sequence[int],
    where: tuple[str, str, str],
    workers: int,
    log: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """What `Scoring` gives for each missing part, in the order in which they are done.

    Ray restarts a worker that died, but what it had in work may wait for ever where its machine has gone. So Ray drops
    that, and it is dealt out anew, to the workers that can be had then, when all else is done.
    """
    left, fruitless, why = dict.fromkeys(missing), 0, "their workers died"
    while left:
        before = len(left)
        try:
            for row in _scored(ray, parts, list(left), where, workers):
                if row["error"]:
                    raise (DamagedError if row["exit_code"] == DamagedError.exit_code else UserError)(row["error"])
                del left[row["part"]]
                yield row
        except (UserError, DamagedError):
            raise
        except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
            why = last_line(error)
        fruitless = fruitless + 1 if len(left) == before else 0
        if fruitless == _FRUITLESS:
            name = decode.shown(parts[next(iter(left))].names[0])
            raise UserError(
                f"{before} parts of the input, such as that with {name}, were tried {_FRUITLESS} times: {why}; "
                "the others are scored, and the same command goes on"
            )
        if left:
            log(f"{len(left)} parts were lost with their workers: once more")


def _scored(
    ray: Any, parts: Sequence[Part], wanted: Sequence[int], where: tuple[str, str, str], workers: int
) -> Iterator[dict[str, Any]]:
    """One pass over the wanted parts by as many workers as there is room for."""
    import pyarrow as pa

    data, resources = package("ray.data", "ray"), ray.cluster_resources()
    accelerator = next((name for name in ("GPU", "TPU") if resources.get(name, 0) >= 1), "")
    most = int(resources.get(accelerator or "CPU", 0))
    if not most:
        raise UserError(
            "the Ray cluster has no machine with a free CPU: start one with `ray start --address HOST:PORT`"
        )
    machines = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
    size = min(workers or (most if accelerator else machines), most, len(wanted))
    claim: dict[str, Any] = (
        {"num_gpus": 1} if accelerator == "GPU" else {"resources": {"TPU": 1}} if accelerator else {}
    )
    context = data.DataContext.get_current()
    context.enable_progress_bars = sys.stdout.isatty() and sys.stderr.isatty()
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = _DEATHS
    context.max_errored_blocks = -1
    # A table is a block, and a block is a task: a part is done or dropped as a whole.
    tables = [pa.table({"part": [index], "task": [pickle.dumps(parts[index])]}) for index in wanted]
    scored = data.from_arrow(tables).map_batches(
        Scoring,
        fn_constructor_args=(*where, __version__),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        max_restarts=-1,
        max_task_retries=0,
        **claim,
    )
    yield from scored.iter_rows()


class Scoring:
    """An actor's state: one scorer, loaded with the first part so that its refusal is a sentence like any other."""

    def __init__(self, workdir: str, detector: str, base: str, version: str) -> None:
        self.workdir, self.detector, self.base, self.version = workdir, detector, base, version
        self.scorer: scoring_scorer.Scorer | None = None

    def __call__(self, batch: Any) -> Any:
        """One row of `part` and `task` (a pickled `Part`) as one of part, parquet, error, exit_code and worker."""
        import pyarrow as pa

        row: dict[str, Any] = batch.to_pylist()[0]
        parquet, error, code = b"", "", 0
        try:
            if self.scorer is None:
                self.scorer = self._loaded()
            parquet = judged(self.scorer, pickle.loads(row["task"]), self.base)
        except (UserError, DamagedError) as problem:
            error, code = f"{problem} (on {socket.gethostname()})", problem.exit_code
        except Exception as problem:  # Ray would drop the part and with it the reason
            error, code = f"{type(problem).__name__}: {problem} (on {socket.gethostname()})", UserError.exit_code
        worker = f"{socket.gethostname()}:{os.getpid()}"
        given = {"part": row["part"], "parquet": parquet, "error": error, "exit_code": code, "worker": worker}
        return pa.table({name: [value] for name, value in given.items()})

    def _loaded(self) -> scoring_scorer.Scorer:
        if self.version != __version__:
            raise UserError(f"ganomaly-jax {__version__}: wanted {self.version}, as where the command was given")
        if _detector_hash(self.workdir) != self.detector:
            raise UserError(f"{self.workdir} holds another detector than where the command was given")
        return scoring_scorer.load(self.workdir)


def judged(scorer: scoring_scorer.Scorer, part: Part, base: str) -> bytes:
    """The rows of a part as a Parquet file; relative names are below the folder `base`.

    Raises:
      UserError: labels other than 0 and 1.
    """
    import pyarrow as pa

    types = {"path": pa.string(), "label": pa.int64(), "score": pa.float32(), "p_value": pa.float32()}
    schema = pa.schema(types | {"verdict": pa.string(), "reason": pa.string()})
    rows: list[dict[str, Any]] = []
    for block in blocks(part, base):
        reasons: dict[str, str] = {}
        if isinstance(block.images, np.ndarray):
            paths, found = block.names, scorer.judge(block.images)
        else:
            with as_files(block.images) as paths:
                found, problems = scorer.judge_files(paths)
            reasons = dict(problems)
        for i, verdict in enumerate(found.verdicts):
            valid = verdict != INVALID
            why = "" if valid else block.faults.get(i) or reasons.get(decode.shown(paths[i]), NOT_FINITE)
            numbers = (float(found.scores[i]), float(found.p_values[i])) if valid else (None, None)
            values = (decode.shown(block.names[i]), block.labels[i], *numbers, verdict, why)
            rows.append(dict(zip(schema.names, values, strict=True)))
    sink = pa.BufferOutputStream()
    package("pyarrow.parquet", "pyarrow").write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()
