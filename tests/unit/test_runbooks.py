"""Runbooks and diagnoses: what they say to run works for every login user."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleet.diagnosis import Context, Fault
from fleet.ssh import Target

RUNBOOKS = sorted((Path(__file__).parents[2] / "docs" / "runbooks").glob("*.md"))
PRIVILEGED = (
    r"docker (?:logs|restart|compose|inspect|image|system|ps)"
    r"|systemctl (?:restart|start|stop|status|enable|revert)"
    r"|journalctl|reboot|apt-mark|apt-get|dmesg|ss -ltnp|dkms"
)
WITHOUT_SUDO = re.compile(rf"(?:^|[`;&|]|-- ) *(?:{PRIVILEGED})\b", re.MULTILINE)
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_uses_sudo_for_what_a_login_user_may_not_do(runbook: Path) -> None:
    code = "\n".join(block or word for block, word in CODE.findall(runbook.read_text()))
    assert WITHOUT_SUDO.findall(code) == []


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name)
def test_a_diagnosis_uses_sudo_exactly_where_the_login_user_is_not_root(fault: Fault) -> None:
    def command(user: str) -> str:
        return Context("a", "aws", target=Target("203.0.113.7", ("k",), user)).command(fault.next_command)

    on_the_node = "@203.0.113.7" in command("ubuntu")
    assert "sudo" not in command("root")
    if on_the_node and re.search(PRIVILEGED, command("ubuntu")):
        assert re.findall(rf"sudo (?:{PRIVILEGED})", command("ubuntu"))
        assert not re.findall(rf"(?:[;&] |7 '?)(?:{PRIVILEGED})", command("ubuntu"))
