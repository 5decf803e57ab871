"""A setting that another stack knows is read from there by the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NETWORK = """
    import pulumi
    pulumi.export("subnet", "subnet-0123abcd")
    pulumi.export("password", pulumi.Output.secret("planted"))
    """
USER = """
    import sys
    import pulumi
    from components.references import Resolved
    from fleet.settings import SettingsError

    try:
        pulumi.export("nodes", Resolved(pulumi.Config()).get_object("nodes"))
    except SettingsError as error:
        pulumi.log.error(str(error))
        sys.exit(1)
    """


def test_a_reference_is_replaced_by_the_other_stacks_output(pulumi: Callable[..., Any]) -> None:
    stack = pulumi(NETWORK)
    stack.run("up")

    stack.program(USER)
    stack.name = "user"
    stack.ask("stack", "init")

    def use(output: str) -> None:
        reference = f"stack:organization/project/test#{output}"
        stack.ask("config", "set", "--path", "nodes[0].subnet", reference)

    use("subnet")
    stack.run("up")
    assert stack.outputs() == {"nodes": [{"subnet": "subnet-0123abcd"}]}
    for output, said in (("subnets", "that stack has password, subnet"), ("password", "is a secret there")):
        use(output)
        refused = stack.run("preview", expect_failure=True).stdout
        assert said in " ".join(refused.split())
        assert "nodes[0].subnet" in refused
        assert "planted" not in refused
