import os

import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import MOST, printable, printable_lines


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("été 日本.csv", "été 日本.csv"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\nganomaly: fine\r\t", r"a\nganomaly: fine\r\t"),
        ("\x9b31mred", r"\x9b31mred"),  # the eight-bit form of ESC [
        ("\u202egpj.exe", r"\u202egpj.exe"),  # right-to-left override
        ("\U000e0041", r"\U000e0041"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("", ""),
    ],
)
def test_names_cannot_act_on_a_terminal(name, shown):
    assert printable(name) == shown
    assert printable(name).isprintable()
    printable(name).encode("utf-8")


def test_long_names_lose_their_middle():
    assert printable("a" * MOST) == "a" * MOST
    assert len(printable("a" * MOST + "b")) == MOST
    assert printable("0123456789", 7) == "01...89"
    assert len(printable("\x1b" * 1000)) == MOST


def test_lines_keep_their_ends_and_their_length():
    text = "a\x1b[31m\n" + "b" * 1000
    assert printable_lines(text) == "a\\x1b[31m\n" + "b" * 1000


def test_errors_of_users_are_printable():
    assert str(UserError("no class \x1b[31mred\nbut \x07")) == r"no class \x1b[31mred\nbut \x07"
