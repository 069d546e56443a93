"""A fault campaign: kills, full disks, flipped bits, failing files and signals, and what is left afterwards.

    python benchmarks/faults/campaign.py --out benchmarks/faults/results/faults

writes NAME.json and NAME.md after every fault anew; README.md beside this file says what is done and what must hold.
The exit code is 1 where something did not.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from benchmarks.faults import cases as fault_cases
from benchmarks.faults import runs as fault_runs
from benchmarks.faults import sources as fault_sources
from ganomaly_jax.core.errors import UserError

PARTS: dict[str, Callable[[fault_runs.Bench, int, fault_runs.Found, Callable[[], None]], None]] = {
    "kills": fault_cases.kills,
    "disks": fault_cases.disks,
    "flips": fault_cases.flips,
    "sources": fault_sources.sources,
    "signals": fault_cases.signals,
}
MUST_HOLD = {
    "kills": "checkpoints and detector load, one save interval lost at most, the end is the same to the bit",
    "disks": "exit code 2 and one sentence, checkpoints intact, going on ends the same to the bit",
    "flips": "none loads, each is refused as damaged",
    "sources": "bad files named, the others scored as ever, no hang, no traceback",
    "signals": "gone within 10 s, the step that is said is saved, the end is the same to the bit",
}


def measure(options: argparse.Namespace, report: dict[str, Any], write: Callable[[], None], log: Log) -> None:
    """Fills `report["found"]` part by part, calling `write` after every fault."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        flags: tuple[str, ...] = ("--config", str(timing.ROOT / "configs" / "smoke.py"), "--config.train.log_every=1")
        flags += tuple(f"--config.model.{name}=4" for name in ("features", "latent_size"))
        flags += (f"--config.train.steps={options.steps}", f"--config.train.save_every={options.save_every}")
        random = np.random.default_rng(options.seed)
        log("training without a fault")
        bench = fault_runs.Bench(Path(scratch), options.steps, options.save_every, options.limit, random, flags)
        fault_runs.compile_all(bench)
        bench = fault_runs.prepare(bench)
        report["without_fault_s"] = {"start": bench.start_s, "loop": bench.loop_s, "end": bench.end_s}
        for part in options.parts:
            found = fault_runs.Found()
            entry = {"asked": getattr(options, part), "finished": False, "seconds": 0.0, **dataclasses.asdict(found)}
            entry |= {"counts": found.counts, "defects": found.defects}  # filled as the part goes on
            report["found"][part] = entry
            begin = time.monotonic()

            def tell(entry: dict[str, Any] = entry, begin: float = begin) -> None:
                entry["seconds"] = round(time.monotonic() - begin, 1)
                write()

            log(f"{part}: {entry['asked']}")
            PARTS[part](bench, entry["asked"], found, tell)
            entry["finished"] = True
            tell()
            log(f"{part}: {_line(found.counts)}")
            for kind, seen in found.defects.items():
                log(f"  DEFECT {kind} ({seen['times']} times), such as: {seen['first']}")


def _line(counts: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in counts.items() if not isinstance(value, dict)}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    machine, settings, times = report["machine"], report["settings"], report["without_fault_s"]
    lines = [
        "# Faults: what is left after them",
        "",
        f"{report['date']}, commit {machine['commit'] or 'unknown'}; {machine['processor']}, {machine['cores']} cores; "
        f"jax {machine['versions'].get('jax')}, on the CPU. Training: 16x16, {settings['steps']} steps, saving every "
        f"{settings['save_every']}; without a fault {sum(times.values()):.0f} s, {times.get('loop', 0):.0f} s of them "
        f"in the loop. Seed {settings['seed']}.",
        "",
        *command.table("part | asked | minutes | must hold | found | broken"),
    ]
    for part, entry in report["found"].items():
        broken = sum(defect["times"] for defect in entry["defects"].values())
        asked = f"{entry['asked']}{'' if entry['finished'] else ', not finished'}"
        cells = (part, asked, f"{entry['seconds'] / 60:.1f}", MUST_HOLD[part], _line(entry["counts"]), f"{broken}")
        lines.append(f"| {' | '.join(cells)} |")
    said = [
        f"- {part}: {kind}, {defect['times']} times, such as: {defect['first']}"
        for part, entry in report["found"].items()
        for kind, defect in entry["defects"].items()
    ]
    sentences = report["found"].get("disks", {}).get("counts", {}).get("sentences", {})
    lines += ["", "What did not hold:" if said else "All of it held.", *([""] if said else []), *said]
    if sentences:
        lines += ["", "What disks made it say:", "", *(f"- {times} x `{said}`" for said, times in sentences.items())]
    return "\n".join([*lines, ""])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas between (default: all)")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--disks", type=int, default=20, help="full and read-only ones in turn (default: %(default)s)")
    parser.add_argument("--flips", type=int, default=1000, help="of a checkpoint, and of a detector (default: 1000)")
    cases = len(fault_sources.CASES)
    parser.add_argument("--sources", type=int, default=2 * cases, help=f"of {cases} in turn (default: %(default)s)")
    parser.add_argument("--signals", type=int, default=50, help="SIGTERMs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of the training (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=4, help="steps (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=120, help="seconds until a process hangs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places (default: %(default)s)")
    options = parser.parse_args(argv)
    options.parts = [part.strip() for part in options.parts.split(",")]
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown or len(set(options.parts)) < len(options.parts):
        raise UserError(f"--parts: got {','.join(options.parts)}, expected some of {','.join(PARTS)}, each once")
    command.at_least(options, 1, *PARTS, "steps", "save_every")
    command.at_least(options, 0, "seed")
    if options.steps < 2 * options.save_every:
        raise UserError(f"--steps: got {options.steps}, expected at least two saves, {2 * options.save_every}")
    command.seconds(options, "limit")
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Runs the requested parts, writing the two files after every fault, and returns the report."""
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    import jax

    jax.config.update("jax_platforms", "cpu")
    report = command.begin("faults", machine=timing.machine(), settings=settings, without_fault_s={}, found={})

    def write() -> None:
        command.write(report, options.out, markdown, {f"{timing.ROOT}{os.sep}": ""})

    write()  # a folder that cannot be written to is found before anything is broken
    measure(options, report, write, log)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, 1 if an expectation did not hold."""
    broken: list[str] = []

    def counted(options: argparse.Namespace, log: Log) -> None:
        broken.extend(part for part, entry in run(options, log)["found"].items() if entry["defects"])

    stopped = "the files hold the faults until then"
    return command.main(arguments, counted, argv, stopped) or int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
