"""Several models in one program against one model alone, on the same device in one run.

    python benchmarks/speed/members.py --out benchmarks/speed/results/members_DEVICE

writes NAME.json and NAME.md, after each case anew. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import functools
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

from benchmarks.common import command, ours, timing
from benchmarks.common.command import Log
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model import ganomaly
from ganomaly_jax.training import train_step

ALONE, LOOP, VMAP = "alone", "loop", "vmap"
WORDS = {
    ALONE: "one model, the program of `train`",
    LOOP: "one member after the other in one program, that of `train_members`",
    VMAP: "jax.vmap of the step over the members",
}


def vmapped(detector: ganomaly.Ganomaly) -> Callable[..., Any]:
    """Makes the counterpart of `train_step.make_member_steps` that takes each step for all members at once."""

    def run(states: Any, images: Array, index: Array, count: Array, ranges: Array, seeds: Array) -> tuple[Any, Array]:
        def one(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            states, history = carry

            def step(state: Any, rows: Array, span: Array) -> tuple[Any, Array]:
                state, metrics = detector.update(state, preprocess.to_unit(images[rows], span[0], span[1]))
                return state, jnp.stack([metrics[name] for name in detector.losses])

            states, losses = jax.vmap(step)(states, index[:, i], ranges)
            return states, history.at[:, i].set(losses)

        members, steps, _ = index.shape
        start = states, jnp.zeros((members, steps, len(detector.losses)), jnp.float32)
        return lax.fori_loop(0, count[0], one, start)

    return run


def side(name: str, members: int, shape: Sequence[int], batch: int, latent: int, features: int) -> timing.Side:
    """Compiles a turn of `members` models, whose step is one step of each."""
    detector = ganomaly.Ganomaly(tuple(shape), latent, features)
    make = train_step.make_member_steps(detector, lambda seed: None) if name == LOOP else vmapped(detector)
    states = jax.jit(jax.vmap(detector.init))(jax.random.split(jax.random.key(0), members))
    pixels = jax.device_put(timing.pictures(ours.IMAGES, detector.shape))
    rows = np.random.default_rng(1).integers(0, ours.IMAGES, (members, ours.STEPS_A_CALL, batch), np.int32)
    index, ranges = jax.device_put(rows), jnp.tile(jnp.array([0.0, 255.0]), (members, 1))
    seeds = jnp.arange(members, dtype=jnp.uint32)
    begin = time.perf_counter()
    lowered = jax.jit(make, donate_argnums=0).lower(states, pixels, index, jnp.ones(members, jnp.int32), ranges, seeds)
    compiled = lowered.compile()
    compile_s = time.perf_counter() - begin
    last: list[Any] = [states, None, 0]

    def run(steps: int) -> None:
        while steps:
            count = min(steps, ours.STEPS_A_CALL)
            counts = jnp.full(members, count, jnp.int32)
            last[:] = *compiled(last[0], pixels, index, counts, ranges, seeds), count
            steps -= count
        jax.block_until_ready(last[:2])

    def finite() -> bool:
        return bool(np.isfinite(np.asarray(last[1])[:, : last[2]]).all())

    return timing.Side(run, finite, compile_s, facts=ours.counted(lowered, compiled))


def measure(members: int, options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures one number of members in every way; the result is written to the JSON file."""
    sizes = {"shape": options.shape, "batch": options.batch, "latent": options.latent, "features": options.features}
    case: dict[str, Any] = {"members": members, "left_out": {}}
    sides, steps, models = {}, {}, {ALONE: 1, LOOP: members, VMAP: members}
    for name in models:
        try:
            made = ours.side("train", **sizes) if name == ALONE else side(name, members, **sizes)
            steps[name], each = timing.steps_a_turn(made, options.turn)
        except Exception as error:  # the ways beside it are worth having
            case["left_out"][name] = "out of memory" if timing.out_of_memory(error) else timing.one_line(error)
            log(f"  {name} left out: {case['left_out'][name]}")
            continue
        sides[name] = made
        log(f"  {name}: {1000 * each / models[name]:.4g} ms a member and step, compiled in {made.compile_s:.1f} s")
    taken = timing.rotate(sides, steps, options.rounds)
    for name in [name for name, made in sides.items() if not made.finite()]:
        case["left_out"][name] = "its numbers are not finite"
        del taken[name]
    each = {name: [seconds / models[name] for seconds in times] for name, times in taken.items()}
    return (
        case
        | summarise(each)
        | {"compile_s": {name: sides[name].compile_s for name in each}}
        | {"program_bytes": {name: sides[name].facts["memory"]["total"] for name in each}}
    )


