"""Dynamic batching of the server: requests that arrive while the device is busy are scored together."""

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
    """Result for one image.

    Attributes:
      score: score; NaN for an invalid image.
      p_value: p-value; NaN for an invalid image.
      verdict: verdict.
      maps: residual maps, if requested.
    """

    score: float
    p_value: float
    verdict: str
    maps: attribution.Maps | None


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """An image that waits for its result.

    Attributes:
      image: the image as decoded (`images.decoded`).
      mapped: whether its maps are requested.
      answer: future of the result.
    """

    image: image_files.Decoded
    mapped: bool
    answer: asyncio.Future[Answer]


def check_batch_size(scorer: Scorer, most: int) -> None:
    """Checks that batches may have `most` images.

    Raises:
      UserError: the detector takes fewer at once.
    """
    if not 1 <= most <= scorer.block:
        raise UserError(
            f"batches of {most} images: expected 1 to {scorer.block}, the most that this detector takes at once"
        )


def warm_up(scorer: Scorer, most: int, pad: int = 0) -> None:
    """Compiles every program that batches of up to `most` images need, so that no request waits for compilation."""
    for size in (pad,) if pad else inference.BUCKETS:
        if size <= inference.bucket(most):
            scorer.judge(np.zeros((min(size, most), *scorer.input_shape), scorer.dtype))
    attribution.residual_maps(scorer, np.zeros((1, *scorer.input_shape), scorer.dtype))


def score_batch(
    scorer: Scorer, batch: Sequence[image_files.Decoded], mapped: Sequence[bool], pad: int = 0
) -> list[Answer | UserError]:
    """Scores decoded images in one batch.

    Args:
      scorer: the detector.
      batch: images as decoded (`images.decoded`).
      mapped: for each image whether its maps are requested.
      pad: number of images to pad the batch to; 0: the smallest compiled batch size.

    Returns:
      One result per image, or the error of an image that cannot be used.
    """
    height, width, channels = scorer.input_shape
    names = [str(i) for i in range(len(batch))]
    like = (scorer.dtype, scorer.low, scorer.high)
    raw, kept, problems, _ = image_files.stack_decoded(names, batch, height, width, channels, like)
    results: dict[int, Answer | UserError] = {int(name): UserError(reason) for name, reason in problems}
    if len(kept):
        scored = scorer.judge(inference.pad(raw, pad))
        for position, i in enumerate(kept.tolist()):
            maps = attribution.residual_maps(scorer, raw[position : position + 1]) if mapped[i] else None
            numbers = float(scored.scores[position]), float(scored.p_values[position])
            results[i] = Answer(*numbers, scored.verdicts[position], maps)
    return [results[i] for i in range(len(batch))]


def next_batch_size(waiting: int, most: int) -> int:
    """Returns how many of the waiting images make up the next batch.

    All of them, up to `most`; but where padding would more than double them, as many as fill a smaller bucket: on a CPU
    9 images padded to 64 take four times as long as 8 and 1.
    """
    candidates = min(waiting, most)
    full = max(size for size in inference.BUCKETS if size <= candidates)
    return candidates if inference.bucket(candidates) <= 2 * candidates else full


async def serve_jobs(
    scorer: Scorer, jobs: asyncio.Queue[Job], most: int, note: Callable[[int], None], pad: int = 0
) -> None:
    """Scores jobs in batches until this task is cancelled.

    No batch waits to be filled: an idle device scores a single image at once, a busy one finds all that have arrived.

    Args:
      scorer: the detector.
      jobs: queue of jobs.
      most: maximum batch size.
      note: called with the size of each batch.
      pad: as in `score_batch`; batches are then as large as they can be.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "device") as device:
        while True:
            batch = [await jobs.get()]
            waiting = 1 + jobs.qsize()
            size = min(waiting, most) if pad else next_batch_size(waiting, most)
            batch += [jobs.get_nowait() for _ in range(size - 1)]
            note(len(batch))
            results: Sequence[Answer | Exception]
            try:
                results = await loop.run_in_executor(
                    device, score_batch, scorer, [job.image for job in batch], [job.mapped for job in batch], pad
                )
            except Exception as error:  # one batch may fail, for example out of memory, and the next succeed
                results = [error] * len(batch)
            for job, answer in zip(batch, results, strict=True):
                if job.answer.done():  # the client has gone
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)
