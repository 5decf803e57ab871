"""What is left of an update that ends before its time: no process, and a state the next one goes on from."""

from pathlib import Path

from fleets import Fleet
from harness import Running, alive, descendants, wait_for


def at_its_gate(fleet: Fleet) -> Running:
    """An update whose node's model never loads."""
    fleet.cloud.set_node_fault("a", "hang_loading")
    update = fleet.start("up")

    def there() -> bool:
        return update.event_log.exists() and any(
            "resourcePreEvent" in line and "::a-serving-gate" in line
            for line in update.event_log.read_text().splitlines()
        )

    update.wait_until(there, "the node to be at its gate")
    update.wait_until(lambda: programs(update), "the gate's program to run")
    return update


def programs(update: Running) -> list[int]:
    """The processes of the gate's program below an update."""
    return [pid for pid in descendants(update.process.pid) if b"fleet.gate" in command_line(pid)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_an_interrupt_during_the_gate_ends_the_update_and_every_process_of_it(fleet: Fleet) -> None:
    update = at_its_gate(fleet)
    assert len(programs(update)) == 1, "the shell should have become the program"
    started = descendants(update.process.pid)
    update.interrupt()
    assert update.wait().code != 0
    wait_for(lambda: not any(map(alive, started)), "every process to end")
    fleet.cloud.set_node_fault("a", None)
    fleet.run("up")
    assert fleet.statuses() == {"ready"}


def test_every_process_of_an_engine_that_is_killed_ends_with_it(fleet: Fleet) -> None:
    update = at_its_gate(fleet)
    started = descendants(update.process.pid)
    update.process.kill()
    wait_for(lambda: not any(map(alive, started)), "every process to end")
