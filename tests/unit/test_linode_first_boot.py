"""Which machine of a node it is, as settings change back and forth."""

from __future__ import annotations

from typing import Any

from components.linode.resources import FirstBootProvider

PROVIDER = FirstBootProvider()


def props(**made_from: Any) -> dict[str, Any]:
    return {"node": "a", "made_from": made_from, "boot": None, "former": None, "generation": None}


def changed(olds: dict[str, Any], **made_from: Any) -> dict[str, Any]:
    news = props(**made_from)
    outs = PROVIDER.update("id", olds, news).outs
    assert outs is not None
    return outs


def made(**made_from: Any) -> dict[str, Any]:
    outs = PROVIDER.create(props(**made_from)).outs
    assert outs is not None
    return outs


def boots(outs: dict[str, Any]) -> list[str]:
    return [each["boot"] for each in outs["former"]]


def test_each_change_is_another_machine_that_remembers_those_before_it() -> None:
    first = made(type="s")
    second = changed(first, type="m")
    third = changed(second, type="l")
    assert boots(first) == []
    assert boots(third) == [first["boot"], second["boot"]]
    assert len({first["boot"], second["boot"], third["boot"]}) == 3
    assert [each["generation"] for each in (first, second, third)] == [0, 1, 2]


def test_going_back_is_the_former_machine_again() -> None:
    first = made(type="s")
    back = changed(changed(first, type="m"), type="s")
    assert (back["boot"], back["generation"]) == (first["boot"], first["generation"])
    assert boots(back)[0] == first["boot"]
    onwards = changed(back, type="l")
    assert onwards["boot"] not in boots(onwards)
    assert onwards["generation"] == 2


def test_nothing_of_it_changes_with_the_program_s_version_alone() -> None:
    first = made(type="s")
    again = changed(first, type="s")
    assert {key: again[key] for key in ("boot", "former", "generation")} == {
        key: first[key] for key in ("boot", "former", "generation")
    }
    difference = PROVIDER.diff(
        "id", {**first, "provider_version": "0"}, {**props(type="s"), "provider_version": "1"}
    )
    assert difference.changes
    assert set(difference.stables or ()) == {"boot", "former", "generation"}


def test_only_one_that_state_knew_and_that_is_made_anew_follows_any_machine() -> None:
    assert boots(made(type="s")) == []
    PROVIDER.read("id", {**props(type="s"), "node": "known"})
    outs = PROVIDER.create({**props(type="s"), "node": "known"}).outs
    assert outs is not None
    assert boots(outs) == ["any"]
