"""One look at many image files: which of them can be read, and what they all become together. Pixels are not kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images.files import Decoded
from ganomaly_jax.data.images.preprocess import to_channels


@dataclasses.dataclass(frozen=True)
class Kind:
    """What all images of a folder become: the type, how others come to it (`images.as_type`), the channels."""

    dtype: str
    scaled: bool
    raw: bool
    channels: int

    @property
    def span(self) -> tuple[float, float] | None:
        """Returns black and white; None for floating point as stored."""
        white = 1.0 if self.dtype == "float32" else float(np.iinfo(self.dtype).max)
        return (0.0, white) if self.scaled else None


def common(kinds: Iterable[Kind]) -> Kind | None:
    """Returns the common kind of the images of several parts of a folder; None without any."""
    known = list(kinds)
    if not known:
        return None
    integers = {kind.dtype for kind in known if kind.scaled}
    dtype = integers.pop() if len(integers) == 1 else "float32"
    scaled = any(kind.scaled for kind in known)
    return Kind(dtype, scaled, not scaled, max(kind.channels for kind in known))


def look(
    paths: Sequence[Path], read: Iterator[Decoded], channels: int, kind: Kind | None, keep: Callable[[np.ndarray], Any]
) -> tuple[Kind | None, list[Any] | None, list[int], list[tuple[str, str]]]:
    """Decodes the files of `paths` and passes each image, in the common kind, to `keep`.

    Args:
      paths: n files.
      read: what `images.decode_each` gives for them.
      channels: of the result; 0: 3 where any has colour, otherwise 1.
      kind: what they become; None: that of the first is taken for as long as it holds.
      keep: takes an image [H, W, C].

    Returns:
      what kind they are all together, None of none; what `keep` gave for each, None where the kind did not hold (look
      again with the one returned); the indices of the files that could be read; (path, reason) of each other one.
    """
    given: list[Any] | None = []
    kept: list[int] = []
    problems: list[tuple[str, str]] = []
    sorts: dict[tuple[Any, ...], tuple[np.ndarray, decode.Span]] = {}
    seen, taken = kind, kind
    for i, item in enumerate(read):
        try:
            if isinstance(item, str):
                raise UserError(item)
            array, span = item
            if kind is None:
                sorts.setdefault((array.dtype.name, span, array.shape[2]), (array, span))
                held = list(sorts.values())
                seen = Kind(*image_files.common_type(held, None), channels or max(array.shape[2] for array, _ in held))
                taken = taken or seen
                if seen != taken:
                    given = None
            if given is not None and taken is not None:
                raw = image_files.as_type(array, span, taken.dtype, taken.scaled, taken.raw)
                given.append(keep(to_channels(raw, taken.channels)))
            kept.append(i)
        except UserError as error:
            problems.append((decode.shown(paths[i]), str(error)))
    return seen, given, kept, problems
