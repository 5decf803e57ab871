"""The clouds' metadata services, as cloud-init's datasources ask them, and a machine's word on its hardware.

One server a machine with three ports, which QEMU's network puts at three addresses: the metadata service,
the same as seen from an unprivileged port (Scaleway refuses user data there), and the hardware: what a PCI
bus would tell the stand-in driver, and the fault the machine should have.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from simcloud.nodes import Boot
from simcloud.vm.qemu import mac_address
from simcloud.vm.serving import LoopbackServer

GUEST_ADDRESS = "169.254.10.15"
METADATA_ADDRESS = {"scaleway": "169.254.42.42", "linode": "169.254.169.254", "aws": "169.254.169.254"}
UNPRIVILEGED_ADDRESS = "169.254.42.43"
HARDWARE_ADDRESS = "169.254.80.81"

_USER_DATA_LIMIT = 127 * 1024
"""Bytes of one Scaleway user-data key, as its API documents."""


class MachineServer:
    """The metadata and hardware services of one machine. `fault` may change at any time."""

    def __init__(self, boot: Boot, fault: Callable[[], str | None], *, driver_build_s: float) -> None:
        self._boot = boot
        self._fault = fault
        self._driver_build_s = driver_build_s
        self._user_data = {} if boot.user_data is None else {"cloud-init": boot.user_data}
        routes = {"scaleway": self._scaleway, "linode": self._linode, "aws": self._aws}[boot.cloud]()
        server = LoopbackServer(Starlette(routes=[*self._hardware(), *routes]), ports=3)
        self.metadata_port, self.unprivileged_port, self._hardware_port = server.ports
        self.close = server.close

    @property
    def hardware_port(self) -> int:
        return self._hardware_port

    def _hardware(self) -> list[Route]:
        boot = self._boot

        async def gpus(request: Request) -> Response:
            if not self._asked_for_hardware(request) or self._fault() == "driver_missing":
                return Response(status_code=404)
            lines = [
                f"{index},GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{boot.server_id}/{index}')},"
                f"{boot.gpu_model},{boot.gpu_memory_mib}"
                for index in range(boot.gpu_count)
            ]
            return PlainTextResponse("\n".join(lines) + "\n")

        async def fault(request: Request) -> Response:
            return PlainTextResponse(self._fault() or "")

        async def driver_build(request: Request) -> Response:
            return PlainTextResponse(str(self._driver_build_s))

        async def vllm(request: Request) -> Response:
            settings = {
                "VLLM_SIM_GPUS": str(boot.gpu_count),
                "VLLM_SIM_GPU_MEMORY_MIB": str(boot.gpu_memory_mib),
            }
            return JSONResponse(settings | ({"VLLM_SIM_FAULT": name} if (name := self._fault()) else {}))

        return [
            Route("/gpus", gpus),
            Route("/fault", fault),
            Route("/driver-build-seconds", driver_build),
            Route("/vllm", vllm),
        ]

    def _asked_for_hardware(self, request: Request) -> bool:
        return bool(request.scope["server"][1] == self._hardware_port)

    def _scaleway(self) -> list[Route]:
        """Scaleway's: `/conf` for everyone, `/user_data` for root, told by the privileged source port."""
        boot = self._boot

        async def conf(request: Request) -> Response:
            return JSONResponse({
                "id": boot.server_id, "name": boot.name, "hostname": boot.name, "tags": [],
                "state_detail": "booting kernel", "volumes": {},
                "public_ip": None, "public_ips": [], "ipv6": None,
                # The older of the two network descriptions: plain DHCP on the only interface.
                "private_ip": GUEST_ADDRESS,
                "ssh_public_keys": [{"key": key} for key in boot.authorized_keys],
            })  # fmt: skip

        async def user_data(request: Request) -> Response:
            if request.scope["server"][1] != self.metadata_port:
                return JSONResponse(
                    {"message": "user data is read from a privileged source port"}, status_code=403
                )
            key = request.path_params["key"]
            match request.method:
                case "PATCH":
                    value = await request.body()
                    if len(value) > _USER_DATA_LIMIT:
                        return JSONResponse({"message": "user data is too long"}, status_code=400)
                    self._user_data[key] = value
                    await boot.publish(key, value)
                    return Response(status_code=204)
                case "DELETE":
                    self._user_data.pop(key, None)
                    return Response(status_code=204)
                case _ if key in self._user_data:
                    return Response(self._user_data[key], media_type="text/plain")
            return Response(status_code=404)

        async def vendor_data(request: Request) -> Response:
            return Response(status_code=404)

        async def root(request: Request) -> Response:
            return PlainTextResponse("conf\nuser_data\n")

        return [
            Route("/", root),
            Route("/conf", conf),
            Route("/user_data/{key}", user_data, methods=["GET", "PATCH", "DELETE"]),
            Route("/vendor_data/{key}", vendor_data),
        ]

    def _linode(self) -> list[Route]:
        """Linode's: a token first, then instance and user data."""
        boot, token = self._boot, uuid.uuid4().hex

        async def grant(request: Request) -> Response:
            if not request.headers.get("metadata-token-expiry-seconds", "").isdigit():
                return PlainTextResponse("Metadata-Token-Expiry-Seconds is missing\n", status_code=400)
            return PlainTextResponse(token)

        async def answer(request: Request) -> Response:
            if request.headers.get("metadata-token") != token:
                return PlainTextResponse("unauthorized\n", status_code=401)
            if request.url.path.endswith("user-data"):
                return PlainTextResponse(base64.b64encode(self._user_data.get("cloud-init", b"")))
            if request.url.path.endswith("ssh-keys"):
                return JSONResponse({"users": {"root": list(boot.authorized_keys)}})
            return JSONResponse({
                "id": boot.server_id, "label": boot.name, "local-hostname": boot.name, "region": "embedded",
                "type": "embedded", "host_uuid": boot.server_id, "tags": [],
                "public-keys": list(boot.authorized_keys),
            })  # fmt: skip

        paths = ("/v1/instance", "/v1/user-data", "/v1/ssh-keys")
        return [Route("/v1/token", grant, methods=["PUT"]), *(Route(path, answer) for path in paths)]

    def _aws(self) -> list[Route]:
        """EC2's IMDSv2: a session token first, then a tree of names; every date of the API answers alike."""
        boot, token = self._boot, uuid.uuid4().hex
        keys = {
            f"{index}={boot.name}": {"openssh-key": key} for index, key in enumerate(boot.authorized_keys)
        }
        mac = mac_address("aws", boot.server_id)
        tree: dict[str, object] = {
            "instance-id": boot.server_id, "ami-id": "ami-embedded", "instance-type": "embedded",
            "hostname": boot.name, "local-hostname": boot.name, "local-ipv4": GUEST_ADDRESS,
            "placement": {"availability-zone": "embedded-1a", "region": "embedded-1"},
            "public-keys": {key.partition("=")[0]: value for key, value in keys.items()},
            "network": {"interfaces": {"macs": {mac: {
                "device-number": "0", "local-ipv4s": GUEST_ADDRESS, "mac": mac,
            }}}},
        }  # fmt: skip

        identity = json.dumps({"instanceId": boot.server_id, "region": "embedded-1"})

        async def grant(request: Request) -> Response:
            if not request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return PlainTextResponse("missing TTL\n", status_code=400)
            return PlainTextResponse(token)

        async def answer(request: Request) -> Response:
            if request.headers.get("x-aws-ec2-metadata-token") != token:
                return PlainTextResponse("unauthorized\n", status_code=401)
            path = request.path_params["path"].strip("/").split("/")
            if path == ["user-data"]:
                data = self._user_data.get("cloud-init")
                return Response(status_code=404) if data is None else Response(data)
            if path == ["meta-data", "public-keys"]:
                return PlainTextResponse("\n".join(keys))
            node: object = {"meta-data": tree, "dynamic": {"instance-identity": {"document": identity}}}
            for name in path:
                if not isinstance(node, Mapping) or name not in node:
                    return Response(status_code=404)
                node = node[name]
            if isinstance(node, Mapping):
                return PlainTextResponse("\n".join(f"{key}/" if isinstance(value, Mapping) else key
                                                   for key, value in node.items()))  # fmt: skip
            return PlainTextResponse(str(node))

        return [
            Route("/latest/api/token", grant, methods=["PUT"]),
            Route("/{date}/{path:path}", answer),
        ]
