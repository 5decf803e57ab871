"""Runs the one job of this machine, and says how it ended; on what Amazon Linux brings (Python 3.9).

`run` mounts the share, installs the job's requirements and runs its script; `report` is what systemd runs
after it, however it ended: it writes the result. The log is written to this machine's disk first; `copy`
brings it to the share and `ship` to CloudWatch, each in a process of its own, for a share that is lost makes
whoever touches it hang. systemd then powers the machine off, which ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

WRAP_UP_S = 30
"""The script is ended this long before the machine's last second: time to bring log and result to safety."""
TERMINATE_S = 5
"""From the wish to end to the kill."""
MOUNT_DEADLINE_S = 300
"""The address of a mount target that was just made takes up to 90 s to resolve, as EFS documents."""
MOUNT_ATTEMPT_S = 60
SHARE_LOOK_S = 5
SHARE_SILENT_S = 60
"""A share that does not answer for so long is lost: the client itself would wait for ever."""
LAST_COPY_S = 10
SHIP_EVERY_S = 5
BATCH_BYTES, BATCH_LINES = 256 * 1024, 5000
"""Well within what CloudWatch takes at once (1 MiB with 26 bytes an event, 10 000 events)."""
LEAST_BILLED_S = 60
"""EC2 bills by the second, and at least a minute."""


class Ended(Exception):
    """The job is over: why, in a word and in a sentence."""

    def __init__(self, reason: str, detail: str = "", exit_code: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.outcome = {"reason": reason, "detail": detail, "exit_code": exit_code}


class Job:
    """What the user data says, and the places it implies."""

    def __init__(self, settings: str) -> None:
        self.settings = settings
        self.given: dict[str, Any] = json.loads(pathlib.Path(settings).read_text())
        self.id = self.given["id"]
        self.mount_path = pathlib.Path(self.given["mount_path"])
        self.shared = self.mount_path / "jobs" / self.id
        self.state = pathlib.Path(self.given["state"])
        self.log = self.state / "log"
        self.started, self.outcome = self.state / "started", self.state / "outcome.json"
        self.result, self.shipped = self.state / "result.json", self.state / "shipped"
        self.venv = pathlib.Path(self.given["home"]) / ".job-venv"

    def say(self, text: str) -> None:
        """A line of our own in the log."""
        with self.log.open("a") as log:
            log.write(f"vllm-fleet: {text}\n")

    def left_s(self) -> float:
        """Seconds that the script has left."""
        return float(self.given["minutes"] * 60 - WRAP_UP_S - age_s())


def main() -> None:
    what, settings = sys.argv[1:]
    try:
        {"run": run, "report": report, "copy": copy, "ship": ship}[what](Job(settings))
    except Ended as end:
        sys.exit(f"vllm-fleet: {what}: {end}")


# --- Run ---


def run(job: Job) -> None:
    """Everything from the mount to the script's end; what became of it is kept for `report`."""
    job.state.mkdir(parents=True, exist_ok=True)
    streams: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, _stopped)
    try:
        if job.started.exists():
            raise Ended("restarted", "the machine was restarted, and a job is not run twice")
        job.started.touch()
        job.say(f"job {job.id}: {job.given['script']} on {job.given['type']}")
        streams.append(_stream(job, "ship"))
        mount(job, MOUNT_DEADLINE_S)
        streams.append(_stream(job, "copy"))
        script = _script(job)
        _install_requirements(job, script)
        interpreter = [] if os.access(script, os.X_OK) else ["bash"]
        status = _attend(job, [*interpreter, str(script), *job.given["args"]])
        raise Ended("succeeded" if status == 0 else "script-failed", exit_code=status)
    except Ended as end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write(job.outcome, json.dumps(end.outcome))
        job.say(str(end))
        for stream in streams:
            assert stream.stdin
            stream.stdin.close()
        for stream in streams:
            with contextlib.suppress(subprocess.TimeoutExpired):
                stream.wait(timeout=TERMINATE_S)
            stream.kill()  # `report` brings what is left


def _stopped(*_: object) -> NoReturn:
    raise Ended("cancelled", "the machine was told to shut down")


