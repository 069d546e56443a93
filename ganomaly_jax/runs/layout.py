"""The files of a run's folder, each named once.

workdir/
  config.json       the resolved configuration
  env.json          versions, devices, hash of the data, seed, lineage
  history.jsonl     losses and diagnostics, a line each
  checkpoints/      the state of the training, by step
  detector/         the finished detector
  metrics.json      what `evaluate` measured
  predictions.csv   a row an item: path, label, score, p_value, verdict
  predictions/      a table for each set of other data that `predict` was given
  evaluations/      a folder for each set of other data that `evaluate` was given
  pictures/         what was drawn on the way, and by the report
  maps/             what `explain` draws
  report.html       everything above on one page
  members.json      of a sweep: the models that were trained together
  members/NAME/     of a sweep: the folder of each
  update.json       of an update: what was decided, and why
  candidate/        of an update: the new detector, until it is accepted
  refused/          of an update: the new detector, where it was not
  .ganomaly-lock    while a process writes to the folder: who it is, see `lock`
  spool/            events of `monitor` that wait for their receivers
"""

from __future__ import annotations

CONFIG = "config.json"
ENVIRONMENT = "env.json"
HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
DETECTOR = "detector"
METRICS = "metrics.json"
PREDICTIONS = "predictions.csv"
OTHER_PREDICTIONS = "predictions"
EVALUATIONS = "evaluations"
PICTURES = "pictures"
MAPS = "maps"
REPORT = "report.html"
MEMBER_LIST = "members.json"
MEMBERS = "members"
UPDATE = "update.json"
CANDIDATE = "candidate"
REFUSED = "refused"
SPOOL = "spool"
