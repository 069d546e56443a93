"""The detector folder: small, complete, nothing in it that could run, and no damage that loads."""

import json  # noqa: I001
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.support import blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import sealed_pytree
from ganomaly_jax.scoring.scorer import Scorer


@pytest.fixture
def folder(trained, tmp_path):
    """A detector folder alone, away from its run."""
    return Path(shutil.copytree(trained[0] / "detector", tmp_path / "elsewhere"))


def test_it_is_complete_and_small(trained, folder):
    np.testing.assert_array_equal(Scorer.load(folder)(blobs(5, 3)), trained[1](blobs(5, 3)))
    variables, meta = sealed_pytree.read(folder)
    assert not {"discriminator", "opt_state"} & {str(key) for path in variables for key in [path, *variables[path]]}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) + 64 * 1024
    assert {"config", "dtype", "low", "high", "calibration", "provenance"} <= set(meta)


@pytest.mark.parametrize("seed", range(5))
def test_of_1000_random_flips_none_passes(folder, seed):
    """200 for each seed; every file is as likely as any other, so that the small ones are hit too."""
    rng = random.Random(seed)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    for _ in range(200):
        path = rng.choice(files)
        place = rng.randrange(path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(place)
            before = file.read(1)
            file.seek(place)
            file.write(bytes([before[0] ^ rng.randrange(1, 256)]))
            file.flush()
            with pytest.raises(DamagedError):
                sealed_folder.verify(folder)
            file.seek(place)
            file.write(before)
    sealed_folder.verify(folder)


def test_damage_has_its_own_exit_code(folder, tmp_path, capsys):
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert main.main(["predict", "--workdir", str(folder), "x.png"]) == 5
    assert main.main(["export", "--workdir", str(folder), "--out", str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err.count("is damaged") == 2
    assert not (tmp_path / "out").exists()


def test_loading_runs_nothing(folder):
    """Python itself reports what it unpickles, compiles, runs and starts: none of it happens while a folder is read."""
    names = {path.name for path in folder.rglob("*")}
    assert not {name for name in names if name.endswith((".py", ".pkl", ".pickle", ".so", ".pyc", ".pt", ".npy"))}
    script = """
import sys
import ganomaly_jax as gj, jax
scorer = gj.load(sys.argv[1])  # whatever is imported, compiled or started once is by now
forbidden = {"pickle.find_class", "exec", "compile", "marshal.loads", "import", "os.system", "subprocess.Popen",
             "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "socket.connect", "code.__new__"}
seen, watching = set(), True
def hook(event, arguments):
    if watching and event in forbidden:
        seen.add((event, str(arguments[:1])[:80]))
sys.addaudithook(hook)
gj.load(sys.argv[2])
found = set(seen)
import pickle
pickle.loads(pickle.dumps(gj.UserError))  # so that the hook is known to see it
eval("1 + 1")
watching = False
assert {"pickle.find_class", "exec"} <= {event for event, _ in seen}, seen
sys.exit(str(found) if found else 0)
"""
    other = shutil.copytree(folder, folder.with_name("another"))
    call = [sys.executable, "-W", "ignore", "-c", script, str(folder), str(other)]
    ran = subprocess.run(call, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def set_in(*path):
    """Returns a function that sets a value in the metadata, or deletes it."""

    def change(meta):
        *parents, name, value = path
        for parent in parents:
            meta = meta[parent]
        if value is DELETED:
            del meta[name]
        else:
            meta[name] = value

    return change


DELETED = object()
# What is changed in meta.json, the hashes being right, and a part of the sentence that refuses it.
CHANGES = [
    (("config", "model", "latent_size", 5), "generate shape (4, 4, 8, 5)"),
    (("config", "model", "latent_size", 10**12), "model.latent_size"),
    (("config", "model", "features", 10**9), "model.features=1000000000: expected from 1 to 16,384"),
    (("config", "model", "extra_layers", 10**6), "model.extra_layers"),
    (("config", "model", "__class__", "os.system"), "unknown configuration key: model.__class__"),
    (("config", "model", "latent_size", "8"), "model.latent_size is '8', expected a int"),
    (("config", "train", "flip", 1), "train.flip is 1, expected a bool"),
    (("config", "data", "channels", 2**40), "data.channels"),
    (("config", "data", "height", 2**20), "data.height"),
    (("config", []), "config is [], expected a dict"),
    (("low", "__import__('os').system('true')"), "low is"),
    (("low", 300.0), "low is not below high"),
    (("low", [0.0, 1.0]), "low has 2 values, expected a number"),
    (("high", None), "high is None, expected a finite number"),
    (("dtype", "O8"), "dtype is 'O8'"),
    (("dtype", ["u1"]), "dtype is ['u1'], expected a str"),
    (("format", 2), "its format is 2, but this version reads 1"),
    (("format", DELETED), "its format is None"),
    (("calibration", DELETED), "calibration is missing"),
    (("calibration", "threshold", "high"), "calibration.threshold is 'high', expected a finite number"),
    (("calibration", "threshold", True), "calibration.threshold is True"),
    (("calibration", "threshold", 10**400), "calibration.threshold is 1000"),
    (("calibration", "rate", 2.0), "calibration.rate is 2"),
    (("calibration", "review", 1e9), "calibration.review is above"),
    (("calibration", "groups", {"a": [2.0, 1.0]}), "unsorted"),
    (("calibration", "groups", {"a": []}), "or none"),
    (("calibration", "extra", 1), "calibration.'extra' is unknown"),
    (("residual_max", None), "residual_max is None"),
    (("provenance", 3), "provenance is 3, expected a dict"),
    (("columns", ["a", "b"]), "columns has 2 names of features, but its inputs have 1"),
    (("columns", [3]), "a name in columns is 3"),
    (("code", "x"), "'code' is unknown"),
]


@pytest.mark.parametrize(("change", "what"), CHANGES, ids=[what for _, what in CHANGES])
def test_a_stranger_s_folder_with_right_hashes_is_refused_in_a_sentence(folder, change, what):
    meta = json.loads((folder / "meta.json").read_text())
    set_in(*change)(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    sealed_folder.seal(folder)
    with pytest.raises(UserError, match="not a detector that this version can use") as caught:
        ganomaly_jax.load(folder)
    assert what in str(caught.value) and "\n" not in str(caught.value)
    assert main.main(["predict", "--workdir", str(folder), "x.png"]) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"threshold": ', '"threshold": 0.0, "threshold": '),
        ('"residual_max": ', '"residual_max": NaN, "x": '),
        ('"residual_max": ', '"residual_max": 1e999, "x": '),
    ],
)
def test_metadata_that_is_no_strict_json_is_damage(folder, old, new):
    text = (folder / "meta.json").read_text()
    assert old in text
    (folder / "meta.json").write_text(text.replace(old, new, 1))
    sealed_folder.seal(folder)
    with pytest.raises(DamagedError, match="ValueError"):
        ganomaly_jax.load(folder)


def test_metadata_without_end_is_not_read(folder):
    with (folder / "meta.json").open("ab") as file:
        file.write(b" " * sealed_folder.LARGEST_JSON)
    sealed_folder.seal(folder)
    with pytest.raises(DamagedError, match=r"'meta\.json' has more than 16 MiB"):
        ganomaly_jax.load(folder)


@pytest.mark.parametrize(
    ("tile", "overlap", "side", "what"),
    [
        (16, 15.0, 16384, "267,944,161 tiles, expected at most 16,384"),
        (16, 0.0, 4096, "65,536 tiles"),
        (16, -1.0, 64, "data.overlap"),
        (16, 16.0, 64, "data.overlap"),
        (7, 0.25, 64, "data.tile"),
        (256, 0.25, 64, "data.height"),
        (-16, 0.25, 64, "data.tile"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(folder, tile, overlap, side, what):
    meta = json.loads((folder / "meta.json").read_text())
    meta["config"]["data"] |= {"tile": tile, "overlap": overlap, "height": side, "width": side}
    (folder / "meta.json").write_text(json.dumps(meta))
    sealed_folder.seal(folder)
    with pytest.raises(UserError, match="not a detector") as caught:
        ganomaly_jax.load(folder)
    assert what in str(caught.value)


def test_calibration_scores_are_checked(folder):
    variables, meta = sealed_pytree.read(folder)
    scores = variables["calibration"]
    for wrong in (scores[::-1], scores.astype(np.float64), scores[None], np.full_like(scores, np.nan)):
        sealed_pytree.write(folder, variables | {"calibration": np.ascontiguousarray(wrong)}, meta)
        with pytest.raises(UserError, match="expected n sorted finite float32"):
            ganomaly_jax.load(folder)


def test_predict_writes_nothing_into_a_detector_folder(trained, tmp_path, capsys):
    folder = tmp_path / "detector"
    shutil.copytree(trained[0] / "detector", folder)
    before = sorted(path.name for path in folder.iterdir())
    assert main.main(["predict", "--workdir", str(folder), "any.png"]) == 2
    assert "with --out" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
