"""What a run has to show: a picture of each case, curves as PNG and CSV, and one self-contained `report.html`.

Everything is made from plain arrays and the files of a run's folder. matplotlib is imported only here, inside the
functions, by its object-oriented interface: nothing of pyplot's global state is touched.
"""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core.atomic_files import replacing
from ganomaly_jax.core.config_values import flatten
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.audio import spectrogram_scale
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.report import html, sections, sensor_plots, spectrogram_plots
from ganomaly_jax.report.image_grids import COLOURS, one_line, residual, to_rgb
from ganomaly_jax.runs import diagnostics, layout
from ganomaly_jax.runs.history import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which the colour-blind can tell apart.
LOSSES = {
    "adversarial": "#56b4e9",
    "contextual": "#009e73",
    "encoder": "#cc79a7",
    "generator": "#000000",
    "discriminator": "#d55e00",
    "reconstruction": "#0072b2",
}
KINDS = ("false positive", "false negative", "anomalous", "normal")
BLUE, RED, INK = "#2166ac", "#c8442b", "#1e1e1e"
CLASS_NAMES: dict[Any, str] = {0: "normal", 1: "anomalous"}


class MissingError(UserError, ImportError):
    """matplotlib is not installed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One scored image."""

    name: str
    """Where it came from; any text."""
    kind: str
    """`false positive`, `false negative`, `anomalous` or `normal`."""
    x: np.ndarray
    """[H, W, C] in [-1, 1], as the network saw it; [D] or [T, D] of sensors."""
    x_hat: np.ndarray
    """As x, its reconstruction."""
    score: float
    p_value: float | None
    threshold: float | None
    verdict: str
    label: int | str | None
    """0 normal, 1 anomalous, the name of a class, or None where it is not known."""
    columns: tuple[str, ...] = ()
    """Of sensors: their names."""
    scale: spectrogram_scale.Scale | None = None
    """Of sound, x being [bands, frames, 1]."""


def case_picture(case: Case, residual_max: float, path: str | Path) -> None:
    """A PNG, 1350 pixels wide: input, reconstruction and residual map with its scale, and what was decided.

    Args:
      residual_max: the residual at the end of the colour scale, the same for all pictures that are to be compared.

    Raises:
      MissingError: no matplotlib.
      UserError: shapes that differ, a residual_max that is not above 0, or a file that cannot be written.
    """
    if not (np.isfinite(residual_max) and residual_max > 0):
        raise UserError(f"residual_max={residual_max!r}: wanted a finite number above 0, the end of the colour scale")
    if case.columns and case.x.shape == case.x_hat.shape:
        figure = new_figure(9, sensor_plots.height(case.x))
        sensor_plots.case(figure, case.x, case.x_hat, case.columns)
        _captions(figure, case)
        save_figure(figure, path)
        return
    if case.x.ndim != 3 or case.x.shape != case.x_hat.shape:
        raise UserError(f"x {case.x.shape} and x_hat {case.x_hat.shape}: wanted two of one shape [H, W, C]")
    if case.scale is not None:
        figure = new_figure(9, 3.4)
        spectrogram_plots.case(figure, case.x, case.x_hat, case.scale, residual_max)
        _captions(figure, case)
        save_figure(figure, path)
        return
    figure = new_figure(9, 1.1 + float(np.clip(2.6 * case.x.shape[0] / case.x.shape[1], 1.3, 4.0)))
    from matplotlib.colors import ListedColormap

    axes = figure.subplots(1, 3)
    axes[0].imshow(to_rgb(case.x), interpolation="nearest")
    axes[1].imshow(to_rgb(case.x_hat), interpolation="nearest")
    colours = ListedColormap((COLOURS / 255).tolist())
    drawn = axes[2].imshow(
        residual(case.x, case.x_hat), cmap=colours, vmin=0, vmax=residual_max, interpolation="nearest"
    )
    bar = figure.colorbar(drawn, ax=axes[2], extend="max")
    bar.ax.tick_params(labelsize=9)
    bar.set_label("|input \N{MINUS SIGN} reconstruction|", fontsize=9)
    for ax, title in zip(axes, ("input", "reconstruction", "residual"), strict=True):
        ax.set_title(title, fontsize=11)
        ax.set_xticks([])
        ax.set_yticks([])
    _captions(figure, case)
    save_figure(figure, path)


