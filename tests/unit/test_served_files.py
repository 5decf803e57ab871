"""Files that a node serves with: what names their content, and which paths vLLM's container has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stack_files import base, folder_with_files, write

from fleet import served_files, vllm_arguments
from fleet.validation import validate


def test_the_digest_is_that_of_names_and_content_wherever_they_lie(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a").write_text("text")
    (two / "a").chmod(0o600)
    assert served_files.digest({"x": one}) == served_files.digest({"x": two}) != ""
    assert served_files.digest({"y": one}) != served_files.digest({"x": one})
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "a").write_text("other")
    assert served_files.digest({"x": tmp_path / "three"}) != served_files.digest({"x": one})
    assert served_files.digest({}) == ""


def test_a_folder_that_leads_into_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "again").symlink_to(tmp_path)
    with pytest.raises(served_files.FilesError, match="leads back into itself"):
        served_files.digest({"x": tmp_path})


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["--chat-template", "/a/b.jinja"], ["/a/b.jinja"]),
        (["--chat_template=./b.jinja"], ["./b.jinja"]),
        (["--chat-template", "/a {{ messages }}"], []),
        (["--lora-modules", "sql=/loras/sql", "code=owner/name"], ["/loras/sql"]),
        (["--lora-modules", '{"name": "sql", "path": "/loras/sql"}', "b=~/b"], ["/loras/sql", "~/b"]),
        (["--speculative-config", '{"model": "/draft", "num_speculative_tokens": 3}'], ["/draft"]),
        (["-sc", '{"model": "owner/draft"}'], []),
        (["--speculative-config.model", "/draft"], ["/draft"]),
        (["--root-path", "/v1", "--tokenizer", "owner/name"], []),
    ],
)
def test_the_paths_that_flags_name_are_known(words: list[str], paths: list[str]) -> None:
    assert [path for _, path in vllm_arguments.paths(words)] == paths


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        (
            {"model": "/opt/models/own"},
            "deliver it: serving.files: {own: /opt/models/own}, and write /files/own",
        ),
        ({"extra_args": ["--chat-template", "/home/me/tool.jinja"]}, "serving.files: {tool.jinja: "),
        (
            {"extra_args": ["--lora-modules", "sql=/var/lib/llm/models/sql"]},
            "not a path that vLLM's container",
        ),
        (
            {"extra_args": ["--chat-template", "/models/../etc/passwd"]},
            "not a path that vLLM's container has",
        ),
        ({"extra_args": ["--chat-template", "/files/tool.jinja"]}, "is in no entry of serving.files"),
        ({"files": {"a.sh": "setup.sh"}, "extra_args": ["--tokenizer", "/files/b"]}, "there are a.sh"),
        ({"files": {"tool.jinja": "gone"}}, "gone is not there"),
        ({"files": {"data": "data"}}, "data holds no file"),
        ({"files": {"../x": "setup.sh"}}, "has the name ../x, which is not one in /files"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused_with_the_way_to_deliver_it(
    tmp_path: Path, serving: dict[str, Any], said: str
) -> None:
    problems = problems_of(folder_with_files(tmp_path), serving)
    assert len(problems) == 1, problems
    assert said in problems[0]


def test_a_file_that_is_delivered_may_be_named(tmp_path: Path) -> None:
    folder = folder_with_files(tmp_path)
    for arguments in (
        ["--chat-template", "/files/tool.jinja"],
        ["--chat-template", "/vllm-workspace/examples/tool_chat_template_hermes.jinja"],
        ["--download-dir", "/models/others"],
    ):
        given = {"files": {"tool.jinja": "setup.sh"}, "extra_args": arguments}
        assert problems_of(folder, given) == []


def test_rsync_that_is_missing_here_is_found_before_anything_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (problem,) = problems_of(folder_with_files(tmp_path), {"files": {"tool.jinja": "setup.sh"}})
    assert "serving.files: rsync is not on PATH here" in problem


def problems_of(folder: Path, serving: dict[str, Any]) -> list[str]:
    """What `fleet validate` says of a stack that serves so."""
    config = base()
    config["serving"] |= serving
    return [str(problem) for problem in validate(write(folder, config, "test")).problems]
