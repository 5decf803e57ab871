"""Sets up what `make` needs: the Python environment, the Pulumi engine, its language host and provider
plugins.

    python3 tools/setup.py          set up; instant where nothing changed
    python3 tools/setup.py env      the same, then print the shell settings for plain `pulumi`
        --stack NAME                and those that stack needs: the development defaults for `dev` alone
        --backend URL               where the stack's state lies, if not where PULUMI_BACKEND_URL says

Standard library only: this runs before anything is installed. What a checkout needs alone lies in `.venv` and
`.fleet`; what all checkouts share (uv, the engine) in the user's cache. Progress goes to standard error.
"""

from __future__ import annotations  # an older Python gets as far as being told that it is too old

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".fleet"
VENV = ROOT / ".venv"
ENGINE_SOURCE = ROOT / "tools" / "engine"
PULUMI_HOME = LOCAL / "pulumi-home"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-fleet"

PYTHON_MIN = (3, 11)
GO_MIN = (1, 25)
ENGINE_MIN = (3, 230, 0)
# The released twin of the version pinned in tools/engine/go.mod. The digests are those that Pulumi's own
# Homebrew formula publishes for it (pulumi/homebrew-tap, "Brew formula update for Pulumi version 3.230.0").
RELEASE_URL = "https://get.pulumi.com/releases/sdk/pulumi-v{version}-{target}.tar.gz"
RELEASE_SHA256 = {
    ("3.230.0", "linux-x64"): "52337212db85636fa598689cdcf6f54c0aa8a7ccd676dc04e00f2b6334eee8ec",
    ("3.230.0", "linux-arm64"): "e9684f6909335aed95657c006e62d606a88fa09ef098378aff2f3a847d462325",
    ("3.230.0", "darwin-x64"): "b29c089c5907ad3f4f457aa90ac995b3cd69c9148f8309f22f9071e5d097087a",
    ("3.230.0", "darwin-arm64"): "8e279fa8199053a592dc0c91659c327c144c73f0632a0f0047b342010f76d535",
}
# Where no release can be had, the answer should come before anyone wonders.
DOWNLOAD_TIMEOUT_S = 5.0
# Building the engine takes 3 min on two cores; a slow machine on a slow network is given ten times that.
COMMAND_TIMEOUT_S = 1800.0


class SetupError(Exception):
    """Set-up cannot go on. The message is one line: what is missing, what for, how to get it."""


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announces a step before it starts and tells its time after it."""
    say(f"setup: {what} … ", end="")
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say("failed")
        raise
    say(f"{time.monotonic() - start:.1f} s")


def run(argv: list[str | Path], **env: str) -> str:
    """Runs a command to its end, with `env` added, and returns what it printed.

    Raises:
        SetupError: it failed, and the message carries the end of its output; or it took too long.
    """
    command = shlex.join(map(str, argv))
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"`{command}` did not end within {COMMAND_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise SetupError(f"`{command}` ended with code {done.returncode}:\n{tail}")
    return done.stdout


def digest(*parts: str | Path) -> str:
    """One short name for the texts and file contents given."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def version_of(text: str) -> tuple[int, ...]:
    """The first dotted number in a text: (3, 230, 0) of "v3.230.0", () where there is none."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps a second set-up out until this one is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting for another set-up to let go of {path}"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A folder to fill. It becomes `target` in one move if the block ends well, else it vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        draft = Path(name) / "draft"
        draft.mkdir()
        yield draft
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)


def write_script(path: Path, *argv: str | Path) -> None:
    """An executable that becomes `argv` followed by its own arguments."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, argv))} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


# Python environment ---------------------------------------------------------------------------------------


def uv() -> Path:
    """uv, on PATH or of our own in the cache: it installs the lock file in 4 s where pip takes 38."""
    if found := shutil.which("uv"):
        return Path(found)
    lock = ROOT / "tools" / "uv.lock.txt"
    home = CACHE / f"uv-{digest(lock, platform.platform(), sys.version)}"
    if not (home / "bin" / "uv").exists():
        with step("uv, which installs Python packages, from its pinned wheel"), made_whole(home) as draft:
            try:
                run([sys.executable, "-m", "venv", draft])
            except SetupError as error:
                raise SetupError(
                    "missing: Python's venv module, which creates the project's environment; "
                    f"install it, on Debian with `apt install python3-venv`\n{error}"
                ) from error
            run([draft / "bin" / "python", "-m", "pip", "install", "-q", "--require-hashes", "-r", lock])
    return home / "bin" / "uv"


