"""The gate as a part of something longer, which goes back where it does not pass."""

from __future__ import annotations

from fleet import gate
from fleet.diagnosis import Diagnosis
from fleet.progress import Clock, Progress, Stage


class Within(Progress):
    """The gate's progress as part of a rollout, whose percentage stays where it is."""

    def __init__(self, outer: Progress, node: str, clock: Clock) -> None:
        super().__init__(node, clock=clock)
        self._outer = outer

    def _print(self, stage: Stage, text: str) -> None:
        self._last_line_at = self._clock.now()
        self._percent = max(self._percent, stage)
        self._outer.note(Stage.WORKER_SSH_ACCESSIBLE, f"rollout: gate: {stage.name} {text}".rstrip())


def verdict(report: gate.Report) -> str:
    """How a release that was put back does, for the end of a sentence."""
    if report.ready:
        return f"serves, gated in {report.seconds:.1f} s"
    return f"does not pass the gate either:\n{indented(report.diagnosis)}"


def indented(diagnosis: Diagnosis | None) -> str:
    """A diagnosis as part of a longer report."""
    return "\n".join(f"  {line}" for line in str(diagnosis).splitlines())
