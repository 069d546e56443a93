"""Every form of the convolution layers, inside a loop and outside, and whether the code chooses the fastest.

    python benchmarks/speed/convolution.py --out benchmarks/speed/results/NAME

writes NAME.json and NAME.md, after each case anew. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from benchmarks.speed.convolution_forms import FORMS, ROLES, SIZES, Form, Size, available, chosen
from ganomaly_jax.core.errors import UserError

# A choice is called slower than the best from this ratio on: less is the noise of most machines.
NOISE = 1.1
_DEFAULTS = {"batches": "1,8,64", "rounds": 7, "turn": 0.1}
_QUICK = {"batches": "8", "rounds": 2, "turn": 0.02}
_COLUMNS = "size | batch | form | ms in the loop | ms outside | GFLOP/s in the loop | choice"


def looped(form: Form, inner: int) -> Callable[[Array, Array, Array], Array]:
    """Makes a program (n, a, b) of n * inner calls of the form, none of which can be eliminated or hoisted.

    Each depends on the one before by one element of the inputs, and the whole of each goes into the result. A loop
    whose length is known runs inside one that is not, since a GPU asks the host before each turn of the latter.
    """

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, a, b = carry
        y = 0.5 * form(a, b) + 0.5 * y
        a, b = (v.at[(0,) * v.ndim].add((1e-6 * y.ravel()[0]).astype(v.dtype)) for v in (a, b))
        return y, a, b

    def run(n: Array, a: Array, b: Array) -> Array:
        like = jax.eval_shape(form, a, b)
        first = jnp.zeros(like.shape, like.dtype), a, b
        return lax.fori_loop(0, n, lambda _, carry: lax.fori_loop(0, inner, step, carry), first)[0]

    return run


def side(form: Form, arrays: Sequence[Array], inner: int) -> timing.Side:
    """Compiles the form: in a loop of `inner` calls per step, or with `inner` 0 as a program of its own."""
    begin = time.perf_counter()
    count = jnp.asarray(1, jnp.int32)
    if inner:
        program = jax.jit(looped(form, inner)).lower(count, *arrays).compile()
    else:
        program = jax.jit(lambda a, b: form(a, b)).lower(*arrays).compile()
    last: list[Array] = []

    def run(steps: int) -> None:
        if inner:
            last[:] = [program(jnp.asarray(steps, jnp.int32), *arrays).block_until_ready()]
        else:
            for _ in range(steps):
                last[:] = [program(*arrays).block_until_ready()]

    return timing.Side(run, lambda: bool(jnp.isfinite(last[0]).all()), time.perf_counter() - begin)


def measure(name: str, size: Size, batch: int, options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures one case, every form in the loop and outside; the result is written to the JSON file as it is."""
    role, random = ROLES[name], np.random.default_rng(0)
    arrays = [jnp.asarray(0.1 * random.standard_normal(s), options.dtype) for s in role.shapes(batch, size)]
    left_out: dict[str, str] = {}
    sides: dict[str, timing.Side] = {}
    once, steps = {}, {}
    forms = available(name, size, options.dtype)
    for form, (where, inner) in itertools.product(forms, (("loop", options.inner), ("outside", 0))):
        key = f"{form}, {where}"
        try:
            sides[key] = side(forms[form], arrays, inner)
            steps[key], each = timing.steps_a_turn(sides[key], options.turn)
        except Exception as error:
            left_out[key] = "out of memory" if timing.out_of_memory(error) else timing.one_line(error)
            sides.pop(key, None)
            continue
        if each > options.limit:
            once[key] = [each]
        if not sides[key].finite():
            left_out[key] = "its numbers are not finite"
    turns = {key: made for key, made in sides.items() if key not in once and key not in left_out}
    taken = timing.rotate(turns, steps, options.rounds) | once
    found: dict[str, dict[str, Any]] = {}
    for key in taken.keys() - left_out.keys():
        form, where = key.rsplit(", ", 1)
        calls = max(1, options.inner) if where == "loop" else 1
        found.setdefault(form, {})[where] = [seconds / calls for seconds in taken[key]]
    choice = chosen(name, size, batch, options.device, options.dtype)
    if choice is None:
        left_out["the choice"] = "it is none of the forms measured here"
    case = {"role": name, "size": list(size), "batch": batch, "left_out": left_out}
    case["compile_s"] = {key: made.compile_s for key, made in sides.items()}
    case |= summarise(role.flops(batch, size), {form: found[form] for form in forms if form in found}, choice)
    log(f"  {verdict(case)}")
    return case


