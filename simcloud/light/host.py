"""The machine's own state, as its programs tell it: cloud-init, systemd, journal, GPUs, disk, sockets."""

from __future__ import annotations

import json
import time
from fnmatch import fnmatchcase

from simcloud.light import agent
from simcloud.light.commands import Call, Failed, handles
from simcloud.light.log import Log, show
from simcloud.light.systemd import NoSuchUnit, Unit
from simcloud.light.userdata import PACKAGES

GB = 10**9
# What an Ubuntu image with driver and Docker takes, and a vLLM image unpacked.
SYSTEM_BYTES, IMAGE_BYTES = 12 * GB, 20 * GB
DRIVER, CUDA = "580.95.05", "13.0"


@handles("cloud-init")
async def _cloud_init(call: Call) -> int:
    if call.args[:1] != ["status"]:
        raise Failed(f"cloud-init: {' '.join(call.args)}: only `status` is simulated", 2)
    machine, state = call.machine, call.machine.cloud_init
    if "--wait" in call.args:
        await state.done.wait()
    if "json" in " ".join(call.args):
        document = {
            "boot_status_code": "enabled-by-generator",
            "datasource": machine.datasource.removeprefix("DataSource").lower(),
            "detail": state.errors[0] if state.errors else machine.datasource,
            "errors": state.errors if not state.degraded else [],
            "extended_status": f"degraded {state.status}" if state.degraded else state.status,
            "last_update": time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(machine.booted_at)),
            "recoverable_errors": {"WARNING": state.errors} if state.degraded else {},
            "stage": None if state.done.is_set() else "modules-config",
            "status": state.status,
        }
        call.out(json.dumps(document, indent=2))
    else:
        call.out(f"status: {state.status}")
    return 1 if state.status == "error" else 2 if state.degraded else 0


# --- systemd ---


@handles("systemctl")
async def _systemctl(call: Call) -> int:
    options, rest = call.options(
        "p:nqa", ["property=", "value", "quiet", "now", "no-block", "no-pager", "lines="]
    )
    verb, names = (rest[0], rest[1:]) if rest else ("", [])
    if verb in {"daemon-reload", "reset-failed"}:
        for unit in call.machine.systemd.units.values() if verb == "reset-failed" else ():
            if unit.active == "failed" and unit.name in names:
                unit.become("inactive", "dead")
        return 0
    if verb == "reboot":
        call.machine.reboot()
        return 0
    if verb == "is-system-running":
        call.out("running")
        return 0
    act = _VERBS.get(verb)
    if not act:
        raise Failed(f"Unknown command verb '{verb}'.")
    worst = 0
    for name in names:
        try:
            unit = call.machine.systemd.unit(name)
        except NoSuchUnit as error:
            worst = max(worst, _unknown(call, verb, str(error)))
            continue
        if unit.name == "docker.service":
            dead = call.machine.fault() == "docker_dead"
            unit.become("failed" if dead else "active", "failed" if dead else "running")
        worst = max(worst, await act(call, unit, options))
    return worst


def _unknown(call: Call, verb: str, name: str) -> int:
    if verb in {"is-active", "is-failed"}:
        call.out("inactive")
        return 4
    if verb == "is-enabled":
        call.err(f"Failed to get unit file state for {name}: No such file or directory")
        return 1
    if verb == "show":
        call.out("LoadState=not-found\nActiveState=inactive\nSubState=dead")
        return 0
    call.err(
        f"Unit {name} could not be found."
        if verb == "status"
        else f"Failed to {verb} {name}: Unit {name} not found."
    )
    return 4 if verb == "status" else 5


async def _is_active(call: Call, unit: Unit, options: dict[str, str]) -> int:
    if "--quiet" not in options and "-q" not in options:
        call.out(unit.active)
    return 0 if unit.active == "active" else 3


async def _is_failed(call: Call, unit: Unit, options: dict[str, str]) -> int:
    call.out(unit.active)
    return 0 if unit.active == "failed" else 1


async def _is_enabled(call: Call, unit: Unit, options: dict[str, str]) -> int:
    state = call.machine.systemd.file_state(unit.name)
    call.out(state)
    return 1 if state == "disabled" else 0


async def _show(call: Call, unit: Unit, options: dict[str, str]) -> int:
    facts = {
        "Id": unit.name,
        "LoadState": "loaded",
        "ActiveState": unit.active,
        "SubState": unit.sub,
        "Result": unit.result,
        "ExecMainStatus": str(unit.status),
        "NRestarts": str(unit.restarts),
        "UnitFileState": call.machine.systemd.file_state(unit.name),
        "StateChangeTimestamp": time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(unit.since)),
    }
    wanted = options.get("-p") or options.get("--property")
    for name in wanted.split(",") if wanted else facts:
        call.out(facts.get(name, "") if "--value" in options else f"{name}={facts.get(name, '')}")
    return 0


