"""Images that come one by one, scored together: what waits while the device works is its next batch."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.scoring import attribution, inference
from ganomaly_jax.scoring.scorer import Scorer


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What is said of one image: `score` and `p_value`, NaN where it is invalid, and its maps if wanted."""

    score: float
    p_value: float
    verdict: str
    maps: attribution.Maps | None


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One image that waits: as `images.decoded` gave it, whether its maps are wanted, and who waits for the answer."""

    image: image_files.Decoded
    mapped: bool
    answer: asyncio.Future[Answer]


def check(scorer: Scorer, most: int) -> None:
    """Whether a batch may have `most` images.

    Raises:
      UserError: it may not.
    """
    if not 1 <= most <= scorer.block:
        raise UserError(f"batches of {most} images: wanted 1 to {scorer.block}, what this detector takes at once")


def warm(scorer: Scorer, most: int) -> None:
    """Compile every program that batches of up to `most` images need, so that no request waits for it."""
    for size in inference.BUCKETS:
        if size <= inference.bucket(most):
            scorer.judge(np.zeros((min(size, most), *scorer.input_shape), scorer.dtype))
    attribution.residual_maps(scorer, np.zeros((1, *scorer.input_shape), scorer.dtype))


def answers(scorer: Scorer, batch: Sequence[image_files.Decoded], mapped: Sequence[bool]) -> list[Answer | UserError]:
    """Of images as `images.decoded` gives them, in one batch; an error in the place of one that cannot be used."""
    height, width, channels = scorer.input_shape
    names = [str(i) for i in range(len(batch))]
    like = (scorer.dtype, scorer.low, scorer.high)
    raw, kept, problems, _ = image_files.together(names, batch, height, width, channels, like)
    found: dict[int, Answer | UserError] = {int(name): UserError(reason) for name, reason in problems}
    if len(kept):
        judged = scorer.judge(raw)
        for place, i in enumerate(kept.tolist()):
            drawn = attribution.residual_maps(scorer, raw[place : place + 1]) if mapped[i] else None
            scores = float(judged.scores[place]), float(judged.p_values[place])
            found[i] = Answer(*scores, judged.verdicts[place], drawn)
    return [found[i] for i in range(len(batch))]


def together(waiting: int, most: int) -> int:
    """How many of the images that wait make the next batch: all that may, but where padding would more than double
    them, as many as fill a smaller one. On a CPU 9 images as 64 take four times as long as 8 and 1.
    """
    some = min(waiting, most)
    full = max(size for size in inference.BUCKETS if size <= some)
    return some if inference.bucket(some) <= 2 * some else full


async def work(scorer: Scorer, jobs: asyncio.Queue[Job], most: int, note: Callable[[int], None]) -> None:
    """Answer jobs until this task is cancelled, at most `most` at once; `note` is told the size of each batch.

    Nothing waits for a batch to fill: an idle device takes one image at once, a busy one finds all that came meanwhile.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "device") as device:
        while True:
            batch = [await jobs.get()]
            batch += [jobs.get_nowait() for _ in range(together(1 + jobs.qsize(), most) - 1)]
            note(len(batch))
            found: Sequence[Answer | Exception]
            try:
                found = await loop.run_in_executor(
                    device, answers, scorer, [job.image for job in batch], [job.mapped for job in batch]
                )
            except Exception as error:  # one batch may fail, out of memory say; the next may not
                found = [error] * len(batch)
            for job, answer in zip(batch, found, strict=True):
                if job.answer.done():  # who asked has gone
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)
