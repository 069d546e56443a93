"""What the commands of the benchmarks share: arguments, device, report, the pieces of its page, exit code.

JAX is imported where it is needed: what starts only other processes, such as end_to_end.py, must not hold the device.
"""

from __future__ import annotations

import argparse
import atexit
import datetime
import gc
import json
import os
import re
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import timing
from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError

Log = Callable[[str], None]


def parser(doc: str, **more: Any) -> argparse.ArgumentParser:
    """Returns a parser with --out, described by the first line of a script's docstring; `more` is for argparse."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0], **more)
    made.add_argument("--out", required=True, help="where the results go: OUT.json and OUT.md")
    return made


def fill(options: argparse.Namespace, values: Mapping[str, Any]) -> None:
    """Sets options that were not given."""
    for name, value in values.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def at_least(options: argparse.Namespace, least: int, *names: str) -> None:
    """Raises UserError for the first of these options that is smaller; None is accepted."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: got {value}, expected {least} or more")


def seconds(options: argparse.Namespace, *names: str) -> None:
    """Raises UserError for the first of these options that is not above 0."""
    for name in names:
        value = getattr(options, name)
        if not value > 0:
            raise UserError(f"--{name}: got {value}, expected more than 0 seconds")


def numbers(text: str, option: str) -> list[int]:
    """Parses N,N,... from 1; raises UserError for anything else."""
    try:
        values = [int(value) for value in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise UserError(f"{option}: got {text!r}, expected whole numbers from 1 with commas between, such as 1,64")
    return values


def square(text: str) -> tuple[int, int, int]:
    """Parses HEIGHTxWIDTHxCHANNELS; raises UserError if the networks cannot take it."""
    from ganomaly_jax.model import ganomaly

    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip())
    height, width, channels = map(int, found.groups()) if found else (0, 0, 0)
    if height != width or not channels:
        raise UserError(f"--shapes: got {text!r}, expected square images as HEIGHTxWIDTHxCHANNELS, such as 32x32x1")
    return ganomaly.Ganomaly((height, width, channels)).shape


def choose_device(options: argparse.Namespace) -> None:
    """Sets `options.device` (auto, cpu, gpu) to JAX's backend; raises UserError if there is no such device."""
    import jax

    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes that measure memory
        jax.config.update("jax_platforms", "cpu")
    backend = jax.default_backend()
    if options.device == "gpu" and backend != "gpu":
        raise UserError(f"--device gpu: JAX finds none here, only {backend}; install jax[cuda13], or take --device cpu")
    options.device = backend


def own_process() -> None:
    """Of this process and its children: both libraries share the device's memory; nothing compiled earlier is used."""
    import jax

    scratch = tempfile.mkdtemp(prefix="benchmark-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    jax.config.update("jax_enable_compilation_cache", False)


def release() -> None:
    """Releases the programs and memory that a case held in both libraries."""
    import jax

    jax.clear_caches()
    torch = sys.modules.get("torch")
    if torch and "torch._dynamo" in sys.modules:  # its import takes seconds
        torch.compiler.reset()
    gc.collect()
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


def load(log: Log = lambda line: None) -> dict[str, list[float]]:
    """Returns the `load_average` for a new report, with a warning if the machine is not idle."""
    before = timing.load_average()
    if before[0] > 0.3 * timing.cores():
        log(f"the machine is not idle (load average {before[0]}): what it measures now is worth little")
    return {"before": before, "after": before}


def begin(name: str, **more: Any) -> dict[str, Any]:
    """Begins a report: which benchmark, when, and `more` (machine, settings, ...)."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"benchmark": name, "format": 1, "date": date, **more}


def write(
    report: Mapping[str, Any],
    out: str,
    markdown: Callable[[Mapping[str, Any]], str],
    instead: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Writes OUT.json and OUT.md, replacing the keys of `instead`, such as local paths, by its values.

    Raises:
      UserError: they cannot be written.
    """
    texts = {".json": json.dumps(report, indent=1, allow_nan=False) + "\n", ".md": markdown(report)}
    for ending, text in texts.items():
        for found, word in instead.items():
            text = text.replace(found, word)
        atomic_files.write_text(Path(f"{out}{ending}"), text)


def opening(report: Mapping[str, Any], title: str, about: str = "", packages: Sequence[str] = ()) -> list[str]:
    """Returns the head of a page: title, device, date, commit, versions (of all packages or those named), load.

    `about` is a part of the sentence between versions and load; it ends with "; ".
    """
    machine, loads = report["machine"], report["load_average"]
    named = packages or machine["versions"]
    versions = ", ".join(f"{name} {machine['versions'].get(name)}" for name in named)
    return [
        f"# {title} on {machine['jax']['device']} ({machine['processor']}, {machine['cores']} cores)",
        "",
        f"{report['date']}, commit {machine['commit'] or 'unknown'}; {versions}; {about}load average "
        f"{loads['before'][0]} before, {loads['after'][0]} after."
        + " Not finished."
        * (not report.get("finished", True)),
        "",
    ]


def table(columns: str) -> list[str]:
    """Returns the first two lines of a Markdown table with the columns `a | b | c`."""
    return [f"| {columns} |", "|" + " --- |" * (columns.count("|") + 1)]


def quartiles(found: Mapping[str, float], form: str = ".4g") -> str:
    """Formats a `timing.spread` as median (q1-q3)."""
    return f"{found['median']:{form}} ({found['q1']:{form}}-{found['q3']:{form}})"


def extremes(found: Mapping[str, float], form: str = ".2f") -> str:
    """Formats a `timing.spread` as median (min-max)."""
    return f"{found['median']:{form}} ({found['min']:{form}}-{found['max']:{form}})"


def main(
    arguments: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace, Log], Any],
    argv: Sequence[str] | None = None,
    stopped: str = "the files hold the cases that were measured",
) -> int:
    """Runs with the options of the command line and returns the exit code. `stopped` is printed if interrupted."""
    try:
        options = arguments(argv)
        run(options, lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    print(f"{options.out}.json and {options.out}.md are written")
    return 0
