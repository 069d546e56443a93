"""What the command says about mistakes: one sentence each, exit code 2, and what was meant."""

import json
import os
import subprocess
import sys

import pytest

from ganomaly_jax.cli import main
from ganomaly_jax.core import exit_codes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere", "--workdir", "W"], "nowhere"),
        (["train", "--workdir", "W"], "no data"),
        (["train", "D", "--data", "E", "--workdir", "W"], "both"),
        (["train", "D", "--workdir", "W", "--config.train.epochs=many"], "expected int"),
        (["train", "D", "--workdir", "W", "--config.data.height=80"], "16, 32, 64, 128, 256"),
        (["train", "D", "--workdir", "W", "--config", "none.py"], "get_config"),
        (["evaluate", "--workdir", "nowhere"], "does not exist"),
        (["predict", "--workdir", "nowhere", "a.png"], "does not exist"),
        (["train", "EMPTY", "--workdir", "W"], "EMPTY"),
        # Verbs and options that do not exist.
        (["trian", "D"], "unknown verb: trian; did you mean train?"),
        (["xyz"], "unknown verb: xyz; expected one of demo, train, "),
        (["train", "D", "--workdir", "W", "-q"], "unknown option: -q; see `ganomaly train --help`"),
        (["evaluate", "--worddir", "W"], "unknown option: --worddir; did you mean --workdir?"),
        (["--verison"], "unknown option: --verison; did you mean --version?"),
        (["train", "D", "E", "--workdir", "W"], "unexpected argument: E; see `ganomaly train --help`"),
        (["train", "D"], "required: --workdir; see `ganomaly train --help`"),
        (["predict", "--workdir"], "argument --workdir: expected one argument"),
        (["serve", "--workdir", "W", "--port", "x"], "argument --port: invalid int value: 'x'"),
        # Keys of the configuration.
        (["train", "D", "--epochs", "3", "--workdir", "W"], "--epochs; did you mean --config.train.epochs=3?"),
        (["train", "D", "--epochs=3", "--workdir", "W"], "--epochs; did you mean --config.train.epochs=3?"),
        (["train", "D", "--ephocs=3", "--workdir", "W"], "--ephocs; did you mean --config.train.epochs=3?"),
        (["train", "--batch-size", "--workdir", "W"], "did you mean --config.train.batch_size=VALUE?"),
        (["train", "D", "--rate=3"], "did you mean --config.data.sound.rate=3?"),
        (["train", "D", "--low=3"], "did you mean --config.data.sound.low=3 or --config.data.low=3?"),
        (["train", "D", "--workdir", "W", "--config.train.epoch=5"], "train.epoch; did you mean train.epochs?"),
        (["train", "D", "--workdir", "W", "--config.train.epochs"], "expected --config.train.epochs=VALUE"),
        (["evaluate", "--workdir", "W", "--config.train.epochs=5"], "`ganomaly evaluate` takes no --config options"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert main.main(words) == exit_codes.USAGE
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_no_verb_prints_the_help(capsys):
    assert main.main([]) == exit_codes.USAGE
    printed = capsys.readouterr().out
    for verb in main.VERBS:
        name = verb.__name__.rpartition(".")[2].rstrip("_")
        assert f"    {name} " in printed or f"    {name}\n" in printed


@pytest.mark.parametrize("words", [["--config.train.epochs=3"], ["--config.train.epochs", "3"]])
@pytest.mark.parametrize("before", [True, False])
def test_overrides_stand_anywhere(words, before):
    rest = ["D", "--workdir", "W"]
    args, overrides = main.parse(["train", *words, *rest] if before else ["train", *rest, *words])
    assert overrides == [("train.epochs", "3")]
    assert (args.folder, args.workdir) == ("D", "W")


def test_numbers_below_zero_are_values():
    assert main.parse(["recalibrate", "--workdir", "W", "--threshold", "-1.5"])[0].threshold == -1.5


def test_help_and_mistakes_load_no_library():
    """All verbs' help, the listing of the configuration and a mistake, in one process: the standard library alone."""
    script = """
import contextlib, io, json, sys
before = set(sys.modules)
from ganomaly_jax.cli import main
calls = [["--help"], ["config"], ["train", "--ephocs=3"]]
calls += [[verb.__name__.rpartition(".")[2].rstrip("_"), "--help"] for verb in main.VERBS]
for call in calls:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main.main(call)
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(loaded - set(sys.stdlib_module_names) - {"ganomaly_jax"})))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == []


def test_help_takes_less_than_a_fifth_of_a_second():
    """Of processor time, the best of five: how long one waits depends on what else the machine does."""

    def seconds():
        process = subprocess.Popen([sys.executable, "-m", "ganomaly_jax", "--help"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    assert min(seconds() for _ in range(5)) < 0.2
