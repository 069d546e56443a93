"""The fenced blocks of the pages, in order: what they hold, how they are run, and what their comments state."""

import ast
import configparser
import contextlib
import glob
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ganomaly_jax.cli import arguments, main
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("", "bash", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHAPE = re.compile(r"(?:(\w+) )?(?:\b(float|float32|uint8|int16) )?\[([\w*][\w*., +-]*)\]")
_WAIT_S = 60


class Item(NamedTuple):
    """What is run or listed as one: a command line with what it answers, or a whole block of another language."""

    page: str
    line: int
    language: str
    text: str
    answer: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def pages() -> list[str]:
    """The pages with examples, as paths relative to the repository."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("benchmarks/**/README.md"))]
    return [str(path.relative_to(ROOT)) for path in found if items(str(path.relative_to(ROOT)))]


def items(page: str) -> list[Item]:
    """The commands and blocks of a page in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        language, block = fence.groups()
        first = text.count("\n", 0, fence.start(2)) + 1
        if language in SHELL and not block.startswith("#!"):
            found += _commands(page, first, language, block)
        else:
            found.append(Item(page, first, language, block))
    return found


def indented(page: str) -> list[str]:
    """The lines of a page that Markdown would show as code though they are in no fence."""
    return re.findall(r"\n\n(    \S.*)", _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")))


def _commands(page: str, first: int, language: str, block: str) -> list[Item]:
    """Command lines, continued ones joined; in a `console` block those behind `$ `, with the lines below as answer."""
    found: list[Item] = []
    lines = block.replace("\\\n", "\0").splitlines()
    for line in lines:
        text, number = line.replace("\0", " "), first
        first += 1 + line.count("\0")
        if language != "console":
            if shlex.split(text, comments=True):
                found.append(Item(page, number, language, text))
        elif text.startswith("$ "):
            found.append(Item(page, number, language, text[2:]))
        else:
            found[-1] = found[-1]._replace(answer=found[-1].answer + text + "\n")
    return found


def words(text: str) -> list[str]:
    """The words of a command line without its comment."""
    return shlex.split(text, comments=True)


def check(item: Item) -> None:
    """What can be known of an item without running it: it parses, and so does every `ganomaly` command in it."""
    if item.language == "python":
        compile(item.text, str(item), "exec")
    elif item.language == "yaml":
        for command in _listed_commands(yaml.safe_load(item.text)):
            parse(command)
    elif item.language == "ini":
        unit = configparser.ConfigParser(interpolation=None, strict=False)
        unit.read_string(re.sub(r"\\\n\s*", "", item.text))
        parse(words(unit["Service"]["ExecStart"]))
    elif item.language in SHELL:
        subprocess.run(["bash", "-n"], input=item.text, text=True, check=True)
        for command in re.findall(r"\bganomaly (?:[a-z]|--).*", item.text.replace("\\\n", "")):
            command = command.rstrip('" ') if command.count('"') % 2 else command
            parse(["ganomaly", *words(re.split(r"\s(?:&&|\|)\s", command)[0])[1:]])


def parse(command: Sequence[str]) -> None:
    """Parses a `ganomaly` command, and the settings in it."""
    assert Path(command[0]).name == "ganomaly", command
    _, overrides = main.parse([re.sub(r"\$\([A-Z_]+\)", "1", word) for word in command[1:]])
    arguments.apply(config.Config(), overrides)


def _listed_commands(tree: Any) -> list[list[str]]:
    """The lists in a YAML document that begin with `ganomaly`."""
    if isinstance(tree, list) and tree[:1] == ["ganomaly"]:
        return [tree]
    below = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [command for value in below for command in _listed_commands(value)]


def parse_benchmark(item: Item) -> None:
    """Gives the options of `python benchmarks/...`, or `python -m benchmarks...`, to the parser of that program."""
    python, script, *rest = words(item.text.replace("python -m ", "python "))
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    assert python == "python" and script.startswith("benchmarks"), item
    try:
        module.arguments(rest)
    except UserError as error:
        assert "install" in str(error), f"{item}: {error}"  # another program that it needs


# `update` decides by the data whether the new detector is accepted: both are what the page describes.
CODES = {"ganomaly update": (0, 3)}


def check_answer(item: Item, printed: str) -> None:
    """Compares what a command prints with the answer on the page: JSON with the same keys, types and sentences."""
    if item.answer:
        assert _without_numbers(json.loads(printed)) == _without_numbers(json.loads(item.answer)), f"{item}: {printed}"


def _without_numbers(value: Any) -> Any:
    """A JSON value with the type in place of each number and of each verdict, which depend on the detector."""
    if isinstance(value, dict):
        return {name: str if name == "verdict" else _without_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_numbers(inner) for inner in value]
    return type(value) if isinstance(value, float) else value


def first_column(page: str, heading: str) -> set[str]:
    """What stands in backticks in the first column of the first table below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    rows = re.search(r"^\|.*\n\|[ |:-]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows, f"{page}: no table below {heading}"
    return {name for row in rows[1].splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}


class Shell:
    """Runs the commands of a page in its folder, and keeps what they print."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "CURL_HOME": str(folder),
        }
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, item: Item) -> str:
        """Runs a command as it stands and returns what it prints; it must end with code 0."""
        command = words(item.text)
        operators = any(mark in item.text.partition(" #")[0] for mark in "|<>&;$`")
        if command[0] == "ganomaly" and command[1] == "serve":
            return self._serve(command)
        if command[0] == "ganomaly" and not operators:
            return self._here(item, command[1:])
        if command[0] == "tail":
            return self._endless(item)
        ran = subprocess.run(
            ["bash", "-ec", item.text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_WAIT_S,
            check=False,
        )
        assert ran.returncode == 0, f"{item}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def _here(self, item: Item, command: Sequence[str]) -> str:
        """Runs `ganomaly` in this process."""
        command = [name for word in command for name in (sorted(glob.glob(word)) if "*" in word else [word])]
        with (self.folder / "printed.txt").open("w+", encoding="utf-8") as printed:
            endless = command[0] == "monitor" and "--once" not in command
            out = Path(command[command.index("--out") + 1] if "--out" in command else printed.name)
            before = out.stat().st_size if out.exists() else 0
            stop = threading.Thread(target=_interrupt, args=(out, before)) if endless else None
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                if stop:
                    stop.start()
                code = main.main(command)
            if stop:
                stop.join()
            printed.flush()
            printed.seek(0)
            text = printed.read()
        assert code in CODES.get(" ".join(words(item.text)[:2]), (0,)), f"{item}: exit code {code}\n{text}"
        return text

    def _endless(self, item: Item) -> str:
        """Runs a pipeline that would never end until its first verdict."""
        ran = subprocess.Popen(
            ["bash", "-c", item.text],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert ran.stdout is not None
        first = next((line for line in ran.stdout if '"verdict"' in line), "")
        os.killpg(ran.pid, signal.SIGTERM)
        ran.communicate(timeout=_WAIT_S)
        assert first, f"{item}: no verdict"
        return first

    def _serve(self, command: Sequence[str]) -> str:
        """Starts the server on a free port, to which curl's own settings then lead whatever asks for port 8000."""
        ran = subprocess.Popen(
            [*command, "--port", "0"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(ran)
        assert ran.stdout is not None
        printed = ""
        for line in ran.stdout:
            printed += line
            if line.startswith("ganomaly: ready"):
                break
        port = re.search(r"http://\S+:(\d+)", printed)
        assert port and ran.poll() is None, printed
        (self.folder / ".curlrc").write_text(f'silent\nconnect-to = "127.0.0.1:8000:127.0.0.1:{port[1]}"\n')
        return printed

    def close(self) -> None:
        """Ends the servers, as SIGTERM ends them."""
        for process in self.processes:
            process.terminate()
            process.communicate(timeout=_WAIT_S)
            assert process.returncode == 0


def _interrupt(out: Path, before: int) -> None:
    """Sends SIGTERM to this process once a verdict is appended to a file; the monitor then handles it."""
    end = time.monotonic() + _WAIT_S
    while not (out.exists() and b'"verdict"' in out.read_bytes()[before:]):
        if time.monotonic() > end:
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def run_python(item: Item, names: dict[str, Any]) -> None:
    """Executes a block and checks the shapes that its comments state."""
    code = compile("\n" * (item.line - 1) + item.text, f"<{item.page}>", "exec")  # not a path: grain reads those
    exec(code, names)
    check_stated(item.text, names)


def run_session(item: Item, names: dict[str, Any]) -> None:
    """Executes a block of lines behind `>>> `, each of which raises the error on the line below."""
    lines = item.text.splitlines()
    for statement, stated in zip(lines[::2], lines[1::2], strict=True):
        raised = ""
        try:
            exec(statement.removeprefix(">>> "), names)
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
        assert raised == stated, f"{item}: {raised}"


def check_stated(text: str, names: Mapping[str, Any]) -> int:
    """Compares shapes and dtypes in comments, `x = ...  # float32 [N, 3]` or `# rows [N, D]`, with the arrays.

    A letter stands for one number throughout the block; `*scorer.input_shape` for several.

    Returns:
      The number of statements.
    """
    targets = {
        node.end_lineno: node.targets[0].id
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    sizes: dict[str, int] = {}
    found = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        for subject, dtype, dims in _SHAPE.findall(token.string):
            name = subject if subject in names else targets.get(token.start[0])
            value = names.get(name or "")
            if name is None:  # about the argument of a function
                continue
            assert hasattr(value, "shape"), f"{token.string}: {name} is no array"
            if dtype:
                assert np.dtype(value.dtype).name.startswith(dtype), f"{token.string}: {name} is {value.dtype}"
            _check_shape(f"{token.string}: {name}", value.shape, dims, sizes, names)
            found += 1
    return found


def _check_shape(
    where: str, shape: tuple[int, ...], dims: str, sizes: dict[str, int], names: Mapping[str, Any]
) -> None:
    """Compares a shape with its description; new letters get their number."""
    left = list(shape)
    for dim in re.split(r",\s*", dims):
        if dim.startswith("*"):
            wanted = list(eval(dim[1:], dict(names)))
            got, left = left[: len(wanted)], left[len(wanted) :]
        else:
            assert left, f"{where} has the shape {shape}"
            if dim.isidentifier():
                sizes.setdefault(dim, left[0])
            wanted, got, left = [eval(dim, {}, sizes)], left[:1], left[1:]
        assert wanted == got, f"{where} has the shape {shape}"
    assert not left, f"{where} has the shape {shape}"


def write_command(folder: Path) -> None:
    """Writes the command `ganomaly` of this interpreter and this clone."""
    folder.mkdir()
    code = "from ganomaly_jax.cli.main import command; raise SystemExit(command())"
    script = folder / "ganomaly"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    script.chmod(0o755)