def summarise(flops: int, taken: Mapping[str, Mapping[str, Sequence[float]]], choice: str | None) -> dict[str, Any]:
    """Summarises the seconds per call of each form in each round, in the `loop` and `outside`.

    `best` is the form with the smallest median in the loop; `ratio` is how many times as slow as that the choice is,
    round by round where both were repeated.
    """
    forms: dict[str, dict[str, Any]] = {}
    for form, places in taken.items():
        forms[form] = {f"{where}_ms": timing.spread([1000 * t for t in times]) for where, times in places.items()}
        forms[form] |= {f"{where}_ms_rounds": [1000 * t for t in times] for where, times in places.items()}
        if "loop" in places:
            forms[form]["flops_per_s"] = 1000 * flops / forms[form]["loop_ms"]["median"]
    loops = {form: places["loop"] for form, places in taken.items() if "loop" in places}
    best = min(loops, key=lambda form: forms[form]["loop_ms"]["median"], default=None)
    ratio = None
    if choice in loops and best is not None:
        fastest, ours = loops[best], loops[choice]
        if len(fastest) != len(ours):  # one of them was too slow to be repeated
            fastest, ours = ([timing.spread(times)["median"]] for times in (fastest, ours))
        ratio = timing.ratios(fastest, ours)
    return {"flops": flops, "forms": forms, "choice": choice, "best": best, "ratio": ratio}


def verdict(case: Mapping[str, Any]) -> str:
    """Describes in words what the figures say about the choice."""
    if case["ratio"] is None:
        return "the choice was not measured"
    if case["choice"] == case["best"]:
        return f"the choice, {case['choice']}, is the fastest"
    ratio = case["ratio"]
    if ratio["median"] <= NOISE:
        return f"the choice, {case['choice']}, is the fastest within the noise ({ratio['median']:.2f})"
    spread = command.quartiles(ratio, ".2f")
    return f"choice is not the fastest: {case['choice']} takes {spread} times as long as {case['best']}"


