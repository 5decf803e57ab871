"""SSH to a node: what is trusted, what is told apart, and what never leaves."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
from fake_node import API_KEY, Answer, FakeNode, FastClock, vllm

from fleet import ssh
from fleet.progress import Progress
from fleet.spec import SpecError
from fleet.ssh import Target, connect, openssh, wait_for_ssh


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with FakeNode(tmp_path).running() as running:
        yield running


async def test_a_command_is_passed_word_by_word_and_its_ending_is_reported(node: FakeNode) -> None:
    node.commands["echo"] = Answer("hällo\n", 3, "trouble\n")
    async with connect(node.target) as connection:
        done = await connection.run(["echo", "a b", "$(id)", "it's"], check=False)
    assert node.ran == ["echo 'a b' '$(id)' 'it'\"'\"'s'"]
    assert (done.exit_status, done.stdout, done.stderr) == (3, "hällo\n", "trouble\n")


async def test_a_command_that_is_given_up_on_leaves_no_session_open(node: FakeNode) -> None:
    """sshd opens ten to a connection: a gate that asks again and again would be refused before long."""
    async with connect(node.target) as connection:
        for _ in range(12):
            with pytest.raises(ssh.Timeout):
                await connection.run(["sleep", "600"], timeout_s=0.05)
        async with asyncio.timeout(10):
            while node.hanging:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.01)
    assert len(node.ran) <= 12


async def test_a_command_that_is_given_up_on_while_it_starts_leaves_no_session_open(node: FakeNode) -> None:
    for timeout_s in (0.0, 0.001, 0.002, 0.004, 0.008, 0.016):
        async with connect(node.target) as connection:
            with pytest.raises(ssh.Timeout):
                await connection.run(["sleep", "600"], timeout_s=timeout_s)
            # Sessions are opened in order: once this one has been, the one before it has too.
            node.commands["true"] = Answer()
            await connection.run(["true"])
            async with asyncio.timeout(10):
                while node.hanging:  # noqa: ASYNC110  the server has no event for it
                    await asyncio.sleep(0.01)


async def test_another_user_than_root_goes_through_sudo(node: FakeNode) -> None:
    node.commands["sudo"] = Answer()
    async with connect(replace(node.target, user="ubuntu")) as connection:
        await connection.run(["id"])
    assert node.ran == ["sudo -n id"]


async def test_a_failed_command_names_itself_but_not_its_standard_input(node: FakeNode) -> None:
    node.commands["tee"] = Answer(status=1, stderr="read-only file system")
    async with connect(node.target) as connection:
        with pytest.raises(ssh.CommandFailed) as raised:
            await connection.run(["tee", "/etc/x"], stdin=b"hunter2")
    assert str(raised.value) == "`tee /etc/x` ended with 1: read-only file system"


async def test_a_file_arrives_whole_with_its_mode_and_its_content_in_no_command(node: FakeNode) -> None:
    data = b"VLLM_API_KEY='s3cret'\n" * 10_000
    async with connect(node.target) as connection:
        await connection.write_file("/opt/llm/.env", data, mode=0o600)
        await connection.write_file("/opt/llm/empty", b"")
        assert await connection.read_file("/opt/llm/.env") == data
    assert node.files == {"/opt/llm/.env": data, "/opt/llm/empty": b""}
    assert node.modes["/opt/llm/.env"] == "0600"
    assert not any("s3cret" in command for command in node.ran)


async def test_a_machine_with_another_host_key_is_refused_at_once_and_both_fingerprints_named(
    node: FakeNode,
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    time = FastClock()
    with pytest.raises(ssh.HostKeyMismatch) as raised:
        await wait_for_ssh(replace(node.target, host_keys=(other,)), 180, clock=time.clock())
    assert ssh.fingerprint(other) in str(raised.value)
    assert ssh.fingerprint(node.target.host_keys[0]) in str(raised.value)
    assert time.seconds == 0


async def test_a_machine_with_a_host_key_of_another_type_is_a_mismatch_too(node: FakeNode) -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
    with pytest.raises(ssh.HostKeyMismatch, match="presented ssh-ed25519"):
        async with connect(replace(node.target, host_keys=(other,))):
            pass


async def test_the_users_own_known_hosts_file_admits_nobody(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(
        f"[127.0.0.1]:{node.ssh_port} {node.target.host_keys[0]}\n"
    )
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with pytest.raises(ssh.HostKeyMismatch):
        async with connect(replace(node.target, host_keys=(other,))):
            pass


async def test_without_a_pinned_host_key_no_connection_is_made(node: FakeNode) -> None:
    with pytest.raises(ValueError, match="host_keys is empty"):
        async with connect(replace(node.target, host_keys=())):
            pass


async def test_a_refused_key_is_tried_again_for_half_a_minute_and_no_longer(
    node: FakeNode, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(stranger)
    time = FastClock()
    with pytest.raises(ssh.AuthenticationRefused, match="stranger"):
        await wait_for_ssh(replace(node.target, private_key_path=stranger), 180, clock=time.clock())
    assert 30 <= time.seconds < 60


async def test_a_missing_private_key_is_named_without_asking_the_node(node: FakeNode) -> None:
    with pytest.raises(ssh.KeyUnusable, match="private_key_path: /nowhere"):
        await wait_for_ssh(replace(node.target, private_key_path=Path("/nowhere")), 180)


async def test_a_closed_port_is_asked_until_the_deadline_and_then_called_refused(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    async with node.running():
        pass
    time, told = FastClock(), io.StringIO()
    with pytest.raises(ssh.Unreachable) as raised:
        await wait_for_ssh(node.target, 180, Progress("l4-a", told, clock=time.clock()), clock=time.clock())
    assert raised.value.reason == "refused"
    assert 180 <= time.seconds < 185
    assert "50 % WORKER_SSH_ACCESSIBLE   waiting for SSH: root@127.0.0.1" in told.getvalue()


async def test_a_node_that_comes_up_late_is_let_in(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    async with node.running():
        pass
    time, up = FastClock(), node.running()

    async def sleep(seconds: float) -> None:
        time.seconds += seconds
        if time.seconds > 20 and not node._connections:
            await up.__aenter__()

    connection = await wait_for_ssh(node.target, 180, clock=replace(time.clock(), sleep=sleep))
    await connection.close()
    await up.__aexit__(None, None, None)
    assert 20 < time.seconds < 25


async def test_a_server_that_never_finishes_the_login_is_silent_not_refused() -> None:
    mute = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    target = Target("127.0.0.1", (key,), port=mute.sockets[0].getsockname()[1])
    with pytest.raises(ssh.Unreachable) as raised:
        async with connect(target, timeout_s=0.2):
            pass
    mute.close()
    assert raised.value.reason == "timeout"


async def test_a_connection_that_ends_under_a_command_is_lost_not_failed(node: FakeNode) -> None:
    node.commands["reboot"] = lambda: node.hang_up() or Answer()
    async with connect(node.target) as connection:
        with pytest.raises(ssh.ConnectionLost):
            await connection.run(["reboot"], check=False)
        with pytest.raises(ssh.ConnectionLost):
            await connection.run(["id"])
        with pytest.raises(ssh.ConnectionLost):
            await connection.http("GET", 8000, "/health")


async def test_http_goes_through_the_session_to_the_nodes_loopback(node: FakeNode) -> None:
    async with connect(node.target) as connection:
        reply = await connection.http(
            "GET", node.http_port, "/v1/models", headers={"Authorization": f"Bearer {API_KEY}"}
        )
        assert reply.status == 200 and b"Qwen" in reply.body
        assert (await connection.http("GET", node.http_port, "/v1/models")).status == 401


async def test_a_port_nobody_listens_on_differs_from_one_that_does_not_answer(node: FakeNode) -> None:
    async with connect(node.target) as connection:
        with pytest.raises(ssh.NothingListens):
            await connection.http("GET", 1, "/health")
        node.http = lambda *_request: None
        with pytest.raises(ssh.NothingListens):
            await connection.http("GET", node.http_port, "/health")
        node.http = lambda *_request: asyncio.sleep(60)
        with pytest.raises(ssh.Timeout, match=r"no answer to GET /health on port \d+ in 0.1 s"):
            await connection.http("GET", node.http_port, "/health", timeout_s=0.1)


async def test_a_server_that_hangs_up_on_everybody_costs_the_answer_not_the_session(node: FakeNode) -> None:
    async with connect(node.target) as connection:
        rude = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        with pytest.raises(ssh.NothingListens):
            await connection.http("GET", rude.sockets[0].getsockname()[1], "/health")
        rude.close()
        assert (await connection.http("GET", node.http_port, "/health")).status == 200


async def test_a_forward_leads_to_the_nodes_port(node: FakeNode) -> None:
    node.http = vllm
    async with connect(node.target) as connection, connection.forward(node.http_port) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


def test_a_fingerprint_is_the_one_openssh_prints() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    assert ssh.fingerprint(key.export_public_key().decode()) == f"ssh-ed25519 {key.get_fingerprint('sha256')}"


def test_a_target_is_parsed_strictly_and_every_problem_told_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        Target.parse({"host": 7, "hosts": "x", "port": "22"})
    assert str(raised.value) == (
        "target.hosts: unknown field; known are host, host_keys, user, port, private_key_path, jump; "
        "target.host_keys: missing; "
        "target.host: must be a string, not int; "
        "target.port: must be a whole number, not str"
    )


class JumpHost(asyncssh.SSHServer):
    """Lets in one key, and passes connections on to wherever they are to lead."""

    def __init__(self, key: asyncssh.SSHKey) -> None:
        self.key = key
        self.led_to: list[int] = []

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == "hop" and key.public_data == self.key.public_data

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        self.led_to.append(dest_port)
        return True


async def test_both_clients_reach_a_node_through_a_jump_host_and_verify_both(
    node: FakeNode, tmp_path: Path
) -> None:
    own_key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key_path = tmp_path / "hop key"
    own_key.write_private_key(key_path)
    key_path.chmod(0o600)
    node.key_path.chmod(0o600)
    server = JumpHost(own_key)
    node.commands["true"] = Answer()
    async with asyncssh.listen(
        "127.0.0.1", 0, server_factory=lambda: server, server_host_keys=[host_key]
    ) as hop:
        pinned = host_key.export_public_key().decode().strip()
        jump = Target("127.0.0.1", (pinned,), "hop", hop.get_port(), key_path)
        target = replace(node.target, jump=jump)
        async with connect(target) as connection:
            await connection.run(["true"])
        words = [*openssh(target, "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"), "true"]
        process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        assert server.led_to == [node.ssh_port] * 2
        assert node.ran == ["true"] * 2

        stranger = replace(target, jump=replace(jump, host_keys=target.host_keys))
        with pytest.raises(ssh.HostKeyMismatch, match=str(hop.get_port())):
            await wait_for_ssh(stranger, 1.0)
        process = await asyncio.create_subprocess_exec(
            *openssh(stranger, "-o", "BatchMode=yes"), "true", stderr=asyncio.subprocess.PIPE
        )
        assert await process.wait() == 255
        assert server.led_to == [node.ssh_port] * 2
