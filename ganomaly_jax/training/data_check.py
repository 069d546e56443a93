"""Inspection of data before training: what there is, what is wrong with it, and what to do about it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core import calls, text_table, validation
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import LONGEST, printable
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data import datasets, lazy, modalities, sources, splits
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.splits import Split
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import findings as training_findings
from ganomaly_jax.training import modalities as training_modalities
from ganomaly_jax.training.findings import UNUSABLE, Finding, Headers


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of an inspection."""

    table: list[dict[str, Any]]
    """One dict per class: its counts by part, sizes, types and range of values."""
    kind: str
    """A sentence on what all items are converted to: size, dtype, range."""
    findings: list[Finding]
    """Findings, the most serious first."""
    content_hash: str
    """Hash of the data set, as in `env.json` of a run."""

    @property
    def usable(self) -> bool:
        """Returns whether nothing was found that is unusable."""
        return all(finding.weight != UNUSABLE for finding in self.findings)


def check(settings: Config, scorer: Scorer | None = None, progress: bool = False) -> Check:
    """Inspects data in one pass, without keeping the items of files in memory.

    Args:
      settings: where the data are and how a training would use them.
      scorer: a detector to compare them with; the data are then read with its size, channels and fit.
      progress: show progress bars on standard error.

    Returns:
      A table of the classes and the findings, the most serious first.

    Raises:
      UserError: the source does not exist or is not recognised, or none of it can be read.
    """
    calls.expect_config(settings, "gj.check(config)")
    calls.expect((Scorer, type(None)), "a gj.Scorer, as in gj.check(config, gj.load('runs/mine'))", scorer=scorer)
    settings = copy.deepcopy(settings)
    if scorer is not None:
        settings.data = dataclasses.replace(scorer.reading(settings.data.source), low=0, high=0)
    validation.check(settings)
    headers = _headers(settings.data.source)
    # With `shared`, files are decoded once to be inspected, released, and read again where they are needed.
    dataset = sources.read(settings.data, progress=progress, shared=True)
    if scorer is not None and settings.data.abnormal not in dataset.classes:
        settings.data.abnormal = ""
    findings: list[Finding] = []
    looked = _look(dataset, progress)
    split, normal = _split(dataset, settings, looked, findings)
    training_findings.unusable(dataset, findings)
    training_findings.classes(dataset, normal, findings)
    if not settings.data.abnormal:  # where a class is declared abnormal, the parts are pooled
        training_findings.parts(dataset, normal, findings)
    modality, inspection = modalities.named(dataset.modality), training_modalities.of(dataset)
    training_findings.copies(dataset, looked, modality.words(settings.data).same, normal, split, findings)
    inspection.values(dataset, looked, settings, findings)
    training_findings.shapes(dataset, headers, settings, findings)
    if split is not None:
        training_findings.enough(split, settings, findings)
    if scorer is not None:
        if not training_findings.other_type(scorer, dataset, findings):
            inspection.fits(scorer, dataset, looked, findings)
        training_findings.other_channels(scorer, headers, findings)
        if normal is not None:
            training_findings.scores(scorer, dataset, looked, normal, settings.data.source, findings)
    findings.sort(key=lambda finding: training_findings.WEIGHTS.index(finding.weight))
    kind = f"all become {modality.describe(dataset)}"
    return Check(_table(dataset, looked, normal, headers), kind, findings, datasets.content_hash(dataset))


def _headers(source: str) -> Headers:
    """Returns (height, width, mode) of each readable file of a folder of images, by its path in the data set."""
    listed = sources.image_folder(source) if source else None
    if listed is None:
        return {}
    headers = {decode.shown(path): decode.image_header(path) for path, _, _ in listed[0]}
    return {path: header for path, header in headers.items() if header is not None}


def _look(dataset: Dataset, progress: bool) -> training_findings.Looked:
    """Reads every item once and returns their hashes and extremes."""
    hashes: list[bytes] = []
    lows, highs, finite = [], [], []
    learned = _learned(dataset) if training_modalities.of(dataset).by_column else None
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    with Progress(len(dataset.labels), 0, "item", quiet=not progress) as bar:
        for block in lazy.blocks(dataset.images):
            hashes += [datasets.image_hash(item) for item in block]
            flat = block.reshape(len(block), -1)
            lows.append(flat.min(axis=1).astype(float))
            highs.append(flat.max(axis=1).astype(float))
            finite.append(np.isfinite(lows[-1]) & np.isfinite(highs[-1]))
            if learned is not None:
                values = block[learned[len(hashes) - len(block) : len(hashes)]].reshape(-1, block.shape[-1])
                columns += [(values.min(axis=0), values.max(axis=0))] if len(values) else []
            bar.update(len(hashes), "inspected")
    extremes = (np.min([low for low, _ in columns], 0), np.max([high for _, high in columns], 0)) if columns else None
    return training_findings.Looked(
        hashes, np.concatenate(lows), np.concatenate(highs), np.concatenate(finite), extremes
    )


