"""One model over several devices: weak and strong scaling, what is sent, checkpoints and input beside the step.

    python benchmarks/speed/scaling.py --out benchmarks/speed/results/scaling_DEVICE

writes NAME.json and NAME.md, after each case anew. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.common import command, ours, timing
from benchmarks.common.command import Log
from benchmarks.speed import collectives
from benchmarks.speed.scaling_page import APART, DIVIDED, GROUP, ONE, SPREAD, STRONG, WEAK, markdown
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import batch_order, pack, sources
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model import ganomaly
from ganomaly_jax.parallel import sharding
from ganomaly_jax.runs import checkpoint
from ganomaly_jax.training import input_pipeline, step_programs, train_step

WORKS = (WEAK, STRONG, "checkpoint", "input")
_CALIBRATED = 256  # images on which `train` takes the loss that it stores with a checkpoint
_DEFAULTS = {"shape": "32x32x1", "features": 64, "latent": 100, "devices": "1,2,4,8", "batch": 64, "global_batch": 64}
_DEFAULTS |= {"rounds": 5, "turn": 1.0, "shard_from": 65536, "images": 60_000, "saves": 5}
_QUICK = {"shape": "16x16x1", "features": 4, "latent": 8, "devices": "1,2", "batch": 4, "global_batch": 8}
_QUICK |= {"rounds": 2, "turn": 0.05, "shard_from": 64, "images": 1000, "saves": 2}


def side(way: str, devices: int, batch: int, options: argparse.Namespace) -> timing.Side:
    """Compiles the training step of one model in one way; its facts include `moved` and the current `state`."""
    mesh = sharding.local_mesh(devices)
    axis = sharding.axis_name(mesh) if way in (SPREAD, GROUP) else None
    sizes = options.shape, options.latent, options.features
    detector = ganomaly.Ganomaly(*sizes, axis_name=axis, batch_norm_group=int(way == GROUP))
    state = jax.jit(detector.init)(jax.random.key(0))
    lies = sharding.state_shardings(state, mesh, options.shard_from if way == DIVIDED else 0)
    state = sharding.place(state, lies)
    if way == DIVIDED:
        steps = train_step.make_steps(detector, 0, 255, None, sharding.take_local_rows(mesh), sharding.constrain(lies))
        program = sharding.partitioned(steps, mesh, lies, (0, 1, None))
    else:
        program = sharding.data_parallel(train_step.make_steps(detector, 0, 255), mesh, (None, 0, 1, None), donate=0)
    each = ours.IMAGES // devices
    pixels = sharding.shard_rows(timing.pictures(ours.IMAGES, detector.shape), np.arange(each * devices), mesh)
    rows = np.random.default_rng(1).integers(0, each, (train_step.STEPS_A_CALL, batch), np.int32)
    made, _, compiled, last = ours.stepping(program, state, pixels, sharding.shard_batch(rows, mesh, 1), mesh)
    facts = {"moved": collectives.moved(compiled.as_text()), "state": lambda: last[0]}
    return dataclasses.replace(made, facts=facts)


def measure(
    kind: str, devices: int, one: timing.Side, ways: Sequence[str], options: argparse.Namespace, log: Log
) -> dict[str, Any]:
    """Measures one number of devices in every way, in rounds beside `one` device."""
    batch = options.batch * devices if kind == WEAK else options.global_batch
    case: dict[str, Any] = {"kind": kind, "devices": devices, "batch": batch, "left_out": {}}
    sides, steps = {ONE: one}, {ONE: timing.steps_a_turn(one, options.turn)[0]}
    for way in ways:
        try:
            made = side(way, devices, batch, options)
            steps[way], each = timing.steps_a_turn(made, options.turn)
        except Exception as error:  # the ways beside it are worth having
            case["left_out"][way] = "out of memory" if timing.out_of_memory(error) else timing.one_line(error)
            log(f"  {way} left out: {case['left_out'][way]}")
            continue
        sides[way] = made
        log(f"  {way}: {1000 * each:.4g} ms a step, compiled in {made.compile_s:.1f} s")
    taken = timing.rotate(sides, steps, options.rounds)
    for way in [way for way, made in sides.items() if not made.finite()]:
        case["left_out"][way] = "its numbers are not finite"
        del taken[way]
    if ONE not in taken:
        raise UserError("one device's numbers are not finite: there is nothing to compare with")
    # Virtual devices share the same cores: as many times the work takes as many times as long.
    work = devices if kind == WEAK else 1
    return (
        case
        | summarise(taken, work if jax.default_backend() == "cpu" else work / devices)
        | {"compile_s": {way: sides[way].compile_s for way in taken}}
        | {"moved": {way: sides[way].facts["moved"] for way in taken if way != ONE}}
    )


def summarise(taken: Mapping[str, Sequence[float]], work: float) -> dict[str, Any]:
    """Summarises the seconds per step of each way in each round.

    `efficiency`: the time of `work` steps of one device over that of the way. `collectives_ms`: how much longer the
    ways that average take than devices that compute the same and send nothing.
    """
    alone = [work * t for t in taken[ONE]]
    return {
        "ms": {way: timing.spread([1000 * t for t in times]) for way, times in taken.items()},
        "efficiency": {way: timing.ratios(times, alone) for way, times in taken.items() if way != ONE},
        "collectives_ms": {
            way: timing.spread([1000 * (a - b) for a, b in zip(taken[way], taken[APART], strict=True)])
            for way in (SPREAD, GROUP)
            if way in taken and APART in taken
        },
    }


def checkpoints(one: timing.Side, options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures what saving costs the training loop and the background thread, and how long restoring takes."""
    detector = ganomaly.Ganomaly(options.shape, options.latent, options.features)
    raw = timing.pictures(_CALIBRATED, detector.shape)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(one.facts["state"]()))

    @jax.jit
    def loss(variables: Any, raw: Array) -> Array:
        x = preprocess.to_unit(raw, 0, 255)
        return jnp.mean(jnp.abs(x - detector.reconstruct(variables, x)))

    taken: dict[str, list[float]] = {name: [] for name in ("pause", "background", "plain", "beside", "restore")}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, checkpoint.Saver() as saver:
        root, numbers = Path(folder), itertools.count(1)

        def save() -> None:  # as `hooks.SaveCheckpoint` does
            state = one.facts["state"]()
            if not step_programs.is_finite(state):
                raise UserError("the weights are not finite: there is nothing to save")
            meta = {checkpoint.LOSS: float(loss(detector.variables(state), raw))}
            saver.save(root, next(numbers), state, meta, 2)

        def since(begin: float) -> float:
            return time.perf_counter() - begin

        save()  # compiles, imports and makes the folder
        saver.wait()
        step_s = timing.steps_a_turn(one, options.turn)[1]
        for _ in range(options.saves):
            begin = time.perf_counter()
            save()
            taken["pause"].append(since(begin))
            saver.wait()
            taken["background"].append(since(begin) - taken["pause"][-1])
            # So many that the file is written before they are done.
            steps = max(1, math.ceil(1.5 * taken["background"][0] / step_s))
            taken["plain"].append(timing.seconds(one, steps) / steps)
            begin = time.perf_counter()
            save()
            one.run(steps)
            taken["beside"].append(since(begin) - steps * taken["plain"][-1])
            saver.wait()
            begin = time.perf_counter()
            _, tree, _ = checkpoint.restore(root, one.facts["state"]())
            jax.block_until_ready(sharding.replicate(tree, sharding.local_mesh(1)))
            taken["restore"].append(since(begin))
    found = {f"{name}_ms": timing.spread([1000 * t for t in times]) for name, times in taken.items()}
    log(
        f"  the loop waits {found['pause_ms']['median']:.4g} ms, restoring takes {found['restore_ms']['median']:.4g} ms"
    )
    return {"bytes": size, **found, **shares(found, options.save_every)}


