"""The Markdown page of a scaling report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import command
from benchmarks.speed import collectives

WEAK, STRONG = "weak", "strong"
ONE, SPREAD, APART, GROUP, DIVIDED = "one device", "spread", "apart", "batch_norm_group=1", "shard_from"
WORDS = {
    SPREAD: "the program of `train`: gradients, losses and the statistics of batch norm are averaged over all devices",
    APART: "the same devices, each for itself with no averaging: what is left without collectives; it trains nothing",
    GROUP: "as spread, with each device's own statistics in batch norm",
    DIVIDED: "weights and optimiser divided over the devices, parted by XLA (`mesh.shard_from`)",
}


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page: times, communication, prediction, checkpoints, input, as far as measured."""
    settings = report["settings"]
    about = (
        f"{'x'.join(map(str, settings['shape']))}, {settings['features']} features, latent {settings['latent']}, "
        f"float32; {settings['rounds']} rounds"
        + ", quick: figures of a trial, not to be quoted" * settings["quick"]
        + "; "
    )
    lines = command.opening(report, "Scaling", about, ["jax"])
    lines += _times(report) + _moved(report)
    for name, section in (("prediction", _prediction), ("checkpoint", _checkpoint), ("input", _input)):
        if report.get(name):
            lines += section(report[name], report)
    return "\n".join(lines)


def _times(report: Mapping[str, Any]) -> list[str]:
    virtual = report["machine"]["jax"]["platform"] == "cpu"
    ideal = (
        "The devices are virtual, on the same cores, so nothing can become faster, and only overhead is seen: "
        "efficiency is the time that one device needs for the images of a step over the time that so many need for "
        "them. It can exceed 1 where many small steps use the cores better than one large."
        if virtual
        else "Efficiency is images a second of so many devices over as many times those of one."
    )
    columns = "scaling | devices | images a step | way | ms a step | efficiency | collectives add ms | compile s"
    lines = [
        "## Time",
        "",
        f"Milliseconds a step, median (quartiles). {ideal} *Collectives add* is the time above that of `{APART}`, "
        "round by round, median (least to greatest): sending, adding and waiting for one another.",
        "",
        *command.table(columns),
    ]
    for case in report["cases"]:
        for way in (ONE, *WORDS):
            head = f"| {case['kind']} | {case['devices']} | {case['batch']} | {way} |"
            if way in case["left_out"]:
                lines.append(f"{head} {case['left_out'][way]} | - | - | - |")
            elif way in case["ms"] and (way != ONE or case["devices"] == 1):
                efficiency, added = case["efficiency"].get(way), case["collectives_ms"].get(way)
                cells = [command.quartiles(case["ms"][way]), command.extremes(efficiency) if efficiency else "1"]
                cells += [command.extremes(added, ".3g") if added else "-", f"{case['compile_s'][way]:.1f}"]
                lines.append(f"{head} {' | '.join(cells)} |")
    return [*lines, "", *(f"- {way}: {words}" for way, words in WORDS.items()), ""]


def _moved(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Sent in a step",
        "",
        "Collective operations in the compiled program's loop over steps, and the bytes of their operands on a device; "
        "*sends* is what each device sends around a ring. Compilers for GPUs and TPUs combine operations further.",
        "",
        *command.table("scaling | devices | way | operation | operations | MB of operands | largest MB | sends MB"),
    ]
    for case in report["cases"]:
        for way, found in case["moved"].items():
            for operation, row in found.items():
                sends = collectives.sent({operation: row}, case["devices"])
                lines.append(
                    f"| {case['kind']} | {case['devices']} | {way} | {operation} | {row['operations']} | "
                    f"{row['bytes'] / 1e6:.3f} | {row['largest'] / 1e6:.3f} | {sends / 1e6:.3f} |"
                )
    return [*lines, ""]