def ensure_environment() -> None:
    """`.venv` holds exactly what requirements.lock says, and this project as an editable install."""
    lock, project = ROOT / "requirements.lock", ROOT / "pyproject.toml"
    wanted = digest(lock, project, sys.version)
    stamp = VENV / ".vllm-fleet"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    tool = uv()
    if not (VENV / "bin" / "python").exists():
        with step("Python environment in .venv"):
            run([tool, "venv", "-q", "--python", sys.executable, VENV])
    env = {"VIRTUAL_ENV": str(VENV)}
    count = sum(1 for line in lock.read_text().splitlines() if "==" in line)
    with step(f"{count} Python packages from requirements.lock, compiled (about 30 s, once per lock)"):
        # Compiled now because `import pulumi` takes 0.5 s from source, 0.2 s compiled, in every engine
        # command.
        run([tool, "pip", "sync", "-q", "--require-hashes", "--compile-bytecode", lock], **env)
    with step("this project, editable"):
        run(
            [tool, "pip", "install", "-q", "--offline", "--no-deps", "--no-build-isolation", "-e", ROOT],
            **env,
        )
    stamp.write_text(wanted)


# Engine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """A Pulumi command line: where it lies and where it came from."""

    folder: Path
    origin: Literal["path", "release", "source"]

    @property
    def pulumi(self) -> Path:
        return self.folder / "pulumi"


def engine_version() -> str:
    """The version that tools/engine pins, as in "3.230.0"."""
    found = re.search(r"pulumi/pulumi/pkg/v3 v([\d.]+)", (ENGINE_SOURCE / "go.mod").read_text())
    if not found:
        raise SetupError("tools/engine/go.mod pins no github.com/pulumi/pulumi/pkg/v3: restore the file")
    return found[1]


def engine_on_path() -> Engine | None:
    """The user's own engine, where it is new enough and brings its Python language host."""
    ours = (LOCAL, CACHE)
    folders = [f for f in os.get_exec_path() if not any(Path(f).is_relative_to(o) for o in ours)]
    found = shutil.which("pulumi", path=os.pathsep.join(folders))
    if not found:
        return None
    # Asking takes 0.3 s: the answer is kept for as long as the file stays the same.
    pulumi = Path(found).resolve()
    known = LOCAL / "engine-on-path.json"
    identity = [str(pulumi), pulumi.stat().st_mtime_ns]
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(known.read_text())
        if kept["identity"] == identity:
            return Engine(Path(found).parent, "path") if kept["usable"] else None
    version = run([pulumi, "version"], PULUMI_SKIP_UPDATE_CHECK="true").strip()
    usable = True
    if version_of(version) < ENGINE_MIN:
        needed = ".".join(map(str, ENGINE_MIN))
        say(f"setup: not using {found}: it is {version}, and {needed} or newer is needed")
        usable = False
    elif not (pulumi.parent / "pulumi-language-python").exists():
        say(f"setup: not using {found}: pulumi-language-python does not lie beside it")
        usable = False
    known.write_text(json.dumps({"identity": identity, "usable": usable}))
    return Engine(Path(found).parent, "path") if usable else None


def download_engine(target: Path, version: str) -> None:
    """The official release, verified.

    Raises:
        OSError: it cannot be fetched here, or what was fetched is not what was published.
    """
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower()
    )
    build = f"{platform.system().lower()}-{machine}"
    if (version, build) not in RELEASE_SHA256:
        raise OSError(f"no digest is pinned for Pulumi {version} on {build}")
    with tempfile.TemporaryFile() as archive:
        sha = hashlib.sha256()
        url = RELEASE_URL.format(version=version, target=build)
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as reply:
            while chunk := reply.read(1 << 20):
                sha.update(chunk)
                archive.write(chunk)
        if sha.hexdigest() != RELEASE_SHA256[version, build]:
            raise OSError(f"what {url} gives has SHA-256 {sha.hexdigest()}, which is not the published one")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar, made_whole(target) as draft:
            for member in tar:
                if member.isfile():  # everything is a file in one folder, `pulumi/`
                    source = tar.extractfile(member)
                    assert source is not None
                    file = draft / Path(member.name).name
                    with file.open("wb") as out:
                        shutil.copyfileobj(source, out)
                    file.chmod(0o755)