async def _status(call: Call, unit: Unit, options: dict[str, str]) -> int:
    call.out(f"{unit.name}\n     Active: {unit.active} ({unit.sub})")
    for at, line in unit.log.tail(10):
        call.out(_syslog(call, unit.name, at, line))
    return 0 if unit.active == "active" else 3


async def _start(call: Call, unit: Unit, options: dict[str, str]) -> int:
    return _outcome(call, unit, await call.machine.systemd.start(unit.name))


async def _restart(call: Call, unit: Unit, options: dict[str, str]) -> int:
    return _outcome(call, unit, await call.machine.systemd.restart(unit.name))


async def _stop(call: Call, unit: Unit, options: dict[str, str]) -> int:
    await call.machine.systemd.stop(unit.name)
    return 0


async def _enable(call: Call, unit: Unit, options: dict[str, str]) -> int:
    call.machine.systemd.disabled.discard(unit.name)
    return await _start(call, unit, options) if "--now" in options else 0


async def _disable(call: Call, unit: Unit, options: dict[str, str]) -> int:
    call.machine.systemd.disabled.add(unit.name)
    return await _stop(call, unit, options) if "--now" in options else 0


def _outcome(call: Call, unit: Unit, started: bool) -> int:
    if started:
        return 0
    call.err(
        f"Job for {unit.name} failed because the control process exited with error code.\n"
        f'See "systemctl status {unit.name}" and "journalctl -xeu {unit.name}" for details.'
    )
    return 1


_VERBS = {
    "is-active": _is_active,
    "is-failed": _is_failed,
    "is-enabled": _is_enabled,
    "show": _show,
    "status": _status,
    "start": _start,
    "restart": _restart,
    "reload-or-restart": _restart,
    "stop": _stop,
    "enable": _enable,
    "disable": _disable,
}


@handles("journalctl")
async def _journalctl(call: Call) -> int:
    options, _ = call.options(
        "u:n:o:b:kfxeq", ["unit=", "lines=", "output=", "no-pager", "since=", "follow", "quiet"]
    )
    name = options.get("-u") or options.get("--unit") or ""
    count = options.get("-n") or options.get("--lines")
    style = options.get("-o") or options.get("--output") or "short"
    try:
        log = call.machine.systemd.unit(name).log if name else Log()
    except NoSuchUnit:
        log = Log()
    if not log.tail(1):
        call.out("-- No entries --")
    follow = bool(options.keys() & {"-f", "--follow"})
    await show(
        log,
        int(count) if count else None,
        follow=follow,
        write=lambda entry: call.out(entry[1] if style == "cat" else _syslog(call, name, *entry)),
    )
    return 0


def _syslog(call: Call, unit: str, at: float, line: str) -> str:
    when = time.strftime("%b %d %H:%M:%S", time.gmtime(at))
    return f"{when} {call.machine.boot.name} {unit.removesuffix('.service')}[1]: {line}"


# --- GPUs ---


@handles("nvidia-smi")
async def _nvidia_smi(call: Call) -> int:
    machine = call.machine
    if machine.fault() == "driver_missing":
        raise Failed(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
            "Make sure that the latest NVIDIA driver is installed and running.",
            9,
        )
    if machine.fault() == "gpu_missing":
        raise Failed("No devices were found", 6)
    options, _ = call.options("Li:", ["query-gpu=", "query-compute-apps=", "format=", "list-gpus"])
    fields = (options.get("--query-gpu") or options.get("--query-compute-apps") or "").split(",")
    plain = "noheader" in options.get("--format", "")
    units = "nounits" not in options.get("--format", "")
    used = int(machine.docker.gpu_used() * machine.gpus.memory_mib)
    rows = [_gpu(call, index, used, units=units) for index in range(machine.gpus.count)]
    if options.keys() & {"-L", "--list-gpus"}:
        for row in rows:
            call.out(f"GPU {row['index']}: {row['name']} (UUID: {row['uuid']})")
    elif "--query-gpu" in options or "--query-compute-apps" in options:
        unknown = [name for name in fields if rows and name.strip() not in rows[0]]
        if unknown:
            raise Failed(f'Field "{unknown[0]}" is not a valid field to query.', 2)
        if not plain:
            call.out(", ".join(fields))
        for row in rows if "--query-gpu" in options or used else []:
            call.out(", ".join(row[name.strip()] for name in fields))
    else:
        call.out(f"| NVIDIA-SMI {DRIVER}   Driver Version: {DRIVER}   CUDA Version: {CUDA} |")
        for row in rows:
            call.out(f"|   {row['index']}  {row['name']}  | {row['memory.used']} / {row['memory.total']} |")
    return 0