def _prediction(found: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    counts = sorted({row["devices"] for row in found["rows"]})
    machine = report["machine"]["jax"]
    source = (
        f"given by `--step-ms`: {found['step_ms']:g} ms"
        if found["given"]
        else f"that of one {machine['device']} above, {found['step_ms']:.4g} ms"
    )
    formula_only = (
        " No accelerator's step has been given, so the efficiencies say something about the formula only; the added "
        "milliseconds hold for a step of any length, and a step has to take 9 times as long for an efficiency of 90 %."
    )
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for row in found["rows"]:
        cell = f"{row['efficiency']:.1%} (+{row['added_ms']:.3g} ms)"
        rows.setdefault((row["way"], row["link"]), {})[row["devices"]] = cell
    assumed = "; ".join(f"{link['name']} {link['gb_s']:g} GB/s, {link['latency_us']:g} us" for link in found["links"])
    return [
        "## Prediction",
        "",
        "Not measured. With as many images on each of N accelerators,",
        "",
        "    t(N) = t(1) + sent(N) / link + latency * operations * ceil(log2 N)        efficiency = t(1) / t(N)",
        "",
        "`sent` and `operations` are those of the table above (2 (N - 1) / N times the operand for an all-reduce); a "
        "link has one speed for all N, operations wait for one another, each for as many exchanges as a tree is deep, "
        f"and nothing is hidden behind computation. t(1) is {source}. Links, in one direction, all of them "
        f"assumptions: {assumed}." + formula_only * (machine["platform"] == "cpu" and not found["given"]),
        "",
        *command.table(" | ".join(["way | link", *(f"{count} accelerators" for count in counts)])),
        *(
            f"| {way} | {link} | {' | '.join(cells.get(count, '-') for count in counts)} |"
            for (way, link), cells in rows.items()
        ),
        "",
    ]


def _checkpoint(found: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    every, given = report["settings"]["save_every"], report["settings"]["step_ms"]
    plain, pause = found["plain_ms"]["median"], found["pause_ms"]["median"]
    rows = {
        "pause_ms": "the loop waits for a save: weights checked, loss on calibration images, copy to the host",
        "background_ms": "written, hashed and synced in the background",
        "beside_ms": "all that a save adds to the loop, with the steps beside the writing",
        "restore_ms": "restored onto the device, every file verified, read from the system's cache",
    }
    lines = [
        "## Checkpoints",
        "",
        f"{found['bytes'] / 1e6:.1f} MB; milliseconds, median (least to greatest) of {report['settings']['saves']}.",
        "",
        *command.table("what | ms"),
        *(f"| {words} | {command.extremes(found[name], '.4g')} |" for name, words in rows.items()),
        "",
        f"With `train.save_every={every}`, which saves twice in as many steps, and a step of {plain:.4g} ms the loop "
        f"waits for {found['share_waiting']:.2%} "
        f"of its time; all that is added is {found['share_added']:.2%}. From a step of {found['least_step_ms']:.3g} ms "
        "on it waits for less than 2 %, if the copy from a device takes as long as here.",
    ]
    if given:
        lines.append(f"With steps of {given:g} ms it would be {pause / (max(every // 2, 1) * given + pause):.2%}.")
    return [*lines, ""]


def _input(found: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    settings, eaten = report["settings"], found["eaten_per_s"]
    lines = [
        "## Input",
        "",
        f"A training set of {settings['images']:,} images ({found['put_bytes'] / 1e6:.0f} MB), {settings['batch']} a "
        f"step. Once a run: places dealt out in {found['columns_ms']:.3g} ms, images onto the device in "
        f"{found['put_ms']:.3g} ms. Then the host names images by their indices; the device gathers them as a part of "
        f"the step. A step of one device eats, {'; '.join(f'{name}, {rate:,.0f}' for name, rate in eaten.items())} "
        "images/s.",
        "",
        *command.table(" | ".join(["the host", "images/s", *(f"times what is eaten, {name}" for name in eaten)])),
    ]
    for label, rate in found["images_per_s"].items():
        lines.append(_fed(label, rate, eaten))
    if streamed := found["streamed"]:
        lines += [
            _fed("a packed set read from disk meanwhile (`data.stream=always`)", streamed["images_per_s"], eaten),
            "",
            f"With a packed set read meanwhile, a loop of {streamed['steps']} steps waits "
            f"{command.extremes(streamed['waits'], '.3%')} of its time for images, after the first; the file lies in "
            "the system's cache.",
        ]
    return [*lines, ""]


def _fed(label: str, rate: Mapping[str, float], eaten: Mapping[str, float]) -> str:
    times = " | ".join(f"{rate['median'] / each:,.1f}" for each in eaten.values())
    return f"| {label} | {rate['median']:,.0f} ({rate['min']:,.0f}-{rate['max']:,.0f}) | {times} |"
