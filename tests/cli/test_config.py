"""The verb `config`, and the configurations that are shipped."""

import pytest

from ganomaly_jax.cli import main
from ganomaly_jax.core import config, config_values, exit_codes, presets, validation
from ganomaly_jax.core.errors import UserError


def test_every_key_has_one_line_of_help():
    keys = config_values.all_keys()
    assert [key.path for key in keys] == list(config_values.flatten(config_values.to_dict(config.Config())))
    for key in keys:
        assert 10 < len(key.summary) <= 110, key.path
        assert key.summary.endswith("."), key.path
        assert key.text.splitlines()[1:2] in ([], [""]), f"{key.path}: the first line stands alone"


def test_every_shipped_configuration_resolves_and_says_what_it_is_for():
    assert {"mnist5k", "mnist", "cifar10", "xray_baggage", "smoke", "surface"} <= set(presets.names())
    for name in presets.names():
        validation.check(presets.read(name))
        assert 30 < len(presets.summary(name)) <= 120, name


def test_a_shipped_configuration_by_name_or_path_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert presets.read("surface") == presets.read(str(presets.folder() / "surface.py"))
    assert presets.read("surface").model.exposure
    (tmp_path / "own.py").write_text("import ganomaly_jax\ndef get_config():\n    return ganomaly_jax.Config(seed=7)\n")
    assert presets.read("own.py").seed == 7
    with pytest.raises(
        UserError, match=r"surfce: unknown configuration; did you mean surface\? expected audio, .*smoke"
    ):
        presets.read("surfce")
    with pytest.raises(UserError, match=r"configs/surfac\.py: no such file; did you mean surface\?"):
        presets.read("configs/surfac.py")
    with pytest.raises(UserError, match="own: unknown configuration"):
        presets.read("own")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config():\n    raise KeyError('x')\n", "does not run: KeyError"),
        ("def get_config():\n    return 3\n", "returned int"),
        ("x = 1\n", "get_config"),
    ],
)
def test_a_file_that_gives_no_configuration(text, said, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(text)
    code = main.main(["train", "D", "--workdir", str(tmp_path / "W"), "--config", str(tmp_path / "broken.py")])
    assert code == exit_codes.USAGE
    assert said in capsys.readouterr().err


def printed(capsys, *words):
    assert main.main(["config", *words]) == exit_codes.DONE
    return capsys.readouterr().out


def test_everything_in_one_line_each(capsys):
    lines = printed(capsys).splitlines()
    for key in config_values.all_keys():
        (line,) = [line for line in lines if line.split()[:1] == [key.path]]
        assert line.endswith(key.summary)
    assert any(line.split()[:1] == ["surface"] for line in lines)
    with pytest.raises(SystemExit) as ended:
        main.main(["train", "--help-config"])
    assert ended.value.code == exit_codes.DONE
    assert capsys.readouterr().out.splitlines() == lines


def test_one_key_a_section_and_a_shipped_configuration(capsys):
    assert printed(capsys, "train.epochs") == "train.epochs (int, default 15)\n\nPasses over the training set.\n"
    section = printed(capsys, "data.sound")
    assert len(section.splitlines()) == 9
    assert "data.sound.rate" in section
    assert "model.exposure=True\n" in printed(capsys, "surface")
    assert len(printed(capsys, "--list").splitlines()) == len(presets.names())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs"], "did you mean train.epochs?"),
        (["surfce"], "did you mean surface?"),
        (["zzzzzz"], "`ganomaly config` lists them"),
        (["surface", "--list"], "expected only one of them"),
    ],
)
def test_names_that_are_not_there(words, said, capsys):
    assert main.main(["config", *words]) == exit_codes.USAGE
    assert said in capsys.readouterr().err


def test_keys_of_older_versions_are_understood():
    assert config_values.from_dict({"evaluate": {"partners": "pca_q"}}).evaluate.baselines == "pca_q"
