"""Helpers of all verbs: common options, configuration overrides, and messages about unknown options."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from ganomaly_jax.cli import config_listing
from ganomaly_jax.core import config_values, presets
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError

Overrides = Sequence[tuple[str, str]]
"""(key, value) of each `--config.KEY=VALUE`, in order."""

RUN = "folder of a finished run"
RUN_OR_DETECTOR = "folder of a finished run, or a detector folder"
CSV = "format of ambiguous tables, such as semicolon,decimal-comma (default: as in training)"
FLOATS = "range of floating-point images, for a detector of integer pixels, such as 0,1 or =-1,1"
_PREFIX = "--config."


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises instead of printing its usage, so that every mistake is one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` with the message of argparse."""
        raise UserError(f"{message}; see `{self.prog} --help`")


class _HelpConfig(argparse.Action):
    """Prints what `ganomaly config` prints, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("\n".join(config_listing.everything()))
        parser.exit()


def new_verb(subparsers: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Returns the parser of a new verb; `text` is its line in `ganomaly --help`."""
    return subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)


def add_data(parser: argparse.ArgumentParser, text: str = "folder or file of data; the same as --data") -> None:
    """Adds the data, by position or as `--data`."""
    parser.add_argument("folder", nargs="?", metavar="DATA", help=text)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="a folder, a file (npz, idx, array_record, csv, parquet, wav, ...), tfds:NAME, mnist5k or elpv",
    )


def add_config(parser: argparse.ArgumentParser, preset: bool = True, note: str = "") -> None:
    """Adds `--config` (unless not `preset`) and the overrides of single values."""
    if preset:
        parser.add_argument(
            "--config",
            metavar="NAME",
            help="a shipped configuration, such as surface (`ganomaly config` lists them), or a Python file with a "
            "function get_config()",
        )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        dest="_",
        help=f"set one value, such as --config.train.epochs=5{note}; `ganomaly config` lists the keys",
    )
    parser.add_argument(
        "--help-config", action=_HelpConfig, nargs=0, help="list all keys of the configuration and exit"
    )
    parser.set_defaults(takes_overrides=True)


def add_huge_pages(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-huge-pages`."""
    parser.add_argument(
        "--no-huge-pages",
        dest="huge_pages",
        action="store_false",
        help="do not restart the process with its memory in huge pages",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Adds `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing results")


def add_value_range(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--value-range LOW,HIGH`."""
    parser.add_argument("--value-range", type=_value_range, metavar="LOW,HIGH", help=text)


def _value_range(word: str) -> tuple[float, float]:
    try:
        low, high = map(float, word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r}: expected two numbers, such as 0,1 or =-1,1") from None
    return low, high


def add_rate(parser: Any) -> None:
    """Adds `--false-positive-rate`."""
    parser.add_argument("--false-positive-rate", type=float, metavar="R", help="share of normals that may be flagged")


def settings(args: argparse.Namespace, overrides: Overrides) -> Config:
    """Returns the configuration set by `--config`, the data argument and the overrides.

    Raises:
      UserError: the data are given twice, the configuration file cannot be used, a key is unknown, or a value has the
        wrong type.
    """
    if args.folder and args.data:
        raise UserError(f"both {args.folder!r} and --data {args.data!r} are given: expected only one of them")
    config = presets.read(args.config) if args.config else Config()
    apply(config, overrides)
    config.data.source = args.folder or args.data or config.data.source
    return config


def apply(config: Config, overrides: Overrides) -> None:
    """Sets the overridden values of a configuration, in place."""
    for key, value in overrides:
        config_values.set_value(config, key, value)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--config.a.b=value` and `--config.a.b value` from the other words of a command line.

    Returns:
      The other words, and the (key, value) pairs.

    Raises:
      UserError: a key has no value.
    """
    plain: list[str] = []
    overrides: list[tuple[str, str]] = []
    left = iter(words)
    for word in left:
        key, equals, value = word.partition("=")
        if not key.startswith(_PREFIX):
            plain.append(word)
            continue
        if not equals:
            value = next(left, "")
            if not value or value.startswith("--"):
                raise UserError(f"{key} has no value: expected {key}=VALUE")
        overrides.append((key.removeprefix(_PREFIX), value))
    return plain, overrides


def verb_parser(words: Sequence[str], parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Returns the parser of the verb that a command line begins with, or `parser` if it begins with an option.

    Raises:
      UserError: there is no such verb.
    """
    if not words or words[0].startswith("-"):
        return parser
    verbs = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        raise UserError(
            f"unknown verb: {words[0]}; "
            + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(verbs)}")
        )
    return verbs[words[0]]


def check_options(words: Sequence[str], overrides: Overrides, verb: argparse.ArgumentParser) -> None:
    """Checks that a verb has all options of a command line.

    Args:
      words: the command line without overrides.
      overrides: the overrides of the configuration.
      verb: the parser of the verb.

    Raises:
      UserError: the verb does not have an option; suggests the most similar one.
    """
    takes_overrides = bool(verb.get_default("takes_overrides"))
    if overrides and not takes_overrides:
        raise UserError(f"unknown option: {_PREFIX}{overrides[0][0]}; `{verb.prog}` takes no --config options")
    known = {option for action in verb._actions for option in action.option_strings}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--":
            return
        name, _, value = word.partition("=")
        if not re.match(r"--?[A-Za-z]", name) or name in known:
            continue
        value = value or (following if following and not following.startswith("-") else "VALUE")
        hint = _nearest(name, value, known, takes_overrides)
        raise UserError(
            f"unknown option: {name}; " + (f"did you mean {hint}?" if hint else f"see `{verb.prog} --help`")
        )


def _nearest(option: str, value: str, known: Collection[str], takes_overrides: bool) -> str:
    """Returns the options that were probably meant, or an empty string if none is similar."""
    name = option.lstrip("-").replace("-", "_")
    keys = list(config_values.flatten(config_values.to_dict(Config()))) if takes_overrides else []
    meant = [key for key in keys if name in (key, key.rpartition(".")[2])]
    if not meant:
        leaves = {f"--{key.rpartition('.')[2].replace('_', '-')}": key for key in reversed(keys)}
        near = difflib.get_close_matches(option, [*known, *leaves], n=1, cutoff=0.7)
        if not near or near[0] in known:
            return "".join(near)
        meant = [leaves[near[0]]]
    return " or ".join(f"{_PREFIX}{key}={value}" for key in meant)
