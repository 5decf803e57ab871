"""The `docker` command of a light machine, Compose included."""

from __future__ import annotations

import getopt
import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from fleet import weights
from simcloud.light.commands import Call, Failed, handles
from simcloud.light.compose import Invalid, Project, load
from simcloud.light.containers import Container, DockerError, image_digest, iso
from simcloud.light.log import show

PID = 4242
"""Of every program in a container: a light machine has one that matters."""

_PATHS = re.compile(r"\{\{\s*(?:json\s+)?\.([\w.]*)\s*\}\}")


@handles("docker")
async def _docker(call: Call) -> int:
    verb, *words = call.args or [""]
    try:
        if verb == "compose":
            return await _compose(call, words)
        if verb in {"image", "container"} and words:
            verb = f"{verb} {words[0]}" if verb == "image" else words[0]
            words = words[1:]
        handler = _DOCKER.get(verb)
        if not handler:
            raise Failed(f"docker: '{verb}' is not a docker command.\nSee 'docker --help'")
        call.machine.docker.check()
        return await handler(call, words)
    except (DockerError, Invalid) as error:
        raise Failed(str(error)) from error


def _options(
    words: Sequence[str], short: str, long: Sequence[str], *, mixed: bool = True
) -> tuple[dict[str, str], list[str]]:
    try:
        found, rest = (getopt.gnu_getopt if mixed else getopt.getopt)(list(words), short, list(long))
    except getopt.GetoptError as error:
        raise Failed(f"unknown flag: {error}", 125) from error
    return dict(found), rest


def _named(call: Call, name: str) -> Container:
    for container in call.machine.docker.containers.values():
        if name == container.name or (len(name) >= 12 and container.id.startswith(name)):
            return container
    raise DockerError(f"Error response from daemon: No such container: {name}")


def _render(template: str, document: dict[str, Any]) -> str:
    """A Go template of simple actions: `{{.State.Status}}`, `{{json .State}}`."""

    def value(match: re.Match[str]) -> str:
        found: Any = document
        for part in filter(None, match[1].split(".")):
            found = found.get(part) if isinstance(found, dict) else None
        as_json = "json" in match[0] or isinstance(found, dict | list)
        return json.dumps(found) if as_json else str(found).lower() if isinstance(found, bool) else str(found)

    return _PATHS.sub(value, template)


# --- docker ---


async def _inspect(call: Call, words: list[str]) -> int:
    options, names = _options(words, "f:s", ["format=", "type=", "size"])
    template = options.get("-f") or options.get("--format")
    found, status = [], 0
    for name in names:
        try:
            found.append(_container_document(call, _named(call, name)))
        except DockerError:
            call.err(f"Error: No such object: {name}")
            status = 1
    _print_documents(call, found, template)
    return status


def _print_documents(call: Call, documents: list[dict[str, Any]], template: str | None) -> None:
    if template:
        for document in documents:
            call.out(_render(template, document))
    else:
        call.out(json.dumps(documents, indent=4))


def _container_document(call: Call, container: Container) -> dict[str, Any]:
    service = container.service
    running = container.status == "running"
    state: dict[str, Any] = {
        "Status": container.status,
        "Running": running or container.status == "restarting",
        "Paused": False,
        "Restarting": container.status == "restarting",
        "OOMKilled": False,
        "Dead": False,
        "Pid": PID if running else 0,
        "ExitCode": container.exit_code,
        "Error": "",
        "StartedAt": iso(container.started_at),
        "FinishedAt": iso(container.finished_at),
    }
    if container.health:
        state["Health"] = {"Status": container.health, "FailingStreak": 0, "Log": []}
    return {
        "Id": container.id,
        "Created": iso(container.started_at),
        "Name": f"/{container.name}",
        "RestartCount": container.restarts,
        "Image": image_digest(service.image),
        "State": state,
        "Config": {
            "Image": service.image,
            "Cmd": list(service.command),
            "Env": [f"{name}={value}" for name, value in service.environment.items()],
            "Labels": {
                "com.docker.compose.project": service.project,
                "com.docker.compose.service": service.name,
                "com.docker.compose.config-hash": service.digest,
            },
        },
        "HostConfig": {
            "Runtime": service.runtime or "runc",
            "IpcMode": service.document.get("ipc", "private"),
            "RestartPolicy": {"Name": service.restart.partition(":")[0], "MaximumRetryCount": 0},
            "PortBindings": {
                f"{port.target}/tcp": [{"HostIp": port.host_ip, "HostPort": str(port.published)}]
                for port in service.ports
            },
        },
    }


