"""The command `ganomaly`: the flags of its verbs, and the exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ganomaly_jax import __version__
from ganomaly_jax.cli import verbs
from ganomaly_jax.core.errors import DamagedError, DivergedError, LostError, StoppedError, UserError

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_LINGER_S = 5.0
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def command() -> int:
    """`main` as a process of its own, which ends: after a write that failed, Orbax leaves threads behind for which
    Python would wait, for ten minutes."""
    code = main()
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        last = threading.Timer(_LINGER_S, os._exit, (code,))
        last.daemon = True
        last.start()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 2 usage, 3 some inputs failed, 4 diverged, 5 damaged artefact."""
    if hasattr(sys.stdout, "reconfigure"):  # file names may hold what the terminal has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    given, overrides = parser.parse_known_args(arguments)
    verb = vars(given).pop("run", None)
    if verb is None:
        parser.print_help()
        return 2
    try:
        if arguments is None:
            _with_huge_pages(vars(given).pop("huge_pages", False))
        _prepare()
        return verb(given, overrides)
    except (UserError, DivergedError, DamagedError, StoppedError, LostError) as error:
        print(f"ganomaly: {error}", file=sys.stderr)
        if getattr(given, "distributed", False):
            verbs.leave(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print("ganomaly: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ganomaly",
        description="Train an anomaly detector on normal images alone, and find what is not normal.",
        epilog="exit codes: 0 done, 2 usage, 3 some inputs failed or an update was refused, 4 training diverged, "
        "5 damaged artefact",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ganomaly-jax {__version__}")
    kinds = parser.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    override = "change a value, such as --config.train.epochs=5; config.py lists them all"
    demo = verb("demo", verbs.demo, "train on 5,000 real digits and show what comes out, in about a minute")
    demo.add_argument("--workdir", default="runs/demo", help="the run's folder (default %(default)s)")
    demo.add_argument("--config.KEY", metavar="VALUE", dest="_", help=override)

    train = verb("train", verbs.train, "train a detector, or go on with one, then evaluate it")
    train.add_argument("folder", nargs="?", metavar="DATA", help="folder or file of images; the same as --data")
    train.add_argument(
        "--data", help="a folder, a file (npz, idx, array_record, csv, parquet), tfds:NAME, mnist5k or elpv"
    )
    train.add_argument("--workdir", required=True, help="the run's folder; an unfinished run in it goes on")
    train.add_argument("--config", metavar="FILE", help="a file such as configs/mnist.py")
    train.add_argument("--config.KEY", metavar="VALUE", dest="_", help=override)
    train.add_argument(
        "--fall-back", action="store_true", help="where the last checkpoint is damaged, go on from the one before it"
    )
    several = train.add_argument_group("several processes", "each starts the same command; see docs/pods.md")
    several.add_argument("--distributed", action="store_true", help="join the processes that the cluster started")
    several.add_argument(
        "--coordinator-address", default="", metavar="HOST:PORT", help="of process 0, where it must be said"
    )
    several.add_argument("--num-processes", type=int, default=0, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=int, default=-1, metavar="I", help="which one this is, from 0")
    several.add_argument(
        "--wait",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how long to wait for all of them (default %(default)s)",
    )

    evaluate = verb("evaluate", verbs.evaluate, "score the test set of a run: metrics, curves, worst cases, report")
    evaluate.add_argument("--workdir", required=True, help="the folder of a finished run")
    evaluate.add_argument("--data", default="", help="other labelled images to test on")
    evaluate.add_argument("--false-positive-rate", type=float, help="share of normal images that may be flagged")
    evaluate.add_argument("--groups", metavar="FILE", help="CSV of path,group: the figures for each group as well")

    evaluate.add_argument(
        "--partners",
        metavar="NAMES",
        help="statistical detectors beside it: pca_t2,pca_q,mahalanobis,neighbours,forest, or all",
    )
    evaluate.add_argument("--combine", metavar="NAMES", help="how they are combined: mean,maximum,stouffer")

    again = verb("recalibrate", verbs.recalibrate, "set another threshold, in seconds and without training")
    again.add_argument("--workdir", required=True, help="the folder of a finished run, or a detector folder")
    again.add_argument(
        "--data", default="", help="normal images to calibrate on (default: the calibration scores kept)"
    )
    way = again.add_mutually_exclusive_group()
    way.add_argument(
        "--false-positive-rate", type=float, metavar="R", help="share of normal images that may be flagged"
    )
    way.add_argument("--quantile", type=float, metavar="Q", help="that of the calibration scores, such as 0.99")
    way.add_argument("--tail", type=float, metavar="R", help="a rate by a generalised Pareto tail: an extrapolation")
    way.add_argument("--threshold", type=float, metavar="T", help="this very score")
    again.add_argument("--groups", metavar="FILE", help="CSV of path,group: each group gets a threshold of its own")
    again.add_argument("--review", type=float, metavar="R", help="p-values up to this are for review; 0: no such band")

    check = verb("check", verbs.check, "look through data before anything is trained: what is wrong, and what to do")
    check.add_argument("folder", nargs="?", metavar="DATA", help="as in train; the same as --data")
    check.add_argument("--data", help="as in train")
    check.add_argument("--workdir", help="the folder of a finished run, to compare the data with its detector")
    check.add_argument("--json", metavar="FILE", help="what was found, for machines")
    check.add_argument("--config", metavar="FILE", help="a file such as configs/mnist.py")
    check.add_argument("--config.KEY", metavar="VALUE", dest="_", help=override)

    update = verb("update", verbs.update, "train further with new normal images; the result is kept if it is not worse")
    update.add_argument("--workdir", required=True, help="the folder of a finished run, which stays as it is")
    update.add_argument("--data", required=True, metavar="NEW", help="new normal images, as in train")
    update.add_argument("--out", required=True, metavar="W2", help="the new run's folder; an unfinished update goes on")
    update.add_argument(
        "--replay", type=float, default=0.5, metavar="SHARE", help="of old images among those trained on (%(default)s)"
    )
    update.add_argument(
        "--margin", type=float, default=0.05, metavar="M", help="how much worse it may be, see README (%(default)s)"
    )
    update.add_argument("--old-data", default="", metavar="DATA", help="where the old images lie now, if elsewhere")
    update.add_argument("--config.KEY", metavar="VALUE", dest="_", help=f"{override} (default: a tenth of the steps)")

    compare = verb("compare", verbs.compare, "whether one of two runs separates better, on the same test images")
    compare.add_argument("workdirs", nargs=2, metavar="W", help="the folders of two evaluated runs")

    plan = verb("plan", verbs.plan, "what a training would cost: parameters, FLOPs, memory, the largest batch")
    plan.add_argument("folder", nargs="?", metavar="DATA", help="images to take the sizes from; the same as --data")
    plan.add_argument("--data", help="as in train")
    plan.add_argument("--config", metavar="FILE", help="a file such as configs/mnist.py")
    plan.add_argument("--config.KEY", metavar="VALUE", dest="_", help=override)

    pack = verb("pack", verbs.pack, "decode images once, for sets that are larger than memory")
    pack.add_argument("folder", metavar="DIR", help="a folder of images, or what else train takes")
    pack.add_argument("out", metavar="OUT.array_record", help="the file to write, with a JSON file beside it")
    pack.add_argument("--config", metavar="FILE", help="a file such as configs/mnist.py")
    pack.add_argument("--config.KEY", metavar="VALUE", dest="_", help=override)

    predict = verb("predict", verbs.predict, "a verdict for each image file")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders of them; ray: shards too")
    predict.add_argument("--workdir", required=True, help="the folder of a finished run")
    predict.add_argument("--out", help="where to write the rows (default: predictions.csv in the workdir)")
    predict.add_argument("--groups", metavar="FILE", help="CSV of path,group, where groups have their own thresholds")
    predict.add_argument("--maps", action="store_true", help="a picture of each anomalous image, showing where")
    predict.add_argument(
        "--most-maps",
        type=int,
        default=100,
        metavar="N",
        help="the N most anomalous only; 0: all (default %(default)s)",
    )
    predict.add_argument("--engine", choices=("local", "ray"), default="local", help="this process, or Ray workers")
    predict.add_argument("--workers", type=int, help="ray: how many (default: one for each accelerator, or machine)")
    predict.add_argument("--address", help="ray: HOST:PORT of a cluster, or auto (default: a cluster of this machine)")

    export = verb("export", verbs.export, "the scoring function as a file, to call without this package")
    export.add_argument("--workdir", required=True, help="the folder of a finished run, or a detector folder")
    export.add_argument("--out", required=True, metavar="DIR", help="the folder to make; an earlier export is replaced")
    export.add_argument("--format", choices=("stablehlo", "onnx"), default="stablehlo", help="default %(default)s")
    export.add_argument("--weights", choices=("inside", "beside"), default="inside", help="the program, or weights.npz")
    export.add_argument("--check", nargs="+", metavar="PATH", help="images for the self-check (default: the run's)")

    watch = verb("monitor", verbs.monitor, "watch a stream: rows of sensors, or a folder that fills with images")
    watch.add_argument(
        "source",
        nargs="?",
        default="-",
        metavar="SOURCE",
        help="a CSV or JSONL file that grows, a folder that fills with images; default: rows from standard input",
    )
    watch.add_argument("--workdir", required=True, help="the folder of a finished run, or a detector folder")
    watch.add_argument("--once", action="store_true", help="end where the file ends, or once the folder is judged")
    watch.add_argument("--out", metavar="FILE", help="append the lines to this file (default: standard output)")
    watch.add_argument("--state", metavar="FILE", help="where it stands; with it, a restart goes on where it was")
    watch.add_argument("--save-every", type=float, default=5.0, metavar="S", help="seconds (default %(default)s)")
    watch.add_argument("--format", default="", metavar="KIND", help="csv or jsonl (default: as the first line is)")
    watch.add_argument("--time", default="", metavar="NAME", help="column of the time (default: one called so)")
    watch.add_argument("--poll", type=float, default=0.1, metavar="S", help="seconds between looks (%(default)s)")
    watch.add_argument(
        "--normals", default="", metavar="DATA", help="normal items to compare with, if the run's are gone"
    )
    watch.add_argument("--top", type=int, default=3, metavar="N", help="sensors named with a verdict (%(default)s)")
    watch.add_argument("--steps", type=int, default=32, metavar="N", help="of their integral (default %(default)s)")
    watch.add_argument("--alarm", default="3/5", metavar="K/N", help="K anomalous of N verdicts (default %(default)s)")
    watch.add_argument("--cool-down", type=int, default=60, metavar="N", help="verdicts after an alarm (%(default)s)")
    watch.add_argument(
        "--silent", type=int, default=5, metavar="N", help="rows without a value; 0: never (%(default)s)"
    )
    watch.add_argument("--stuck", type=int, default=30, metavar="N", help="rows with one value; 0: never (%(default)s)")
    watch.add_argument(
        "--drift-every",
        type=float,
        default=50_000,
        metavar="N",
        help="items between false alarms of each drift test; 0: not tested (default %(default)s)",
    )
    watch.add_argument(
        "--drift-step", type=int, default=0, metavar="N", help="verdicts from item to item (default: no row shared)"
    )
    watch.add_argument("--drift-window", type=int, default=200, metavar="N", help="items of its windows (%(default)s)")
    watch.add_argument(
        "--sink", action="append", default=[], metavar="TO", help="a file or http(s) address for events; several"
    )
    watch.add_argument(
        "--spool", default="", metavar="DIR", help="where events wait for it (default: beside the state)"
    )
    watch.add_argument("--live", action="store_true", help="a view on the terminal (needs rich)")
    watch.add_argument(
        "--report", metavar="FILE.png", help="a picture of scores, drift and events, every minute and at the end"
    )

    served = verb("serve", verbs.serve, "score images over HTTP, with a page to drop them on")
    served.add_argument("--workdir", required=True, help="the folder of a finished run, or a detector folder")
    served.add_argument("--host", default="127.0.0.1", help="where it listens; 0.0.0.0: everywhere (%(default)s)")
    served.add_argument("--port", type=int, default=8000, metavar="N", help="0: a free one (default %(default)s)")
    served.add_argument("--max-body", type=float, default=16, metavar="MIB", help="of a request (default %(default)s)")
    served.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N", help="of an image (%(default)s)")
    served.add_argument("--max-batch", type=int, default=64, metavar="N", help="images at once (default %(default)s)")
    served.add_argument("--queue", type=int, default=128, metavar="N", help="requests in work (default %(default)s)")
    served.add_argument("--body-timeout", type=float, default=30, metavar="S", help="for a body (default %(default)s)")
    served.add_argument(
        "--drain",
        type=float,
        default=0,
        metavar="S",
        help="on SIGTERM, not ready but serving for so long (%(default)s)",
    )

    bring = verb("import", verbs.bring, "a detector from PyTorch: the original's netG.pth, or anomalib's checkpoint")
    bring.add_argument("file", metavar="FILE", help="netG.pth, or the .ckpt of anomalib's Ganomaly; no code in it runs")
    bring.add_argument("--data", required=True, metavar="NORMALS", help="normal images, not trained on, to calibrate")
    bring.add_argument("--workdir", required=True, help="the folder to make, for predict, evaluate and export")
    bring.add_argument("--false-positive-rate", type=float, help="share of normal images that may be flagged")

    explain = verb("explain", verbs.explain, "where and why one image differs from normal: a picture, boxes as text")
    explain.add_argument("image", metavar="IMAGE", help="an image file")
    explain.add_argument("--workdir", required=True, help="the folder of a finished run")
    explain.add_argument("--out", help="the picture to write (default: maps/NAME.png in the workdir)")
    for working in (demo, train, update, evaluate, predict, served):
        working.add_argument(
            "--no-huge-pages",
            dest="huge_pages",
            action="store_false",
            help="do not start again with huge pages of memory",
        )
    return parser


def _with_huge_pages(wanted: bool) -> None:
    """Start this very command again with memory in huge pages, where that helps and nothing speaks against it.

    On a CPU a training step takes 1.1 to 1.2 times as long without them, a batch of scores 1.3 times
    (benchmarks/results). The C library reads the setting only when a process starts. Whoever sets GLIBC_TUNABLES
    decides alone.
    """
    if not wanted or "GLIBC_TUNABLES" in os.environ or not _gives_huge_pages():
        return
    print(f"memory in huge pages: GLIBC_TUNABLES={_HUGE_PAGES} (--no-huge-pages leaves it out)", file=sys.stderr)
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": _HUGE_PAGES})


def _gives_huge_pages() -> bool:
    """Whether this system gives huge pages to who asks, and its C library can ask."""
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()  # type: ignore[union-attr]
        return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35) and "[madvise]" in _THP.read_text()
    except (AttributeError, ValueError, OSError):  # another system
        return False


def _prepare() -> None:
    """What JAX reads when it is imported; whatever the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no chatter of XLA on the terminal
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ganomaly_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
