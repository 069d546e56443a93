"""Our training step and scorer beside PyTorch's on the same device, in one run.

    python benchmarks/speed/throughput.py --out benchmarks/speed/results/NAME

writes NAME.json and NAME.md, after each case anew. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import command, ours, table, timing
from benchmarks.common.command import Log
from ganomaly_jax.core.errors import UserError

OURS, EAGER = table.OURS, table.EAGER
RATIOS = ("ratio_eager", "ratio_tuned")
WORKS = ("train", "score")
SHAPES = "32x32x1,32x32x3,64x64x1,64x64x3,128x128x3"
BATCHES = "1,64,256,1024"
_DEFAULTS = {"shapes": SHAPES, "batches": BATCHES, "rounds": 5, "turn": 1.0, "memory": "all"}
_QUICK = {"shapes": "32x32x1", "batches": "64", "rounds": 2, "turn": 0.1, "memory": "none"}


def measure(work: str, shape: Sequence[int], batch: int, options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures one case, all sides in rounds; the result is written to the JSON file as it is.

    A side that cannot run is left out with the reason; without ours there is no case, and its `status` says why.
    """
    case: dict[str, Any] = {"work": work, "shape": list(shape), "batch": batch, "status": "measured", "left_out": {}}
    plans = _plans(case, options)
    sides, steps, memory, round_s = {}, {}, {}, 0.0

    def leave_out(name: str, error: Exception) -> None:
        case["left_out"][name] = "out of memory" if timing.out_of_memory(error) else timing.one_line(error)
        log(f"  {name} left out: {case['left_out'][name]}")

    def remember(name: str) -> None:
        module, _, arguments = plans[name]
        if batch not in options.memory or name in memory:
            return
        call = {"module": module, "arguments": arguments, "steps": 2}
        try:
            memory[name] = timing.in_own_process("benchmarks.common.timing:peak_memory", call)
        except RuntimeError as error:
            if timing.out_of_memory(error) and name not in sides:
                raise  # what does not fit there does not fit here
            log(f"  {name}: memory not measured: {timing.one_line(error)}")

    for name, (_, make, arguments) in plans.items():
        try:
            if name in (OURS, EAGER):
                remember(name)  # first: where the system ends a process for its memory, it is not this one
            made = make(**arguments)
            steps[name], each = timing.steps_a_turn(made, options.turn)
        except Exception as error:
            leave_out(name, error)
            if name == OURS:
                why = case["left_out"][name]
                return case | {"status": why if why == "out of memory" else "failed"}
            continue
        sides[name] = made
        round_s += each * steps[name]
        log(f"  {name}: {1000 * each:.4g} ms a step, {made.compile_s:.1f} s until the first")
    rounds = max(1, min(options.rounds, int(options.limit / round_s)))
    taken = timing.rotate(sides, steps, rounds)
    wrong = [name for name, made in sides.items() if not made.finite()]
    case["left_out"] |= dict.fromkeys(wrong, "its numbers are not finite")
    if OURS in wrong:
        return case | {"status": "failed"}
    taken = {name: times for name, times in taken.items() if name not in wrong}
    facts = sides[OURS].facts
    case |= summarise(batch, taken, facts["flops"], options.peaks.get("jax", {}).get(options.dtype))
    wanted = ours.operations(work, shape, batch, options.latent, options.features)
    peak = options.peaks.get("jax", {}).get(options.dtype)
    case |= {"flops_by_definition": wanted}
    case |= {"times_the_matmul_limit": case["sides"][OURS]["ms"]["median"] / 1000 * peak / wanted if peak else None}
    case |= {"flops_a_step": facts["flops"], "flops_before_optimisation": facts["flops_before"]}
    case |= {"program_bytes": facts["memory"], "rounds": rounds}
    if case["tuned"]:
        remember(case["tuned"])
    for name, found in case["sides"].items():
        found |= {"steps_a_turn": steps[name], "compile_s": sides[name].compile_s, "peak_memory": memory.get(name)}
    return case


def _plans(case: Mapping[str, Any], options: argparse.Namespace) -> dict[str, tuple[str, Callable[..., Any], Any]]:
    """Returns {side: (its module, the function that makes it, its arguments)}."""
    common = {name: case[name] for name in ("work", "shape", "batch")}
    common |= {"latent": options.latent, "features": options.features, "bfloat16": options.dtype == "bfloat16"}
    plans: dict[str, tuple[str, Callable[..., Any], Any]] = {OURS: ("benchmarks.ours", ours.side, common)}
    if options.peer:
        from benchmarks.common import pytorch_ganomaly as peer

        for name in (EAGER, *peer.tuned(options.peer, not options.skip_compile)):
            arguments = common | {"variant": name, "device": options.peer}
            plans[name] = ("benchmarks.pytorch_ganomaly", peer.side, arguments)
    return plans