def build_engine(target: Path, version: str) -> None:
    """The engine from Go's module registry, checked against go.sum, with the scripts of its Python side."""
    go = shutil.which("go")
    if not go or version_of(run([go, "version"])) < GO_MIN:
        needed = ".".join(map(str, GO_MIN))
        raise SetupError(
            f"missing: Go {needed} or newer, which builds the Pulumi engine where its release cannot be "
            "downloaded; install it from go.dev/dl, or put Pulumi 3.230 or newer on PATH"
        )
    flags = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{version}"
    with made_whole(target) as draft:
        package = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
        command: list[str | Path] = [
            go,
            "-C",
            ENGINE_SOURCE,
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
        ]
        run([*command, "-ldflags", flags, "-o", draft / "pulumi", package])
        sdk = run(
            [go, "-C", ENGINE_SOURCE, "list", "-m", "-f", "{{.Dir}}", "github.com/pulumi/pulumi/sdk/v3"]
        )
        for script in ("cmd/pulumi-language-python-exec", "dist/pulumi-resource-pulumi-python"):
            source = Path(sdk.strip()) / "python" / script
            shutil.copyfile(source, draft / source.name)
            (draft / source.name).chmod(0o755)


def ensure_engine() -> Engine:
    """The engine on PATH, else the official release, else one built from tools/engine."""
    if engine := engine_on_path():
        return engine
    version = engine_version()
    released = CACHE / "engine" / f"{version}-release"
    built = CACHE / "engine" / f"{version}-{digest(ENGINE_SOURCE / 'go.mod', ENGINE_SOURCE / 'go.sum')}"
    if not (released.exists() or built.exists()):
        with locked(CACHE / "engine" / ".lock"):
            if not (released.exists() or built.exists()):
                try:
                    with step(f"Pulumi {version}, official release"):
                        download_engine(released, version)
                except OSError as error:
                    say(f"setup: the release cannot be fetched here ({error}): building it instead")
                    with step(f"Pulumi {version} from Go modules (about 3 min on 2 cores, once per machine)"):
                        build_engine(built, version)
    if released.exists():
        return Engine(released, "release")
    return Engine(with_language_host(built), "source")


def with_language_host(built: Path) -> Path:
    """The built engine beside this checkout's language host: the engine looks for hosts next to itself."""
    target = LOCAL / "bin"
    origin = digest(str(built), str(VENV), Path(__file__))
    stamp = target / ".origin"
    if stamp.exists() and stamp.read_text() == origin:
        return target
    with made_whole(target) as draft:
        for file in built.iterdir():
            try:
                os.link(file, draft / file.name)  # 85 MB: a second name where the file system allows it
            except OSError:
                shutil.copy2(file, draft / file.name)
        exec_script = target / "pulumi-language-python-exec"
        python = VENV / "bin" / "python"
        write_script(draft / "pulumi-language-python", python, "-P", "-m", "tools.langhost", exec_script)
        (draft / ".origin").write_text(origin)
    return target


# Provider plugins -----------------------------------------------------------------------------------------


