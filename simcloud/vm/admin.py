"""Mirrors set from outside, as JSON: to be mounted among the controls, where no machine reaches."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simcloud.vm.mirrors import Condition, Mirror, Mirrors


def mirror_routes(mirrors_of: Callable[[str], Mirrors]) -> list[Route]:
    """`GET /mirrors/{node}`: the mirrors' conditions; `PUT /mirrors/{node}/{mirror}`: sets one, a Condition.

    A node need not exist yet: what is set for its name holds when it starts.
    """

    async def conditions(request: Request) -> Response:
        mirrors = mirrors_of(request.path_params["node"])
        return JSONResponse({mirror: mirrors[mirror].model_dump() for mirror in Mirror})

    async def set_condition(request: Request) -> Response:
        try:
            mirror = Mirror(request.path_params["mirror"])
            condition = Condition.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"errors": error.errors(include_url=False, include_input=False)}, 400)
        except ValueError as error:
            return JSONResponse({"errors": [{"msg": f"{error}: there are {', '.join(Mirror)}"}]}, 404)
        mirrors_of(request.path_params["node"])[mirror] = condition
        return JSONResponse(condition.model_dump())

    return [
        Route("/mirrors/{node}", conditions, methods=["GET"]),
        Route("/mirrors/{node}/{mirror}", set_condition, methods=["PUT"]),
    ]
