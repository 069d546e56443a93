"""Why an image has its score, and where: residual maps, contributions of pixels to the score, and a picture of both."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax import artefact, images, maps, pictures, program, scorer
from ganomaly_jax.calibration import ANOMALOUS, INVALID
from ganomaly_jax.errors import UserError
from ganomaly_jax.maps import Region
from ganomaly_jax.progress import Progress
from ganomaly_jax.scorer import Scorer

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "maps"
# Points of the path that gradients are integrated along.
STEPS = 64
_PANEL = 256  # pixels, the least side of a panel that the image's side divides
# Contributions are drawn as sums over squares, so many a side; in full colour where one is this share of the threshold.
_SQUARES, _FULL = 32, 0.02
# Colours of what lies above a map's threshold: without the darkest, which look like nothing.
_HEAT = pictures.COLOURS[72:]
_BOX, _CONTOUR = (0, 190, 255), (255, 255, 255)
_BLUE, _RED = np.array([33, 102, 172]), np.array([200, 68, 43])


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Of n images: `x`, `x_hat` [n, H, W, C] in [-1, 1] and `values` [n, H, W] in 0..2, `maps.residual_map` of both."""

    x: np.ndarray
    x_hat: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """What each pixel of n images adds to the score, over that of a baseline.

    `values` [n, H, W, C] float32 add up to `scores` - `baseline_scores`, [n] each, but for the error of the integral.
    """

    values: np.ndarray
    scores: np.ndarray
    baseline_scores: np.ndarray


def residual_maps(judge: Scorer, given: Any) -> Maps:
    """Residual maps of images, as `Scorer.__call__` takes them; NaN where an image is invalid.

    Raises:
      UserError: as a call of the scorer.
    """
    if not hasattr(given, "dtype"):
        given = judge.read([given] if isinstance(given, (str, Path)) else given)[0]
    size = min(program.BUCKETS[2], judge.block)
    blocks = [judge.explained(given[i : i + size]) for i in range(0, max(len(given), 1), size)]
    return Maps(*(np.concatenate([block[i] for block in blocks]) for i in range(3)))


def gradient(judge: Scorer, x: np.ndarray) -> np.ndarray:
    """The slope of the score by each pixel, [n, H, W, C] float32, of images x [n, H, W, C] float32 in [-1, 1]."""
    slope, _ = _programs(judge)
    return np.stack([np.asarray(slope(judge.variables, image[None]))[0] for image in np.asarray(x, np.float32)])


def integrated_gradients(judge: Scorer, x: np.ndarray, baseline: np.ndarray | None = None) -> Attribution:
    """Contributions of pixels to the score: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks".

    The gradient of the score, through `Scorer.function`, is integrated along the straight line from the baseline to the
    image (Gauss-Legendre, `STEPS` points) and multiplied by their difference, so that the contributions add up to the
    difference of the scores.

    Args:
      x: [n, H, W, C] float32 in [-1, 1].
      baseline: as x; None: the reconstruction of each image, so that the contributions say what makes it more
        anomalous than the detector's idea of it.
    """
    x = np.asarray(x, np.float32)
    if baseline is None:
        baseline = _reconstruction(judge, x)
    baseline = np.broadcast_to(np.asarray(baseline, np.float32), x.shape)
    _, path = _programs(judge)
    found = [tuple(map(np.asarray, path(judge.variables, x[i], baseline[i]))) for i in range(len(x))]
    values, scores, baseline_scores = (np.stack([one[i] for one in found]) for i in range(3))
    return Attribution(values, scores, baseline_scores)


def _reconstruction(judge: Scorer, x: np.ndarray) -> np.ndarray:
    return np.concatenate([judge.reconstruct(_pixels(judge, image[None]))[1] for image in x])


def _pixels(judge: Scorer, x: Any) -> Any:
    """Images in [-1, 1] as the scorer takes floating point: in the range of the training where that was one."""
    return x if judge.dtype != "float32" else judge.low + (x + 1) / 2 * (judge.high - judge.low)


