"""Caddy's container on a light machine: the real program, made to believe in its container.

Inside a container it would have its files, its ports and its neighbours' names to itself. Here it gets a
folder for the files, the machine's own loopback address for the ports that are published, and a port for each
neighbour.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from simcloud.caddy import NoCaddy, caddy
from simcloud.light.compose import Service
from simcloud.light.disk import Disk

CADDYFILE = "/etc/caddy/Caddyfile"


def is_caddy(image: str) -> bool:
    """Whether an image is Caddy's."""
    return bool(re.fullmatch(r"(docker\.io/)?(library/)?caddy[:@].*", image))


def neighbours(service: Service) -> list[tuple[str, int]]:
    """Name and port of the containers that it passes requests on to."""
    found = re.findall(r"reverse_proxy ([a-z][a-z-]*):(\d+) ", service.files[CADDYFILE])
    return [(name, int(port)) for name, port in found]


async def run(
    service: Service, disk: Disk, address: str, places: dict[str, int], log: Callable[[str], None]
) -> int:
    """Run Caddy until it ends or this is cancelled; returns its exit status.

    `places` are its neighbours, `name:port` as the project's network knows them, with the port of the
    machine's address at which each is found.
    """
    with TemporaryDirectory(prefix="caddy-") as place:
        folder = Path(place)
        for path, content in service.files.items():
            file = folder / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        config = folder / CADDYFILE.lstrip("/")
        config.write_text(_located(config.read_text(), service, folder, disk, address, places))
        try:
            program = await asyncio.to_thread(caddy)
        except NoCaddy as missing:
            log(str(missing))
            return 127
        child = await asyncio.create_subprocess_exec(
            *(program, "run", "--adapter", "caddyfile", "--config", config),
            env={**service.environment, "HOME": place, "XDG_DATA_HOME": place},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert child.stdout is not None
        try:
            while line := await child.stdout.readline():
                log(line.decode(errors="replace").rstrip())
            return await child.wait()
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def _located(
    text: str, service: Service, folder: Path, disk: Disk, address: str, places: dict[str, int]
) -> str:
    """The Caddyfile with paths, ports and names of the container as they are on this machine.

    Without `persist_config`: the distribution's Caddy may be older than that option (2.7).
    """
    text = text.replace("    persist_config off\n", "", 1)
    for path in service.files:
        text = text.replace(path, str(folder / path.lstrip("/")))
    for volume in service.document.get("volumes") or ():
        there, path = str(volume).split(":")[:2]
        text = text.replace(f"root {path}\n", f"root {disk.locate(there)}\n")
    for name, port in places.items():
        text = text.replace(f" {name} ", f" {address}:{port} ")
    for published in service.ports:
        text = re.sub(
            rf"^((?:http://)?):{published.target} \{{", rf"\1:{published.published} {{", text, flags=re.M
        )
    # The gateway's own site, which is not published.
    text = text.replace("https://127.0.0.1:", f"https://{address}:")
    return text.replace("{\n", f"{{\n    default_bind {address}\n", 1)
