"""Servers, and what they are made from, by the Instance API; keys and quotas by IAM."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from components.scaleway.calls import (
    Calls,
    filters_of,
    given,
    matching,
    merged,
    one_of,
    path_of,
)
from components.scaleway.errors import NotFound, PreconditionFailed, StartFailed
from components.scaleway.models import Image, Server, SshKey, text

Action = Literal["poweron", "poweroff", "stop_in_place", "reboot", "terminate"]

# The states that show that an action was taken up. A reboot leaves no such trace.
ACTED: Mapping[str, AbstractSet[str]] = {
    "poweron": {"starting", "running"},
    "poweroff": {"stopping", "stopped"},
    "stop_in_place": {"stopping", "stopped in place"},
}


UNDER_WAY = (
    "Scaleway takes no other action meanwhile, and the server exists and bills: look at it at "
    "console.scaleway.com, ask Scaleway support if it does not get on, and run the same command again"
)
"""What to do about a server that stays between two states."""


class Servers(Calls):
    """Images, products, keys and quotas; servers and their user data."""

    # --- images and products ---

    def get_image(self, image_id: str) -> Image:
        return self._get(
            "get_image",
            image_id,
            self._instance("images", image_id),
            lambda reply: Image.parse(reply["image"]),
        )

    def list_availability(self) -> dict[str, str]:
        """Stock by commercial type: `available`, `scarce` or `shortage`."""
        path = self._instance("products", "servers", "availability")
        return dict(
            self._list(
                "list_availability",
                "",
                path,
                "servers",
                lambda item: (item[0], text(item[1], "availability")),
            )
        )

    def list_ssh_keys(self) -> tuple[SshKey, ...]:
        """The project's enabled keys."""
        params = {"project_id": self._project, "disabled": "false"}
        path = path_of("iam", "v1alpha1", "ssh-keys")
        return tuple(
            self._list("list_ssh_keys", "", path, "ssh_keys", SshKey.parse, filters=params, size="page_size")
        )

    def get_quota(self, name: str, organization_id: str) -> int | None:
        """The organization's limit of that name; None where there is none."""
        found = self._list(
            "get_quota",
            name,
            path_of("iam", "v1alpha1", "quota"),
            "quota",
            lambda row: (row["name"], None if row.get("unlimited") else row.get("limit")),
            filters={"organization_id": organization_id, "quotum_names": name},
            size="page_size",
        )
        return dict(found).get(name)

    # --- servers ---

    def create_server(
        self,
        name: str,
        *,
        commercial_type: str,
        image: str,
        marks: Collection[str],
        tags: Collection[str] = (),
        security_group: str | None = None,
        dynamic_ip_required: bool = True,
    ) -> Server:
        """Create a stopped server from an image alone, or return the one an earlier call left.

        It is found again by its `marks`, tags that no other server carries together. No `volumes` are ever
        sent: Scaleway then makes a bootable SBS volume by itself.
        """
        body: dict[str, object] = {
            "name": name,
            "commercial_type": commercial_type,
            "image": image,
            "project": self._project,
            "tags": merged(tags, marks),
            "dynamic_ip_required": dynamic_ip_required,
            "boot_type": "local",
        }
        if security_group is not None:
            body["security_group"] = security_group
        return self._create(
            "create_server",
            name,
            self._instance("servers"),
            body,
            _server,
            find=lambda: self.list_servers(tags=marks),
        )

    def get_server(self, server_id: str) -> Server:
        return self._get("get_server", server_id, self._instance("servers", server_id), _server)

    def find_server(self, server_id: str, *, owner_tag: str | None = None) -> Server | None:
        """The server, or None if it does not exist: neither by its id nor, if given, by its owner."""

        def listed() -> list[Server]:
            owned = self.list_servers(tags=[owner_tag]) if owner_tag else ()
            return [each for each in owned if each.id == server_id]

        return self._find(lambda: self.get_server(server_id), listed)

    def list_servers(self, *, tags: Collection[str] = (), name: str | None = None) -> tuple[Server, ...]:
        """Servers that carry all `tags` and, if given, have exactly this `name`; oldest first."""
        path = self._instance("servers")
        servers = self._list(
            "list_servers", name or "", path, "servers", Server.parse, filters=filters_of(tags, name)
        )
        return matching(servers, tags, name)

    def update_server(
        self,
        server_id: str,
        *,
        name: str | None = None,
        tags: Collection[str] | None = None,
        security_group: str | None = None,
        protected: bool | None = None,
        dynamic_ip_required: bool | None = None,
    ) -> Server:
        """Change what is given; `tags` replaces all tags."""
        body = given(
            name=name,
            tags=None if tags is None else list(tags),
            # The API asks for a name here and does not look at it.
            security_group=None if security_group is None else {"id": security_group, "name": security_group},
            protected=protected,
            dynamic_ip_required=dynamic_ip_required,
        )
        path = self._instance("servers", server_id)
        return self._write("update_server", server_id, "PATCH", path, _server, body=body)

    def delete_server(self, server_id: str) -> None:
        """Delete a stopped server; its SBS volume stays. One that is gone already is fine."""
        self._delete("delete_server", server_id, self._instance("servers", server_id))

    def server_action(self, server_id: str, action: Action) -> None:
        """Ask for a change of power; returns when it is accepted, long before it is done.

        It is content if the server already is, or is becoming, what the action makes it.
        """

        def acted() -> bool | None:
            server = self.find_server(server_id)
            if action == "terminate":
                done = server is None or server.state_detail == "terminating"
            else:
                done = server is not None and server.state in ACTED.get(action, ())
            return True if done else None

        def ask() -> bool:
            return self._write(
                "server_action",
                f"{server_id} {action}",
                "POST",
                self._instance("servers", server_id, "action"),
                lambda _: True,
                body={"action": action},
                settle=acted,
                repeatable=action != "reboot",
            )

        try:
            if action == "terminate":
                self._transport.unmade(server_id)
                self._remove(ask, lambda: self.find_server(server_id))
            else:
                ask()
        except PreconditionFailed as refusal:
            server = self.find_server(server_id)
            if server is not None and server.protected:
                raise self._protected(server, action) from refusal
            raise

    def _protected(self, server: Server, action: Action) -> PreconditionFailed:
        unprotect = f"scw instance server update {server.id} zone={self.zone} protected=false"
        return PreconditionFailed(
            "server_action",
            f"{server.id} {action}",
            self.zone,
            "the server is protected, and Scaleway refuses to stop or terminate it",
            fix=f"if it really is to go, take its protection away: {unprotect}; then run the same command "
            "again. Until then it exists and bills",
        )

    def wait_server(self, server_id: str, *, until: AbstractSet[str], deadline_s: float) -> Server:
        """Wait for a state.

        Raises `StartFailed` if a start ends in `stopped`, `DeadlineExceeded` after `deadline_s` seconds.
        """
        starting = False

        def look() -> Server:
            nonlocal starting
            server = self.get_server(server_id)
            if starting and server.state == "stopped" and "stopped" not in until:
                raise StartFailed(
                    "wait_server", server.name, self.zone, "the server went from starting back to stopped"
                )
            starting = starting or server.state == "starting"
            return server

        return self._transport.poll(
            look,
            lambda server: server.state in until,
            deadline_s=deadline_s,
            failure=lambda server, waited: (
                "wait_server",
                server.name,
                f"not {one_of(until)} after {waited:.0f} s, last seen {server.state}"
                + (f" ({server.state_detail})" if server.state_detail else ""),
                StartFailed.default_fix if until <= {"running"} else UNDER_WAY,
            ),
        )

    def wait_server_gone(self, server_id: str, *, deadline_s: float) -> None:
        """Wait until the server does not exist any more. Raises `DeadlineExceeded`."""
        self._transport.poll(
            lambda: self.find_server(server_id),
            lambda server: server is None,
            deadline_s=deadline_s,
            failure=lambda server, waited: (
                "wait_server_gone",
                server.name if server else server_id,
                f"still there after {waited:.0f} s, last seen {server.state if server else 'gone'}",
                "it still bills: terminate it in Scaleway's console, or run `pulumi destroy` again",
            ),
        )

    def wait_public_ip(self, server_id: str, *, deadline_s: float) -> str:
        """Wait until the server has a public IPv4 address and return it. Raises `DeadlineExceeded`."""
        server = self._transport.poll(
            lambda: self.get_server(server_id),
            lambda server: server.public_ip is not None,
            deadline_s=deadline_s,
            failure=lambda server, waited: (
                "wait_public_ip",
                server.name,
                f"no public IPv4 address after {waited:.0f} s, last seen {server.state}",
                "check that the server runs and asks for a dynamic address, and the project's quota of IPs",
            ),
        )
        assert server.public_ip is not None
        return server.public_ip

    # --- user data ---

    def set_user_data(self, server_id: str, key: str, value: bytes) -> None:
        self._transport.perform(
            "set_user_data",
            f"{server_id} {key}",
            "PATCH",
            self._instance("servers", server_id, "user_data", key),
            lambda _: None,
            content=value,
        )

    def get_user_data(self, server_id: str, key: str) -> bytes | None:
        """The value of one key, None if there is no such key. Raises `NotFound` if there is no server."""
        path = self._instance("servers", server_id, "user_data", key)
        try:
            return self._transport.perform(
                "get_user_data", f"{server_id} {key}", "GET", path, lambda response: response.content
            )
        except NotFound as error:
            # A missing server is reported in words, a missing key by an empty reply.
            if error.api_message:
                raise
            return None

    def wait_user_data(
        self, server_id: str, key: str, *, deadline_s: float, good: Callable[[bytes], object] = bool
    ) -> bytes:
        """Wait for the machine to publish a good `key` and return its value. Raises `DeadlineExceeded`."""
        return self._transport.poll(
            lambda: self.get_user_data(server_id, key) or b"",
            lambda value: bool(good(value)),
            deadline_s=deadline_s,
            failure=lambda value, waited: (
                "wait_user_data",
                server_id,
                f"the machine has not published {key} after {waited:.0f} s"
                + (f", but {len(value)} bytes of something else" if value else ""),
                "open the server's console at console.scaleway.com: did it boot, what does cloud-init say?",
            ),
        )


def _server(reply: Any) -> Server:
    return Server.parse(reply["server"])
