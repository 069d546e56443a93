"""Batch scoring on a Ray cluster: Ray Data distributes parts of the input to actors with one scorer each.

The input is cut into parts of a fixed number of rows. A part is scored by one call of an actor, returns as Parquet and
is written atomically by this process. A worker that dies costs at most its current parts, and a run that was stopped
continues with the missing ones. Only the input and the detector have to be visible to all machines. Ray and pyarrow are
imported on use.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax import __version__
from ganomaly_jax.core import atomic_files, sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError, last_line
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.words import IMAGES
from ganomaly_jax.deploy import modalities, ray_cluster
from ganomaly_jax.deploy.ray_inputs import PART, Part, as_files, blocks, import_package, list_parts, without_warnings
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.calibration import ANOMALOUS, INVALID, NORMAL

# Describes the results in their folder; readers of Parquet folders skip names with this first letter.
ABOUT = "_about.json"
_MAX_START_FAILURES = 3  # consecutive workers that die while starting
_MAX_USELESS_PASSES = 2  # passes without progress: what is left then kills its workers


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of `predict`.

    Attributes:
      counts: rows by verdict.
      parts: number of parts.
      kept: parts that were already scored.
      workers: parts by worker (host:pid).
    """

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
) -> Result:
    """Scores images on Ray and writes `out/part-000000.parquet`, ...: path, label, score, p_value, verdict, reason.

    Run again with the same arguments, it scores the missing parts. If Ray already runs in this process, that cluster is
    used and left running.

    Args:
      workdir: folder of a finished run or detector folder, at the same path on every machine.
      sources: image files, Parquet shards (`image` with encoded bytes, or `path`; optional `label`, 0 or 1),
        ArrayRecord shards (records are encoded images, or those of `ganomaly pack`), or folders of these; at the same
        path on every machine.
      out: folder of the results, on this machine only; new, empty, or with results of the same call.
      workers: number of actors; 0 for one per accelerator of the cluster, or per machine if there are none.
      address: HOST:PORT or `auto`; empty for $RAY_ADDRESS, or else a local cluster for this call.
      part_size: rows per part at most.
      log: called with messages about workers that died.

    Raises:
      UserError: Ray is not installed or cannot be reached, there is nothing to score, or `out` holds other results.
      DamagedError: the detector was altered, or rows are missing at the end.
    """
    import_package("ray.data", "ray")
    import_package("pyarrow.parquet", "pyarrow")
    if workers < 0:
        raise UserError(f"--workers {workers}: expected a number of workers, or 0 for one per machine or accelerator")
    out, detector = Path(out), _detector_hash(workdir)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: with --engine ray it has to be a folder")
    parts = list_parts(sources, part_size)
    _claim_folder(out, _about(sources, parts, part_size, detector))
    missing = [index for index, part in enumerate(parts) if not _is_complete(_file(out, index), part.rows)]
    kept, done = len(parts) - len(missing), collections.Counter[str]()
    if missing:
        # Ray reports dead workers on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr), without_warnings(), ray_cluster.connect(address, workers) as ray:
            location = (str(Path(workdir).resolve()), detector, os.getcwd())
            for row in _all_scored(ray, parts, missing, location, workers, log):
                with atomic_files.replacing(_file(out, row["part"])) as temporary:
                    temporary.write_bytes(row["parquet"])
                done[row["worker"]] += 1
    return Result(_count(out, parts), len(parts), kept, dict(done))


def _about(sources: Sequence[str], parts: Sequence[Part], part_size: int, detector: str) -> dict[str, Any]:
    """Returns what identifies the results of a call; results that differ in it may not share a folder."""
    listed = hashlib.sha256()
    for part in parts:
        # The size of shards only: there may be millions of images.
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


def _claim_folder(out: Path, about: dict[str, Any]) -> None:
    """Marks the folder as that of these results, or checks that it is."""
    path = out / ABOUT
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(
                f"--out {out} holds other files: choose a new or empty folder, or one with results to resume"
            )
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
                f"--out {out} holds results of another {name} ({_short(stored.get(key))}, requested "
                f"{_short(now)}): choose another folder, or delete this one"
            )


def _short(value: Any) -> str:
    """Returns a short form of a value for messages."""
    return value[:12] if isinstance(value, str) else str(value)


def _file(out: Path, index: int) -> Path:
    """Returns the path of a part's results."""
    return out / f"part-{index:06}.parquet"


def _is_complete(path: Path, rows: int) -> bool:
    """Returns True if a part's results exist and have all rows."""
    import pyarrow as pa

    try:
        return import_package("pyarrow.parquet", "pyarrow").read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def _count(out: Path, parts: Sequence[Part]) -> dict[str, int]:
    """Counts the rows by verdict, as written.

    Raises:
      DamagedError: a part is missing or has another number of rows.
    """
    counts = dict.fromkeys((NORMAL, ANOMALOUS, INVALID), 0)
    for index, part in enumerate(parts):
        path = _file(out, index)
        if not _is_complete(path, part.rows):
            raise DamagedError(
                f"{path} is missing or does not have the {part.rows} rows of its inputs: run the command again"
            )
        column = import_package("pyarrow.parquet", "pyarrow").read_table(path, columns=["verdict"])["verdict"]
        for verdict in column.to_pylist():
            counts[verdict] = counts.get(verdict, 0) + 1  # `review` is possible as well
    return counts


