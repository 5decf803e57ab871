"""What a job's machine boots with, as a pure function of typed values."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from fleet import network as networks
from fleet.settings import DIRECT, Network
from fleet.userdata import FILES, LIMIT_BYTES, UserDataTooLarge

DIRECTORY = "/opt/vllm-fleet"
"""Of the runner and its settings."""
SETTINGS_PATH = f"{DIRECTORY}/job.json"
STATE_DIRECTORY = "/var/lib/vllm-fleet/job"
"""Where a machine keeps log and result, whatever becomes of the share."""
UNIT = "vllm-fleet-job.service"
USER, HOME = "ec2-user", "/home/ec2-user"
"""Amazon Linux's own; scripts run as that user."""


@dataclass(frozen=True)
class JobSpec:
    """One job, as its machine needs to know it."""

    id: str
    pipeline: str
    script: str
    """Below `mount_path`."""
    args: tuple[str, ...]
    minutes: int
    """The machine is off by then, counted from its launch."""
    type: str
    price_per_hour: float | None
    """In US dollars; None where nobody knows it."""
    region: str
    file_system: str
    mount_path: str
    log_group: str
    network: Network = DIRECT
    """How its machine reaches the internet."""

    def user_data(self) -> bytes:
        """What EC2's API takes, before base64: the cloud-config, compressed. Raises UserDataTooLarge."""
        data, limit = gzip.compress(self.cloud_config().encode(), mtime=0), LIMIT_BYTES["aws"]
        if len(data) > limit:
            raise UserDataTooLarge(
                f"args: user data of {len(data)} bytes are more than the {limit} that EC2 takes; "
                "put the arguments into a file on the share"
            )
        return data

    def cloud_config(self) -> str:
        """The same, for people to read."""
        return "#cloud-config\n" + yaml.safe_dump(self._document(), sort_keys=False, width=1000)

    def _document(self) -> dict[str, Any]:
        given = {key: value for key, value in asdict(self).items() if key != "network"}
        settings = {**given, "state": STATE_DIRECTORY, "user": USER, "home": HOME}
        return {
            # Before anything else, and needing nothing else: the machine's last second. Without dependencies
            # it holds during a shutdown, too; twice forced, it waits for no process and no file system.
            "bootcmd": [
                [
                    *("systemd-run", "--no-block", "--unit=vllm-fleet-job-deadline"),
                    *(f"--on-boot={self.minutes}min", "--timer-property=AccuracySec=1s"),
                    *("--timer-property=DefaultDependencies=no", "--property=DefaultDependencies=no"),
                    *("systemctl", "poweroff", "--force", "--force"),
                ]
            ],
            "write_files": [
                _file(f"{DIRECTORY}/job.py", (FILES / "job/job.py").read_text()),
                _file(SETTINGS_PATH, json.dumps(settings)),
                _file(f"/etc/systemd/system/{UNIT}", (FILES / "job" / UNIT).read_text()),
                *(
                    {"path": path, "permissions": mode, "content": content}
                    for path, (content, mode) in self._network_files().items()
                ),
            ],
            "runcmd": [
                ["systemctl", "daemon-reload"],
                ["systemctl", "enable", UNIT],
                ["systemctl", "start", "--no-block", UNIT],
            ],
        }

    def _network_files(self) -> dict[str, tuple[str, str]]:
        return {**networks.machine_files(self.network), **networks.unit_files(self.network, UNIT)}


def _file(path: str, content: str) -> dict[str, str]:
    return {"path": path, "permissions": "0644", "content": content}