async def _image_inspect(call: Call, words: list[str]) -> int:
    options, names = _options(words, "f:", ["format="])
    found, status = [], 0
    for name in names:
        if name in call.machine.docker.images:
            digest = image_digest(name)
            repository = name.partition("@")[0].rpartition(":")[0]
            found.append(
                {
                    "Id": digest,
                    "RepoTags": [name],
                    "RepoDigests": [f"{repository}@{digest}"],
                    "Size": 2 * 10**10,
                }
            )
        else:
            call.err(f"Error response from daemon: No such image: {name}")
            status = 1
    _print_documents(call, found, options.get("-f") or options.get("--format"))
    return status


async def _images(call: Call, words: list[str]) -> int:
    for name in call.machine.docker.images:
        call.out(name)
    return 0


async def _pull(call: Call, words: list[str]) -> int:
    _, names = _options(words, "q", ["quiet"])
    for name in names:
        await call.machine.docker.pull(name)
        call.out(f"Status: Downloaded newer image for {name}")
    return 0


async def _logs(call: Call, words: list[str]) -> int:
    options, names = _options(words, "fn:t", ["follow", "tail=", "timestamps", "since="])
    await _show_log(call, [_named(call, names[0])], options)
    return 0


async def _show_log(
    call: Call, containers: list[Container], options: dict[str, str], prefix: bool = False
) -> None:
    count = options.get("--tail") or options.get("-n") or "all"
    follow = bool(options.keys() & {"-f", "--follow"})
    for container in containers:
        label = f"{container.name}  | " if prefix else ""
        await show(
            container.log,
            None if count == "all" else int(count),
            follow=follow,
            write=lambda entry, label=label: call.out(f"{label}{entry[1]}"),  # type: ignore[misc]
        )


async def _ps(call: Call, words: list[str]) -> int:
    options, _ = _options(words, "aqf:", ["all", "quiet", "format=", "filter=", "no-trunc"])
    template = options.get("--format", "json" if "-q" not in options else "{{.ID}}")
    wanted = options.get("--filter") or options.get("-f") or ""
    for container in call.machine.docker.containers.values():
        shown = options.keys() & {"-a", "--all"} or container.status in {"running", "restarting"}
        if shown and wanted.removeprefix("name=").strip("^/$") in container.name:
            row = _row(container)
            call.out(json.dumps(row) if template == "json" else _render(template, row))
    return 0


def _row(container: Container) -> dict[str, Any]:
    health = f" ({container.health})" if container.health else ""
    status = {
        "running": f"Up{health}",
        "restarting": f"Restarting ({container.exit_code})",
        "exited": f"Exited ({container.exit_code})",
    }.get(container.status, "Created")
    return {
        "ID": container.id[:12],
        "Name": container.name,
        "Names": container.name,
        "Image": container.service.image,
        "Project": container.service.project,
        "Service": container.service.name,
        "State": container.status,
        "Health": container.health,
        "ExitCode": container.exit_code,
        "Status": status,
        "Publishers": [
            {
                "URL": port.host_ip or "0.0.0.0",
                "TargetPort": port.target,
                "PublishedPort": port.published,
                "Protocol": "tcp",
            }
            for port in container.service.ports
        ],
    }


