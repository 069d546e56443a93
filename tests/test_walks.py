"""How many functions lie between the command and the loss, and between `predict` and the verdict.

A hop is a function of this package on the call stack, from `cli.main.main` down; functions without a name of their
own (lambdas, comprehensions) are none. A walk joins the stacks at the stations of one image, each function once. The
two walks are written down in docs/architecture.md.
"""

import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

import ganomaly_jax
from ganomaly_jax.cli import main
from tests.support import blobs
from tests.training.test_resolve_once import SMALL

PACKAGE = str(Path(ganomaly_jax.__file__).parent)
NAMELESS = ("<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")
DECODED, JOINED = "data.images.decode._decode", "data.images.files.stack_decoded"
ON_DEVICE, SCALED, LOSS = "parallel.sharding.shard_rows", "data.images.preprocess.to_unit", "model.losses.l1"
STARTED, SCORED = "scoring.scorer.Scorer._started", "scoring.inference.scored"
VERDICT = "scoring.calibration.verdicts"
OF_TRAINING, OF_PREDICT = (DECODED, JOINED, ON_DEVICE, SCALED, LOSS), (DECODED, JOINED, STARTED, SCORED, VERDICT)


def name_of(code):
    """Returns `room.module.function` of a function of the package, None for every other."""
    if not code.co_filename.startswith(PACKAGE) or code.co_qualname.endswith(NAMELESS):
        return None
    module = code.co_filename[len(PACKAGE) + 1 : -len(".py")].replace("/", ".")
    return f"{module}.{code.co_qualname.replace('.<locals>', '')}"


def stacks(words, stations):
    """Returns {station: functions on the stack when it is first called} of a command, in the order of the calls."""
    found = {}

    def watch(frame, event, argument):
        if event == "call" and (name := name_of(frame.f_code)) in stations and name not in found:
            names = []
            while frame is not None:
                names.append(name_of(frame.f_code))
                frame = frame.f_back
            found[name] = [one for one in reversed(names) if one]

    sys.setprofile(watch)
    threading.setprofile(watch)  # files are decoded in threads, whose stacks begin there
    try:
        assert main.main(words) == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert set(found) == set(stations)
    return found


def modules(functions):
    """Returns the modules of functions that are named `room.module.function`."""
    return {
        next(m for m in _prefixes(one) if (Path(PACKAGE) / (m.replace(".", "/") + ".py")).exists()) for one in functions
    }


def _prefixes(name):
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def walk(found):
    """Returns all functions on the stacks, each once, in the order of the stations."""
    return list(dict.fromkeys(one for stack in found.values() for one in stack))


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The stacks of `ganomaly train` on a folder of images, and of `ganomaly predict` on the same."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(blobs(40, 0)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:02}.png")
    workdir = str(tmp_path_factory.mktemp("walk") / "run")
    trained = stacks(["train", str(folder), "--workdir", workdir, *SMALL], OF_TRAINING)
    return trained, stacks(["predict", "--workdir", workdir, str(folder)], OF_PREDICT)


def test_from_the_command_to_the_loss(commands):
    trained, _ = commands
    assert trained[LOSS][0] == "cli.main.main"
    assert len(trained[LOSS]) <= 25
    assert len(modules(trained[LOSS])) <= 12


def test_from_predict_to_the_verdict(commands):
    _, predicted = commands
    for station in (STARTED, SCORED, VERDICT):
        assert predicted[station][0] == "cli.main.main"
        assert len(predicted[station]) <= 20


def test_the_walk_of_one_image(commands):
    """From the file on: reading, the device, scaling and the step, or scoring. What these bounds refuse is a detour."""
    trained, predicted = commands
    assert len(walk(trained)) <= 32
    assert len(walk(predicted)) <= 22