def summarise(each: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Summarises the seconds per member and step of each way in each round.

    `ratios`: how many times as fast as one model alone a member is in each of the other ways.
    """
    others = [name for name in each if name != ALONE and ALONE in each]
    return {
        "ms": {name: timing.spread([1000 * t for t in times]) for name, times in each.items()},
        "ratios": {name: timing.ratios(each[name], each[ALONE]) for name in others},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    settings = report["settings"]
    about = (
        f"{'x'.join(map(str, settings['shape']))}, batch {settings['batch']}, {settings['features']} features, latent "
        f"{settings['latent']}, float32; {settings['rounds']} rounds; "
    )
    lines = [
        *command.opening(report, "Members", about, ["jax"]),
        "Milliseconds a member and step, median (quartiles); `x alone` is how many times as fast as one model alone, "
        "the median over the rounds (least to greatest).",
        "",
        *command.table("members | way | ms a member and step | x alone | images/s of all | compile s | program MiB"),
    ]
    for case in report["cases"]:
        for name in WORDS:
            if name not in case["ms"]:
                lines.append(f"| {case['members']} | {name} | {case['left_out'].get(name, '-')} | - | - | - | - |")
                continue
            ms, ratio = case["ms"][name], case["ratios"].get(name)
            gain = command.extremes(ratio) if ratio else "1"
            lines.append(
                f"| {case['members']} | {name} | {command.quartiles(ms)} | {gain} | "
                f"{1000 * settings['batch'] / ms['median']:,.0f} | {case['compile_s'][name]:.1f} | "
                f"{case['program_bytes'][name] / 2**20:,.0f} |"
            )
    return "\n".join([*lines, "", *(f"- {name}: {words}" for name, words in WORDS.items()), ""])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--members", default="2,4,10,30", help="numbers of members, a case each (default: %(default)s)")
    parser.add_argument("--shape", default="32x32x1", help="HEIGHTxWIDTHxCHANNELS (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a member and step (default: %(default)s)")
    parser.add_argument("--features", type=int, default=64, help="width of the networks (default: %(default)s)")
    parser.add_argument("--latent", type=int, default=100, help="size of the latent (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: %(default)s)")
    parser.add_argument("--turn", type=float, default=1.0, help="seconds of a turn, about (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: JAX's own choice")
    options = parser.parse_args(argv)
    options.shape = command.square(options.shape)
    options.members = command.numbers(options.members, "--members")
    command.at_least(options, 2, "batch")
    command.at_least(options, 1, "features", "latent", "rounds")
    command.seconds(options, "turn")
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures every case, writing the two files after each, and returns the report."""
    command.choose_device(options)
    load = command.load()
    names = ("shape", "batch", "features", "latent", "rounds", "turn", "device")
    settings = {name: getattr(options, name) for name in names}
    report = command.begin("members", machine=timing.machine(), load_average=load, settings=settings, cases=[])
    command.write(report, options.out, markdown)
    for members in options.members:
        log(f"{members} members")
        report["cases"].append(measure(members, options, log))
        report["load_average"]["after"] = timing.load_average()
        command.write(report, options.out, markdown)
        command.release()
    return report


main = functools.partial(command.main, arguments, run)


if __name__ == "__main__":
    command.own_process()
    sys.exit(main())