def mount(job: Job, deadline_s: float) -> None:
    """Mount the share, encrypted in transit; again and again until the deadline."""
    if _mounted(job):
        return
    job.mount_path.mkdir(parents=True, exist_ok=True)
    began, pause = time.monotonic(), 1.0
    command = ["mount", "-t", "efs", "-o", "tls", f"{job.given['file_system']}:/", str(job.mount_path)]
    while True:
        if not shutil.which("mount.efs"):
            _said(["dnf", "-q", "-y", "install", "amazon-efs-utils"], timeout_s=2 * MOUNT_ATTEMPT_S)
        status, said = _said(command, timeout_s=MOUNT_ATTEMPT_S)
        if status == 0:
            return
        left = min(deadline_s - (time.monotonic() - began), job.left_s())
        if left <= pause:
            raise Ended("mount-failed", f"{job.given['file_system']} could not be mounted: {said}")
        job.say(f"waiting for the share, {left:.0f} s left: {said}")
        time.sleep(pause)
        pause = min(2 * pause, 15)


def _mounted(job: Job) -> bool:
    return _said(["mountpoint", "-q", str(job.mount_path)], timeout_s=10)[0] == 0


def _script(job: Job) -> pathlib.Path:
    script: pathlib.Path = job.mount_path / job.given["script"]
    if not script.is_file():
        raise Ended("script-missing", f"there is no {job.given['script']} on {job.given['file_system']}")
    return script


def _install_requirements(job: Job, script: pathlib.Path) -> None:
    """Into a virtual environment, if there are any: beside the script, or at the top of the share."""
    places = (script.parent, job.mount_path)
    found = [each for place in places if (each := place / "requirements_gpu.txt").is_file()]
    if not found:
        return
    job.say(f"installing {found[0]}")
    for command in (
        ["python3", "-m", "venv", str(job.venv)],
        [str(job.venv / "bin/python"), "-m", "pip", "install", "--no-input", "-r", str(found[0])],
    ):
        status = _attend(job, command)
        if status != 0:
            raise Ended("requirements-failed", f"{found[0]}: see the log", status)


def _attend(job: Job, command: list[str]) -> int:
    """Run a command as the job's user until it ends; end it when time is up, or the share is gone."""
    given = job.given
    path = f"{job.venv}/bin:/usr/local/cuda/bin:{os.environ['PATH']}"
    environment = dict(os.environ)
    environment.update(HOME=given["home"], USER=given["user"], LOGNAME=given["user"], PATH=path)
    environment.update(JOB_ID=job.id, RECORDINGS=str(job.mount_path), PYTHONUNBUFFERED="1")
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            ["runuser", "-u", given["user"], "--", *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=job.mount_path, env=environment,
            start_new_session=True,
        )  # fmt: skip
    share = _ShareWatch(job)
    try:
        while True:
            if job.left_s() <= 0:
                raise Ended("timeout", f"not done {job.given['minutes']} min after the launch")
            share.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=max(0.0, min(1.0, job.left_s())))
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With everything it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=TERMINATE_S)


class _ShareWatch:
    """Looks whether the share is mounted and answers; by another process, for a look at a lost one hangs."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._looking: subprocess.Popen[bytes] | None = None
        self._since = time.monotonic()

    def look(self) -> None:
        """Raises Ended if the share is lost."""
        waited = time.monotonic() - self._since
        if self._looking is None:
            if waited >= SHARE_LOOK_S:
                self._since = time.monotonic()
                self._looking = subprocess.Popen(["mountpoint", "-q", str(self._job.mount_path)])
            return
        status = self._looking.poll()
        if status == 0:
            self._looking = None
        elif status is not None:
            raise Ended("share-lost", f"{self._job.mount_path} is not mounted any more")
        elif waited > SHARE_SILENT_S:
            self._looking.kill()
            raise Ended("share-lost", f"{self._job.mount_path} did not answer for {SHARE_SILENT_S} s")


# --- Report ---


def report(job: Job) -> None:
    """The result: on this disk, on the share (mounted again if need be) and in CloudWatch."""
    job.state.mkdir(parents=True, exist_ok=True)
    if job.outcome.exists():
        outcome = json.loads(job.outcome.read_text())
    else:
        # systemd tells how what it ran has ended.
        told = " ".join(os.environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
        end = Ended("runner-killed", f"the runner did not end by itself ({told})")
        outcome = end.outcome
        job.say(str(end))
    lived_s = max(LEAST_BILLED_S, age_s())
    price = job.given["price_per_hour"]
    result = {
        **{key: job.given[key] for key in ("id", "pipeline", "script", "args", "type", "minutes")},
        **outcome,
        "launched": round(time.time() - age_s(), 3),
        "ended": round(time.time(), 3),
        "seconds": round(lived_s, 3),
        "price_per_hour": price,
        "cost": None if price is None else round(price * lived_s / 3600, 4),
        "currency": "USD",
    }
    write(job.result, json.dumps(result, indent=1) + "\n")
    senders = [_stream(job, "copy", stdin=subprocess.DEVNULL), _stream(job, "ship", stdin=subprocess.DEVNULL)]
    deadline = time.monotonic() + LAST_COPY_S
    for sender in senders:
        try:
            sender.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            sender.kill()
    # A share that does not answer must not keep the machine from going off.
    _said(["umount", "-f", "-l", str(job.mount_path)], timeout_s=5)


# --- Where the log and the result go ---


def copy(job: Job) -> None:
    """Append to the share's log what is new in ours, until standard input ends; then the result, if any."""
    mount(job, LAST_COPY_S)
    job.shared.mkdir(parents=True, exist_ok=True)
    target = job.shared / "log"
    for last in _until_input_ends(1):
        with job.log.open("rb") as source, target.open("ab") as shared:
            source.seek(shared.tell())
            shutil.copyfileobj(source, shared)
            shared.flush()
            os.fsync(shared.fileno())  # others see it now, not when the client's cache is written
        if last and job.result.exists():
            write(job.shared / "result.json", job.result.read_text())


