"""What the command says about mistakes: one sentence each, exit code 2, and what was meant."""

import pytest

from ganomaly_jax.cli import main
from ganomaly_jax.core import exit_codes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere", "--workdir", "W"], "nowhere"),
        (["train", "--workdir", "W"], "no data"),
        (["train", "D", "--data", "E", "--workdir", "W"], "both"),
        (["train", "D", "--workdir", "W", "--config.train.epochs=many"], "wanted int"),
        (["train", "D", "--workdir", "W", "--config.data.height=80"], "16, 32, 64, 128, 256"),
        (["train", "D", "--workdir", "W", "--config", "none.py"], "get_config"),
        (["evaluate", "--workdir", "nowhere"], "does not exist"),
        (["predict", "--workdir", "nowhere", "a.png"], "does not exist"),
        (["train", "EMPTY", "--workdir", "W"], "EMPTY"),
        # Verbs and options that do not exist.
        (["trian", "D"], "unknown verb: trian; did you mean train?"),
        (["xyz"], "unknown verb: xyz; wanted one of demo, train, "),
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
        (["train", "D", "--workdir", "W", "--config.train.epochs"], "wanted --config.train.epochs=VALUE"),
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