def _gpu(call: Call, index: int, used: int, *, units: bool) -> dict[str, str]:
    mib, percent = (" MiB", " %") if units else ("", "")
    total = call.machine.gpus.memory_mib
    return {
        "index": str(index),
        "name": f"NVIDIA {call.machine.boot.gpu_model.removeprefix('NVIDIA ')}",
        "uuid": f"GPU-{call.machine.boot.server_id[:8]}-{index}",
        "gpu_uuid": f"GPU-{call.machine.boot.server_id[:8]}-{index}",
        "memory.total": f"{total}{mib}",
        "memory.used": f"{used}{mib}",
        "memory.free": f"{total - used}{mib}",
        "utilization.gpu": f"0{percent}",
        "temperature.gpu": "35",
        "driver_version": DRIVER,
        "pid": "4242",
        "process_name": "/usr/bin/python3",
        "used_memory": f"{used}{mib}",
        "used_gpu_memory": f"{used}{mib}",
    }


@handles("lspci")
async def _lspci(call: Call) -> int:
    for index in range(call.machine.gpus.count):
        call.out(
            f"00:{index + 5:02x}.0 3D controller: NVIDIA Corporation [{call.machine.boot.gpu_model}] (rev a1)"
        )
    return 0


# --- The rest of the host ---


@handles("df")
async def _df(call: Call) -> int:
    options, names = call.options("B:hPTk", ["output=", "block-size="])
    machine = call.machine
    size = machine.boot.disk_gb * GB
    used = SYSTEM_BYTES + IMAGE_BYTES * len(machine.docker.images)
    free = 40 * 10**6 if machine.fault() == "disk_full" else max(size - used, 0)
    unit = options.get("-B") or options.get("--block-size") or "1K"
    factor = {"1": 1, "K": 1024, "1K": 1024, "M": 2**20, "1M": 2**20, "G": 2**30, "1G": 2**30}[unit]
    suffix = unit[-1] if unit in {"K", "M", "G"} else ""
    columns = {
        "source": ("Filesystem", "/dev/vda1"),
        "fstype": ("Type", "ext4"),
        "size": (f"{unit}-blocks", f"{size // factor}{suffix}"),
        "used": ("Used", f"{(size - free) // factor}{suffix}"),
        "avail": ("Avail", f"{free // factor}{suffix}"),
        "pcent": ("Use%", f"{100 * (size - free) // size}%"),
        "target": ("Mounted on", "/"),
    }
    shown = [
        columns[name] for name in options.get("--output", "source,size,used,avail,pcent,target").split(",")
    ]
    call.out(" ".join(header for header, _ in shown))
    for _ in names or ["/"]:
        call.out(" ".join(value for _, value in shown))
    return 0


@handles("ss")
async def _ss(call: Call) -> int:
    if not any("H" in word for word in call.args if word.startswith("-")):
        call.out("State  Recv-Q Send-Q Local Address:Port Peer Address:Port")
    sockets = [f"0.0.0.0:{call.machine.ssh_port}"]
    sockets += sorted(
        {f"{port.host_ip or '0.0.0.0'}:{port.published}" for port, _ in call.machine.docker.published()}
    )
    if call.machine.connection(agent.PORT):
        sockets.append(f"127.0.0.1:{agent.PORT}")
    for local in sockets:
        call.out(f"LISTEN 0      4096   {local} 0.0.0.0:*")
    return 0


@handles("uptime")
async def _uptime(call: Call) -> int:
    booted = time.gmtime(call.machine.booted_at)
    if "-s" in call.args:
        call.out(time.strftime("%Y-%m-%d %H:%M:%S", booted))
    else:
        minutes = int(time.time() - call.machine.booted_at) // 60
        now = time.strftime("%H:%M:%S", time.gmtime())
        call.out(f" {now} up {minutes} min,  0 users,  load average: 0.00, 0.00, 0.00")
    return 0


@handles("hostname")
async def _hostname(call: Call) -> int:
    call.out(call.machine.boot.name)
    return 0


@handles("reboot")
async def _reboot(call: Call) -> int:
    call.machine.reboot()
    return 0


@handles("dpkg-query")
async def _dpkg_query(call: Call) -> int:
    options, patterns = call.options("Wf:", ["show", "showformat="])
    if not options.keys() & {"-W", "--show"}:
        raise Failed("dpkg-query: error: need an action option", 2)
    line = options.get("-f") or options.get("--showformat") or "${Package}\\n"
    for name in PACKAGES:
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns):
            filled = line.replace("${db:Status-Abbrev}", "ii ").replace("${Package}", name)
            call.stdout.write(filled.replace("\\n", "\n").encode())
    return 0


@handles("apt-mark")
async def _apt_mark(call: Call) -> int:
    verb, *names = call.args
    machine = call.machine
    if verb == "showhold":
        for name in sorted(machine.held):
            call.out(name)
        return 0
    for name in names:
        machine.held = machine.held | {name} if verb == "hold" else machine.held - {name}
        call.out(f"{name} {'set on hold' if verb == 'hold' else 'was already not on hold'}.")
    return 0
