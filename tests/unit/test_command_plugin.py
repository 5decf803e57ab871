"""The provider base and the Command stand-in without the engine: values, secrets, differences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.plugins.base import (
    UNKNOWN,
    Secret,
    changes,
    decode,
    decode_props,
    encode,
    encode_props,
    holds,
    reveal,
)

SECRET_ON_THE_WIRE = {
    "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270",
    "value": "hunter2",
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | inner.map(Secret),
)


@given(VALUES)
def test_a_value_comes_back_from_the_wire_as_it_went(value):
    assert decode(encode(value)) == value


def test_a_secret_and_an_unknown_have_the_marks_that_the_engine_knows():
    wire = encode_props({"token": Secret("hunter2"), "later": UNKNOWN})
    assert wire == {"token": SECRET_ON_THE_WIRE, "later": "04da6b54-80e4-46f7-96ec-b56ff0331ba9"}
    assert decode_props(wire) == {"token": Secret("hunter2"), "later": UNKNOWN}


def test_a_secret_shows_itself_to_nobody():
    assert "hunter2" not in f"{Secret('hunter2')} {Secret('hunter2')!r}"


def test_secrets_are_found_and_revealed_however_deep():
    value = {"env": [{"TOKEN": Secret("hunter2")}]}
    assert holds(value, Secret)
    assert reveal(value) == {"env": [{"TOKEN": "hunter2"}]}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": "UPDATE"}),
        ({}, {"a": 1}, {"a": "ADD"}),
        ({"a": 1}, {}, {"a": "DELETE"}),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 1}}, {"a.b": "UPDATE"}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a[1]": "UPDATE"}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": "UPDATE"}),
        ({"a": 1}, {"a": UNKNOWN}, {"a": "UPDATE"}),
        ({"a": None}, {}, {"a": "DELETE"}),
    ],
)
def test_a_difference_names_the_property(old, new, found):
    assert dict(changes(old, new)) == found