def ship(job: Job) -> None:
    """Send to CloudWatch what is new in the log, until standard input ends; then the result, if any."""
    _aws(job, "create-log-stream", {"logStreamName": f"log/{job.id}"})
    for last in _until_input_ends(SHIP_EVERY_S):
        while batch := _next_batch(job, whole_lines=not last):
            lines = batch.decode(errors="replace").splitlines() or [" "]
            if not _put(job, f"log/{job.id}", lines):
                break
            write(job.shipped, str(_offset(job) + len(batch)))
        if last and job.result.exists():
            _aws(job, "create-log-stream", {"logStreamName": f"result/{job.id}"})
            _put(job, f"result/{job.id}", [json.dumps(json.loads(job.result.read_text()))])


def _next_batch(job: Job, *, whole_lines: bool) -> bytes:
    with job.log.open("rb") as log:
        log.seek(_offset(job))
        batch = log.read(BATCH_BYTES)
    lines = batch.splitlines(keepends=True)[:BATCH_LINES]
    if whole_lines and len(batch) < BATCH_BYTES and lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return b"".join(lines)


def _offset(job: Job) -> int:
    return int(job.shipped.read_text()) if job.shipped.exists() else 0


def _put(job: Job, stream: str, lines: list[str]) -> bool:
    now = int(time.time() * 1000)
    events = [{"timestamp": now, "message": line or " "} for line in lines]
    return _aws(job, "put-log-events", {"logStreamName": stream, "logEvents": events})


def _aws(job: Job, call: str, arguments: dict[str, Any]) -> bool:
    """By the command line client, which every Amazon Linux image carries and which finds the role's keys."""
    parameters = job.state / f"{call}.json"
    write(parameters, json.dumps({"logGroupName": job.given["log_group"], **arguments}))
    limits = ["--cli-connect-timeout", "5", "--cli-read-timeout", "5"]
    where = ["--region", job.given["region"], "--cli-input-json", f"file://{parameters}"]
    status, said = _said(["aws", "logs", call, *where, *limits], timeout_s=LAST_COPY_S)
    if status != 0 and "ResourceAlreadyExists" not in said:
        sys.stderr.write(f"vllm-fleet: CloudWatch: {said}\n")
    return status == 0


def _until_input_ends(every_s: float) -> Any:
    """False each time it is time to look again, and a last True."""
    while not select.select([sys.stdin], [], [], every_s)[0]:
        yield False
    yield True


def _stream(job: Job, what: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """A process of our own kind; it ends when the pipe to it does."""
    return subprocess.Popen([sys.executable, __file__, what, job.settings], stdin=stdin)


# --- Small things ---


def age_s() -> float:
    """Seconds since the machine was switched on, which is when EC2 begins to bill."""
    booted = subprocess.run(["uptime", "-s"], check=True, capture_output=True, text=True, timeout=10).stdout
    return time.time() - time.mktime(time.strptime(booted.strip(), "%Y-%m-%d %H:%M:%S"))


def write(path: pathlib.Path, text: str) -> None:
    """A file that is there whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def _said(command: list[str], *, timeout_s: float) -> tuple[int, str]:
    """Exit status of a command, and the last line it said."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return 127, f"there is no {command[0]}"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not end within {timeout_s:.0f} s"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode, said[-1] if said else f"exit status {done.returncode}"


if __name__ == "__main__":
    main()