def summarise(batch: int, taken: Mapping[str, Sequence[float]], flops: float, peak: float | None) -> dict[str, Any]:
    """Summarises a case from the seconds per step of each side in each round.

    `tuned` is the variant of the peer with the smallest median but for the eager one; `ratio_*` is how many times as
    fast as that ours is.
    """
    medians = {name: timing.spread(times)["median"] for name, times in taken.items()}
    others = [name for name in taken if name not in (OURS, EAGER)]
    tuned = min(others, key=medians.__getitem__) if others else None
    rate = flops / medians[OURS]
    return {
        "sides": {
            name: {
                "ms": timing.spread([1000 * t for t in times]),
                "ms_rounds": [1000 * t for t in times],
                "images_per_s": batch / medians[name],
            }
            for name, times in taken.items()
        },
        "tuned": tuned,
        "ratio_eager": timing.ratios(taken[OURS], taken[EAGER]) if EAGER in taken else None,
        "ratio_tuned": timing.ratios(taken[OURS], taken[tuned]) if tuned else None,
        "flops_per_s": rate,
        "share_of_matmul_peak": rate / peak if peak else None,
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--works", default="train,score", help="of train, score (default: both)")
    parser.add_argument("--shapes", help=f"HEIGHTxWIDTHxCHANNELS,... (default: {SHAPES})")
    parser.add_argument("--batches", help=f"images a step, a case each (default: {BATCHES})")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: 5)")
    parser.add_argument("--turn", type=float, help="seconds that a turn takes about (default: 1)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the rounds of a case: fewer then (600)")
    parser.add_argument("--memory", help="batches whose peak memory is measured: all, none or 64,... (default: all)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="what networks compute in")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: JAX's own choice")
    parser.add_argument("--features", type=int, default=64, help="width of the networks (default: 64)")
    parser.add_argument("--latent", type=int, default=100, help="size of the latent (default: 100)")
    parser.add_argument("--skip-compile", action="store_true", help="without torch.compile, which compiles for minutes")
    parser.add_argument("--ours-alone", action="store_true", help="without PyTorch")
    parser.add_argument("--quick", action="store_true", help="does it run: 32x32x1, batch 64, 2 short rounds")
    options = parser.parse_args(argv)
    command.fill(options, _QUICK if options.quick else _DEFAULTS)
    options.shapes = [command.square(text) for text in options.shapes.split(",")]
    options.batches = command.numbers(options.batches, "--batches")
    options.works = options.works.split(",")
    if not set(options.works) <= set(WORKS):
        raise UserError(f"--works: got {options.works}, expected train, score or train,score")
    command.at_least(options, 1, "rounds", "features", "latent")
    command.seconds(options, "turn", "limit")
    every = {"all": options.batches, "none": []}
    options.memory = every[options.memory] if options.memory in every else command.numbers(options.memory, "--memory")
    return options


def choose_peer(options: argparse.Namespace) -> None:
    """Sets `options.peer` to PyTorch's device beside JAX's `options.device`, "" if it does not take part."""
    options.peer = "" if options.ours_alone else {"cpu": "cpu", "gpu": "cuda"}.get(options.device, "")
    if not options.peer:
        return
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch, the peer, is not installed: pip install torch, or measure --ours-alone")
    import torch

    if options.peer == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"JAX runs on a GPU, but PyTorch {torch.__version__} finds none: install a build of it with CUDA, or take "
            "--device cpu or --ours-alone"
        )


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures every case, writing the two files after each, and returns the report."""
    command.choose_device(options)
    choose_peer(options)
    variants: dict[str, str] = {}
    size = 2048 if options.device == "cpu" else 8192
    size = 256 if options.quick else size
    dtypes = ("float32", "bfloat16")
    load = command.load(log)
    options.peaks = {"jax": {dtype: timing.jax_matmul_peak(dtype, size) for dtype in dtypes}}
    if not options.peer:
        log("ours alone: PyTorch is left out, or has no such device")
    else:
        from benchmarks.common import pytorch_ganomaly as peer

        variants = {name: peer.VARIANTS[name].words for name in (EAGER, *peer.tuned(options.peer))}
        options.peaks["torch"] = {dtype: timing.torch_matmul_peak(dtype, size, options.peer) for dtype in dtypes}
    report = command.begin(
        "throughput",
        finished=False,
        machine=timing.machine(),
        load_average=load,
        settings={
            **{name: getattr(options, name) for name in ("device", "dtype", "features", "latent", "rounds", "quick")},
            "turn_s": options.turn,
            "steps_a_call": ours.STEPS_A_CALL,
            "torch_compile": bool(options.peer) and not options.skip_compile,
            "variants": variants,
        },
        matmul_flops_per_s=options.peaks,
        matmul_size=size,
        cases=[],
    )
    # Now: a folder that cannot be written to is found before anything is measured.
    command.write(report, options.out, table.markdown)
    cases = list(itertools.product(options.works, options.shapes, options.batches))
    for number, (work, shape, batch) in enumerate(cases, 1):
        begin = time.perf_counter()
        log(f"[{number}/{len(cases)}] {work} {'x'.join(map(str, shape))}, batch {batch}")
        try:
            case = measure(work, shape, batch, options, log)
        except Exception as error:  # the cases after it are worth having
            status = "out of memory" if timing.out_of_memory(error) else "failed"
            case = {"work": work, "shape": list(shape), "batch": batch, "status": status}
            case |= {"left_out": {"the case": timing.one_line(error)}}
        report["cases"].append(case)
        report["finished"] = number == len(cases)
        report["load_average"]["after"] = timing.load_average()
        command.write(report, options.out, table.markdown)
        found = [f"{k.removeprefix('ratio_')} {case[k]['median']:.2f}" for k in RATIOS if case.get(k)]
        took = time.perf_counter() - begin
        log(f"  {case['status']} in {took:.0f} s; ours / {', ours / '.join(found) or 'peer: not measured'}")
        command.release()
    return report


main = functools.partial(command.main, arguments, run)


if __name__ == "__main__":
    command.own_process()
    sys.exit(main())
