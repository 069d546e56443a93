"""Values of a stored configuration that no type holds."""

import pytest

from ganomaly_jax.core import config_values
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import layout, run_folder


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", float("inf")), ("epochs", 10**400), ("epochs", float("nan")), ("epochs", [])]
)
def test_numbers_beyond_every_type_are_refused_by_name(key, value):
    with pytest.raises(UserError, match=rf"train.{key}=.*: expected int"):
        config_values.from_dict({"train": {key: value}})
    with pytest.raises(UserError, match=r"seed=.*: expected int"):
        config_values.from_dict({"seed": value})


def test_a_float_is_no_larger_than_it_can_be():
    with pytest.raises(UserError, match=r"learning_rate=.*: expected float"):
        config_values.from_dict({"optimizer": {"learning_rate": 10**400}})


def test_nesting_without_end_is_damage(tmp_path):
    (tmp_path / layout.CONFIG).write_text("[" * 100_000)
    with pytest.raises(DamagedError, match="cannot be read"):
        run_folder.stored_config(tmp_path)