def _learned(dataset: Dataset) -> np.ndarray:
    """Returns which items [N] training may use: normal ones outside a test part, or all if there are none."""
    usable = np.ones(len(dataset.labels), bool)
    if dataset.normal is not None:
        usable &= np.isin(dataset.labels, [i for i, name in enumerate(dataset.classes) if name in dataset.normal])
    if dataset.parts is not None:
        usable &= dataset.parts == 0
    return usable if usable.any() else np.ones(len(usable), bool)


def _split(
    dataset: Dataset, settings: Config, looked: training_findings.Looked, found: list[Finding]
) -> tuple[Split | None, frozenset[str] | None]:
    """Returns the split of a training and the normal classes; no split, and a finding, if training would refuse."""
    try:
        normal = splits.normal_classes(dataset, settings.data.abnormal)
    except UserError as error:
        found.append(Finding(UNUSABLE, "classes", str(error), "a training would stop here"))
        return None, dataset.normal
    by_column = training_modalities.of(dataset).by_column
    if not by_column and not looked.finite.all():  # reported by a finding of its own
        return None, normal
    try:
        return modalities.named(dataset.modality).split(dataset, settings.data, settings.seed), normal
    except UserError as error:
        found.append(Finding(UNUSABLE, "split", str(error), "a training would stop here"))
        return None, normal


def _table(
    dataset: Dataset, looked: training_findings.Looked, normal: frozenset[str] | None, headers: Headers
) -> list[dict[str, Any]]:
    """Returns one dict per class: its counts, sizes, types and range of finite values."""
    rows: list[dict[str, Any]] = []
    part = np.zeros(len(dataset.labels), int) if dataset.parts is None else dataset.parts
    for i, name in enumerate(dataset.classes):
        in_class = dataset.labels == i
        files = [headers[dataset.paths[k]] for k in np.flatnonzero(in_class) if dataset.paths[k] in headers]
        finite = in_class & looked.finite
        rows.append(
            {
                "class": name,
                "taken_as": "?" if normal is None else "normal" if name in normal else "anomalous",
                "train" if dataset.parts is not None else "items": int((in_class & (part == 0)).sum()),
                **({"test": int((in_class & (part == 1)).sum())} if dataset.parts is not None else {}),
                "sizes": sorted({(h, w) for h, w, _ in files}) or [dataset.images.shape[1:]],
                "types": sorted({training_findings.sort_of(mode) for _, _, mode in files})
                or [str(dataset.images.dtype)],
                "lowest": float(looked.low[finite].min()) if finite.any() else None,
                "highest": float(looked.high[finite].max()) if finite.any() else None,
            }
        )
    return rows


def describe(result: Check) -> str:
    """Formats the table of classes, then each finding with what to do about it."""

    def sizes(listed: Sequence[Sequence[int]]) -> str:
        ends = ["x".join(map(str, size)) for size in (listed[0], listed[-1])]
        return ends[0] if len(listed) == 1 else f"{len(listed)}: {ends[0]} to {ends[1]}"

    shown = []
    for row in result.table:
        values = "-" if row["lowest"] is None else f"{row['lowest']:g} to {row['highest']:g}"
        cells = {**row, "sizes": sizes(row["sizes"]), "types": ", ".join(row["types"]), "values": values}
        shown.append({key: str(cell) for key, cell in cells.items() if key not in ("lowest", "highest")})
    titles = [key.replace("_", " ") for key in shown[0]]
    counts = {k for k, key in enumerate(shown[0]) if key in ("train", "test", "items")}
    lines = [*text_table.lines([titles, *(list(row.values()) for row in shown)], right=counts), result.kind]
    for finding in result.findings:
        some = "; ".join(printable(item, LONGEST) for item in finding.items[: training_findings.EXAMPLES])
        more = f" ({some}{'; ...' if len(finding.items) > training_findings.EXAMPLES else ''})" if some else ""
        lines += [f"{finding.weight}: {printable(finding.what, LONGEST)}{more}", f"    what to do: {finding.do}"]
    if not result.findings:
        lines.append("no problems found")
    return "\n".join(lines)
