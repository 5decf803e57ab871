"""`serving.files` on their way to a node: by rsync, checked by their digests, in place only when whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet import served_files
from fleet.diagnosis import quote
from fleet.layout import FILES_DIRECTORY
from fleet.rollout.session import Session
from fleet.rollout.spec import RolloutSpec, ServedFile
from fleet.sync import Copy, RsyncMissing, copy_to

COPY_S = 7200.0
"""Seconds for one entry: 60 GB at 10 MB/s take 6000."""
TRIES = 3
"""For each entry; rsync goes on where it was cut off."""
INSTALL_S = 300.0
RSYNC_THERE = "command -v rsync >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qy rsync"
"""The clouds' Ubuntu images have it; an image of one's own may not."""


class NotDelivered(Exception):
    """The files are not on the node; the message says why, and the fix."""


async def send(node: Session, spec: RolloutSpec, say: Callable[[str], None]) -> None:
    """Bring the files into the folder of their digest, unless they are there. Raises NotDelivered."""
    folder = f"{FILES_DIRECTORY}/{spec.files_digest}"
    if (await node.run(["test", "-e", folder], check=False)).exit_status == 0:
        return
    checksums = await asyncio.to_thread(_checksums, spec)
    arriving, listing = f"{folder}.arriving", f"{folder}.sha256"
    await node.run(["install", "-d", "-m", "0755", FILES_DIRECTORY, arriving])
    await node.run(["sh", "-c", RSYNC_THERE], timeout_s=INSTALL_S)
    for file in spec.files:
        await _copy(spec, file, arriving, say)
    await node.write_file(listing, served_files.manifest(checksums, f"{arriving}/").encode())
    check = ["sha256sum", "--check", "--quiet", "--strict", listing]
    done = await node.run(check, timeout_s=COPY_S, check=False)
    if done.exit_status != 0:
        # The next try begins with nothing: what is wrong here, rsync took for right.
        await node.run(["rm", "-rf", arriving], timeout_s=COPY_S)
        seen = quote(f"{done.stdout} {done.stderr}")
        raise NotDelivered(f"serving.files: not the same on the node as here: {seen}; run `pulumi up` again")
    await node.run(["mv", "-T", arriving, folder])
    await node.run(["rm", "-f", listing])


def _checksums(spec: RolloutSpec) -> dict[str, str]:
    try:
        checksums = served_files.checksums({file.name: file.source for file in spec.files})
    except (OSError, served_files.FilesError) as error:
        raise NotDelivered(f"serving.files: {error}") from None
    if served_files.digest_of(checksums) != spec.files_digest:
        raise NotDelivered("serving.files: they changed after the update began; run `pulumi up` again")
    return checksums


async def _copy(spec: RolloutSpec, file: ServedFile, folder: str, say: Callable[[str], None]) -> None:
    source = file.source.expanduser().resolve()
    slash = "/" if source.is_dir() else ""
    copy = Copy(f"{source}{slash}", f"{folder}/{file.name}{slash}", content_alone=True)
    for again in reversed(range(TRIES)):
        try:
            async with asyncio.timeout(COPY_S):
                done = await copy_to(spec.node, spec.target, copy)
        except RsyncMissing as error:
            raise NotDelivered(f"serving.files: {error}") from None
        except TimeoutError:
            raise NotDelivered(
                f"serving.files: {file.name} did not arrive within {COPY_S:.0f} s; run `pulumi up` again, "
                "which goes on from there"
            ) from None
        if done.exit_status == 0:
            return
        seen = quote(done.error)
        if not again:
            raise NotDelivered(
                f"serving.files: rsync of {file.name} ended with {done.exit_status}: {seen}; correct what it "
                "names, then run `pulumi up` again"
            )
        say(f"{file.name}: rsync ended with {done.exit_status}, once more: {seen}")
