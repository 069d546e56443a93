"""The gate, `.ci/run`: it parses, finds the README's test command and interpreters, and names tests that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GATE = ROOT / ".ci" / "run"


def run(words, **environment):
    """What bash answers to `words` after the functions of the gate."""
    return subprocess.run(
        ["bash", "-c", f"source .ci/run && {words}"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def interpreter(folder, name, version):
    """An executable that says it is Python of that version."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$2" in *"{version}"*) exit 0;; esac\nexit 1\n')
    path.chmod(0o755)
    return path


def test_it_parses():
    assert subprocess.run(["bash", "-n", str(GATE)], check=False).returncode == 0
    assert os.access(GATE, os.X_OK)


def test_the_readme_has_one_test_command():
    found = run("test_command")
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    assert line.startswith("python -m pip install ") and line.endswith("python -m pytest")
    assert (ROOT / "README.md").read_text(encoding="utf-8").splitlines().count(line) == 1


@pytest.mark.parametrize("count", [0, 2])
def test_no_test_command_or_two_are_an_error(tmp_path, count):
    (tmp_path / "README.md").write_text("python -m pip install -e . && python -m pytest\n" * count)
    found = run(f"cd '{tmp_path}' && test_command")
    assert found.returncode == 1 and "no single test command" in found.stderr


def test_an_interpreter_is_found_by_name_or_where_pyenv_keeps_it(tmp_path):
    named = interpreter(tmp_path / "bin", "python3.98", "3.98")
    hidden = interpreter(tmp_path / ".pyenv" / "versions" / "3.99.2" / "bin", "python", "3.99")
    interpreter(tmp_path / "bin", "python3.97", "3.96")  # another version than it is called
    places = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    assert run("find_python 3.98", **places).stdout.strip() == named.name
    assert run("find_python 3.99", **places).stdout.strip() == str(hidden)
    for version in ("3.97", "3.95"):
        found = run(f"find_python {version}", **places)
        assert found.returncode == 1 and f"Python {version} is not found" in found.stderr


def test_this_interpreter_is_found():
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    places = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert run(f"find_python {version}", **places).returncode == 0


def test_its_tests_exist_and_its_versions_are_the_packages():
    text = GATE.read_text(encoding="utf-8")
    named = set(re.findall(r"tests/[\w/.]*\w", text))
    assert len(named) > 8 and not [name for name in named if not (ROOT / name).exists()]
    classifiers = set(re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8")))
    assert set(re.findall(r"^(?:newest|between|oldest)=(3\.\d+)", text, re.MULTILINE)) == classifiers
