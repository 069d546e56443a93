"""README, docs/ and benchmarks/ say what is true: links, commands, options and names exist."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import ganomaly_jax
from ganomaly_jax.cli import arguments, main
from ganomaly_jax.core import config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "benchmarks").rglob("README.md")),
]
IDS = [str(path.relative_to(ROOT)) for path in PAGES]


def text(path):
    return path.read_text(encoding="utf-8")


CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path, language):
    """The fenced blocks of a language."""
    return [block for name, block in CODE.findall(text(path)) if name == language]


def prose(path):
    """A page without its fenced blocks."""
    return CODE.sub("", text(path))


def anchors(path):
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(path):
    """Yields (words behind `ganomaly`, whether it is a whole command rather than inline code) of a page."""
    code = "\n".join(block for _, block in CODE.findall(text(path)))
    for line in code.replace("\\\n", " ").splitlines():
        for found in re.findall(r"(?:^|[\s/\"])ganomaly ((?:[a-z]|--).*)", line.partition("  #")[0]):
            found = re.split(r"\s(?:&&|\|)\s", found)[0]
            yield shlex.split(found.rstrip('" ') if found.count('"') % 2 else found, comments=True), True
    for found in re.findall(r"`ganomaly ([^`]+)`", prose(path)):
        yield found.split(), False


def test_the_readme_is_short_and_has_its_two_commands():
    lines = text(ROOT / "README.md").splitlines()
    assert len(lines) < 150
    assert lines.count("python -m pip install -e '.[demo]' && ganomaly demo") == 1
    assert lines.count("python -m pip install -e '.[test]' && python -m pytest") == 1


def test_the_index_lists_every_page():
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", text(ROOT / "docs" / "README.md")))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{target}: no such file"
        assert found.is_relative_to(ROOT), f"{target} leaves the repository"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_files_that_are_named_exist(path):
    named = re.findall(
        r"(?<![\w/.-])((?:benchmarks|configs|tests|ganomaly_jax)/[\w/.-]+\.(?:py|md|json|lua))", text(path)
    )
    if path.name == "architecture.md":
        named += [
            f"ganomaly_jax/{name}" for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", text(path)) if "tests/" not in name
        ]
    folders = re.findall(r"--out (benchmarks/[\w/]+)/\w+", text(path))
    for name in [*named, *folders]:
        assert (ROOT / name).exists(), f"{name}: no such file or folder"


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands_are_accepted(path):
    """Whole commands parse; inline code names verbs, options and settings that exist; `--config NAME` is shipped."""
    parser = main.make_parser()
    [action] = [found for found in parser._actions if isinstance(found, argparse._SubParsersAction)]
    for words, whole in commands(path):
        if words[0] in ("VERB", "--help", "--version"):
            continue
        assert words[0] in action.choices, f"ganomaly {' '.join(words)}: no such verb"
        if whole:
            args, overrides = main.parse(words)
            arguments.apply(config.Config(), overrides)
            shipped = getattr(args, "config", None)
            assert not shipped or shipped == "mine.py" or _is_shipped(shipped), f"--config {shipped}: not shipped"
        for word in words[1:]:
            if word.startswith("--") and not word.startswith("--config."):
                known = action.choices[words[0]]._option_string_actions
                assert word.partition("=")[0] in known, f"{words[0]} has no {word}"


@pytest.mark.parametrize("path", [page for page in PAGES if "benchmarks" not in page.parts], ids=lambda path: path.name)
def test_options_in_the_text_exist(path):
    parser = main.make_parser()
    [action] = [found for found in parser._actions if isinstance(found, argparse._SubParsersAction)]
    known = {option for verb in action.choices.values() for option in verb._option_string_actions}
    others = {"--partners", "--signal", "--ntasks-per-node", "--quick"}  # of 0.1.0, of SLURM, of the benchmarks
    for option in re.findall(r"`(--[\w-]+)", prose(path)):
        assert option in known | others or option.startswith(("--config", "--xla")), f"no verb has {option}"


@pytest.mark.parametrize(
    "path", [page for page in PAGES if "benchmarks" in page.parts], ids=lambda path: path.parent.name
)
def test_options_of_benchmarks_exist(path):
    sources = "\n".join(text(source) for source in (ROOT / "benchmarks").rglob("*.py"))
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", text(path)):
        assert f'"{option}"' in sources or option.startswith(("--help", "--format", "--xla")), f"no {option}"


def _is_shipped(name):
    return (ROOT / "configs" / f"{name}.py").is_file()


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_settings_that_are_named_exist(path):
    sections = "|".join(vars(config.Config()))
    for name in re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", text(path)):
        found = config.Config()
        for part in name.split("."):
            if name.endswith((".json", ".py", ".md", ".npz", ".csv", ".html", ".jsonl")):
                break
            assert hasattr(found, part), f"{name}: no such setting"
            found = getattr(found, part)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_python_blocks_compile_and_their_names_exist(path):
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gj":
                assert node.attr in ganomaly_jax.__all__, f"gj.{node.attr}: no such name"
                getattr(ganomaly_jax, node.attr)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ganomaly_jax"):
                for alias in node.names:
                    assert hasattr(importlib.import_module(node.module), alias.name), f"{node.module}.{alias.name}"
    for name in re.findall(r"`gj\.([A-Za-z_]+)", text(path)):
        assert name in ganomaly_jax.__all__, f"gj.{name}: no such name"


def test_every_public_name_is_documented():
    named = set(re.findall(r"\bgj\.(\w+)", text(ROOT / "docs" / "python-api.md")))
    assert named >= set(ganomaly_jax.__all__), sorted(set(ganomaly_jax.__all__) - named)