@functools.lru_cache(maxsize=2)
def _programs(judge: Scorer) -> tuple[Callable[..., Array], Callable[..., tuple[Array, Array, Array]]]:
    """(gradient of the score for [n, H, W, C], integrated gradients of one image), compiled once a scorer."""
    function, _ = judge.function()

    def score(variables: Any, x: Array) -> Array:
        return function(variables, _pixels(judge, x))

    slope = jax.grad(lambda x, variables: score(variables, x).sum())
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    along = jnp.asarray((nodes + 1) / 2, jnp.float32)[:, None, None, None]
    share = jnp.asarray(weights / 2, jnp.float32)[:, None, None, None]

    def path(variables: Any, x: Array, baseline: Array) -> tuple[Array, Array, Array]:
        slopes = slope(baseline + along * (x - baseline), variables)
        ends = score(variables, jnp.stack([x, baseline]))
        return (x - baseline) * (share * slopes).sum(0), ends[0], ends[1]

    return jax.jit(lambda variables, x: slope(x, variables)), jax.jit(path)


def in_file(region: Region, judge: Scorer, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a region in pixels of a file of that height and width, upright."""
    rows, columns, _ = judge.input_shape
    inner = (rows, columns)
    if judge.config.data.fit == "letterbox":
        scale = min(rows / height, columns / width)
        inner = min(rows, max(1, round(height * scale))), min(columns, max(1, round(width * scale)))
    top, left = (rows - inner[0]) // 2, (columns - inner[1]) // 2
    y, x = height / inner[0], width / inner[1]
    ends = np.clip(
        [
            (region.left - left) * x,
            (region.top - top) * y,
            (region.left + region.width - left) * x,
            (region.top + region.height - top) * y,
        ],
        0,
        [width, height, width, height],
    )
    first, last = np.floor(ends[:2]).astype(int), np.ceil(ends[2:]).astype(int)
    return int(first[0]), int(first[1]), int(last[0] - first[0]), int(last[1] - first[1])


def picture(judge: Scorer, found: Maps, i: int, title: str, contributions: np.ndarray | None = None) -> Image.Image:
    """Image i explained: input, what normal would look like, its map, what was found, and contributions if given.

    Colours mean the same in all pictures of a detector: those of the map begin at its threshold, from the calibration
    images, those of contributions are shares of the score's threshold.

    Args:
      title: any text.
      contributions: [H, W, C], as `Attribution.values`; red raises the score, blue lowers it.
    """
    from PIL import Image, ImageDraw, ImageFont

    values, threshold = found.values[i], judge.map_threshold
    x = pictures.to_rgb(found.x[i])
    factor = max(1, -(-_PANEL // max(values.shape)))
    gap, top = 4 * pictures.GAP, 58
    above = (values > threshold)[..., None]
    share = np.clip((values / threshold - 1) / (maps.END - 1), 0, 1)
    heat = _HEAT[np.round(share * (len(_HEAT) - 1)).astype(int)]
    over = np.where(above, 0.4 * x + 0.6 * heat, x)
    panels = [
        ("input", x),
        ("what normal would look like", pictures.to_rgb(found.x_hat[i])),
        ("difference beyond normal", np.where(above, heat, pictures.COLOURS[0])),
        ("found", over.astype(np.uint8)),
    ]
    if contributions is not None:
        panels.append(("what raises the score", _diverging(contributions.sum(-1), judge.threshold)))
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    height, width = values.shape[0] * factor, values.shape[1] * factor
    # A narrow image still gets room for its words.
    step = max(width, 190) + gap
    sheet = Image.new("RGB", (gap + step * len(panels), top + height + 62), (pictures.PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 12), pictures.ascii_line(title, 150), font=large, fill=pictures.INK)
    for place, (name, panel) in enumerate(panels):
        left = gap + place * step
        draw.text((left, top - 18), name, font=small, fill=pictures.GREY)
        sheet.paste(Image.fromarray(panel.repeat(factor, 0).repeat(factor, 1)), (left, top))
    boxes = maps.regions(values, threshold)
    at = gap + 3 * step
    _contours(sheet, values > threshold, factor, at, top)
    for number, region in enumerate(boxes, 1):
        corner = at + region.left * factor, top + region.top * factor
        far = corner[0] + region.width * factor - 1, corner[1] + region.height * factor - 1
        draw.rectangle((*corner, *far), outline=_BOX, width=2)
        draw.text(
            (corner[0] + 5, corner[1] + 3), str(number), font=small, fill=_BOX, stroke_width=1, stroke_fill=(0, 0, 0)
        )
    below = top + height + 10
    bar = np.tile(_HEAT[np.linspace(0, len(_HEAT) - 1, min(width, 256)).astype(int)], (12, 1, 1))
    sheet.paste(Image.fromarray(bar), (gap + 2 * step, below))
    for words, x_at, anchor in ((f"{threshold:.3g}", 0, "la"), (f"{maps.END * threshold:.3g}", bar.shape[1], "ra")):
        draw.text((gap + 2 * step + x_at, below + 15), words, font=small, fill=pictures.INK, anchor=anchor)
    count = f"{len(boxes)} region{'s' * (len(boxes) != 1)}" if boxes else "no region"
    draw.text((at, below), f"{count} above {threshold:.3g}", font=small, fill=pictures.GREY)
    if contributions is not None:
        draw.text((gap + 4 * step, below), f"in all {contributions.sum():+.3g}", font=small, fill=pictures.GREY)
        draw.text((gap + 4 * step, below + 16), "red raises, blue lowers", font=small, fill=pictures.GREY)
    return sheet


def _contours(sheet: Image.Image, inside: np.ndarray, factor: int, left: int, top: int) -> None:
    """White lines around what is inside, between the enlarged pixels."""
    large = np.pad(inside.repeat(factor, 0).repeat(factor, 1), 1)
    core = large[:-2, 1:-1] & large[2:, 1:-1] & large[1:-1, :-2] & large[1:-1, 2:]
    edge = large[1:-1, 1:-1] & ~core
    from PIL import Image

    sheet.paste(_CONTOUR, (left, top), Image.fromarray(edge.astype(np.uint8) * 255))


def _diverging(values: np.ndarray, threshold: float) -> np.ndarray:
    """Contributions [H, W] as colours [H, W, 3] uint8: sums over squares, blue below 0, white at 0, red above."""
    ends = [np.linspace(0, side, min(side, _SQUARES) + 1).round().astype(int) for side in values.shape]
    sums = np.add.reduceat(np.add.reduceat(values, ends[0][:-1], axis=0), ends[1][:-1], axis=1)
    full = _FULL * abs(threshold) or max(float(np.abs(sums).max()), 1e-12)
    share = np.clip(sums / full, -1, 1).repeat(np.diff(ends[0]), 0).repeat(np.diff(ends[1]), 1)[..., None]
    colour = np.where(share > 0, _RED, _BLUE)
    return np.round(255 + np.abs(share) * (colour - 255)).astype(np.uint8)


def title_of(name: str, verdict: str, score: float, p_value: float, threshold: float) -> str:
    sign = ">" if score > threshold else "<="
    return f"{verdict}: score {score:.4g} {sign} threshold {threshold:.4g}, p-value {p_value:.3g}   {name}"


def folder_of(workdir: Path) -> Path:
    """Where pictures go by themselves; a sealed detector folder takes none.

    Raises:
      UserError: `workdir` is a detector folder.
    """
    if (workdir / artefact.MANIFEST).exists():
        raise UserError(f"{workdir} is a detector folder, which nothing may be written into: wanted --out")
    return workdir / FOLDER


def explain(judge: Scorer, path: Path) -> tuple[Image.Image, list[str]]:
    """A picture of one image file, and what is to say of it in lines.

    Raises:
      UserError: the file cannot be read, or has pixels that are not finite.
    """
    raw, problems = judge.read([path])
    if problems:
        raise UserError(f"{problems[0][0]}: {problems[0][1]}")
    judged = judge.judge(raw)
    score, p_value, verdict = float(judged.scores[0]), float(judged.p_values[0]), judged.verdicts[0]
    if verdict == INVALID:
        raise UserError(f"{images.shown(path)}: NaN or infinite pixels, there is nothing to explain")
    found = residual_maps(judge, raw)
    added = integrated_gradients(judge, found.x)
    name = images.shown(path)
    title = title_of(name, verdict, score, p_value, judge.threshold)
    height, width = images.read_image(path)[0].shape[:2]
    boxes = maps.regions(found.values[0], judge.map_threshold)
    lines = [
        title,
        f"{len(boxes)} region{'s' * (len(boxes) != 1)} above the map's threshold {judge.map_threshold:.4g}"
        + ", in pixels of the file:" * bool(boxes),
    ]
    for i, box in enumerate(boxes, 1):
        left, top, wide, high = in_file(box, judge, height, width)
        lines.append(f"{i:3}  left {left}  top {top}  width {wide}  height {high}  peak {box.peak:.4g}")
    difference = added.scores[0] - added.baseline_scores[0]
    lines.append(
        f"the score differs by {difference:+.4g} from {added.baseline_scores[0]:.4g}, that of its reconstruction; the "
        f"pixels' contributions add up to {added.values[0].sum():+.4g}"
    )
    drawn = picture(judge, found, 0, title, added.values[0])
    return drawn, lines


def write_maps(
    judge: Scorer, folder: Path, files: Sequence[Path], judged: scorer.Judgement, chosen: Sequence[int]
) -> None:
    """A PNG for each chosen file, numbered in the order of `chosen`; those of an earlier call are removed first.

    Args:
      files, judged: as given to and by `Scorer.judge_files`.
      chosen: indices of files that could be scored.

    Raises:
      UserError: a picture cannot be written.
    """
    for old in folder.glob("[0-9][0-9][0-9][0-9]_*.png"):
        old.unlink(missing_ok=True)
    size = min(program.BUCKETS[1], judge.block)
    with Progress(len(chosen), 0, "map") as progress:
        for begin in range(0, len(chosen), size):
            block = chosen[begin : begin + size]
            found = residual_maps(judge, judge.read([files[i] for i in block])[0])
            for k, i in enumerate(block):
                name, verdict = images.shown(files[i]), judged.verdicts[i]
                title = title_of(name, verdict, float(judged.scores[i]), float(judged.p_values[i]), judge.threshold)
                drawn = picture(judge, found, k, title)
                path = folder / f"{begin + k + 1:04}_{pictures.ascii_line(Path(name).stem, 60)}.png"
                pictures.save(drawn, path)
                progress.update(begin + k + 1, path.name)


def write_all(judge: Scorer, given: Any, files: Sequence[Path], judged: scorer.Judgement) -> None:
    """`predict --maps`: pictures of the anomalous images, the most anomalous first, and how many as a line."""
    anomalous = [i for i in np.argsort(-judged.scores).tolist() if judged.verdicts[i] == ANOMALOUS]
    chosen = anomalous[: given.most_maps or None]
    out = Path(given.out) if given.out else None
    folder = out.with_name(f"{out.stem}_{FOLDER}") if out else folder_of(Path(given.workdir))
    write_maps(judge, folder, files, judged, chosen)
    left = f", the most anomalous of {len(anomalous)} (--most-maps 0 draws all)" if len(chosen) < len(anomalous) else ""
    print(f"{len(chosen)} pictures in {folder}{left}")


def main(given: Any, judge: Scorer) -> int:
    """The verb `explain` of images: parsed arguments in, lines on standard output, the exit code back."""
    if judge.columns:
        raise UserError(
            f"{given.workdir} judges sensors, which have no picture: report.html draws them, and sensors.contributions "
            "says from Python what each adds to a score"
        )
    path = Path(given.image)
    out = Path(given.out) if given.out else folder_of(Path(given.workdir)) / f"{path.stem}.png"
    drawn, lines = explain(judge, path)
    pictures.save(drawn, out)
    print("\n".join(lines))
    print(f"picture in {out}")
    return 0
