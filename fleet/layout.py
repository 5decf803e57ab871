"""Where things lie on a node. The same on every cloud; user data, rollouts and the gate agree on it here."""

import posixpath
import re

DIRECTORY = "/opt/llm"
COMPOSE_PATH = f"{DIRECTORY}/docker-compose.yml"
ENV_PATH = f"{DIRECTORY}/.env"
DOCKER_CONFIG_PATH = "/root/.docker/config.json"
"""Docker's own: logins at registries."""
ROLLOUT_DIRECTORY = f"{DIRECTORY}/rollout"
"""State of the rollouts of a node."""
STAGES_PATH = "/var/lib/vllm-fleet/stages.jsonl"
"""One JSON object a line for each step of the boot: stage, at (Unix seconds), seconds."""
MODELS_DIRECTORY = "/var/lib/llm/models"
"""Downloaded weights; kept over rollouts."""
FILES_DIRECTORY = "/var/lib/llm/files"
"""Files delivered with releases, each release's in a folder named by their content."""
CACHE_DIRECTORY = "/var/lib/llm/cache"
"""vLLM's compile cache; kept over rollouts."""
TASK_KEY = "x-vllm-fleet-task"
"""What a compose file's model is served for, at the top; not there for a model that generates."""
TASK_VARIABLE = "FLEET_TASK"
"""The same in the environment of vLLM on a Ray cluster."""
AGENT_PORT = 8080
WEBUI_PORT = 3000
GATEWAY_CHECK_PORT = 8081
"""Where the gateway answers on the node's loopback, without TLS, as it does outside."""
SCRIPTS_DIRECTORY = "/usr/local/lib/vllm-fleet"
"""Scripts of the first boot, and what only they read."""
HOST_SETTINGS_PATH = "/etc/vllm-fleet/host.env"
PREFETCH_SCRIPT_PATH = f"{SCRIPTS_DIRECTORY}/weights.py"
PREFETCH_SETTINGS_PATH = "/etc/vllm-fleet/prefetch.env"
REBOOT_MARK_PATH = "/var/lib/vllm-fleet/reboot-required"
"""Left by the set-up when it installed a driver: cloud-init then restarts the machine, once."""
UNITS_DIRECTORY = "/etc/systemd/system"

_SHARED = (
    *("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr"),
    *("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"),
    *(
        "/var/backups",
        "/var/cache",
        "/var/crash",
        "/var/lock",
        "/var/log",
        "/var/mail",
        "/var/run",
        "/var/spool",
    ),
    *("/var/lib/apt", "/var/lib/cloud", "/var/lib/containerd", "/var/lib/docker", "/var/lib/dpkg"),
    *("/var/lib/systemd", "/var/lib/ubuntu-advantage", "/var/lib/vllm-fleet"),
    *("/root/.ssh", "/root/snap", "/snap", "/lost+found"),
    *(ROLLOUT_DIRECTORY, "/opt/monitoring", "/opt/containerd", "/opt/nvidia"),
)
"""Folders of the system, and of what runs on a node: neither they nor what is in them is one sync's alone."""
_PARENTS = (
    *("/root", "/home", "/opt", "/srv", "/mnt", "/media", "/data", "/var/lib"),
    *("/tmp", "/var/tmp"),  # noqa: S108  (named, not used)
)
"""Folders whose folders may be a sync's own, and they themselves not."""


def deletion_problem(destination: str) -> str | None:
    """Why a sync must not delete what its source lacks there; None where it may.

    A path is judged by where it leads, however it is spelt; links on the node are not known here.
    """
    if not destination.startswith("/"):
        return "is relative to the login user's home; give an absolute path where files are deleted"
    if unclear := re.search(r"[^\w./@%+=:, -]", destination):
        return f"holds {unclear[0]!r}, which the node may read as something else; give a plain path"
    place = posixpath.normpath(f"/{destination.lstrip('/')}")
    above = (*_SHARED, *_PARENTS, DIRECTORY, MODELS_DIRECTORY, CACHE_DIRECTORY, FILES_DIRECTORY)
    if place == "/" or any(f"{each}/".startswith(f"{place}/") for each in above):
        return f"leads to {place}, which holds more than this sync; give a folder of its own, as /srv/files"
    if shared := next((each for each in _SHARED if f"{place}/".startswith(f"{each}/")), None):
        return f"leads into {shared}, which is the system's; give a folder of its own, as /srv/files"
    if re.fullmatch(r"/home/[^/]+(/\.ssh(/.*)?)?", place):
        return f"leads to {place}, a user's own; give a folder in it that is the sync's alone"
    return None
