"""The parts of `ganomaly predict`: what the device, the reading threads and the command wait for."""

from __future__ import annotations

import io
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import timing


def write_pictures(folder: Path, count: int, side: int, forms: Sequence[str] = ("JPEG",)) -> int:
    """Files in colour, 256 different ones, of these forms of Pillow's in turn; how many bytes they have together."""
    from PIL import Image

    folder.mkdir()
    encoded = []
    for picture, form in zip(timing.pictures(min(count, 256), (side, side, 3)), itertools.cycle(forms)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, form, quality=90)
        encoded.append(file.getvalue())
    for i in range(count):
        ending = forms[i % len(encoded) % len(forms)].lower().replace("jpeg", "jpg")
        (folder / f"{i:06}.{ending}").write_bytes(encoded[i % len(encoded)])
    return sum(len(encoded[i % len(encoded)]) for i in range(count))


def measure(workdir: str, folder: str, out: str, rounds: int) -> dict[str, Any]:
    """Measures what `predict` does, in turn with one thread that decodes and with all of them, compiled and warm."""
    from ganomaly_jax.data.images import files as image_files
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(workdir)
    counts = {"one": 1, "all": image_files.WORKERS}
    _one_pass(scorer, folder, out, image_files.WORKERS)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in counts}
    for _ in range(rounds):
        for name, workers in counts.items():
            taken[name].append(_one_pass(scorer, folder, out, workers))
    number = taken["one"][0].pop("files")
    totals = {name: [found["total_s"] for found in passes] for name, passes in taken.items()}
    return {
        "shape": list(scorer.input_shape),
        "workers": counts,
        "files_per_s": {name: timing.spread([number / t for t in times]) for name, times in totals.items()},
        "ratio_all_to_one": timing.ratios(totals["all"], totals["one"]),
        "parts": {
            name: {part: timing.spread([found[part] for found in passes]) for part in passes[0] if part != "files"}
            for name, passes in taken.items()
        },
    }


def _one_pass(scorer: Any, folder: str, out: str, workers: int) -> dict[str, float]:
    """Seconds of the parts of one `predict`: `listing`, `decoding`, `scoring`, `writing` add up (speed/README.md)."""
    import jax

    from ganomaly_jax.data.images import files as image_files
    from ganomaly_jax.evaluation import predictions
    from ganomaly_jax.scoring import scorer as scoring_scorer

    cpu: list[float] = []
    waited: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    begun: queue.SimpleQueue[tuple[float, Any] | None] = queue.SimpleQueue()
    read_ahead, started = image_files.read_ahead, scoring_scorer.Scorer._started

    def counted(function: Callable[[Any], Any], *rest: Any) -> Generator[Any, None, None]:
        def timed(item: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(item)
            finally:
                cpu.append(time.thread_time() - begin)

        read = read_ahead(timed, *rest)
        try:
            while True:
                begin = time.perf_counter()
                item = next(read, None)  # a decoded file is never None
                waited.append((begin, time.perf_counter()))
                if item is None:
                    return
                yield item
        finally:
            read.close()

    def noted(self: Any, *blocks: Any) -> Any:
        begin = time.perf_counter()
        result = started(self, *blocks)
        begun.put((begin, result))
        return result

    def watch() -> None:
        while (block := begun.get()) is not None:
            jax.block_until_ready(block[1])
            busy.append((max(block[0], busy[-1][1] if busy else 0.0), time.perf_counter()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    marks = [time.perf_counter()]
    try:
        with (
            mock.patch.object(image_files, "read_ahead", counted),
            mock.patch.object(scoring_scorer.Scorer, "_started", noted),
        ):
            paths = image_files.list_images(folder)
            marks.append(time.perf_counter())
            judged, problems = scorer.judge_files(paths, workers)
            marks.append(time.perf_counter())
    finally:
        begun.put(None)
        watcher.join()
    assert not problems
    predictions.write(Path(out), list(map(str, paths)), [None] * len(paths), judged, [""] * len(paths))
    marks.append(time.perf_counter())
    listing, judging, writing = (b - a for a, b in itertools.pairwise(marks))
    decoding = sum(b - a for a, b in waited)
    return {
        "files": len(paths),
        "total_s": marks[-1] - marks[0],
        "listing_s": listing,
        "decoding_s": decoding,
        "scoring_s": judging - decoding,
        "writing_s": writing,
        "decoding_cpu_s": sum(cpu),
        "device_busy_s": sum(b - a for a, b in busy),
        "device_idle_for_decoding_s": decoding - overlap(waited, busy),
    }


def overlap(some: Iterable[tuple[float, float]], others: Sequence[tuple[float, float]]) -> float:
    """Computes how long two sorted series of intervals, each without overlaps, run at once."""
    total, i = 0.0, 0
    for begin, end in some:
        while i < len(others) and others[i][1] <= begin:
            i += 1
        for a, b in others[i:]:
            if a >= end:
                break
            total += min(b, end) - max(a, begin)
    return total
