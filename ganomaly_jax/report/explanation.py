"""Explaining the scores of images: pictures of residual maps and of the contributions of pixels to the score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ganomaly_jax.core import calls, sealed_folder
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data.images import decode
from ganomaly_jax.report import image_grids
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import inference, residual_map
from ganomaly_jax.scoring.attribution import Maps, in_file, integrated_gradients, residual_maps
from ganomaly_jax.scoring.calibration import ANOMALOUS, INVALID
from ganomaly_jax.scoring.judgement import Judgement
from ganomaly_jax.scoring.scorer import Scorer

if TYPE_CHECKING:
    from PIL import Image

_PANEL = 256  # pixels, the least side of a panel that the image's side divides
# Contributions are drawn as sums over squares, so many a side; in full colour where one is this share of the threshold.
_SQUARES, _FULL = 32, 0.02
# Colours of what lies above a map's threshold: without the darkest, which look like nothing.
_HEAT = image_grids.COLOURS[72:]
_BOX, _CONTOUR = (0, 190, 255), (255, 255, 255)
_BLUE, _RED = np.array([33, 102, 172]), np.array([200, 68, 43])


def picture(scorer: Scorer, found: Maps, i: int, title: str, contributions: np.ndarray | None = None) -> Image.Image:
    """Draws an explanation of an image's score: input, reconstruction, residual map, regions and contributions.

    Colours have the same meaning in all pictures of a detector: those of the map start at its threshold, which was set
    on the calibration images; those of contributions are relative to the threshold of the score.

    Args:
      scorer: the detector.
      found: the residual maps.
      i: the index of the image.
      title: the title.
      contributions: [H, W, C], as in `Attribution.values`, drawn red if they raise the score and blue if they lower it;
        None: they are not drawn.

    Returns:
      A Pillow image.
    """
    from PIL import Image, ImageDraw, ImageFont

    call = "gj.picture(scorer, gj.residual_maps(scorer, images), 0, 'title')"
    calls.expect(Scorer, f"a gj.Scorer, as in {call}", scorer=scorer)
    calls.expect(Maps, f"residual maps, as in {call}", found=found)
    if not 0 <= i < len(found.values):
        raise UserError(f"i={i}: expected the index of one of {len(found.values)} images")
    values, threshold = found.values[i], scorer.map_threshold
    x = image_grids.to_rgb(found.x[i])
    factor = max(1, -(-_PANEL // max(values.shape)))
    gap, top = 4 * image_grids.GAP, 58
    above = (values > threshold)[..., None]
    share = np.clip((values / threshold - 1) / (residual_map.END - 1), 0, 1)
    heat = _HEAT[np.round(share * (len(_HEAT) - 1)).astype(int)]
    over = np.where(above, 0.4 * x + 0.6 * heat, x)
    panels = [
        ("input", x),
        ("what normal would look like", image_grids.to_rgb(found.x_hat[i])),
        ("difference beyond normal", np.where(above, heat, image_grids.COLOURS[0])),
        ("found", over.astype(np.uint8)),
    ]
    if contributions is not None:
        panels.append(("what raises the score", _diverging(contributions.sum(-1), scorer.threshold)))
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    height, width = values.shape[0] * factor, values.shape[1] * factor
    # Narrow images still need room for their captions.
    step = max(width, 190) + gap
    sheet = Image.new("RGB", (gap + step * len(panels), top + height + 62), (image_grids.PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 12), image_grids.ascii_line(title, 150), font=large, fill=image_grids.INK)
    for place, (name, panel) in enumerate(panels):
        left = gap + place * step
        draw.text((left, top - 18), name, font=small, fill=image_grids.GREY)
        sheet.paste(Image.fromarray(panel.repeat(factor, 0).repeat(factor, 1)), (left, top))
    boxes = residual_map.regions(values, threshold)
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
    for words, x_at, anchor in (
        (f"{threshold:.3g}", 0, "la"),
        (f"{residual_map.END * threshold:.3g}", bar.shape[1], "ra"),
    ):
        draw.text((gap + 2 * step + x_at, below + 15), words, font=small, fill=image_grids.INK, anchor=anchor)
    count = f"{len(boxes)} region{'s' * (len(boxes) != 1)}" if boxes else "no region"
    draw.text((at, below), f"{count} above {threshold:.3g}", font=small, fill=image_grids.GREY)
    if contributions is not None:
        draw.text((gap + 4 * step, below), f"in all {contributions.sum():+.3g}", font=small, fill=image_grids.GREY)
        draw.text((gap + 4 * step, below + 16), "red raises, blue lowers", font=small, fill=image_grids.GREY)
    return sheet


def _contours(sheet: Image.Image, inside: np.ndarray, factor: int, left: int, top: int) -> None:
    """Draws white contours around the enlarged pixels that are `inside`."""
    large = np.pad(inside.repeat(factor, 0).repeat(factor, 1), 1)
    core = large[:-2, 1:-1] & large[2:, 1:-1] & large[1:-1, :-2] & large[1:-1, 2:]
    edge = large[1:-1, 1:-1] & ~core
    from PIL import Image

    sheet.paste(_CONTOUR, (left, top), Image.fromarray(edge.astype(np.uint8) * 255))


def _diverging(values: np.ndarray, threshold: float) -> np.ndarray:
    """Converts contributions [H, W], summed over squares, to colours [H, W, 3] uint8: blue below 0, red above."""
    ends = [np.linspace(0, side, min(side, _SQUARES) + 1).round().astype(int) for side in values.shape]
    sums = np.add.reduceat(np.add.reduceat(values, ends[0][:-1], axis=0), ends[1][:-1], axis=1)
    full = _FULL * abs(threshold) or max(float(np.abs(sums).max()), 1e-12)
    share = np.clip(sums / full, -1, 1).repeat(np.diff(ends[0]), 0).repeat(np.diff(ends[1]), 1)[..., None]
    colour = np.where(share > 0, _RED, _BLUE)
    return np.round(255 + np.abs(share) * (colour - 255)).astype(np.uint8)


def title_of(name: str, verdict: str, score: float, p_value: float, threshold: float) -> str:
    """Formats verdict, score, threshold, p-value and name in one line."""
    sign = ">" if score > threshold else "<="
    return f"{verdict}: score {score:.4g} {sign} threshold {threshold:.4g}, p-value {p_value:.3g}   {name}"


def folder_of(workdir: Path) -> Path:
    """Returns the default folder for pictures.

    Raises:
      UserError: `workdir` is a detector folder, which is sealed.
    """
    if (workdir / sealed_folder.MANIFEST).exists():
        raise UserError(f"{workdir} is a detector folder, which is sealed: expected --out for the pictures")
    return workdir / layout.MAPS


def explain(scorer: Scorer, path: str | os.PathLike[str]) -> tuple[Image.Image, list[str]]:
    """Explains the score of one image file.

    Args:
      scorer: a detector of images.
      path: the image file.

    Returns:
      The picture, a Pillow image, and lines for the terminal.

    Raises:
      UserError: the file cannot be read, or has pixels that are not finite.
    """
    call = "gj.explain(gj.load('runs/mine'), 'a.png')"
    calls.expect(Scorer, f"a gj.Scorer, as in {call}", scorer=scorer)
    calls.expect(calls.PATH, f"an image file, as in {call}", path=path)
    path = Path(path)
    raw, problems = scorer.read([path])
    if problems:
        raise UserError(f"{problems[0][0]}: {problems[0][1]}")
    judged = scorer.judge(raw)
    score, p_value, verdict = float(judged.scores[0]), float(judged.p_values[0]), judged.verdicts[0]
    if verdict == INVALID:
        raise UserError(f"{decode.shown(path)}: NaN or infinite pixels, there is nothing to explain")
    found = residual_maps(scorer, raw)
    added = integrated_gradients(scorer, found.x)
    name = decode.shown(path)
    title = title_of(name, verdict, score, p_value, scorer.threshold)
    height, width = decode.read_image(path)[0].shape[:2]
    boxes = residual_map.regions(found.values[0], scorer.map_threshold)
    lines = [
        title,
        f"{len(boxes)} region{'s' * (len(boxes) != 1)} above the map's threshold {scorer.map_threshold:.4g}"
        + ", in pixels of the file:" * bool(boxes),
    ]
    for i, box in enumerate(boxes, 1):
        left, top, wide, high = in_file(box, scorer, height, width)
        lines.append(f"{i:3}  left {left}  top {top}  width {wide}  height {high}  peak {box.peak:.4g}")
    difference = added.scores[0] - added.baseline_scores[0]
    lines.append(
        f"the score differs by {difference:+.4g} from {added.baseline_scores[0]:.4g}, that of its reconstruction; the "
        f"pixels' contributions add up to {added.values[0].sum():+.4g}"
    )
    drawn = picture(scorer, found, 0, title, added.values[0])
    return drawn, lines


def write_maps(scorer: Scorer, folder: Path, files: Sequence[Path], judged: Judgement, chosen: Sequence[int]) -> None:
    """Writes a PNG for each chosen file, numbered in the order of `chosen`, and removes those of an earlier call.

    Args:
      files, judged: as given to and by `Scorer.judge_files`.
      chosen: indices of files that could be scored.

    Raises:
      UserError: a picture cannot be written.
    """
    for old in folder.glob("[0-9][0-9][0-9][0-9]_*.png"):
        old.unlink(missing_ok=True)
    size = min(inference.BUCKETS[1], scorer.block)
    with Progress(len(chosen), 0, "map") as progress:
        for begin in range(0, len(chosen), size):
            block = chosen[begin : begin + size]
            found = residual_maps(scorer, [files[i] for i in block])
            for k, i in enumerate(block):
                name, verdict = decode.shown(files[i]), judged.verdicts[i]
                title = title_of(name, verdict, float(judged.scores[i]), float(judged.p_values[i]), scorer.threshold)
                drawn = picture(scorer, found, k, title)
                path = folder / f"{begin + k + 1:04}_{image_grids.ascii_line(Path(name).stem, 60)}.png"
                image_grids.save(drawn, path)
                progress.update(begin + k + 1, path.name)


def write_most_anomalous(
    scorer: Scorer, folder: Path, files: Sequence[Path], judged: Judgement, most: int
) -> tuple[int, int]:
    """Draws the anomalous images, the most anomalous first.

    Args:
      folder: where the pictures go, see `write_maps`.
      files, judged: as given to and by `Scorer.judge_files`.
      most: draw at most this many; 0: all.

    Returns:
      How many were drawn, and how many are anomalous.

    Raises:
      UserError: a picture cannot be written.
    """
    anomalous = [i for i in np.argsort(-judged.scores).tolist() if judged.verdicts[i] == ANOMALOUS]
    chosen = anomalous[: most or None]
    write_maps(scorer, folder, files, judged, chosen)
    return len(chosen), len(anomalous)
