"""Block storage: `/block/v1/zones/{zone}/volumes`."""

from __future__ import annotations

from simcloud.cloud import Call, Json, Received, Reply, node_name
from simcloud.scaleway import errors
from simcloud.scaleway.catalog import GB
from simcloud.scaleway.model import Reference, Server, Volume, VolumeStatus
from simcloud.scaleway.resources import NO_CONTENT, Resources, counted_list, newer_time, with_tags
from simcloud.store import utc_now

# Recorded replies: a new root is ready within 5 s, a resize takes 0 to 5 s, and the volume of a deleted
# server stays in use for up to 6 s.
CREATE_S = 1.5
RESIZE_S = 3.0
DETACH_S = 3.0

SETTLE = "settle"
"""The action of every timer of a volume."""


class Block:
    """The volumes of the project."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        base = "/block/v1/zones/{zone}/volumes"
        self.calls = [
            Call("list_volumes", "GET", base, self.list_volumes, "volume"),
            Call("get_volume", "GET", base + "/{volume_id}", self.get_volume, "volume"),
            Call("update_volume", "PATCH", base + "/{volume_id}", self.update_volume, "volume"),
            Call("delete_volume", "DELETE", base + "/{volume_id}", self.delete_volume, "volume"),
        ]

    def create_root(self, server: Server, *, name: str, size: int, snapshot: str) -> Volume:
        """The volume Scaleway makes for a server's image."""
        volume = Volume(
            zone=server.zone,
            project=server.project,
            name=name,
            size=size,
            snapshot=snapshot,
            reference=Reference(server=server.id),
            node=self._resources.node_of(server),
        )
        self._changed(volume)
        self._resources.after(volume, SETTLE, CREATE_S)
        return volume

    def release(self, volume_id: str, *, at_once: bool) -> None:
        """The volume's server is gone. Nothing deletes the volume: it goes on billing."""
        volume = self._resources.volumes.get(volume_id)
        if volume is None or volume.reference is None:
            return
        volume.reference.status = "detaching"
        if at_once:
            self.settle(volume_id)
        else:
            self._changed(volume)
            self._resources.after(volume, SETTLE, DETACH_S)

    def settle(self, volume_id: str) -> None:
        """Ends whatever the volume was in the middle of."""
        volume = self._resources.volumes.get(volume_id)
        if volume is None:
            return
        if volume.growing_to is not None:
            volume.size, volume.growing_to = volume.growing_to, None
        if volume.reference and volume.reference.status == "detaching":
            volume.reference = None
            volume.detached = utc_now()
        volume.status = VolumeStatus.IN_USE if volume.reference else VolumeStatus.AVAILABLE
        self._changed(volume)

    def list_volumes(self, received: Received) -> Reply:
        volumes = [
            volume
            for volume in with_tags(self._resources.volumes, received)
            if received.query.get("name", "") in volume.name
            and received.query.get("project_id", volume.project) == volume.project
        ]
        if received.query.get("order_by", "").endswith("_desc"):
            volumes.reverse()
        reply = counted_list(received, "volumes", volumes, _shape)
        for volume in volumes:
            self._resources.seen(volume)
        return reply

    def get_volume(self, received: Received) -> Reply:
        volume = self._resources.volume(received)
        self._resources.seen(volume)
        return Reply(200, _shape(volume))

    def update_volume(self, received: Received) -> Reply:
        volume = self._resources.volume(received)
        size = received.json.get("size")
        if size is not None:
            self._check_size(volume, size)
        if name := received.json.get("name"):
            volume.name = str(name)
        if (tags := received.json.get("tags")) is not None:
            volume.tags = [str(tag) for tag in tags]
            volume.node = node_name(volume.node or "", volume.tags)
        if size not in (None, volume.size):
            volume.growing_to = size
            volume.status = VolumeStatus.UPDATING
            self._resources.after(volume, SETTLE, RESIZE_S)
        self._changed(volume)
        # The reply still has the old size, as the real one.
        return Reply(200, _shape(volume))

    def delete_volume(self, received: Received) -> Reply:
        volume = self._resources.volume(received)
        if volume.status is not VolumeStatus.AVAILABLE:
            raise errors.precondition(
                f"volume is {volume.status}, it must be available",
                status=412,
                precondition="protected_resource",
            )
        self._resources.volumes.remove(volume.id)
        self._resources.event("volume", volume, "deleted", volume.node)
        return NO_CONTENT

    @staticmethod
    def _check_size(volume: Volume, size: object) -> None:
        if not isinstance(size, int) or size % GB:
            raise errors.invalid("size", "must be a whole number of 10^9 bytes")
        if size < volume.size:
            raise errors.invalid("size", f"must not be below the present {volume.size} bytes")
        if volume.status not in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE):
            raise errors.invalid("size", "can't update size when volume is not available")

    def _changed(self, volume: Volume) -> None:
        volume.touch()
        self._resources.volumes.put(volume)
        what = f"{volume.status} {volume.size // GB} GB"
        if volume.growing_to:
            what = f"{volume.status} {volume.size // GB} to {volume.growing_to // GB} GB"
        self._resources.event("volume", volume, what, volume.node)


def _shape(volume: Volume) -> Json:
    reference = volume.reference
    references = [
        {
            "id": reference.id,
            "product_resource_type": "instance_server",
            "product_resource_id": reference.server,
            "created_at": newer_time(reference.created),
            "type": "exclusive",
            "status": reference.status,
        }
    ] if reference else []  # fmt: skip
    return {
        "id": volume.id,
        "name": volume.name,
        "type": f"sbs_{volume.iops // 1000}k",
        "size": volume.size,
        "project_id": volume.project,
        "created_at": newer_time(volume.created),
        "updated_at": newer_time(volume.modified),
        "references": references,
        "parent_snapshot_id": volume.snapshot,
        "status": volume.status,
        "tags": volume.tags,
        "specs": {"perf_iops": volume.iops, "class": "sbs"},
        "last_detached_at": newer_time(volume.detached),
        "kms_key_id": None,
        "zone": volume.zone,
    }