def timeline(path: str | Path, series: Sequence[sensor_plots.Series], columns: Sequence[str], threshold: float) -> None:
    """A PNG of scores and sensors over time, see `traces.timeline`.

    Raises:
      MissingError: no matplotlib.
      UserError: a file that cannot be written.
    """
    size = min(4.2 * len(series) + 1, 12), 1.4 + 1.3 * min(len(columns), 3) + 0.8
    drawn(path, *size, lambda figure: sensor_plots.timeline(figure, series, columns, threshold))


def drawn(path: str | Path, width: float, height: float, draw: Callable[[Figure], None]) -> None:
    """A PNG of so many inches, 150 pixels each, of what `draw` puts onto its figure.

    Raises:
      MissingError: no matplotlib.
      UserError: a file that cannot be written.
    """
    figure = new_figure(width, height)
    draw(figure)
    save_figure(figure, path)


def _captions(figure: Figure, case: Case) -> None:
    wrong = case.kind.startswith("false")
    name = one_line(f"{case.kind}: {case.name}", 90)
    figure.suptitle(name, fontsize=12, weight="bold", color=RED if wrong else INK, parse_math=False)
    figure.supxlabel(one_line(_decision(case), 140), fontsize=11.5, color=INK, parse_math=False)


def _decision(case: Case) -> str:
    """Score, threshold, p-value, verdict and label in one line."""
    parts = [f"score {html.number(case.score)}"]
    if case.threshold is not None and case.score == case.score:
        sign = ">" if case.score > case.threshold else "\N{LESS-THAN OR EQUAL TO}"
        parts[0] += f" {sign} threshold {html.number(case.threshold)}"
    if case.p_value is not None:
        parts.append(f"p-value {html.number(case.p_value)}")
    label = CLASS_NAMES.get(case.label, case.label)
    parts += [f"verdict: {case.verdict}", f"label: {'unknown' if label is None else label}"]
    return "   \N{MIDDLE DOT}   ".join(parts)


def curves(
    labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray, threshold: float | None, directory: Path
) -> list[Path]:
    """`roc`, `precision_recall` and `histogram`, each as .png and .csv; those of an earlier call are removed first.

    With one class only the histogram alone is drawn, without any score nothing. Scores that are not finite are left
    out.

    Args:
      labels: [N] 0 or 1.
      scores: [N] float.
      threshold: a score above it is anomalous; None where there is none.
      directory: exists.

    Returns:
      The pictures written.

    Raises:
      MissingError: no matplotlib.
      UserError: labels other than 0 and 1, or a file that cannot be written.
    """
    labels, scores = _finite(labels, scores)
    found = metrics.summary(labels, scores, threshold)
    for name in ("roc", "precision_recall", "histogram"):
        for kind in ("png", "csv"):
            _remove(directory / f"{name}.{kind}")
    if not len(scores):
        return []
    n = f"{found['n_normal']} normal, {found['n_anomalous']} anomalous"
    written = []
    title = n
    if found["auroc"] is not None:
        title = f"AUROC {found['auroc']:.3f}\n{n}"
        written = [
            _roc(labels, scores, found, title, directory / "roc.png"),
            _precision_recall(labels, scores, found, title, directory / "precision_recall.png"),
        ]
    return [*written, _histogram(labels, scores, threshold, title, directory / "histogram.png")]


def _finite(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] bool and scores [N] float64 of the items whose score is finite."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.shape == scores.shape:
        labels, scores = labels[np.isfinite(scores)], scores[np.isfinite(scores)]
    return metrics.checked(labels, scores)


def _roc(labels: np.ndarray, scores: np.ndarray, found: dict[str, Any], title: str, path: Path) -> Path:
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores)
    _write_csv(path, ("false_positive_rate", "true_positive_rate", "score_at_least"), (fpr, tpr, thresholds))
    figure, ax = _plot(title, "false-positive rate", "true-positive rate", square=True)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
    ax.plot(fpr, tpr, color=BLUE, linewidth=2)
    _operating_point(ax, found["false_positive_rate"], found["true_positive_rate"])
    return save_figure(figure, path)


