"""The runbooks: a page for each fault and each policy, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleet.diagnosis import Fault
from policy import rules

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text() for path in (DOCS / "runbooks").glob("*.md")}


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
def test_each_fault_is_found_by_the_words_it_is_told_in(fault: Fault) -> None:
    words = re.sub(r"\{\w+\}", "…", fault.summary)
    assert [name for name, text in PAGES.items() if words in text], f"no runbook has: {words}"


def test_each_policy_is_explained() -> None:
    for rule in (*rules.RESOURCE_RULES, rules.within_budget):
        assert rule.__name__.replace("_", "-") in PAGES["policy-broken"]


def test_each_page_is_listed_and_each_link_leads_somewhere() -> None:
    assert set(re.findall(r"\]\((\S+)\.md\)", PAGES["README"])) == PAGES.keys() - {"README"}
    for name, text in PAGES.items():
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (DOCS / "runbooks" / link).exists(), f"{name}: {link}"
