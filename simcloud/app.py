"""The embedded clouds and the controls of the simulation, as one web application."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from simcloud.cloud import Cloud, Conditions, Simulation, routes
from simcloud.faults import Fault, Faults
from simcloud.journal import Journal
from simcloud.machines import Machines
from simcloud.nodes import NodeBackend
from simcloud.store import Store
from simcloud.timers import Timers

Clouds = Callable[[Simulation], list[Cloud]]


def make_app(state: Path, *, clouds: Clouds, backend: NodeBackend, ssh_port: int, speed: float) -> Starlette:
    """The application over one state directory.

    Args:
        state: where everything is kept.
        clouds: makes the clouds of the simulation.
        backend: runs the machines.
        ssh_port: port on which the machines serve SSH.
        speed: factor on the real clouds' delays; 0 is as fast as each state can be seen.
    """
    store = Store(state / "state.sqlite")
    simulation = Simulation(
        store,
        Journal(state / "log.jsonl"),
        Faults(),
        Timers(store, speed=speed),
        Machines(backend, state / "nodes", ssh_port=ssh_port),
    )
    served = clouds(simulation)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        for name, fault in simulation.conditions.node_faults.items():
            await backend.inject(name, fault)
        for cloud in served:
            await cloud.start()
        yield
        simulation.faults.clear()
        await simulation.timers.close()
        await backend.close()
        simulation.journal.close()
        store.close()

    controls = _Controls(simulation, served)
    return Starlette(
        routes=[
            Mount("/_sim", routes=[*controls.routes(), *backend.controls()]),
            *(route for cloud in served for route in routes(cloud, simulation)),
        ],
        lifespan=lifespan,
        exception_handlers={ValidationError: _bad_request},
    )


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    return JSONResponse(
        {"errors": error.errors(include_url=False, include_context=False, include_input=False)}, 400
    )


class _Stock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    cloud: str
    zone: str
    type: str
    availability: str


class _Permissions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    denied: list[str]


class _NodeFault(BaseModel):
    model_config = ConfigDict(extra="forbid")
    fault: str | None


class _Controls:
    """`/_sim/…`: what no real cloud lets one do."""

    def __init__(self, simulation: Simulation, clouds: list[Cloud]) -> None:
        self._simulation = simulation
        self._clouds = clouds

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health),
            Route("/faults", self.list_faults, methods=["GET"]),
            Route("/faults", self.plant_fault, methods=["POST"]),
            Route("/faults", self.clear_faults, methods=["DELETE"]),
            Route("/release", self.release, methods=["POST"]),
            Route("/log", self.log, methods=["GET"]),
            Route("/inventory", self.inventory, methods=["GET"]),
            Route("/private_addresses", self.private_addresses, methods=["GET"]),
            Route("/permissions", self.permissions, methods=["PUT"]),
            Route("/quotas", self.quotas, methods=["PUT"]),
            Route("/stock", self.stock, methods=["PUT"]),
            Route("/nodes/{name}/fault", self.node_fault, methods=["PUT"]),
            Route("/reset", self.reset, methods=["POST"]),
        ]

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    async def list_faults(self, _: Request) -> Response:
        faults = self._simulation.faults
        return JSONResponse(
            {
                "planted": [fault.model_dump() for fault in faults.planted],
                "held": [held.model_dump() for held in faults.held],
            }
        )

    async def plant_fault(self, request: Request) -> Response:
        fault = Fault.model_validate_json(await request.body())
        known = {call.name for cloud in self._clouds for call in cloud.calls}
        if fault.call is not None and fault.call not in known:
            raise HTTPException(400, f"call: {fault.call!r} is unknown; there are {', '.join(sorted(known))}")
        self._simulation.faults.plant(fault)
        return JSONResponse(fault.model_dump(), 201)

    async def clear_faults(self, _: Request) -> Response:
        self._simulation.faults.clear()
        return Response(status_code=204)

    async def release(self, _: Request) -> Response:
        return JSONResponse({"released": self._simulation.faults.release()})

    async def log(self, request: Request) -> Response:
        journal = self._simulation.journal
        after = int(request.query_params.get("after", "0"))
        return JSONResponse({"entries": journal.after(after), "last": journal.last})

    async def inventory(self, _: Request) -> Response:
        return JSONResponse({"objects": [thing for cloud in self._clouds for thing in cloud.inventory()]})

    async def private_addresses(self, _: Request) -> Response:
        return JSONResponse(dict(pair for cloud in self._clouds for pair in cloud.private_addresses()))

    async def permissions(self, request: Request) -> Response:
        denied = _Permissions.model_validate_json(await request.body()).denied
        return self._decide(denied_calls=denied)

    async def quotas(self, request: Request) -> Response:
        return self._decide(quotas=await request.json())

    async def stock(self, request: Request) -> Response:
        stock = _Stock.model_validate_json(await request.body())
        key = f"{stock.cloud}/{stock.zone}/{stock.type}"
        return self._decide(stock={**self._simulation.conditions.stock, key: stock.availability})

    async def node_fault(self, request: Request) -> Response:
        name = request.path_params["name"]
        fault = _NodeFault.model_validate_json(await request.body()).fault
        others = {k: v for k, v in self._simulation.conditions.node_faults.items() if k != name}
        try:
            await self._simulation.machines.backend.inject(name, fault)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        what = f"fault {fault}" if fault else "healed"
        self._simulation.journal.event(cloud="", kind="node", id=name, what=what, node=name)
        return self._decide(node_faults=others if fault is None else {**others, name: fault})

    async def reset(self, _: Request) -> Response:
        simulation = self._simulation
        simulation.faults.clear()
        await simulation.timers.clear()
        for thing in [thing for cloud in self._clouds for thing in cloud.inventory()]:
            if thing["kind"] == "server":
                await simulation.machines.remove(thing["id"])
        for name in simulation.conditions.node_faults:
            await simulation.machines.backend.inject(name, None)
        for cloud in self._clouds:
            cloud.reset()
        simulation.store.clear()
        simulation.journal.clear()
        return Response(status_code=204)

    def _decide(self, **changes: Any) -> Response:
        decided = Conditions.model_validate({**self._simulation.conditions.model_dump(), **changes})
        self._simulation.conditions = decided
        return JSONResponse(decided.model_dump(exclude={"id"}))