def _precision_recall(labels: np.ndarray, scores: np.ndarray, found: dict[str, Any], title: str, path: Path) -> Path:
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    _write_csv(path, ("precision", "recall", "score_at_least"), (precision, recall, np.append(thresholds, np.inf)))
    title = f"average precision {found['average_precision']:.3f}, {title}"
    figure, ax = _plot(title, "recall", "precision", square=True)
    ax.axhline(labels.mean(), color="0.6", linestyle=":", label="chance")
    ax.step(recall, precision, where="post", color=BLUE, linewidth=2)
    if found["f1"]:
        recall_there = found["true_positive_rate"]
        true, false = recall_there * found["n_anomalous"], found["false_positive_rate"] * found["n_normal"]
        _operating_point(ax, recall_there, true / (true + false))
    return save_figure(figure, path)


def _operating_point(ax: Axes, x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        ax.plot([x], [y], "o", color=RED, markersize=9, label="at the threshold", clip_on=False, zorder=5)
    ax.legend(frameon=False, fontsize=11)


def _histogram(labels: np.ndarray, scores: np.ndarray, threshold: float | None, title: str, path: Path) -> Path:
    low, high = scores.min(), scores.max()
    line = threshold if threshold is not None and np.isfinite(threshold) else None
    # Scores of anomalies often lie far above those of normal images, which a linear axis would squeeze into one bin.
    ends = np.quantile(scores, [0.02, 0.98])
    logarithmic = bool(low > 0 and ends[1] > 20 * ends[0] and (line is None or line > 0))
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        margin = max(0.05 * abs(low), 1e-6)
        low, high, logarithmic = low - margin, high + margin, False
    edges = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high, 41)
    counts = [np.histogram(scores[labels == label], edges)[0] for label in (0, 1)]
    _write_csv(path, ("score_from", "score_to", "normal", "anomalous"), (edges[:-1], edges[1:], *counts))
    figure, ax = _plot(title, "score" + " (log scale)" * logarithmic, "share of the class")
    for count, name, colour in zip(counts, CLASS_NAMES.values(), (BLUE, RED), strict=True):
        if count.sum():
            share = count / count.sum()
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            ax.stairs(share, edges, color=colour, linewidth=1.5, label=f"{name} ({count.sum()})")
    if line is not None:
        ax.axvline(line, color=INK, linestyle="--", linewidth=1.5, label=f"threshold {html.number(line)}")
    if logarithmic:
        ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    # "best" looks for room so long that matplotlib warns of it on a busy machine.
    ax.legend(frameon=False, fontsize=11, loc="upper right")
    return save_figure(figure, path)


def losses(history: Path, png: Path) -> Path | None:
    """The losses over the steps, on a log scale.

    Args:
      history: `history.jsonl`; lines that are not whole (a run that was cut off) are passed over, and of two lines for
        one step the later holds.
      png: where the picture goes.

    Returns:
      `png`, or None where the file is missing or holds nothing to draw.

    Raises:
      MissingError: no matplotlib.
      UserError: a file that cannot be written.
    """
    _remove(png)
    records = {record["step"]: record for record in read(history) if not LOSSES.keys().isdisjoint(record)}
    steps = np.array(sorted(records))
    values = {name: np.array([_float(records[step].get(name)) for step in steps]) for name in LOSSES}
    drawable = {
        name: (steps[good], value[good])
        for name, value in values.items()
        if (good := (value > 0) & (value < np.inf)).any()
    }
    if not drawable:
        return None
    figure, ax = _plot("", "step", "loss (log scale)")
    ax.set_yscale("log")
    for name, (at, value) in drawable.items():
        if len(at) <= 100:
            ax.plot(at, value, color=LOSSES[name], linewidth=1.5, marker="o" if len(at) == 1 else None, label=name)
            continue
        # Batch by batch the losses are noise: shown faintly, with the median of each sixtieth over them.
        ax.plot(at, value, color=LOSSES[name], linewidth=0.6, alpha=0.25)
        parts = np.array_split(np.arange(len(at)), 60)
        medians = [np.median(value[part]) for part in parts]
        ax.plot([at[part].mean() for part in parts], medians, color=LOSSES[name], linewidth=2, label=name)
    ax.legend(frameon=False, fontsize=10, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1.2)
    return save_figure(figure, png)


