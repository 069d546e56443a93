"""A folder of images among several processes: each looks through its own part of it, and decodes what it needs.

At the start each process decodes its part of the files once, keeps their hashes only, and tells the others. From then
on all know what every image is, and a process reads those that it trains on, calibrates with or scores; one whose hash
is another than the one that was told is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ganomaly_jax import config, data, hosts, images, survey
from ganomaly_jax.errors import UserError
from ganomaly_jax.images import Span
from ganomaly_jax.lazy import LazyImages


def read(
    files: Sequence[Path], height: int, width: int, settings: config.Data, progress: bool
) -> tuple[LazyImages, np.ndarray, list[tuple[str, str]], Span, list[bytes]]:
    """As `images.decode_files`, with images that are read on demand, and the hash of each; all processes call it.

    Raises:
      UserError: the processes do not see the same files.
    """
    base = os.path.commonpath([path.parent for path in files])
    hosts.check_same(**{"list of images": "\n".join(images.shown(path.relative_to(base)) for path in files)})
    own = hosts.own_part(len(files))
    paths = [files[i] for i in own]
    looked: list[tuple[survey.Kind | None, list[bytes] | None, list[int], list[tuple[str, str]]]] = []

    def look(kind: survey.Kind | None) -> survey.Kind | None:
        with contextlib.closing(images.decode_each(paths, height, width, settings.fit)) as decoded:
            shown = images.progress_bar(iter(decoded), len(paths), progress)
            looked.append(survey.look(paths, shown, settings.channels, kind, data.image_hash))
        return looked[-1][0]

    def first() -> bytes:
        kind = look(None)
        return json.dumps(None if kind is None else dataclasses.asdict(kind)).encode()

    said = [json.loads(text) for text in hosts.each(first)]
    kind = survey.common(survey.Kind(**values) for values in said if values is not None)

    def second() -> bytes:
        seen, hashes, _, _ = looked[-1]
        if seen is not None and (seen != kind or hashes is None):  # others have images of another kind
            look(kind)
        _, hashes, kept, problems = looked[-1]
        told = {"hashes": [one.hex() for one in hashes or ()], "kept": [own[i] for i in kept], "problems": problems}
        return json.dumps(told).encode()

    told = [json.loads(text) for text in hosts.each(second)]
    kept = [i for part in told for i in part["kept"]]
    hashes = [bytes.fromhex(one) for part in told for one in part["hashes"]]
    problems = [(path, reason) for part in told for path, reason in part["problems"]]
    if kind is None:
        kind = survey.Kind("uint8", True, False, settings.channels or 1)
    found = _on_demand([files[i] for i in kept], hashes, (height, width), kind, settings.fit)
    return found, np.array(kept, np.int64), problems, kind.span, hashes


def _on_demand(
    files: Sequence[Path], hashes: Sequence[bytes], size: tuple[int, int], kind: survey.Kind, fit: str
) -> LazyImages:
    like = (kind.dtype, 0.0, 1.0 if kind.scaled else 0.0)
    alone = threading.Lock()  # decoding has threads of its own

    def read(indices: np.ndarray) -> np.ndarray:
        chosen = [files[i] for i in indices.tolist()]
        with alone:
            found, _, problems, _ = images.decode_files(chosen, *size, kind.channels, fit, False, like)
        if problems:
            raise UserError(f"{problems[0][0]} could be read at the start and cannot be now: {problems[0][1]}")
        for path, i, image in zip(chosen, indices.tolist(), found, strict=True):
            if data.image_hash(image) != hashes[i]:
                raise UserError(
                    f"{images.shown(path)} is another image than at the start, where it was read by one of the "
                    "processes: it has changed since, or the processes see different data"
                )
        return found

    return LazyImages(read, (len(files), *size, kind.channels), np.dtype(kind.dtype), keep=True)
