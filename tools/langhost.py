"""Pulumi's Python language host, as small as the engine's protocol allows.

A released Pulumi brings its own host, a Go program that no package registry carries. This one stands beside
an engine built from source: it starts programs, policy packs and Python plugins, and forwards what they
print. What the original asks of a project it asks too, so that a project which works here works there
(pulumi/pulumi, sdk/python/cmd/pulumi-language-python/main.go and sdk/python/toolchain/pip.go, August 2026):
a virtual environment that is not there is made from requirements.txt, and one without pip is refused.

    python -m tools.langhost EXEC_SCRIPT ENGINE_ADDRESS     (the engine starts it so; it prints its port)
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from tools.processes import Children, Stream, end, output_of
from tools.protocol import language_pb2 as proto
from tools.protocol import language_pb2_grpc, plugin_pb2
from tools.serving import serve

# The program has already shown the user what went wrong (pulumi-language-python-exec ends with it).
ERROR_ALREADY_SHOWN = 32
NOT_SERVED = frozenset({"Template", "GenerateProgram", "GenerateProject", "GeneratePackage", "Pack", "Link"})
"""Calls of `pulumi new`, `convert`, `import` and `package`: no command on an existing project makes them."""


def venv_of(info: proto.ProgramInfo) -> Path | None:
    """The folder that the program's `virtualenv` option names; None without one.

    Raises:
        ValueError: an option that the original knows and this host does not.
    """
    if more := sorted(set(info.options) - {"virtualenv", "toolchain"}):
        raise ValueError(f"runtime.options.{more[0]}: served by Pulumi's own language host alone")
    if "toolchain" in info.options and info.options["toolchain"] != "pip":
        raise ValueError("runtime.options.toolchain: this host serves pip alone")
    if "virtualenv" not in info.options or not info.options["virtualenv"]:
        return None
    return Path(info.root_directory) / str(info.options["virtualenv"])


def python_of(info: proto.ProgramInfo, context: grpc.ServicerContext) -> Path:
    """The interpreter of the program's virtual environment; without one, that which this host runs on."""
    if not (venv := venv_of(info)):
        return Path(sys.executable)
    python = venv / "bin" / "python"
    if not python.exists():
        context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"runtime.options.virtualenv: {venv} holds no Python. Fix: run `pulumi install`",
        )
    return python


def packages_of(python: Path, context: grpc.ServicerContext) -> dict[str, str]:
    """Versions of what is installed for an interpreter, by normalized name.

    The original runs `python -m pip list --format json`. Reading the folder gives the same and spares every
    command half a second; where pip is missing, so is the answer.
    """
    prefix = python.parent.parent
    found = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for info in prefix.glob("lib/python3*/site-packages/*.dist-info")
        for name, _, version in [info.stem.rpartition("-")]
    }
    if "pip" not in found:
        context.abort(
            grpc.StatusCode.UNKNOWN, f"calling `{python} -m pip list --format json`: No module named pip"
        )
    return found


def plugin_of(python: Path, name: str, version: str) -> plugin_pb2.PackageDependency | None:
    """The provider that an installed package needs; None where it needs none."""
    module = name.replace("-", "_")
    files = list(python.parent.parent.glob(f"lib/python3*/site-packages/{module}/pulumi-plugin.json"))
    plugin: dict[str, Any] = {"resource": name.startswith("pulumi-")}
    if files:
        plugin = json.loads(files[0].read_text())
    if not plugin.get("resource"):
        return None
    return plugin_pb2.PackageDependency(
        name=plugin.get("name") or name.removeprefix("pulumi-"),
        version=f"v{(plugin.get('version') or version).removeprefix('v')}",
        kind="resource",
        server=plugin.get("server", ""),
    )


def environment_of(python: Path) -> dict[str, str]:
    """This process's environment with the interpreter's virtual environment active."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    if (python.parent.parent / "pyvenv.cfg").exists():
        env["VIRTUAL_ENV"] = str(python.parent.parent)
        env["PATH"] = f"{python.parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    return env


def ask(python: Path, script: str) -> str:
    """What a one-line script prints on that interpreter."""
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def installation(venv: Path | None, folder: str) -> Iterator[list[str]]:
    """The commands by which the original makes a project's environment, one after the other."""
    python = str(venv / "bin" / "python") if venv else sys.executable
    if venv:
        yield [sys.executable, "-m", "venv", str(venv)]
    yield [python, "-m", "pip", "install", "--upgrade", "pip", "setuptools", "wheel"]
    if (requirements := Path(folder) / "requirements.txt").exists():
        yield [python, "-m", "pip", "install", "-r", str(requirements)]


class PythonHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Serves the calls that the command line makes; gRPC answers UNIMPLEMENTED to NOT_SERVED."""

    def __init__(self, exec_script: str, engine_address: str) -> None:
        self.exec_script = exec_script
        self.engine_address = engine_address
        self.children = Children()

    def Handshake(
        self, request: proto.LanguageHandshakeRequest, context: grpc.ServicerContext
    ) -> proto.LanguageHandshakeResponse:
        return proto.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Empty, context: grpc.ServicerContext) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo()

    def GetRequiredPackages(
        self, request: proto.GetRequiredPackagesRequest, context: grpc.ServicerContext
    ) -> proto.GetRequiredPackagesResponse:
        venv = venv_of(request.info)
        if venv and (not venv.exists() or not any(venv.iterdir())):
            for _, chunk in self._install(request.info, context):
                sys.stderr.buffer.write(chunk)
        python = python_of(request.info, context)
        needed = [plugin_of(python, *each) for each in packages_of(python, context).items()]
        return proto.GetRequiredPackagesResponse(packages=[each for each in needed if each])

    def GetRequiredPlugins(
        self, request: proto.GetRequiredPluginsRequest, context: grpc.ServicerContext
    ) -> proto.GetRequiredPluginsResponse:
        return proto.GetRequiredPluginsResponse()

    def RuntimeOptionsPrompts(
        self, request: proto.RuntimeOptionsRequest, context: grpc.ServicerContext
    ) -> proto.RuntimeOptionsResponse:
        return proto.RuntimeOptionsResponse()

    def About(self, request: proto.AboutRequest, context: grpc.ServicerContext) -> proto.AboutResponse:
        # Asked at the start of every command: another process only where it could answer differently.
        python = python_of(request.info, context)
        version = platform.python_version()
        if not python.samefile(sys.executable):
            version = ask(python, "import platform; print(platform.python_version())")
        return proto.AboutResponse(executable=str(python), version=version)

    def GetProgramDependencies(
        self, request: proto.GetProgramDependenciesRequest, context: grpc.ServicerContext
    ) -> proto.GetProgramDependenciesResponse:
        python = python_of(request.info, context)
        found = packages_of(python, context)
        if not request.transitiveDependencies:
            words = [str(python), "-m", "pip", "list", "--format", "json", "--not-required"]
            listed = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
            found = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
        return proto.GetProgramDependenciesResponse(
            dependencies=[proto.DependencyInfo(name=name, version=version) for name, version in found.items()]
        )

    def InstallDependencies(
        self, request: proto.InstallDependenciesRequest, context: grpc.ServicerContext
    ) -> Iterator[proto.InstallDependenciesResponse]:
        for stream, chunk in self._install(request.info, context):
            yield proto.InstallDependenciesResponse(**{stream: chunk})

    def _install(
        self, info: proto.ProgramInfo, context: grpc.ServicerContext
    ) -> Iterator[tuple[Stream, bytes]]:
        """Makes a project's environment; yields each command and what it prints. Aborts when one fails."""
        for step in installation(venv_of(info), info.program_directory):
            yield "stdout", f"{shlex.join(step)}\n".encode()
            with self.children.started(
                step, info.program_directory, os.environ, output=subprocess.PIPE
            ) as process:
                yield from output_of(process)
                if code := process.wait():
                    context.abort(grpc.StatusCode.UNKNOWN, f"{shlex.join(step)}: exit status {code}")

    def Run(self, request: proto.RunRequest, context: grpc.ServicerContext) -> proto.RunResponse:
        """Runs the program to its end. Its output goes straight to this host's, which the engine shows."""
        python = python_of(request.info, context)
        folder = request.info.program_directory
        settings = {
            "monitor": request.monitor_address,
            "engine": self.engine_address,
            "organization": request.organization,
            "project": request.project,
            "root_directory": request.info.root_directory,
            "stack": request.stack,
            "pwd": folder,
            "dry_run": "true" if request.dryRun else "",
            "parallel": str(request.parallel),
        }
        options = [word for name, value in settings.items() if value for word in (f"--{name}", value)]
        program = Path(folder) / request.info.entry_point
        # Settings may be secret: they travel in the environment, where the SDK looks for them, not in argv.
        env = environment_of(python) | {
            "PULUMI_CONFIG": json.dumps(dict(request.config)),
            "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
        }
        argv = [str(python), "-u", self.exec_script, *options, str(program), *request.args]
        with self.children.started(argv, folder, env) as process:
            context.add_callback(lambda: end([process]))
            code = process.wait()
        if code == 0:
            return proto.RunResponse()
        if code == ERROR_ALREADY_SHOWN:
            return proto.RunResponse(bail=True)
        return proto.RunResponse(error=f"Program exited with non-zero exit code: {code}")

    def RunPlugin(
        self, request: proto.RunPluginRequest, context: grpc.ServicerContext
    ) -> Iterator[proto.RunPluginResponse]:
        """Runs a policy pack or a plugin written in Python until the engine drops the call."""
        python = python_of(request.info, context)
        folder = request.info.program_directory
        env = environment_of(python) | dict(entry.split("=", 1) for entry in request.env)
        if request.kind == "analyzer":
            # A policy pack imports its own modules and finds its own files: it runs in its own folder.
            argv, cwd = ["-m", "pulumi.policy", *request.args, folder], folder
        else:
            argv, cwd = [str(Path(folder) / request.info.entry_point), *request.args], request.pwd
        with self.children.started([str(python), "-u", *argv], cwd, env, output=subprocess.PIPE) as process:
            context.add_callback(lambda: end([process]))
            for stream, chunk in output_of(process):
                if stream == "stdout":
                    yield proto.RunPluginResponse(stdout=chunk)
                else:
                    yield proto.RunPluginResponse(stderr=chunk)
            yield proto.RunPluginResponse(exitcode=process.wait())

    def Cancel(self, request: Empty, context: grpc.ServicerContext) -> Empty:
        self.children.end()
        return Empty()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pulumi's Python language host; started by the engine")
    parser.add_argument("exec_script", help="path of pulumi-language-python-exec")
    parser.add_argument("engine_address", help="host:port of the engine's gRPC service")
    args, _ = parser.parse_known_args()  # logging flags of the engine's own are of no use here
    host = PythonHost(args.exec_script, args.engine_address)
    serve(
        lambda server: language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server),
        on_stop=host.children.end,
    )


if __name__ == "__main__":
    main()
