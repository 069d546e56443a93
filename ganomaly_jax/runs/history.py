"""`history.jsonl`: losses and diagnostics of a training, written as it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.runs import layout

# Short names on the progress line; other losses keep their names.
_SHORT = {"adversarial": "adv", "contextual": "con", "encoder": "enc", "generator": "G", "discriminator": "D"}


class History:
    """Writer of `history.jsonl`: a line every few steps with their mean losses, and lines of diagnostics.

    When a run resumes, lines beyond its step are removed. A line of losses that averages fewer than `every` steps
    gives their number as `steps`.

    Args:
      path: the file; None to write nothing.
      step: step at which the run starts or resumes.
      epoch_steps: steps per epoch.
      every: steps per line.
      losses: names of the losses.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, path: Path | None, step: int, epoch_steps: int, every: int, losses: Sequence[str]) -> None:
        """Opens the file."""
        self._epoch_steps, self._every, self._losses = epoch_steps, every, losses
        self._window: list[np.ndarray] = []
        self._step, self._last = step, np.full(len(losses), np.nan)
        self._speed = 0.0
        self._file = None
        self._checked = 0
        if path is None:
            return
        kept = []
        try:
            if path.exists():
                for line in path.read_text("utf-8", "replace").splitlines():
                    try:
                        record = json.loads(line)
                        if record["step"] <= step:
                            kept.append(line)
                            self._checked = max(self._checked, record["step"] if "images" in record else 0)
                    except (ValueError, KeyError, TypeError, RecursionError):
                        continue  # truncated by a kill, or damaged
            atomic_files.write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def add(self, losses: np.ndarray, images_per_second: float) -> None:
        """Adds losses [n, L] of the next n steps."""
        self._speed = images_per_second or self._speed
        for row in losses:
            self._window.append(row)
            self._step += 1
            if self._step % self._every == 0:
                self.flush()

    def flush(self) -> None:
        """Writes a line of the losses since the last one."""
        if not self._window:
            return
        self._last = np.mean(self._window, axis=0)
        # After a resume, and at the end, a line may average fewer steps than the others.
        fewer = {"steps": len(self._window)} if len(self._window) < self._every else {}
        self._window = []
        values = {"step": self._step, "epoch": round(self._step / self._epoch_steps, 4), **fewer}
        values |= {"images_per_second": round(self._speed, 1)}
        values |= {name: float(value) for name, value in zip(self._losses, self._last, strict=True)}
        self._write(values)

    def add_health(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a line of diagnostics on other images, whose number is `images`; at most once per step."""
        if step > self._checked:
            self._write({"step": step, "epoch": round(step / self._epoch_steps, 4), **values})
            self._checked = step

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a line about anything else."""
        self._write({"step": step, **values})

    def _write(self, values: Mapping[str, Any]) -> None:
        """Writes a line of JSON."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"{layout.HISTORY} cannot be written: {error.strerror}; the checkpoints are intact"
            ) from None

    def line(self, images_per_second: float, items: str = "images") -> str:
        """Returns the latest losses as a progress line; `items` is the modality's word for images."""
        last = np.mean(self._window, axis=0) if self._window else self._last
        short = (_SHORT.get(name, name) for name in self._losses)
        losses = "  ".join(f"{name} {value:.3g}" for name, value in zip(short, last, strict=True))
        return f"{images_per_second:,.0f} {items}/s  {losses}" if images_per_second else losses

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete records of a history, in order; none if it cannot be read."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record