def _detector_hash(workdir: str | os.PathLike[str]) -> str:
    """Returns the sha256 of the detector's manifest, which holds those of all its files."""
    folder = Path(workdir)
    folder = folder / layout.DETECTOR if sealed_folder.exists(folder / layout.DETECTOR) else folder
    if not (folder / sealed_folder.MANIFEST).is_file():
        live = scoring_scorer.load(workdir)  # raises the error that explains what is wrong
        if not modalities.of(live).served:
            raise UserError(f"--engine ray scores images only: use the local engine for {live.words.kind}")
    with sealed_folder.translated_errors(folder):
        return hashlib.sha256((folder / sealed_folder.MANIFEST).read_bytes()).hexdigest()


def _all_scored(
    ray: Any,
    parts: Sequence[Part],
    missing: Sequence[int],
    location: tuple[str, str, str],
    workers: int,
    log: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yields the results of `ScoringActor` for each missing part, in the order in which they are completed.

    Ray restarts a worker that died, but its current parts may wait forever if its machine has gone. So Ray drops those,
    and they are distributed again when all others are done.
    """
    left, fruitless, why = dict.fromkeys(missing), 0, "their workers died"
    while left:
        before = len(left)
        try:
            for row in _scored(ray, parts, list(left), location, workers):
                if row["error"]:
                    raise (DamagedError if row["exit_code"] == DamagedError.exit_code else UserError)(row["error"])
                del left[row["part"]]
                yield row
        except (UserError, DamagedError):
            raise
        except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
            why = last_line(error)
        fruitless = fruitless + 1 if len(left) == before else 0
        if fruitless == _MAX_USELESS_PASSES:
            name = decode.shown(parts[next(iter(left))].names[0])
            raise UserError(
                f"{before} parts of the input, such as that with {name}, failed {_MAX_USELESS_PASSES} times: {why}; "
                "the others are scored, and the same command resumes"
            )
        if left:
            log(f"{len(left)} parts were lost with their workers; trying again")


def _scored(
    ray: Any, parts: Sequence[Part], wanted: Sequence[int], location: tuple[str, str, str], workers: int
) -> Iterator[dict[str, Any]]:
    """Makes one pass over the given parts, with as many workers as there is room for."""
    import pyarrow as pa

    data, resources = import_package("ray.data", "ray"), ray.cluster_resources()
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
    context.max_consecutive_actor_init_deaths = _MAX_START_FAILURES
    context.max_errored_blocks = -1
    # A table is a block and a block is a task: a part is completed or dropped as a unit.
    tables = [pa.table({"part": [index], "task": [pickle.dumps(parts[index])]}) for index in wanted]
    scored = data.from_arrow(tables).map_batches(
        ScoringActor,
        fn_constructor_args=(*location, __version__),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        max_restarts=-1,
        max_task_retries=0,
        **claim,
    )
    yield from scored.iter_rows()


class ScoringActor:
    """Ray actor with one scorer, which is loaded with the first part so that its errors are reported like any other."""

    def __init__(self, workdir: str, detector: str, base: str, version: str) -> None:
        """Stores where the detector is, its hash, the folder of relative names, and the version of the package."""
        self.workdir, self.detector, self.base, self.version = workdir, detector, base, version
        self.scorer: scoring_scorer.Scorer | None = None

    def __call__(self, batch: Any) -> Any:
        """Scores a part.

        Args:
          batch: one row of `part` and `task` (a pickled `Part`).

        Returns:
          One row of `part`, `parquet`, `error`, `exit_code` and `worker`.
        """
        import pyarrow as pa

        row: dict[str, Any] = batch.to_pylist()[0]
        parquet, error, code = b"", "", 0
        try:
            if self.scorer is None:
                self.scorer = self._load()
            parquet = score_part(self.scorer, pickle.loads(row["task"]), self.base)
        except (UserError, DamagedError) as problem:
            error, code = f"{problem} (on {socket.gethostname()})", problem.exit_code
        except Exception as problem:  # Ray would drop the part, and the reason with it
            error, code = f"{type(problem).__name__}: {problem} (on {socket.gethostname()})", UserError.exit_code
        worker = f"{socket.gethostname()}:{os.getpid()}"
        result = {"part": row["part"], "parquet": parquet, "error": error, "exit_code": code, "worker": worker}
        return pa.table({name: [value] for name, value in result.items()})

    def _load(self) -> scoring_scorer.Scorer:
        """Loads the detector; raises a UserError if detector or package differ from those of the command."""
        if self.version != __version__:
            raise UserError(
                f"this worker has ganomaly-jax {__version__}: expected {self.version}, the version of the command"
            )
        if _detector_hash(self.workdir) != self.detector:
            raise UserError(f"{self.workdir} holds another detector than that of the command")
        return scoring_scorer.load(self.workdir)


def score_part(scorer: scoring_scorer.Scorer, part: Part, base: str) -> bytes:
    """Scores a part of the input.

    Args:
      scorer: the detector.
      part: the part.
      base: folder of relative names.

    Returns:
      A Parquet file as bytes.

    Raises:
      UserError: a label is neither 0 nor 1.
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
            why = "" if valid else block.faults.get(i) or reasons.get(decode.shown(paths[i]), IMAGES.not_finite)
            numbers = (float(found.scores[i]), float(found.p_values[i])) if valid else (None, None)
            values = (decode.shown(block.names[i]), block.labels[i], *numbers, verdict, why)
            rows.append(dict(zip(schema.names, values, strict=True)))
    sink = pa.BufferOutputStream()
    import_package("pyarrow.parquet", "pyarrow").write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()
