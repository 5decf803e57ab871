"""How long a job may run: by its timeout, and by what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite

from fleet.catalog import catalog


class LimitError(ValueError):
    """A limit that cannot be held. The message names the field, its value and the fix."""


@dataclass(frozen=True)
class Limits:
    """What holds for one job on one type."""

    minutes: int
    """From launch to power-off."""
    price_per_hour: float | None
    """In US dollars; None where nobody knows it."""

    @property
    def at_most(self) -> float | None:
        """What the job costs if it takes all its time, in US dollars."""
        return None if self.price_per_hour is None else cost(self.price_per_hour, self.minutes * 60)


def limits_of(
    type_: str, region: str, *, timeout_minutes: int, max_cost: float | None = None, spot: bool = False
) -> Limits:
    """The limits of a job on a type.

    `max_cost` is in US dollars, by the catalog's price of the instance: its volume and its address come to
    about two cents an hour more. Spare capacity costs at most what capacity on demand does, which counts
    where no price of it is known. Raises LimitError where `max_cost` pays for less than a minute, or no price
    is known to hold it by.
    """
    if max_cost is not None:
        check_cost(max_cost)
    price = price_per_hour(type_, region, spot=spot)
    if max_cost is None:
        return Limits(timeout_minutes, price)
    if price is None:
        raise LimitError(
            f"max_cost: {max_cost:g} cannot be held: nobody knows the price of {type_} in {region}; "
            "run `fleet catalog refresh`, choose another type, or leave max_cost out"
        )
    # A hair more, so that a cost which was reckoned from minutes gives those minutes back.
    paid = floor(max_cost / price * 60 + 1e-9)
    if paid < 1:
        raise LimitError(
            f"max_cost: {max_cost:g} pays for less than a minute of {type_} at ${price:g} an hour; "
            f"allow at least {_at_least(price / 60):g}"
        )
    return Limits(min(timeout_minutes, paid), price)


def check_cost(dollars: float) -> None:
    """Raises LimitError for what is no amount of money, such as nan."""
    if not (isfinite(dollars) and dollars > 0):
        raise LimitError(f"max_cost: {dollars:g} is not an amount of dollars. Fix: give for example 2.50")


def check_minutes(minutes: int) -> None:
    """Raises LimitError for what is no number of minutes."""
    if isinstance(minutes, bool) or not isinstance(minutes, int) or minutes < 1:
        raise LimitError(f"timeout_minutes: {minutes!r} is not a number of minutes. Fix: give 1 or more")


def _at_least(amount: float) -> float:
    """The amount in as few digits as are not less."""
    cents = round(amount, 2)
    return cents if cents >= amount else ceil(amount * 10_000) / 10_000


def price_per_hour(type_: str, region: str, *, spot: bool = False) -> float | None:
    """The catalog's, in US dollars; for spare capacity, that of capacity on demand where it has none."""
    found = catalog().find("aws", type_)
    if found is None:
        return None
    price = (found.price(region, spot=True) if spot else None) or found.price(region)
    return price.amount if price else None


def cost(price: float, seconds: float) -> float:
    """In US dollars, to a hundredth of a cent."""
    return round(price * seconds / 3600, 4)
