"""Optional features alone, in all combinations that share containers, and all at once, meet the policies."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from stack_files import EXPOSED, base, folder_with_files, node, put
from test_settings import ran

FEATURES: dict[str, dict[str, Any]] = {
    "webui": {"serving.webui": True},
    "observability": {"observability": {"enabled": True}},
    "gateway": {"expose": EXPOSED},
    "own flags": {"serving.extra_args": ["--enforce_eager"], "serving.environment": {"NCCL_DEBUG": "INFO"}},
    "phases": {"provision": {"packages": True, "python": True, "docker": True}},
    "jobs": {"jobs": {"max_cost": 5}},
    "cluster": {"ray": [{"name": "pool", "cloud": "scaleway", "type": "L4-2-24G", "serve": False}]},
    "no gate": {"health": {"enabled": False}, "rollout": {"canary": "l4-a"}},
    "other clouds": {
        "nodes": [
            {"name": "l4-a", "cloud": "scaleway", "tags": ["team=search"]},
            {**node("linode"), "name": "b", "protect": True},
            {
                **node("aws", spot={}, elastic_ip=True, session_manager=True, tags=["team=search"]),
                "name": "c",
            },
        ]
    },
}
IN_CONTAINERS = ("webui", "observability", "gateway", "own flags", "phases")
CHOSEN: list[tuple[str, ...]] = [
    *((feature,) for feature in FEATURES),
    *(chosen for count in (2, 3, 4) for chosen in combinations(IN_CONTAINERS, count)),
    tuple(FEATURES),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the program registered for each choice, and what policies said of it."""
    folder = folder_with_files(tmp_path_factory.mktemp("stack"))
    return ran([configuration(folder, chosen) for chosen in CHOSEN])


def configuration(folder: Path, chosen: tuple[str, ...]) -> dict[str, Any]:
    config = put(base(), "access.ssh_private_key_path", str(folder / "id_ed25519"))
    config["secrets"] = {"api_key": "0123456789abcdef"}
    for feature in chosen:
        for path, value in FEATURES[feature].items():
            config = put(config, path, value)
    return config


@pytest.mark.parametrize(
    "index", range(len(CHOSEN)), ids=[" and ".join(chosen) or "none" for chosen in CHOSEN]
)
def test_features_together_break_no_policy_and_crash_none(results: list[dict[str, Any]], index: int) -> None:
    assert results[index]["said"] == ""
    assert results[index]["exit"] == 0
    assert results[index]["registered"]
    assert results[index]["broken"] == []
