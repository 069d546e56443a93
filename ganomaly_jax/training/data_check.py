"""A look at data before anything is trained on them: what there is, what is wrong with it, and what to do."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core import text_table, validation
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
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
    """What a look at data has found."""

    table: list[dict[str, Any]]
    """A dict each class: its counts by part, sizes, types and values."""
    kind: str
    """What all of them become: size, type, range."""
    findings: list[Finding]
    content_hash: str

    @property
    def usable(self) -> bool:
        """Returns True if nothing is unusable."""
        return all(finding.weight != UNUSABLE for finding in self.findings)


def check(settings: Config, scorer: Scorer | None = None, progress: bool = False) -> Check:
    """Inspects data, each item once, without keeping the items of files.

    Args:
      settings: where the data are and how they would be trained on.
      judge: a detector to compare them with; its size, channels and fit are taken.
      progress: show bars on standard error.

    Raises:
      UserError: a source that is not there or cannot be understood, or nothing in it that can be read.
    """
    settings = copy.deepcopy(settings)
    if scorer is not None:
        settings.data = dataclasses.replace(scorer.reading(settings.data.source), low=0, high=0)
    validation.check(settings)
    headers = _headers(settings.data.source)
    # Shared, files are looked through and let go, and read again where they are needed.
    dataset = sources.read(settings.data, progress=progress, shared=True)
    if scorer is not None and settings.data.abnormal not in dataset.classes:
        settings.data.abnormal = ""
    found: list[Finding] = []
    looked = _look(dataset, progress)
    split, normal = _split(dataset, settings, looked, found)
    training_findings.unusable(dataset, found)
    training_findings.classes(dataset, normal, found)
    if not settings.data.abnormal:  # with a class that is called abnormal the parts are pooled
        training_findings.parts(dataset, normal, found)
    modality, inspection = modalities.named(dataset.modality), training_modalities.of(dataset)
    training_findings.copies(dataset, looked, modality.words(settings.data).same, normal, split, found)
    inspection.values(dataset, looked, settings, found)
    training_findings.shapes(dataset, headers, settings, found)
    if split is not None:
        training_findings.enough(split, settings, found)
    if scorer is not None:
        if not training_findings.other_type(scorer, dataset, found):
            inspection.fits(scorer, dataset, looked, found)
        training_findings.other_channels(scorer, headers, found)
        if normal is not None:
            training_findings.scores(scorer, dataset, looked, normal, settings.data.source, found)
    found.sort(key=lambda finding: training_findings.WEIGHTS.index(finding.weight))
    span = "fitted on the normal training items" if dataset.low is None else f"{dataset.low:g} to {dataset.high:g}"
    kind = f"all become {modality.size(dataset)} of {dataset.images.dtype}, range {span}"
    return Check(_table(dataset, looked, normal, headers), kind, found, datasets.content_hash(dataset))


def _headers(source: str) -> Headers:
    """Returns (height, width, mode) of each file of a folder of images, by its path in the data set."""
    listed = sources.image_folder(source) if source else None
    if listed is None:
        return {}
    found = {decode.shown(path): decode.image_header(path) for path, _, _ in listed[0]}
    return {path: header for path, header in found.items() if header is not None}


def _look(dataset: Dataset, progress: bool) -> training_findings.Looked:
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
                each = block[learned[len(hashes) - len(block) : len(hashes)]].reshape(-1, block.shape[-1])
                columns += [(each.min(axis=0), each.max(axis=0))] if len(each) else []
            bar.update(len(hashes), "looked at")
    extremes = (np.min([low for low, _ in columns], 0), np.max([high for _, high in columns], 0)) if columns else None
    return training_findings.Looked(
        hashes, np.concatenate(lows), np.concatenate(highs), np.concatenate(finite), extremes
    )


def _learned(dataset: Dataset) -> np.ndarray:
    """Returns which items [N] training may use: normal ones outside a test part; all if nothing says so."""
    found = np.ones(len(dataset.labels), bool)
    if dataset.normal is not None:
        found &= np.isin(dataset.labels, [i for i, name in enumerate(dataset.classes) if name in dataset.normal])
    if dataset.parts is not None:
        found &= dataset.parts == 0
    return found if found.any() else np.ones(len(found), bool)


def _split(
    dataset: Dataset, settings: Config, looked: training_findings.Looked, found: list[Finding]
) -> tuple[Split | None, frozenset[str] | None]:
    """Returns the split of a training and the normal classes; None, with a finding, if it would refuse."""
    try:
        normal = splits.normal_classes(dataset, settings.data.abnormal)
    except UserError as error:
        found.append(Finding(UNUSABLE, "classes", str(error), "a training would stop here"))
        return None, dataset.normal
    by_column = training_modalities.of(dataset).by_column
    if not by_column and not looked.finite.all():  # these have a finding of their own
        return None, normal
    try:
        return modalities.named(dataset.modality).split(dataset, settings.data, settings.seed), normal
    except UserError as error:
        found.append(Finding(UNUSABLE, "split", str(error), "a training would stop here"))
        return None, normal


def _table(
    dataset: Dataset, looked: training_findings.Looked, normal: frozenset[str] | None, headers: Headers
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    part = np.zeros(len(dataset.labels), int) if dataset.parts is None else dataset.parts
    for i, name in enumerate(dataset.classes):
        own = dataset.labels == i
        seen = [headers[dataset.paths[k]] for k in np.flatnonzero(own) if dataset.paths[k] in headers]
        kept = own & looked.finite
        lines.append(
            {
                "class": name,
                "taken_as": "?" if normal is None else "normal" if name in normal else "anomalous",
                "train" if dataset.parts is not None else "items": int((own & (part == 0)).sum()),
                **({"test": int((own & (part == 1)).sum())} if dataset.parts is not None else {}),
                "sizes": sorted({(h, w) for h, w, _ in seen}) or [dataset.images.shape[1:]],
                "types": sorted({training_findings.sort_of(mode) for _, _, mode in seen})
                or [str(dataset.images.dtype)],
                "lowest": float(looked.low[kept].min()) if kept.any() else None,
                "highest": float(looked.high[kept].max()) if kept.any() else None,
            }
        )
    return lines


def describe(found: Check) -> str:
    """Formats a table, then a sentence per finding with what to do."""

    def sizes(listed: Sequence[Sequence[int]]) -> str:
        ends = ["x".join(map(str, one)) for one in (listed[0], listed[-1])]
        return ends[0] if len(listed) == 1 else f"{len(listed)}: {ends[0]} to {ends[1]}"

    shown = []
    for row in found.table:
        values = "-" if row["lowest"] is None else f"{row['lowest']:g} to {row['highest']:g}"
        cells = {**row, "sizes": sizes(row["sizes"]), "types": ", ".join(row["types"]), "values": values}
        shown.append({key: str(cell) for key, cell in cells.items() if key not in ("lowest", "highest")})
    titles = [key.replace("_", " ") for key in shown[0]]
    counts = {k for k, key in enumerate(shown[0]) if key in ("train", "test", "items")}
    lines = [*text_table.lines([titles, *(list(row.values()) for row in shown)], right=counts), found.kind]
    for finding in found.findings:
        some = "; ".join(finding.items[: training_findings.EXAMPLES])
        more = f" ({some}{'; ...' if len(finding.items) > training_findings.EXAMPLES else ''})" if some else ""
        lines += [f"{finding.weight}: {finding.what}{more}", f"    what to do: {finding.do}"]
    if not found.findings:
        lines.append("nothing wrong was found")
    return "\n".join(lines)
