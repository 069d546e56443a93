"""The curves of a scored test set, for the report."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from ganomaly_jax.evaluation import metrics
from ganomaly_jax.report.curve_plots import Scored


def scored(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> Scored:
    """Computes the summary, the ROC curve and the precision-recall curve of a test set.

    Args:
      labels: [N] 0 (normal) or 1 (anomalous).
      scores: [N] float; items whose score is not finite are left out.
      threshold: a score above it is anomalous; None: there is no threshold.

    Returns:
      The scored test set for `report.curve_plots`, with curves if both classes are present.

    Raises:
      UserError: labels other than 0 and 1, or different lengths.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.shape == scores.shape:
        labels, scores = labels[np.isfinite(scores)], scores[np.isfinite(scores)]
    labels, scores = metrics.checked(labels, scores)
    summary = metrics.summary(labels, scores, threshold)
    if summary["auroc"] is None:
        return Scored(labels, scores, threshold, summary, None, None)
    roc, precision_recall = metrics.roc_curve(labels, scores), metrics.precision_recall_curve(labels, scores)
    return Scored(labels, scores, threshold, summary, roc, precision_recall)
