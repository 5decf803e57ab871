"""Files to nodes: what rsync is told, and what becomes of its answer."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from light_fleet import light_fleet
from pydantic import ValidationError

from fleet.inventory import InventoryError
from fleet.settings.provision import FileSync
from fleet.ssh import Target
from fleet.sync import Copy, RsyncMissing, rsync, split, sync

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7dHqyhm6lYkmKYHZ4PXzGgW2U9YbWPz0m1oBvQe3gK"
TARGET = Target("203.0.113.7", (KEY,), "root", 2222, Path("~/.ssh/a key"))

FAKE_RSYNC = """#!/bin/sh
# Reaches the node as rsync does: the words after --rsh, the user, the host, then the server's command.
while [ $# -gt 0 ]; do
  case "$1" in --rsh) shell=$2; shift;; esac
  last=$1; shift
done
eval "exec $shell -l ${last%%@*} \\"$(expr "$last" : '[^@]*@\\([^:]*\\):')\\" 'echo changed on \\$(pwd)'"
"""


@pytest.fixture
def fake_rsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An rsync that runs one command through the SSH it is told to use."""
    tool = tmp_path / "bin" / "rsync"
    tool.parent.mkdir()
    tool.write_text(FAKE_RSYNC)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)


def test_rsync_goes_over_ssh_that_trusts_the_pinned_key_alone() -> None:
    words = rsync(TARGET, Copy("src/", "/opt/llm/a b", ("*.pyc", "--odd"), delete=True, dry_run=True))
    shell = shlex.split(words[words.index("--rsh") + 1])
    assert shell[:4] == ["ssh", "-F", "none", "-i"]
    assert f"KnownHostsCommand=/bin/echo %H {KEY}" in shell
    assert {"StrictHostKeyChecking=yes", "UserKnownHostsFile=/dev/null", "BatchMode=yes"} <= set(shell)
    assert shell[shell.index("-p") + 1] == "2222"
    assert {"--delete", "--dry-run", "--exclude=*.pyc", "--exclude=--odd"} <= set(words)
    assert words[-3:] == ["--", "src/", "root@203.0.113.7:/opt/llm/a b"]


def test_nothing_is_deleted_or_pretended_unless_asked() -> None:
    words = rsync(TARGET, Copy("src", "/opt"))
    assert not {"--delete", "--dry-run"} & set(words)


def test_a_destination_names_nodes_and_a_path() -> None:
    assert split("l4-*:/opt/x:y") == ("l4-*", "/opt/x:y")
    with pytest.raises(InventoryError, match="NODES:DST"):
        split("/opt/x")


async def test_a_missing_rsync_is_one_line_with_what_why_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RsyncMissing, match="not on PATH here, and it is what copies; install it") as said:
        await sync([], Copy("a", "/b"))
    assert "\n" not in str(said.value)


@pytest.mark.usefixtures("fake_rsync")
async def test_each_node_is_reached_and_a_wrong_host_key_stops_its_copy(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 2) as fleet:
        fleet.change(1, host_keys=(KEY,))
        right, wrong = await sync(fleet.nodes, Copy("a", "/root"))
    assert (right.exit_status, right.output.split()[:2]) == (0, ["changed", "on"])
    assert wrong.exit_status == 255
    assert "HOST IDENTIFICATION" in wrong.error or "Host key verification failed" in wrong.error


def words(text: str) -> list[str]:
    return text.split()


OTHERS = words(r"""
    / // /// /. /.. /./ /../.. /etc /etc/ //etc /./etc /etc/. /opt/../etc /etc/ssh /etc/../etc /opt /opt/llm
    /opt/llm/ /opt//llm /opt/./llm /opt/llm/. /opt/llm/x/.. /srv/../opt/llm /opt/llm/rollout
    /opt/llm/rollout/x /opt/monitoring /usr /usr/bin /usr/local/lib/vllm-fleet /bin /lib/systemd
    /boot /dev/shm /proc/1/root/srv
    /sys /run /var /var/lib /var/lib/llm /var/lib/llm/models /var/lib/llm/models/ /var/lib/docker/x /var/log
    /var/lib/vllm-fleet /root /root/ /root/.ssh /home /home/ubuntu /home/ubuntu/.ssh /home/x/../ubuntu /srv
    /tmp /mnt /media /data . .. ~ ~/x ~root $HOME /$HOME /srv/$(id) /srv/`id` /srv/* /e?c /{etc,srv}/x files
    ./files ../etc /srv/a;b /srv/..\.. :module
""")
OTHERS += ["", " /etc", "/srv/a\nb"]
OWN = words("""
    /srv/files /srv/files/ /srv/./files /srv/a/b /opt/llm/prompts /opt/other /home/ubuntu/files /root/files
    /var/lib/llm/models/mine /mnt/share/x /data/x /var/www
""")


@pytest.mark.parametrize("destination", OTHERS)
def test_files_are_not_deleted_where_they_are_somebody_elses_however_it_is_spelt(destination: str) -> None:
    Copy("src/", destination)  # copying there is nobody's business
    with pytest.raises(InventoryError, match="leave --delete out"):
        Copy("src/", destination, delete=True)
    try:
        FileSync(source="src/", destination=destination)
    except ValidationError:
        return  # no destination at all
    with pytest.raises(ValidationError, match="or leave delete out"):
        FileSync(source="src/", destination=destination, delete=True)


@pytest.mark.parametrize("destination", OWN)
def test_files_are_deleted_in_a_folder_that_is_the_syncs_own(destination: str) -> None:
    assert "--delete" in rsync(TARGET, Copy("src/", destination, delete=True))
