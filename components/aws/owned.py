"""What a stack owns on this cloud: until its nodes carry the stack's owner id, nothing."""

from __future__ import annotations

from collections.abc import Sequence

from components.owned import Config, Owned


class Nothing:
    def owned(self, owner: str) -> list[Owned]:
        return []

    def labelled(self, labels: Sequence[str]) -> list[Owned]:
        return []

    def remove(self, found: Sequence[Owned]) -> None:
        """Nothing is found, so nothing is removed."""

    def adopt(self, found: Sequence[Owned], owner: str) -> None:
        """Nothing is found, so nothing is adopted."""


def inventory(config: Config, zone: str) -> Nothing:
    return Nothing()
