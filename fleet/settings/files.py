"""Files of this machine that a configuration names: whether they are there, and can be used."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fleet.served_files import FilesError, listed
from fleet.settings.nodes import AwsNode, BaseNode, LinodeNode
from fleet.settings.problems import Problem, printable
from fleet.settings.stack import StackSettings
from fleet.ssh_key import NoPublicKey, has_passphrase, in_agent, is_public, public_key


def file_problems(settings: StackSettings, positions: Mapping[str, Sequence[int]]) -> Iterator[Problem]:
    """What is wrong with the files that settings name.

    `positions` says where nodes and clusters stand in the lists as they were given.
    """
    if settings.access.ssh_private_key_path != Path():
        yield from _key_file(settings)
    found: dict[Problem, None] = {}  # once, where nodes share it
    for position, node in zip(positions.get("nodes", ()), settings.nodes, strict=False):
        given = node.serving.architecture
        if given and not is_file(given.config):
            shared = settings.serving and settings.serving.architecture == given
            found[
                Problem(
                    f"{'serving' if shared else f'nodes[{position}].serving'}.architecture.config",
                    f"{printable(given.config)} is not a file",
                    "give the path of the model's own config.json",
                    printable(given.config),
                )
            ] = None
        for problem in _served(settings, position, node):
            found[problem] = None
        where = "provision" if node.provision == settings.provision else f"nodes[{position}].provision"
        for key, path, folder_will_do in node.provision.local_paths():
            name = printable(path)
            if folder_will_do and not exists(path):
                fix = "give the path of a file or folder"
                found[Problem(f"{where}.{key}", f"{name} is not there", fix, name)] = None
            if not folder_will_do and not is_file(path):
                found[
                    Problem(f"{where}.{key}", f"{name} is not a file", "give the path of your script", name)
                ] = None
    copied = [node.name for node in settings.nodes if node.serving.files or node.provision.files]
    if copied and shutil.which("rsync") is None:
        from fleet.sync import RsyncMissing  # noqa: PLC0415  loads what makes connections

        where = "serving.files" if any(node.serving.files for node in settings.nodes) else "provision.files"
        yield Problem.said(where, str(RsyncMissing()))
    yield from found


def _served(settings: StackSettings, position: int, node: BaseNode) -> Iterator[Problem]:
    """What of `serving.files` is not there, or cannot be delivered."""
    shared = settings.serving is not None and settings.serving.files == node.serving.files
    where = "serving.files" if shared else f"nodes[{position}].serving.files"
    for name, path in node.serving.files.items():
        shown = printable(path)
        if not exists(path):
            yield Problem(
                f"{where}.{name}", f"{shown} is not there", "give the path of a file or folder", shown
            )
            continue
        try:
            empty = not any(True for _ in listed(name, path))
        except FilesError as error:
            yield Problem.said(f"{where}.{name}", str(error), shown)
        except OSError as error:
            reason = f"{shown} cannot be read ({error.strerror})"
            yield Problem(f"{where}.{name}", reason, "make it readable to you", shown)
        else:
            if empty:
                yield Problem(f"{where}.{name}", f"{shown} holds no file", "leave it out", shown)


def is_file(path: Path) -> bool:
    """Whether there is a file; a path that the system refuses, too long or of an unknown user, has none."""
    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def exists(path: Path) -> bool:
    """The same for a file or folder."""
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _key_file(settings: StackSettings) -> Iterator[Problem]:
    path = settings.access.ssh_private_key_path
    name = printable(path)
    # Whole, so that it can be copied.
    word = shlex.quote(str(path)) if str(path).isprintable() else name
    private = word.removesuffix(".pub")

    def problem(what: str, fix: str) -> Problem:
        return Problem("access.ssh_private_key_path", f"{name} {what}", fix, name)

    if "%" in str(path):
        yield problem("has a % in it, which OpenSSH replaces by a part of the address", "rename the file")
        return
    if not is_file(path):
        folder = exists(path)
        yield (
            problem("is a folder", f"name the private key in it, such as {name}/id_ed25519")
            if folder
            else problem(
                "is not a file", f"name your private key, or make one: ssh-keygen -t ed25519 -f {name}"
            )
        )
        return
    key = path.expanduser()
    try:
        public, passphrase = is_public(key), has_passphrase(key)
    except OSError as error:
        yield problem(f"cannot be read ({error.strerror})", "give the path of a key that is yours")
        return
    if public or key.suffix == ".pub":
        if not (public and in_agent(key)):
            yield problem(
                "is a public key",
                f"name the private one, usually {private}, or let an agent hold it: ssh-add {private}",
            )
    elif key.stat().st_mode & 0o077:
        yield problem("can be read by others, so SSH refuses it", f"run: chmod 600 {word}")
    elif passphrase and not in_agent(key):
        yield problem("has a passphrase, and no agent holds it", f"run: ssh-add {word}")
    elif settings.jobs or any(
        isinstance(node, LinodeNode | AwsNode) for node in (*settings.nodes, *settings.ray)
    ):
        # Scaleway has the public half already; Linode and AWS are given it.
        try:
            public_key(path)
        except NoPublicKey as error:
            yield Problem.said("access.ssh_private_key_path", str(error), name)
