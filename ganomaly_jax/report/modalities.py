"""Drawing by modality: cases, examples, pictures during training, and explanations of single items."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import layout
from ganomaly_jax.report import (
    explanation,
    figures,
    image_grids,
    sensor_plots,
    sound_explanation,
    spectrogram_plots,
)
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import sound
from ganomaly_jax.scoring.judgement import JudgedPaths, Judgement
from ganomaly_jax.scoring.scorer import Scorer

Explain = Callable[[Path], list[str]]
"""Function (path of a picture to write) -> lines for the terminal."""
_PER_CLASS = 6
# Of sensors: recordings that are drawn, and rows or windows of each.
_RECORDINGS, _POINTS = 3, 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Tested:
    """Holds a judged test set."""

    run: Run
    scorer: Scorer
    judged: Judgement
    labels: np.ndarray
    """`[n]` labels of the run's test part, 0 normal and 1 anomalous."""


class ReportModality(Protocol):
    """Defines what the report needs from a modality."""

    @property
    def epochs(self) -> bool:
        """Returns True if pictures of x and x_hat are drawn during the training."""

    def upright(self, x: np.ndarray) -> np.ndarray:
        """Returns inputs of the network `[B, H, W, C]` in the orientation in which they are shown."""

    def case(self, scorer: Scorer) -> figures.Drawing:
        """Returns the function that draws a case."""

    def examples(self, path: Path, tested: Tested) -> None:
        """Draws some items of the test set as a PNG.

        Raises:
          ImportError: matplotlib or Pillow is not installed.
          UserError: the file cannot be written.
        """

    @property
    def mapped(self) -> bool:
        """Returns True if residual maps of anomalous items can be drawn."""

    def write_maps(self, scorer: Scorer, found: JudgedPaths, folder: Path, most: int) -> tuple[int, int]:
        """Draws the anomalous items of judged files, the most anomalous first.

        Args:
          scorer: the detector.
          found: the judged files.
          folder: the folder for the pictures.
          most: the largest number of pictures; 0: no limit.

        Returns:
          The numbers of drawn and of anomalous items.

        Raises:
          UserError: a picture cannot be written.
        """

    def explained(self, scorer: Scorer, given: str) -> tuple[str, Explain]:
        """Returns a file stem for a picture of the named item, and the function that draws and explains it.

        Raises:
          UserError: the item cannot be explained.
        """


class Images:
    """Draws images side by side."""

    epochs = True
    mapped = True

    def upright(self, x: np.ndarray) -> np.ndarray:
        """Returns the images themselves."""
        return x

    def case(self, scorer: Scorer) -> figures.Drawing:
        """Returns the function that draws input, reconstruction and residual."""
        return figures.image_case

    def examples(self, path: Path, tested: Tested) -> None:
        """Draws a grid of images, as the paper's Figure 3."""
        image_grids.save(image_grids.titled_grid(_by_class(tested), tested.scorer.residual_max), path)

    def write_maps(self, scorer: Scorer, found: JudgedPaths, folder: Path, most: int) -> tuple[int, int]:
        """Draws maps of the anomalous images."""
        return explanation.write_most_anomalous(scorer, folder, found.detail, found.judged, most)

    def explained(self, scorer: Scorer, given: str) -> tuple[str, Explain]:
        """Returns the function that explains an image file."""
        path = Path(given)

        def draw(out: Path) -> list[str]:
            drawn, lines = explanation.explain(scorer, path)
            image_grids.save(drawn, out)
            return lines

        return path.stem, draw