def shares(found: Mapping[str, Mapping[str, float]], save_every: int) -> dict[str, float]:
    """Computes the shares of the loop's time spent waiting for saves and added by them, with two saves per interval.

    `least_step_ms`: with longer steps the waiting is less than 2 %, and a save is over before the next begins.
    """
    steps = max(save_every // 2, 1)
    between = steps * found["plain_ms"]["median"]
    pause, beside = (found[name]["median"] for name in ("pause_ms", "beside_ms"))
    return {
        "share_waiting": pause / (between + pause),
        "share_added": max(beside, 0.0) / (between + max(beside, 0.0)),
        "least_step_ms": max(49 * pause, found["background_ms"]["median"]) / steps,
    }


def feeding(step_s: float, options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures images per second that the host can index on a device that holds them, or gather and send to one."""
    batch, mesh = options.batch, sharding.local_mesh(1)
    images = timing.pictures(options.images, options.shape)
    begin = time.perf_counter()
    places = batch_order.columns(0, options.images, batch)
    columns_s = time.perf_counter() - begin
    begin = time.perf_counter()
    sharding.shard_rows(images, places.ravel(), mesh).block_until_ready()
    put_s = time.perf_counter() - begin
    first = (np.arange(batch) * places.shape[1]).astype(np.int32)
    at = itertools.count()

    def name(count: int) -> None:  # as `step_programs.one_model` does before a call of so many steps
        rows = np.zeros((train_step.STEPS_A_CALL, batch), np.int32)
        rows[:count] = batch_order.batch_rows(0, options.images, batch, next(at) * count, count)
        sharding.shard_batch(first + rows, mesh, 1).block_until_ready()

    def gather() -> None:
        rows = batch_order.batch_rows(0, options.images, batch, next(at), 1)[0]
        sharding.shard_batch(images[places[np.arange(batch), rows]], mesh, 0).block_until_ready()

    # The loop asks for about a second of steps a call.
    a_call = int(np.clip(1 / step_s, 1, train_step.STEPS_A_CALL))
    calls: dict[str, tuple[int, Callable[[], None]]] = {
        f"indices, {count} steps a call": (count, functools.partial(name, count))
        for count in sorted({a_call, train_step.STEPS_A_CALL})
    }
    calls["a batch gathered on the host and sent"] = (1, gather)
    sides = {label: timing.Side(functools.partial(_times, call), bool, 0) for label, (_, call) in calls.items()}
    steps = {label: timing.steps_a_turn(made, options.turn / 4)[0] for label, made in sides.items()}
    taken = timing.rotate(sides, steps, options.rounds)
    rates = {label: timing.spread([calls[label][0] * batch / t for t in times]) for label, times in taken.items()}
    for label, rate in rates.items():
        log(f"  {label}: {rate['median']:,.0f} images/s")
    eaten = {"measured here": batch / step_s}
    if options.step_ms:
        eaten[f"--step-ms {options.step_ms:g}"] = batch / (options.step_ms / 1000)
    return {
        "images_per_s": rates,
        "eaten_per_s": eaten,
        "columns_ms": 1000 * columns_s,
        "put_ms": 1000 * put_s,
        "put_bytes": images.nbytes,
    }


def streaming(one: timing.Side, step_s: float, options: argparse.Namespace, log: Log) -> dict[str, Any] | None:
    """Measures training on a packed set that is read while the steps run; None without grain.

    Images a second by itself, and the share of a loop of steps that waits for them, the first step left out.
    """
    if not all(importlib.util.find_spec(name) for name in ("grain", "array_record")):
        log("  left out: a packed set read meanwhile, grain or array_record is not installed")
        return None
    batch, steps, (height, width, _) = options.batch, math.ceil(options.turn / step_s), options.shape
    rates, waits = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        array, shard = Path(folder) / "set.npz", Path(folder) / "set.array_record"
        np.savez(array, images=timing.pictures(options.images, options.shape), labels=np.zeros(options.images, int))
        pack.pack(config.Data(source=str(array), height=height, width=width), shard)
        images = sources.load(config.Data(source=str(shard), height=height, width=width, stream="always")).images
        places = batch_order.columns(0, options.images, batch)

        def read(step: int) -> np.ndarray:
            rows = batch_order.batch_rows(0, options.images, batch, step, 1)[0]
            return images[places[np.arange(batch), rows]]

        for _ in range(options.rounds):
            many = max(options.images // batch, 2)
            with input_pipeline.ahead(read, 0, many, train_step.STEPS_A_CALL) as batches:
                next(batches)
                begin = time.perf_counter()
                taken = sum(len(pixels) for pixels in batches)
                rates.append(taken / (time.perf_counter() - begin))
            with input_pipeline.ahead(read, 0, steps + 1, train_step.STEPS_A_CALL) as batches:
                next(batches)
                waited, begin = 0.0, time.perf_counter()
                for _ in range(steps):
                    asked = time.perf_counter()
                    pixels = next(batches)
                    waited += time.perf_counter() - asked
                    jax.device_put(pixels)
                    one.run(1)
                waits.append(waited / (time.perf_counter() - begin))
    log(f"  read meanwhile: {np.median(rates):,.0f} images/s, the loop waits {np.median(waits):.3%}")
    return {"images_per_s": timing.spread(rates), "waits": timing.spread(waits), "steps": steps}


def _times(call: Callable[[], None], count: int) -> None:
    for _ in range(count):
        call()


def predicted(report: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any] | None:
    """Predicts figures by the model, from the weak case with the most devices; None before there is one."""
    cases = [case for case in report["cases"] if case["kind"] == WEAK and case["moved"].get(SPREAD)]
    if not cases:
        return None
    case = cases[-1]
    step_ms = options.step_ms or report["step_ms"]["median"]
    links = collectives.LINKS
    if options.link_gb_s:
        links = (collectives.Link("--link-gb-s, --latency-us", options.link_gb_s, options.latency_us),)
    ways = {way: case["moved"][way] for way in (SPREAD, GROUP) if way in case["moved"]}
    rows = collectives.predict(ways, step_ms / 1000, links, options.accelerators)
    if DIVIDED in case["moved"] and case["devices"] in options.accelerators:  # XLA parts it otherwise for others
        ways = {DIVIDED: case["moved"][DIVIDED]}
        rows += collectives.predict(ways, step_ms / 1000, links, [case["devices"]])
    links_held = [{"name": link.name, "gb_s": link.gb_s, "latency_us": link.latency_us} for link in links]
    return {"step_ms": step_ms, "given": bool(options.step_ms), "links": links_held, "rows": rows}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--works", default=",".join(WORKS), help="of %(default)s (default: all)")
    parser.add_argument("--devices", help="numbers of devices; of a CPU they are virtual (default: 1,2,4,8)")
    parser.add_argument("--shape", help="HEIGHTxWIDTHxCHANNELS (default: 32x32x1)")
    parser.add_argument("--batch", type=int, help="images a device, weak scaling (default: 64)")
    parser.add_argument("--global-batch", type=int, help="images over all devices, strong scaling (default: 64)")
    parser.add_argument("--features", type=int, help="width of the networks (default: 64)")
    parser.add_argument("--latent", type=int, help="size of the latent (default: 100)")
    parser.add_argument("--shard-from", type=int, help="mesh.shard_from of the row so called (default: 65536)")
    parser.add_argument("--rounds", type=int, help="turns of each way (default: 5)")
    parser.add_argument("--turn", type=float, help="seconds of a turn, about (default: 1)")
    parser.add_argument("--step-ms", type=float, help="an accelerator's step, for the prediction (default: this one's)")
    parser.add_argument("--link-gb-s", type=float, help="10^9 bytes/s of a link, one way (default: three, assumed)")
    parser.add_argument("--latency-us", type=float, help="microseconds of an exchange (default: 10, assumed)")
    parser.add_argument("--accelerators", default="8,64,512", help="numbers to predict for (default: %(default)s)")
    parser.add_argument("--saves", type=int, help="checkpoints to time (default: 5)")
    parser.add_argument("--save-every", type=int, default=500, help="steps between them (default: %(default)s)")
    parser.add_argument("--folder", help="where they are written (default: the system's temporary folder)")
    parser.add_argument("--images", type=int, help="size of the training set that is fed (default: 60000)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: JAX's own choice")
    parser.add_argument("--quick", action="store_true", help="does it run: small networks, 2 devices, 2 short rounds")
    options = parser.parse_args(argv)
    if options.latency_us is not None and options.link_gb_s is None:
        raise UserError("--latency-us: expected --link-gb-s beside it, since the links that are assumed have their own")
    command.fill(options, (_QUICK if options.quick else _DEFAULTS) | {"latency_us": 10.0})
    options.works = options.works.split(",")
    if not set(options.works) <= set(WORKS):
        raise UserError(f"--works: got {','.join(options.works)}, expected some of {','.join(WORKS)}")
    options.shape = command.square(options.shape)
    for name in ("devices", "accelerators"):
        try:
            values = command.numbers(getattr(options, name), name)
        except UserError:
            raise UserError(
                f"--{name}: got {getattr(options, name)!r}, expected numbers of devices from 1, such as 2,8"
            ) from None
        setattr(options, name, sorted(set(values)))
    least = {"batch": 2, "global_batch": 2, "features": 1, "latent": 1, "rounds": 1, "saves": 1, "save_every": 1}
    for name, value in (least | {"images": options.batch, "shard_from": 1}).items():
        _wanted(options, name, getattr(options, name) >= value, f"{value} or more")
    for name in ("turn", "step_ms", "link_gb_s", "latency_us"):
        value = getattr(options, name)
        _wanted(options, name, value is None or 0 < value < math.inf, "more than 0")
    most = max(options.devices)
    fit = all(options.global_batch % count == 0 for count in options.devices)
    _wanted(
        options, "global_batch", fit or STRONG not in options.works, f"what {options.devices} divide, as {8 * most}"
    )
    _wanted(options, "folder", not options.folder or Path(options.folder).is_dir(), "a folder that exists")
    return options


def _wanted(options: argparse.Namespace, name: str, good: bool, wanted: str) -> None:
    if not good:
        raise UserError(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected {wanted}")


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures every case, writing the two files after each, and returns the report."""
    most = max(options.devices)
    with contextlib.suppress(RuntimeError):  # the devices are there already
        jax.config.update("jax_num_cpu_devices", most)
    command.choose_device(options)
    if most > jax.local_device_count():
        raise UserError(f"--devices: got {most}, and there are {jax.local_device_count()}; take fewer")
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    report = command.begin("scaling", finished=False, machine=timing.machine(), load_average=command.load(log))
    report |= {"settings": settings, "step_ms": None, "cases": [], "checkpoint": None, "input": None}

    def write() -> None:
        report["prediction"] = predicted(report, options)
        report["load_average"]["after"] = timing.load_average()
        command.write(report, options.out, markdown)

    write()
    log("one device")
    one = side(ONE, 1, options.batch, options)
    report["cases"].append(measure(WEAK, 1, one, (), options, log))
    report["step_ms"] = report["cases"][0]["ms"][ONE]
    write()
    if "checkpoint" in options.works:
        log("checkpoints")
        report["checkpoint"] = checkpoints(one, options, log)
        write()
    if "input" in options.works:
        log("input")
        step_s = report["step_ms"]["median"] / 1000
        report["input"] = feeding(step_s, options, log) | {"streamed": streaming(one, step_s, options, log)}
        write()
    for kind in [kind for kind in (WEAK, STRONG) if kind in options.works]:
        base = one
        if kind == STRONG and options.global_batch != options.batch:
            base = side(ONE, 1, options.global_batch, options)
            report["cases"].append(measure(STRONG, 1, base, (), options, log))
        for devices in [count for count in options.devices if count > 1]:
            log(f"{kind}, {devices} devices")
            more = (GROUP, DIVIDED) if kind == WEAK and devices == most else ()
            report["cases"].append(measure(kind, devices, base, (SPREAD, APART, *more), options, log))
            write()
            command.release()
    report["finished"] = True
    write()
    return report


main = functools.partial(command.main, arguments, run)


if __name__ == "__main__":
    command.own_process()
    sys.exit(main())