def rows(case: Mapping[str, Any]) -> list[str]:
    """Returns the rows of the Markdown table, one per form."""

    def milliseconds(found: Mapping[str, Any], where: str) -> str:
        if f"{where}_ms" not in found:
            return "-"
        if len(found[f"{where}_ms_rounds"]) == 1:
            return f"{found[f'{where}_ms']['median']:.4g} (once)"
        return command.quartiles(found[f"{where}_ms"])

    def mark(form: str) -> str:
        if form != case["choice"]:
            return "fastest" if form == case["best"] else "-"
        if form == case["best"]:
            return "chosen, fastest"
        if case["ratio"] is None:
            return "chosen"
        slower = f"{case['ratio']['median']:.2f}"
        if case["ratio"]["median"] <= NOISE:
            return f"chosen, fastest within the noise ({slower})"
        return f"chosen, choice is not the fastest ({slower})"

    lines = []
    for form, found in case["forms"].items():
        rate = f"{found['flops_per_s'] / 1e9:.3g}" if "flops_per_s" in found else "-"
        cells = [str(Size(*case["size"])), str(case["batch"]), form]
        cells += [milliseconds(found, "loop"), milliseconds(found, "outside"), rate, mark(form)]
        lines.append(" | ".join(cells))
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page: device and versions, choices that are not the fastest, one table per role."""
    settings, cases = report["settings"], report["cases"]
    about = f"{settings['dtype']}; {settings['rounds']} rounds of turns of about {settings['turn_s']:g} s; "
    lines = [
        *command.opening(report, "Forms of the convolutions", about),
        "Sizes are side of the larger map x its channels x features. Milliseconds are medians with quartiles over the "
        "rounds, floating-point operations those of the definition.",
        "",
    ]
    judged = [case for case in cases if case["ratio"]]
    slower = [case for case in judged if case["ratio"]["median"] > NOISE]
    lines += [f"Of {len(judged)} choices {len(slower)} are not the fastest in the loop by more than {NOISE - 1:.0%}."]
    lines += [""] * bool(slower)
    lines += [f"- {c['role']} {Size(*c['size'])}, batch {c['batch']}: {verdict(c)}" for c in slower]
    for name, group in itertools.groupby(cases, key=lambda case: case["role"]):
        lines += ["", f"## {name}", "", f"{ROLES[name].words}.", "", *command.table(_COLUMNS)]
        lines += [f"| {row} |" for case in group for row in rows(case)]
    left_out = [
        f"- {c['role']} {Size(*c['size'])}, batch {c['batch']}, {key}: {why}"
        for c in cases
        for key, why in c["left_out"].items()
    ]
    lines += ["", "Left out:", "", *left_out] if left_out else []
    lines += ["", "Forms:", "", *(f"- {form}: {words}" for form, words in FORMS.items())]
    return "\n".join(lines) + "\n"


def _sizes(text: str, roles: Sequence[str]) -> list[Size]:
    found = [re.fullmatch(r"(\d+)x(\d+)x(\d+)", part.strip()) for part in text.split(",")]
    sizes = [Size(*map(int, match.groups())) for match in found if match]
    if len(sizes) < len(found) or any(min(size) < 1 for size in sizes):
        raise UserError(f"--sizes: got {text!r}, expected SIDExCHANNELSxFEATURES with commas between, such as 32x1x64")
    strided = [name for name in roles if ROLES[name].layer == "strided"]
    odd = [str(size) for size in sizes if size.side % 2]
    if strided and odd:
        raise UserError(
            f"--sizes: got {odd[0]}, expected an even side for {strided[0]}: its smaller map has half of it"
        )
    return sizes


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--roles", default=",".join(ROLES), help=f"of {', '.join(ROLES)} (default: all)")
    parser.add_argument("--sizes", help="SIDExCHANNELSxFEATURES,... for each role (default: those of the networks)")
    parser.add_argument("--batches", help="images a call, a case each (default: 1,8,64)")
    parser.add_argument("--rounds", type=int, help="turns of each form (default: 7)")
    parser.add_argument("--turn", type=float, help="seconds that a turn takes about (default: 0.1)")
    parser.add_argument("--limit", type=float, default=3.0, help="a form that takes more seconds is run once (3)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of all arrays")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: JAX's own choice")
    parser.add_argument(
        "--quick", action="store_true", help="does it run: the smallest size of each role, 2 short rounds"
    )
    options = parser.parse_args(argv)
    command.fill(options, _QUICK if options.quick else _DEFAULTS)
    options.roles = options.roles.split(",")
    if not set(options.roles) <= set(ROLES):
        raise UserError(f"--roles: got {options.roles}, expected some of {', '.join(ROLES)} with commas between")
    command.at_least(options, 1, "rounds")
    command.seconds(options, "turn", "limit")
    options.batches = command.numbers(options.batches, "--batches")

    def sizes(name: str) -> list[Size]:
        found = _sizes(options.sizes or SIZES[ROLES[name].layer], options.roles if options.sizes else [])
        return [min(found, key=functools.partial(ROLES[name].flops, 1))] if options.quick else found

    options.cases = [(name, size, batch) for name in options.roles for size in sizes(name) for batch in options.batches]
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures every case, writing the two files after each, and returns the report."""
    command.choose_device(options)
    options.inner = 1 if options.device == "cpu" else 16
    load = command.load(log)
    report = command.begin(
        "convolution",
        finished=False,
        machine=timing.machine(),
        load_average=load,
        settings={
            **{name: getattr(options, name) for name in ("device", "dtype", "roles", "batches", "rounds", "quick")},
            "turn_s": options.turn,
            "limit_s": options.limit,
            "calls_a_step": options.inner,
        },
        cases=[],
    )
    write = functools.partial(command.write, report, options.out, markdown)
    write()  # a folder that cannot be written to is found before anything is measured
    for number, (name, size, batch) in enumerate(options.cases, 1):
        log(f"[{number}/{len(options.cases)}] {name} {size}, batch {batch}")
        try:
            case = measure(name, size, batch, options, log)
        except Exception as error:  # the cases after it are worth having
            why = "out of memory" if timing.out_of_memory(error) else timing.one_line(error)
            case = {"role": name, "size": list(size), "batch": batch, "left_out": {"the case": why}}
            case |= {"forms": {}, "choice": None, "best": None, "ratio": None}
        report["cases"].append(case)
        report["finished"] = number == len(options.cases)
        report["load_average"]["after"] = timing.load_average()
        write()
    return report


main = functools.partial(command.main, arguments, run)


if __name__ == "__main__":
    command.own_process()
    sys.exit(main())