class Sensors:
    """Draws features as values; used for rows of sensors and for any modality that is not in the table."""

    epochs = False
    mapped = False

    def upright(self, x: np.ndarray) -> np.ndarray:
        """Returns the inputs themselves."""
        return x

    def case(self, scorer: Scorer) -> figures.Drawing:
        """Returns the function that draws the features with the largest residuals."""
        names = scorer.feature_names or tuple(map(str, range(scorer.input_shape[-1])))

        def draw(case: figures.Case, residual_max: float) -> figures.Figure:
            figure = figures.new_figure(9, sensor_plots.height(case.x))
            sensor_plots.case(figure, case.x, case.x_hat, names)
            return figure

        return draw

    def examples(self, path: Path, tested: Tested) -> None:
        """Draws nothing, since items have no common order."""

    def write_maps(self, scorer: Scorer, found: JudgedPaths, folder: Path, most: int) -> tuple[int, int]:
        """Draws nothing."""
        return 0, 0

    def explained(self, scorer: Scorer, given: str) -> tuple[str, Explain]:
        """Refuses to draw an item.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"this detector judges {scorer.words.kind}, which have no picture: see report.html for plots, and use "
            "`ganomaly_jax.contributions` in Python for the contribution of each sensor"
        )


class Rows(Sensors):
    """Draws rows of sensors over time."""

    def examples(self, path: Path, tested: Tested) -> None:
        """Draws scores and some sensors over time, of the longest recordings, those with anomalous rows first."""
        run, scorer = tested.run, tested.scorer
        own = layout.of(run.dataset).spans[run.split.test]

        def order(k: int) -> tuple[int, int]:
            here = own[:, 0] == k
            return -int(tested.labels[here].max()), -int(here.sum())

        series = []
        for number in sorted(np.unique(own[:, 0]).tolist(), key=order)[:_RECORDINGS]:
            at = np.flatnonzero(own[:, 0] == number)
            at = at[np.linspace(0, len(at) - 1, min(len(at), _POINTS)).astype(int)]
            blocks = [scorer.reconstruct(run.dataset.images[run.split.test[part]]) for part in np.array_split(at, 8)]
            x, x_hat = (np.concatenate([block[i] for block in blocks if len(block[i])]) for i in (0, 1))
            if x.ndim == 3:
                x, x_hat = x[:, -1], x_hat[:, -1]
            name = run.dataset.paths[run.split.test[at[0]]].rpartition(":")[0]
            times = run.dataset.times_of(run.split.test[at]) or ()
            scores, labels = tested.judged.scores[at], tested.labels[at]
            series.append(sensor_plots.Series(name, own[at, 2], x, x_hat, scores, labels, times))
        figures.timeline(path, series, scorer.feature_names, scorer.threshold)


class Sound:
    """Draws sound as spectrograms with axes in Hz and seconds."""

    epochs = True
    mapped = True

    def upright(self, x: np.ndarray) -> np.ndarray:
        """Returns the spectrograms with low frequencies at the bottom."""
        return x[:, ::-1]

    def case(self, scorer: Scorer) -> figures.Drawing:
        """Returns the function that draws input, reconstruction and residual as spectrograms."""
        scale = sound.scale_of(scorer)

        def draw(case: figures.Case, residual_max: float) -> figures.Figure:
            figure = figures.new_figure(9, 3.4)
            spectrogram_plots.case(figure, case.x, case.x_hat, scale, residual_max)
            return figure

        return draw

    def examples(self, path: Path, tested: Tested) -> None:
        """Draws some windows of each class."""
        sections, scale = _by_class(tested), sound.scale_of(tested.scorer)
        size, most = (13.0, 0.7 + 1.7 * len(sections)), tested.scorer.residual_max
        figures.drawn(path, *size, lambda figure: spectrogram_plots.examples(figure, sections, scale, most))

    def write_maps(self, scorer: Scorer, found: JudgedPaths, folder: Path, most: int) -> tuple[int, int]:
        """Draws the anomalous windows."""
        return sound_explanation.write_maps(scorer, folder, found.detail, most)

    def explained(self, scorer: Scorer, given: str) -> tuple[str, Explain]:
        """Returns the function that explains a window, `FILE@SECONDS`, or the highest-scoring one of a file."""
        wave, name, begin = sound.window_of(scorer, given)

        def draw(out: Path) -> list[str]:
            return sound_explanation.explain_window(scorer, wave, name, begin, out)

        return re.sub(r"[^\w.-]+", "_", Path(name).name), draw


TABLE: dict[str, ReportModality] = {"images": Images(), "rows": Rows(), "sound": Sound()}
"""The drawing of each modality, by `Modality.name`."""
_OTHERS = Sensors()


def named(name: str) -> ReportModality:
    """Returns the drawing of a modality by its name."""
    return TABLE.get(name, _OTHERS)


def of(scorer: Scorer) -> ReportModality:
    """Returns the drawing of a scorer's modality."""
    return named(scorer.modality.name)


def _by_class(tested: Tested) -> Sequence[tuple[str, np.ndarray, np.ndarray]]:
    """Returns (title, x, x_hat) of some normal and anomalous test items of each class."""
    sections = []
    dataset, test, labels = tested.run.dataset, tested.run.split.test, tested.labels
    classes = dataset.labels[test]
    groups = [("normal", labels == 0)]
    groups += [(dataset.classes[i], (labels == 1) & (classes == i)) for i in np.unique(classes[labels == 1])[:4]]
    for name, chosen in groups:
        at = np.flatnonzero(chosen)
        if len(at):
            at = at[np.linspace(0, len(at) - 1, min(_PER_CLASS, len(at))).astype(int)]
            x, x_hat = tested.scorer.reconstruct(dataset.images[test[at]])
            sections.append((name if name == "normal" else f"anomalous: {name}", x, x_hat))
    return sections
