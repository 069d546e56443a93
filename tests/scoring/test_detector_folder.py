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


def other_config(meta):
    meta["config"]["model"]["latent_size"] = 5


def huge_config(meta):
    meta["config"]["model"]["features"] = 10**9


def unknown_key(meta):
    meta["config"]["model"]["__class__"] = "os.system"


def code_for_a_number(meta):
    meta["low"] = "__import__('os').system('true')"


def no_type(meta):
    meta["dtype"] = "O8"


def no_calibration(meta):
    del meta["calibration"]


CHANGES = [other_config, huge_config, unknown_key, code_for_a_number, no_type, no_calibration]


@pytest.mark.parametrize("change", CHANGES)
def test_a_stranger_s_folder_with_right_hashes_is_refused_in_a_sentence(folder, change):
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    sealed_folder.seal(folder)
    with pytest.raises(UserError, match="not a detector that this version can use") as caught:
        ganomaly_jax.load(folder)
    assert "\n" not in str(caught.value)
    assert main.main(["predict", "--workdir", str(folder), "x.png"]) == 2


def test_predict_writes_nothing_into_a_detector_folder(trained, tmp_path, capsys):
    folder = tmp_path / "detector"
    shutil.copytree(trained[0] / "detector", folder)
    before = sorted(path.name for path in folder.iterdir())
    assert main.main(["predict", "--workdir", str(folder), "any.png"]) == 2
    assert "expected --out" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