async def _stop(call: Call, words: list[str]) -> int:
    _, names = _options(words, "t:", ["time=", "timeout="])
    for name in names:
        await call.machine.docker.stop(_named(call, name).name)
        call.out(name)
    return 0


async def _restart(call: Call, words: list[str]) -> int:
    _, names = _options(words, "t:", ["time=", "timeout="])
    for name in names:
        await call.machine.docker.restart(_named(call, name).name)
        call.out(name)
    return 0


async def _top(call: Call, words: list[str]) -> int:
    container = _named(call, words[0])
    if container.status != "running":
        raise DockerError(f"Error response from daemon: container {container.id} is not running")
    call.out("PID")
    call.out(str(PID))
    return 0


async def _rm(call: Call, words: list[str]) -> int:
    options, names = _options(words, "fv", ["force", "volumes"])
    for name in names:
        container = _named(call, name)
        if container.status in {"running", "restarting"} and not options.keys() & {"-f", "--force"}:
            raise DockerError(
                f"Error response from daemon: cannot remove container {name!r}: container is running"
            )
        await call.machine.docker.remove(container.name)
        call.out(name)
    return 0


async def _info(call: Call, words: list[str]) -> int:
    options, _ = _options(words, "f:", ["format="])
    document = {
        "ServerVersion": "28.5.1",
        "Server": {"Version": "28.5.1"},
        "DefaultRuntime": "runc",
        "Runtimes": {"nvidia": {}, "runc": {}},
    }
    call.out(_render(options.get("-f") or options.get("--format") or "{{json .}}", document))
    return 0


_DOCKER = {
    "inspect": _inspect,
    "image inspect": _image_inspect,
    "image ls": _images,
    "images": _images,
    "image pull": _pull,
    "pull": _pull,
    "logs": _logs,
    "ps": _ps,
    "ls": _ps,
    "stop": _stop,
    "start": _restart,
    "restart": _restart,
    "rm": _rm,
    "top": _top,
    "info": _info,
    "version": _info,
}


# --- docker compose ---


async def _compose(call: Call, words: list[str]) -> int:
    options, rest = _options(
        words,
        "f:p:",
        ["file=", "project-name=", "project-directory=", "env-file=", "profile=", "progress=", "ansi="],
        mixed=False,
    )
    verb, *arguments = rest or [""]
    if verb == "version":
        call.out("Docker Compose version v2.40.3")
        return 0
    handler = _COMPOSE.get(verb)
    if not handler:
        raise Failed(f'unknown docker command: "compose {verb}"')
    file = options.get("-f") or options.get("--file") or ""
    directory = options.get("--project-directory") or (str(PurePosixPath(file).parent) if file else ".")
    project = load(
        call.machine.disk,
        call.path(directory),
        file=call.path(file) if file else "",
        name=options.get("-p") or options.get("--project-name") or "",
        env_file=call.path(options["--env-file"]) if "--env-file" in options else "",
    )
    if verb != "config":  # the only one that never asks the daemon
        call.machine.docker.check()
    return await handler(call, project, arguments)


def _containers(call: Call, project: Project, services: Sequence[str] = ()) -> list[Container]:
    return [
        container
        for container in call.machine.docker.containers.values()
        if container.service.project == project.name and (not services or container.service.name in services)
    ]


async def _compose_config(call: Call, project: Project, words: list[str]) -> int:
    options, _ = _options(words, "q", ["quiet", "format=", "images", "services", "no-interpolate", "hash="])
    if "--images" in options:
        for service in project.services:
            call.out(service.image)
    elif "--services" in options:
        for service in project.services:
            call.out(service.name)
    elif options.get("--format") == "json":
        call.out(json.dumps(dict(project.document)))
    elif not options:
        call.out(yaml.safe_dump(dict(project.document), sort_keys=False).rstrip())
    return 0