def looks(history: Path, png: Path) -> Path | None:
    """The health of the training over the steps, each measure in a row of its own; arguments and errors as `losses`."""
    _remove(png)
    found = diagnostics.curves(read(history))
    if not found:
        return None
    figure = new_figure(7.5, 0.6 + 1.2 * len(found))
    rows = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    for ax, (name, (steps, values)) in zip(rows, found.items(), strict=True):
        ax.plot(steps, values, color=BLUE, linewidth=1.5, marker="o", markersize=3)
        ax.set_ylabel(diagnostics.CURVES[name], fontsize=9.5)
        ax.set_ylim(0, 1.05 if name == diagnostics.ACCURACY else 1.1 * max(values) or 1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92")
        ax.locator_params(axis="y", nbins=4)
    rows[-1].set_xlabel("step", fontsize=11)
    figure.align_ylabels()
    return save_figure(figure, png)


def write(
    workdir: Path,
    cases: Sequence[Case],
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    threshold: float | None,
    residual_max: float,
) -> Path:
    """All pictures into `workdir/pictures/` and `workdir/report.html`: one file that needs no other, and no script.

    Built from `config.json`, `env.json`, `metrics.json`, `history.jsonl`, `pictures/epoch_*.png` and
    `pictures/examples.png`; what is missing or cannot be read is left out, and the report says so.

    Args:
      workdir: the run's folder; exists.
      cases: the images to show, worst first.
      labels, scores, threshold: as in `curves`.
      residual_max: as in `case_picture`.

    Returns:
      The path of the report.

    Raises:
      MissingError: no matplotlib.
      UserError: a case of an unknown kind, or a file that cannot be written.
    """
    _matplotlib_figure()
    labels, scores = _finite(labels, scores)
    folder = workdir / layout.PICTURES
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    for kind in KINDS:
        for old in folder.glob(f"{kind.replace(' ', '_')}_[0-9]*.png"):
            _remove(old)
    shown: dict[str, list[tuple[Path, str]]] = {kind: [] for kind in KINDS}
    for case in cases:
        if case.kind not in shown:
            raise UserError(f"case of kind {case.kind!r}: wanted one of {', '.join(KINDS)}")
        path = folder / f"{case.kind.replace(' ', '_')}_{len(shown[case.kind]) + 1:02d}.png"
        case_picture(case, residual_max, path)
        shown[case.kind].append((path, case.name))
    drawn = curves(labels, scores, threshold, folder)
    history = losses(workdir / layout.HISTORY, folder / "losses.png")
    health_drawn = looks(workdir / layout.HISTORY, folder / "health.png")

    (config, config_note), (env, env_note), (found, found_note) = (
        html.read(workdir / name) for name in (layout.CONFIG, layout.ENVIRONMENT, layout.METRICS)
    )
    flat, examples = flatten(config), folder / "examples.png"
    parts = [
        html.warnings(found),
        html.paragraph(found_note) if found_note else html.headline(found),
        sections.partners(found),
        sections.groups(found),
        sections.curves(drawn),
        html.section("Examples", html.image(examples)) if examples.exists() else "",
        *sections.cases(shown, labels, scores, threshold, residual_max, found.get("items", "images")),
        sections.training(history, folder, health_drawn),
        html.section("Configuration", html.paragraph(config_note) if config_note else html.settings(flat)),
        html.section("Environment", html.paragraph(env_note) if env_note else html.facts(env)),
    ]
    path = workdir / layout.REPORT
    with replacing(path) as temporary:
        temporary.write_text(html.page(sections.title(flat, workdir), parts), encoding="utf-8", errors="replace")
    return path


def _float(value: Any) -> float:
    """A number as float, anything else as NaN."""
    return float(value) if isinstance(value, int | float) else float("nan")


def _write_csv(path: Path, header: Sequence[str], columns: Sequence[np.ndarray]) -> None:
    with replacing(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from error


def _matplotlib_figure() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingError("pictures and report.html need matplotlib: pip install 'ganomaly-jax[report]'") from None
    return Figure


def new_figure(width: float, height: float) -> Figure:
    """Sides in inches; 150 pixels an inch."""
    return _matplotlib_figure()(figsize=(width, height), dpi=150, layout="constrained")


def _plot(title: str, horizontal: str, vertical: str, square: bool = False) -> tuple[Figure, Axes]:
    """One pair of axes in the style of all plots."""
    figure = new_figure(4.8 if square else 7.5, 4.6 if square else 4.0)
    ax = figure.add_subplot()
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(horizontal, fontsize=11)
    ax.set_ylabel(vertical, fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    if square:
        ax.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure, ax


def save_figure(figure: Figure, path: str | Path) -> Path:
    with replacing(path) as temporary, warnings.catch_warnings():
        # Names may be in scripts that matplotlib's font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support", category=UserWarning)
        figure.savefig(temporary, format="png")
    return Path(path)
