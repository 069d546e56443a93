"""Options of `ganomaly monitor` and their defaults."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the monitor; `ganomaly monitor --help` describes each in a line."""

    source: str = "-"
    """A growing CSV or JSONL file, or a folder that fills with images; `-`: rows from standard input."""
    once: bool = False
    """Whether to end at the end of the file, or once the folder is scored."""
    out: str = ""
    """File that verdicts and events are appended to; empty: standard output."""
    state: str = ""
    """File that keeps the state, so that a restart resumes; empty: none is kept."""
    save_every: float = 5.0
    """Seconds between saves of the state."""
    format: str = ""
    """`csv` or `jsonl`; empty: that of the first line."""
    time: str = ""
    """Name of the column that holds the time; empty: one called `time`."""
    csv: str = ""
    """Format of ambiguous rows, as in `data.csv`; empty: as in training."""
    poll: float = 0.1
    """Seconds between reads of the source."""
    normals: str = ""
    """Normal data to compare the stream with; empty: the run's own."""
    top: int = 3
    """Sensors named in a verdict."""
    steps: int = 32
    """Integration steps of their contributions."""
    alarm: str = "3/5"
    """`K/N`: an alarm where K of the last N verdicts are anomalous."""
    cool_down: int = 60
    """Verdicts after an alarm without another."""
    silent: int = 5
    """Rows without a value after which a sensor is reported; 0: never."""
    stuck: int = 30
    """Rows with the same value after which a sensor is reported; 0: never."""
    drift_every: float = 50_000
    """Mean number of items between false alarms of each drift test; 0: drift is not tested."""
    drift_step: int = 0
    """Verdicts from one item of the drift tests to the next; 0: as many as share no row."""
    drift_window: int = 200
    """Items in a window of the drift tests."""
    sinks: tuple[str, ...] = ()
    """Files and http(s) addresses that get the events."""
    sink_timeout: float = 10.0
    """Deadline in seconds for delivering an event to an address, from connecting to the end of the response."""
    spool: str = ""
    """Folder in which undelivered events wait; empty: beside the state."""
    live: bool = False
    """Whether to show a view on the terminal."""
    report: str = ""
    """Picture of scores, drift and events, drawn every minute and at the end; empty: none."""