async def _compose_pull(call: Call, project: Project, words: list[str]) -> int:
    _, names = _options(words, "q", ["quiet", "ignore-pull-failures", "policy=", "include-deps"])
    for service in project.services:
        if not names or service.name in names:
            await call.machine.docker.pull(service.image)
            call.err(f" {service.name} Pulled ")
    return 0


async def _compose_up(call: Call, project: Project, words: list[str]) -> int:
    options, names = _options(
        words,
        "dt:",
        [
            "detach",
            "force-recreate",
            "no-deps",
            "no-build",
            "pull=",
            "remove-orphans",
            "quiet-pull",
            "timeout=",
        ],
    )
    if not options.keys() & {"-d", "--detach"}:
        raise Failed("a light machine runs `docker compose up` only with -d")
    docker = call.machine.docker
    if "--remove-orphans" in options:
        known = {service.name for service in project.services}
        for container in _containers(call, project):
            if container.service.name not in known:
                await docker.remove(container.name)
    for service in project.services:
        if not names or service.name in names:
            if options.get("--pull") == "never" and service.image not in docker.images:
                raise DockerError(f"Error response from daemon: No such image: {service.image}")
            done = await docker.up(service, recreate="--force-recreate" in options)
            call.err(f" Container {service.container}  {done}")
    return 0


async def _compose_run(call: Call, project: Project, words: list[str]) -> int:
    """A one-off container of a service: here it downloads what `fleet.weights` is given to fetch."""
    _, (name, *rest) = _options(words, "Te:", ["rm", "no-deps", "entrypoint=", "env="], mixed=False)
    service = next((service for service in project.services if service.name == name), None)
    if service is None:
        raise DockerError(f"no such service: {name}")
    for source in weights.read(rest[-1]):
        if status := await call.machine.docker.download(service, source.repo, call.err):
            return status
    return 0


async def _compose_down(call: Call, project: Project, words: list[str]) -> int:
    _options(words, "vt:", ["volumes", "remove-orphans", "timeout=", "rmi="])
    for container in _containers(call, project):
        await call.machine.docker.remove(container.name)
        call.err(f" Container {container.name}  Removed")
    return 0


async def _compose_stop(call: Call, project: Project, words: list[str]) -> int:
    _, names = _options(words, "t:", ["timeout="])
    for container in _containers(call, project, names):
        await call.machine.docker.stop(container.name)
    return 0


async def _compose_restart(call: Call, project: Project, words: list[str]) -> int:
    _, names = _options(words, "t:", ["timeout=", "no-deps"])
    for container in _containers(call, project, names):
        await call.machine.docker.restart(container.name)
    return 0


async def _compose_ps(call: Call, project: Project, words: list[str]) -> int:
    options, names = _options(words, "aq", ["all", "quiet", "format=", "services", "no-trunc", "status="])
    for container in _containers(call, project, names):
        if options.keys() & {"-a", "--all"} or container.status in {"running", "restarting"}:
            row = _row(container)
            if options.keys() & {"-q", "--quiet"}:
                call.out(container.id)
            elif options.get("--format") == "json":
                call.out(json.dumps(row))
            else:
                call.out(f"{row['Name']}  {row['Image']}  {row['Service']}  {row['Status']}")
    return 0


async def _compose_logs(call: Call, project: Project, words: list[str]) -> int:
    options, names = _options(
        words, "fn:t", ["follow", "tail=", "no-log-prefix", "no-color", "timestamps", "since="]
    )
    await _show_log(call, _containers(call, project, names), options, prefix="--no-log-prefix" not in options)
    return 0


_COMPOSE = {
    "config": _compose_config,
    "pull": _compose_pull,
    "up": _compose_up,
    "down": _compose_down,
    "stop": _compose_stop,
    "restart": _compose_restart,
    "ps": _compose_ps,
    "logs": _compose_logs,
    "run": _compose_run,
}