def stand_ins() -> dict[str, str]:
    """The providers that have a stand-in here, with the version that the locked SDK asks for."""
    locked_versions = dict(
        re.findall(r"^pulumi-([\w-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    files = sorted((ROOT / "tools" / "plugins").glob("[!_]*.py"))
    return {file.stem: locked_versions[file.stem] for file in files if file.stem in locked_versions}


def ensure_plugins(engine: Engine) -> None:
    """Each provider, in this checkout's own PULUMI_HOME: the real one if it can be had, else the stand-in."""
    wanted = stand_ins()
    state = digest(json.dumps(wanted), str(engine.folder), str(VENV), Path(__file__))
    stamp = PULUMI_HOME / ".vllm-fleet"
    if stamp.exists() and stamp.read_text() == state:
        return
    PULUMI_HOME.mkdir(parents=True, exist_ok=True)
    env = {"PULUMI_HOME": str(PULUMI_HOME), "PULUMI_SKIP_UPDATE_CHECK": "true"}
    for name, version in wanted.items():
        install: list[str | Path] = [
            engine.pulumi,
            "plugin",
            "install",
            "resource",
            name,
            version,
            "--reinstall",
        ]
        if engine.origin != "source":
            try:
                with step(f"plugin {name} {version}"):
                    run(install, **env)
                continue
            except SetupError:
                say(f"setup: plugin {name} {version} cannot be downloaded here: using the stand-in")
        with step(f"stand-in for plugin {name} {version}"), tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / f"pulumi-resource-{name}"
            write_script(script, VENV / "bin" / "python", "-P", "-m", f"tools.plugins.{name}", version)
            run([*install, "--file", folder], **env)
    stamp.write_text(state)


# Shell settings -------------------------------------------------------------------------------------------


DEVELOPMENT_STACK = "dev"


def development_settings() -> dict[str, str]:
    """What leads to the stack on embedded clouds, and to no other."""
    return {
        "PULUMI_STACK": DEVELOPMENT_STACK,
        # Without its files of attributes, one of which a kill can leave empty and the state unreadable.
        "PULUMI_BACKEND_URL": f"file://{LOCAL / 'state'}?metadata=skip",
        # Known to everybody; it protects nothing but the embedded clouds' made-up keys.
        "PULUMI_CONFIG_PASSPHRASE": "development",
    }


def stack_settings(stack: str | None, backend: str | None) -> dict[str, str | None]:
    """What leads to a stack and its state; None for what the shell has of the development stack's.

    Raises:
        SetupError: a stack other than the development one has no backend of its own.
    """
    development = development_settings()
    if stack == DEVELOPMENT_STACK:
        (LOCAL / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
        return {**development, **({"PULUMI_BACKEND_URL": backend} if backend else {})}
    left: dict[str, str | None] = {
        name: None for name, value in development.items() if os.environ.get(name) == value
    }
    if stack is None:
        return left
    chosen = backend or ({} if left else os.environ).get("PULUMI_BACKEND_URL")
    if not chosen and not logged_in():
        raise SetupError(
            f"stack {stack} has no backend: this checkout's own is for stack {DEVELOPMENT_STACK} alone. "
            "Fix: give BACKEND='s3://BUCKET?region=…' to make, export PULUMI_BACKEND_URL, or pulumi login; "
            "docs/environments.md"
        )
    return {**left, "PULUMI_STACK": stack, **({"PULUMI_BACKEND_URL": chosen} if chosen else {})}


def logged_in() -> bool:
    """Whether `pulumi login` has chosen a backend for this checkout."""
    try:
        return bool(json.loads((PULUMI_HOME / "credentials.json").read_text())["current"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def shell_settings(engine: Engine) -> dict[str, str]:
    """What makes plain `pulumi` work on this checkout, with plugins of its own; PATH apart."""
    settings = {
        "PULUMI_HOME": str(PULUMI_HOME),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        # Programs start once per node and command: compiling their sources each time would double that.
        "PYTHONDONTWRITEBYTECODE": "",
        # Operations here wait for clouds and machines, not for this processor: the default is four per core.
        "PULUMI_PARALLEL": "64",
        # Nodes are independent: one that fails must not keep its siblings from finishing.
        "PULUMI_CONTINUE_ON_ERROR": "true",
    }
    if engine.origin == "source":
        # Where the engine could not be downloaded, plugins cannot either: do not spend seconds on trying.
        settings["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"
    return settings


def shell_lines(engine: Engine, settings: Mapping[str, str | None]) -> str:
    """The settings as lines for the shell, with the programs of this checkout before all others."""
    folders = [str(VENV / "bin")] + ([] if engine.origin == "path" else [str(engine.folder)])
    path = f'export PATH={shlex.quote(os.pathsep.join(folders))}:"$PATH"'
    lines = [
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
        for name, value in settings.items()
    ]
    return "\n".join([path, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up this checkout.")
    parser.add_argument("what", nargs="?", choices=["env"], help="env: print shell settings after set-up")
    parser.add_argument("--stack", help="print what this stack needs as well")
    parser.add_argument("--backend", help="URL of the stack's state")
    args = parser.parse_args()
    if sys.version_info < PYTHON_MIN:
        needed = ".".join(map(str, PYTHON_MIN))
        raise SetupError(
            f"missing: Python {needed} or newer, which everything here runs on (this is "
            f"{platform.python_version()}); install it and name it, as in `make PYTHON=python3.12 setup`"
        )
    LOCAL.mkdir(exist_ok=True)
    with locked(LOCAL / ".lock"):
        ensure_environment()
        engine = ensure_engine()
        ensure_plugins(engine)
    if args.what == "env":
        settings = {**shell_settings(engine), **stack_settings(args.stack, args.backend)}
        print(shell_lines(engine, settings))


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; the next set-up goes on from here")
