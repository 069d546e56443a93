"""`history.jsonl`: lines of losses, and what a resumed run says about them."""

import json

import numpy as np

from ganomaly_jax.runs import history as runs_history
from ganomaly_jax.runs.history import History


def lines(path, step, n, every=10):
    """The lines after a run that resumes at `step` and takes n steps, whose only loss is the number of the step."""
    with History(path, step, 4, every, ["loss"]) as history:
        history.add(np.arange(step + 1, step + n + 1, dtype=np.float32)[:, None], 0.0)
        history.flush()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_of_fewer_steps_says_how_many(tmp_path):
    whole = lines(tmp_path / "whole.jsonl", 0, 30)
    assert [(line["step"], line["loss"]) for line in whole] == [(10, 5.5), (20, 15.5), (30, 25.5)]
    assert all("steps" not in line for line in whole)
    # Killed at step 19, after a checkpoint of step 14: the steps 11 to 14 are in no line.
    path = tmp_path / "killed.jsonl"
    lines(path, 0, 10)
    resumed = lines(path, 14, 12)
    assert [(line["step"], line["loss"], line.get("steps")) for line in resumed] == [
        (10, 5.5, None),
        (20, 17.5, 6),
        (26, 23.5, 6),
    ]


def test_a_history_with_damaged_lines_is_continued(tmp_path):
    """What can be read stays; bytes that are no text and nesting without end are passed over."""
    path = tmp_path / "history.jsonl"
    held = [b'{"step": 2, "loss": 0.5}', b'{"step": 3, "lo\xff\xfess', b"[" * 100_000, b'{"step": [3]}']
    path.write_bytes(b"\n".join([*held, b'{"step": 9, "loss": 0.1}\n']))
    lines(path, 4, 2, every=2)
    assert [(record["step"], record["loss"]) for record in runs_history.read(path)] == [(2, 0.5), (6, 5.5)]
