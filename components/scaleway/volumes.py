"""Volumes, by the Block API."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet

from components.scaleway.calls import Calls, given, matching, one_of
from components.scaleway.errors import PreconditionFailed
from components.scaleway.models import Volume

IN_ERROR = (
    "it still bills: delete it in Scaleway's console, or ask Scaleway support to if that is refused; then "
    "run `pulumi destroy` again"
)
"""What to do about a volume in `error` that is to be deleted."""
STILL_HELD = "it still bills: detach and delete it in Scaleway's console, or run `pulumi destroy` again"


class Volumes(Calls):
    """SBS volumes."""

    def get_volume(self, volume_id: str) -> Volume:
        return self._get("get_volume", volume_id, self._block(volume_id), Volume.parse)

    def find_volume(self, volume_id: str, *, owner_tag: str | None = None) -> Volume | None:
        """The volume, or None if it does not exist: neither by its id nor, if given, by its owner."""

        def listed() -> list[Volume]:
            owned = self.list_volumes(tags=[owner_tag]) if owner_tag else ()
            return [each for each in owned if each.id == volume_id]

        return self._find(lambda: self.get_volume(volume_id), listed)

    def list_volumes(self, *, tags: Collection[str] = (), name: str | None = None) -> tuple[Volume, ...]:
        """SBS volumes that carry all `tags` and, if given, have exactly this `name`; oldest first."""
        # Unlike the Instance API, this one takes several tags as several parameters.
        filters = given(tags=list(tags) or None, name=name)
        volumes = self._list(
            "list_volumes",
            name or "",
            self._block(),
            "volumes",
            Volume.parse,
            filters=filters,
            size="page_size",
        )
        return matching(volumes, tags, name)

    def tag_volume(self, volume_id: str, tags: Collection[str]) -> Volume:
        """Replace all tags of a volume."""
        path = self._block(volume_id)
        body = {"tags": list(tags)}
        return self._write("update_volume", volume_id, "PATCH", path, Volume.parse, body=body)

    def grow_volume(self, volume_id: str, size: int) -> Volume:
        """Ask for `size` bytes (whole 10⁹); the reply still shows the old size: see `wait_volume_size`."""

        def growing() -> Volume | None:
            volume = self.get_volume(volume_id)
            return volume if volume.size >= size or volume.status in {"updating", "resizing"} else None

        return self._write(
            "update_volume",
            volume_id,
            "PATCH",
            self._block(volume_id),
            Volume.parse,
            body={"size": size},
            settle=growing,
        )

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume that no server uses. One that is gone already is fine."""
        self._delete("delete_volume", volume_id, self._block(volume_id))

    def delete_volume_once_detached(self, volume_id: str, *, deadline_s: float) -> None:
        """Delete a volume whose server is being deleted, as soon as it is free. Raises `DeadlineExceeded`.

        A volume in `error`, or that a server still holds, is not free: Scaleway refuses to delete it.
        """
        found = self._transport.poll(
            lambda: self.find_volume(volume_id),
            lambda volume: volume is None or volume.status in {"available", "deleting", "deleted"},
            deadline_s=deadline_s,
            failure=lambda volume, waited: (
                "delete_volume",
                volume_id,
                f"still {volume.status if volume else 'there'} after {waited:.0f} s",
                IN_ERROR if volume and volume.status == "error" else STILL_HELD,
            ),
        )
        if found is not None:
            self.delete_volume(volume_id)

    def wait_volume(self, volume_id: str, *, until: AbstractSet[str], deadline_s: float) -> Volume:
        """Wait for a status. Raises `DeadlineExceeded`, and `PreconditionFailed` for a volume in `error`."""
        return self._wait_volume(volume_id, lambda volume: volume.status in until, one_of(until), deadline_s)

    def wait_volume_size(self, volume_id: str, size: int, *, deadline_s: float) -> Volume:
        """Wait until the volume has at least `size` bytes and has settled. Raises as `wait_volume`."""
        return self._wait_volume(
            volume_id,
            lambda volume: volume.size >= size and volume.status in {"available", "in_use"},
            f"{size / 1e9:g} GB",
            deadline_s,
        )

    def _wait_volume(
        self, volume_id: str, done: Callable[[Volume], bool], what: str, deadline_s: float
    ) -> Volume:
        fix = (
            "check that the API key may change volumes (BlockStorageFullAccess), that the server is stopped "
            "or running and not in between, and the volume's state at console.scaleway.com; then run "
            "`pulumi up` again"
        )

        def look() -> Volume:
            volume = self.get_volume(volume_id)
            if volume.status == "error" and not done(volume):
                raise PreconditionFailed(
                    "wait_volume", volume_id, self.zone, "the volume is in state error", fix=fix
                )
            return volume

        return self._transport.poll(
            look,
            done,
            deadline_s=deadline_s,
            failure=lambda volume, waited: (
                "wait_volume",
                volume_id,
                f"not {what} after {waited:.0f} s, last seen {volume.status} with {volume.size / 1e9:g} GB",
                fix,
            ),
        )
