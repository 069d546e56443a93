"""The Markdown page of a throughput report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import command

OURS, EAGER = "ours", "eager"
_COLUMNS = (
    "work | shape | batch | ours ms | eager ms | tuned ms | tuned is | ours images/s | ours / eager | ours / tuned"
)
_COLUMNS += " | GFLOP/s | of the matmul peak | times the matmul limit | compile s, ours / tuned"
_COLUMNS += " | peak MiB, ours / eager / tuned"


def row(case: Mapping[str, Any]) -> str:
    """Returns one row of the Markdown table."""
    head = [case["work"], "x".join(map(str, case["shape"])), str(case["batch"])]
    if case["status"] != "measured":
        return " | ".join(head + [case["status"]] + ["-"] * (_COLUMNS.count("|") - 3))
    sides, tuned = case["sides"], case["tuned"]

    def milliseconds(name: str | None) -> str:
        if name not in sides:
            return case["left_out"].get(name, "-") if case["left_out"].get(name) == "out of memory" else "-"
        return command.quartiles(sides[name]["ms"])

    def ratio(found: Mapping[str, float] | None) -> str:
        return command.extremes(found) if found else "-"

    def mebibytes(name: str | None) -> str:
        found = sides.get(name, {}).get("peak_memory")
        return f"{found.get('device', found['host']) / 2**20:,.0f}" if found else "-"

    def compiling(name: str | None) -> str:
        return f"{sides[name]['compile_s']:.1f}" if name in sides else "-"

    share = case["share_of_matmul_peak"]
    cells = [milliseconds(OURS), milliseconds(EAGER), milliseconds(tuned), tuned or "-"]
    cells += [f"{sides[OURS]['images_per_s']:,.0f}", ratio(case["ratio_eager"]), ratio(case["ratio_tuned"])]
    cells += [f"{case['flops_per_s'] / 1e9:,.0f}", f"{share:.1%}" if share else "-"]
    limit = case["times_the_matmul_limit"]
    cells += [f"{limit:.2f}" if limit else "-"]
    cells += [f"{compiling(OURS)} / {compiling(tuned)}", " / ".join(map(mebibytes, (OURS, EAGER, tuned)))]
    return " | ".join(head + cells)


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page: device and versions, one table, what was left out."""
    settings = report["settings"]
    peaks = [
        f"{library} {dtype} {rate / 1e12:.4g} TFLOP/s"
        for library, rates in report["matmul_flops_per_s"].items()
        for dtype, rate in rates.items()
    ]
    about = (
        f"{settings['dtype']}, {settings['features']} features, latent {settings['latent']}; "
        f"{settings['rounds']} rounds of turns of about {settings['turn_s']:g} s; "
    )
    lines = [
        *command.opening(report, "Throughput", about),
        f"Matmul peak as measured: {'; '.join(peaks)}.",
        "",
        "Milliseconds are medians with quartiles; a ratio is how many times as fast as the peer ours is, the median "
        "over the rounds with the least and the greatest.",
        "",
        *command.table(_COLUMNS),
        *(f"| {row(case)} |" for case in report["cases"]),
    ]
    reasons: dict[str, list[str]] = {}
    for case in report["cases"]:
        for name, why in case["left_out"].items():
            what = f"{case['work']} {'x'.join(map(str, case['shape']))} {case['batch']}"
            reasons.setdefault(f"{name}: {why}", []).append(what)
    lines += ["", "Left out:", ""] * bool(reasons)
    lines += [f"- {reason} ({', '.join(cases)})" for reason, cases in reasons.items()]
    variants = [f"- {name}: {words}" for name, words in settings["variants"].items()]
    lines += ["", "Sides of the peer:", "", *variants] if variants else []
    return "\n".join(lines) + "\n"
