"""What every dynamic resource promises the engine, whatever its provider does."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from pulumi.dynamic import CreateResult, ReadResult, UpdateResult

import components
from components.dynamic import CloudProvider, gone

INPUTS = {"zone": "fr-par-2", "provider_version": "1"}


class Forgetful(CloudProvider):
    """Returns nothing of what it was given."""

    replace_on = frozenset({"zone"})
    deleted = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult("id", {})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, {"seen": True})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(None)

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        self.deleted = True


def test_outputs_are_never_less_than_the_inputs() -> None:
    assert Forgetful().create(INPUTS).outs == INPUTS
    assert Forgetful().read("id", INPUTS).outs == {**INPUTS, "seen": True}
    assert Forgetful().update("id", {}, INPUTS).outs == INPUTS


@pytest.mark.parametrize("empty", [{}, {"__provider": "a class"}])
def test_a_state_that_holds_nothing_is_forgotten_and_made_anew(empty: dict[str, Any]) -> None:
    assert Forgetful().read("id", empty).id == ""
    assert Forgetful().diff("id", empty, INPUTS).replaces == ["zone"]
    forgetful = Forgetful()
    forgetful.delete("id", empty)
    assert not forgetful.deleted


def test_what_is_gone_stays_gone() -> None:
    class Gone(CloudProvider):
        def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
            return gone()

    assert Gone().read("id", INPUTS).id == ""


def providers() -> Iterator[type[CloudProvider]]:
    for module in pkgutil.walk_packages(components.__path__, "components."):
        importlib.import_module(module.name)
    found = list(CloudProvider.__subclasses__())
    for each in found:
        found += each.__subclasses__()
    yield from (each for each in found if each.__module__.startswith("components."))


@pytest.mark.parametrize("provider", list(providers()), ids=lambda provider: provider.__name__)
def test_every_provider_promises_that(provider: type[CloudProvider]) -> None:
    """Their methods are those of `components.dynamic` around their own."""
    for name in ("create", "read", "update", "delete"):
        method = getattr(provider, name)
        assert method.__module__.startswith("pulumi.") or hasattr(method, "__wrapped__"), name
