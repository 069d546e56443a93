"""The wheel: what is in it, and that it works where there is no clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import ganomaly_jax

ROOT = Path(__file__).resolve().parents[1]


def has_setuptools():
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel; of a copy, so that nothing that an earlier build left behind gets into it."""
    if not has_setuptools():
        pytest.skip("building the wheel without a download needs setuptools 77 or newer (extra `test`)")
    root = tmp_path_factory.mktemp("wheel")
    for name in ("ganomaly_jax", "configs"):
        shutil.copytree(ROOT / name, root / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source")
    call = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        root,
        root / "source",
    ]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (found,) = root.glob("*.whl")
    return found


def test_it_holds_the_package_and_the_configurations_and_nothing_else(wheel):
    assert wheel.name == f"ganomaly_jax-{ganomaly_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
        points = file.read(f"ganomaly_jax-{ganomaly_jax.__version__}.dist-info/entry_points.txt").decode()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "ganomaly_jax").rglob("*.*") if path.suffix != ".pyc"}
    configs = {f"ganomaly_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert held == package | configs
    assert "ganomaly = ganomaly_jax.cli.main:command" in points


def test_it_works_outside_a_clone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")

    def ran(*words):
        return subprocess.run(
            [sys.executable, "-m", "ganomaly_jax", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
            check=False,
        )

    assert ran("--version").stdout == f"ganomaly-jax {ganomaly_jax.__version__}\n"
    assert {line.split()[0] for line in ran("config", "--list").stdout.splitlines()} >= {"mnist", "smoke", "surface"}
    assert "evaluate.score=components" in ran("config", "surface").stdout
    missed = ran("plan", "--config", "surfce")
    assert missed.returncode == 2
    assert "did you mean surface? expected audio, " in missed.stderr
