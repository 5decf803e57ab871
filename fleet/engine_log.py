"""Finds in a log of vLLM, Docker, NVIDIA's tools or Ray why the last start failed.

A log holds several starts and the lines of several processes. What counts is the last start, and in it the
last exception of each process that is not merely a wrapper. What was logged as information or a warning, what
a process survived, and what happened before it answered requests is no cause. A log that fits no pattern
stays without a name. The text is hostile: it is cut to a bounded size and read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fleet.diagnosis import Failed, Fault
from fleet.engine_faults import (
    CUDA_WARNING,
    EXCEPTIONS,
    FIT_LENGTH,
    MODEL_LENGTH,
    PHASES,
    TOOLS,
    WRAPPERS,
    Sign,
)

LONGEST_TEXT = 8_000_000
"""Characters of a log's end that are read."""
MOST_LINES = 20_000
LONGEST_LINE = 16_384
"""Characters of a line that are read: vLLM lists its architectures in one of about 8,000."""
LOOKED_THROUGH = 2_000
"""Characters of a line in which a pattern is looked for: messages begin with what they are about."""
HEAD = 400
"""The same for lines that tell how far a start has come."""
TOOLS_HEAD = 1_000
TOOLS_LINES = 500
"""Last lines in which a tool's error is looked for."""
MOST_PROCESSES = 16
"""Processes whose last exceptions are compared, those that spoke last."""
MESSAGE_LINES = 12
"""Lines of an exception's message: huggingface_hub writes seven."""


@dataclass(frozen=True)
class Reading:
    """What a log says about its last start."""

    fault: Fault | None = None
    seen: tuple[str, ...] = ()
    """The line that proves the fault; without one, the innermost exception, if there is any."""
    fix: str = ""
    """The fault's own fix, or one with figures from the message."""

    @property
    def failed(self) -> Failed | None:
        """The same, to be raised; None where no fault was found."""
        return Failed(self.fault, self.seen, self.fix) if self.fault else None


def read(text: str, *, ended: bool = False) -> Reading:
    """The fault of the last start.

    A last start that has only begun says nothing: then the one before it counts. With `ended` (the process is
    known to have ended) it may have come as far as loading the weights.
    """
    reading = Reading()
    for start in reversed(_starts(_lines(text))):
        reading = _judge(start)
        over = start.serves or start.dies or (start.loads and not ended)
        if reading.fault or reading.seen or over:
            return reading
    return reading


# --- Lines ---

_NOISE = re.compile(
    r"\x1b\[[0-9;?]{0,20}[A-Za-z]|(?:ESC|\ufffd)?\[\d{1,2}(?:;\d{1,3}){1,2}m|[\x00-\x08\x0e-\x1f\x7f-\x9f]"
)
"""Colours and control characters; some terminals and pages lose the escape alone."""
_BREAK = re.compile(r"\r?\n|[\r\x0b\x0c\x85\u2028\u2029]")
_LEVELS = r"DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL"
_PREFIXES = (
    re.compile(r"[A-Za-z0-9][\w.-]{0,63} {1,40}\| ?"),  # compose
    re.compile(r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]?(?: |$)"),
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S{1,64} [\w.@-]{1,64}(?:\[\d{1,9}\])?: "),  # journal
    re.compile(r"\[rank\d{1,4}\]: ?"),
    re.compile(r"[A-Z]{4,8} \d{4}-\d\d-\d\dT[\d:.]{8,18}Z \[resource\.labels\.[^\]]{1,120}\] "),  # Google's
)
_PROCESS = re.compile(
    r"\((?P<process>[^()]{0,80}(?:\([^()]{0,80}\)[^()]{0,40})?\bpid=\d{1,9}[^()]{0,80})\)(?: |$)"
)
_RECORD = re.compile(
    rf"(?P<level>{_LEVELS}) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{{1,6}})?"
    r"(?: \[?[\w./-]{1,80}:\d{1,6}\])?(?: |$)"
    rf"|(?P<plain>{_LEVELS}):(?:[\w.]{{1,60}}:)? {{0,10}}"
    rf"|- [\w.]{{1,80}} - (?P<dashed>{_LEVELS}) - "
    r"|\[?(?P<letter>[IWEF])\d{4} \d\d:\d\d:\d\d[^\]]{0,160}\] ?"
    r'|time="[^"]{1,40}" level=(?P<docker>\w{1,10}) '
)
_QUIET = {"debug", "info", "warning", "warn", "i", "w"}


@dataclass(frozen=True)
class _Line:
    process: str
    """Which of vLLM's processes wrote it; empty where the line does not say."""
    quiet: bool
    """Information or a warning, by the level of its record."""
    text: str


def _lines(text: str) -> list[_Line]:
    split = [line for line in _BREAK.split(text[-LONGEST_TEXT:]) if line and not line.isspace()]
    return [_line(line[:LONGEST_LINE]) for line in split[-MOST_LINES:]]


def _unwrapped(line: str) -> str:
    """The text of a line in the file that Docker itself keeps."""
    if line.startswith('{"log":"'):
        with suppress(ValueError, KeyError, AttributeError):
            return str(json.loads(line)["log"]).rstrip("\n")
    return line


def _line(line: str) -> _Line:
    line = _NOISE.sub("", _unwrapped(line))
    process, level = "", ""
    for _ in range(6):
        if found := _PROCESS.match(line):
            process = process or found["process"]
        elif not level and (found := _RECORD.match(line)):
            level = next(filter(None, found.groups()), "").lower()
        else:
            found = next(filter(None, (prefix.match(line) for prefix in _PREFIXES)), None)
        if not found:
            break
        line = line[found.end() :]
    return _Line(process, level in _QUIET, line.rstrip())


# --- Starts ---

_BEGIN = re.compile(
    r"vLLM API server version|█.{0,60} version \d|With `vllm serve`, you should provide the model|^usage: "
    r"|^Attaching to |^ *(?:\S )?Container \S{1,80} +(?:Starting|Started|Recreated|Created)\b"
    r"|^Start(?:ing|ed) vllm"
)
_LOADS = re.compile(
    r"Starting to load model|Initializing an? .{0,10}LLM engine|Loading weights took|Model loading took"
    r"|weights took|KV cache size|Graph capturing finished|init engine |Memory profiling takes"
)
"""What a process says that has got past its arguments and the model's config."""
_GOES_ON = re.compile(
    rf"{_LOADS.pattern}|Resolved architecture|Using max model len|Chunked prefill is enabled"
)
"""What a process says that has survived its last exception."""
_SERVES = re.compile(
    r"Application startup complete|Uvicorn running on |\"(?:GET|POST) /\S{0,200} HTTP/1\.\d\" 200"
)
_DIES = re.compile(
    r"EngineDeadError|EngineCore encountered a(?:n issue| fatal error)|EngineCore failed to start"
    r"|died unexpectedly|Background loop (?:has errored|is stopped)|Engine loop has died"
)
_FAILS = re.compile(f"{_DIES.pattern}|{WRAPPERS.pattern}", WRAPPERS.flags)
"""The same of one that does not serve yet: no request can have met it."""
_STOPS = re.compile(r"\[shutdown\]|signal=SIG|^Shutting down$|Waiting for application shutdown")


@dataclass
class _Start:
    lines: list[_Line] = field(default_factory=list)
    loads: bool = False
    serves: bool = False
    dies: bool = False
    """After it served, if it did."""


def _starts(lines: Sequence[_Line]) -> list[_Start]:
    """The starts in a log, each with the lines since it last answered a request."""
    starts = [_Start()]
    for line in lines:
        if _BEGIN.search(line.text, 0, HEAD):
            starts.append(_Start())
        start = starts[-1]
        if _SERVES.search(line.text, 0, HEAD):
            start.serves, start.dies = True, False
            start.lines.clear()
        elif not line.quiet and (_DIES if start.serves else _FAILS).search(line.text, 0, HEAD):
            start.dies = True
        elif line.quiet and _LOADS.search(line.text, 0, HEAD):
            start.loads = True
        start.lines.append(line)
    return starts


# --- Exceptions ---

_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r'\s*File "([^"]{1,400})", line \d{1,7}, in (\S{1,120})')
_HELPERS = ("multiprocessing/resource_tracker.py",)
"""Files whose own exceptions, on the way out, explain nothing."""
_LINK = re.compile(r"The above exception was the direct cause|During handling of the above exception")
_NAME = r"(?:[A-Za-z_]\w{0,80}\.){0,8}"
_RAISED = re.compile(
    rf"{_NAME}(?!\w*Warning\b)(?:\w{{1,80}}(?:Error|Exception|error)(?:_\w{{1,60}})?|Exception"
    r"|OfflineModeIsEnabled)"
    r"(?:\([\w.]{1,80}\))?(?::(?: |$)|$)"
    r"|\s*Value error, "
)
"""The line of an exception wherever it stands."""
_RAISED_LAST = re.compile(rf"{_NAME}(?!\w*Warning\b)[A-Z]\w{{0,80}}(?:\([\w.]{{1,80}}\))?(?::(?: |$)|$)")
"""One at the end of a traceback, of any name."""
_IGNORED = re.compile(r"Exception ignored in|Task exception was never retrieved")
_FOOTER = "For further information visit "
"""Pydantic's last line."""


@dataclass
class _Error:
    lines: list[str]
    frames: tuple[str, ...]
    """Functions of its traceback."""


@dataclass
class _Process:
    """Where one process stands in what it writes, and its last chain of exceptions that is a cause."""

    chain: list[_Error] = field(default_factory=list)
    """From the innermost exception on."""
    frames: list[str] = field(default_factory=list)
    error: _Error | None = None
    """The one whose message may go on."""
    in_traceback: bool = False
    linked: bool = False
    ignored: bool = False

    def take(self, line: _Line) -> None:
        text = line.text
        if line.quiet:
            self.error = None
            if _GOES_ON.search(text, 0, HEAD):
                self.chain = []
        elif _TRACEBACK in text[:HEAD]:
            self.frames, self.error, self.in_traceback = [], None, True
        elif _LINK.match(text):
            self.linked, self.error = True, None
        elif frame := _FRAME.match(text):
            self.frames.append(frame[2])
            self.error = None
            self.ignored = self.ignored or frame[1].endswith(_HELPERS)
        elif _IGNORED.match(text.lstrip()):
            self.ignored, self.error = True, None
        elif text.lstrip().startswith(_FOOTER):
            self.error = None
        elif self._raises(text):
            self._add(text)
        elif self.error and len(self.error.lines) < MESSAGE_LINES and not text.startswith("Process "):
            self.error.lines.append(text)

    def _raises(self, text: str) -> bool:
        if self.error and text.lstrip().startswith("Value error, "):
            return False
        return bool(_RAISED.match(text) or (self.in_traceback and _RAISED_LAST.match(text)))

    def _add(self, text: str) -> None:
        error = _Error([text], tuple(self.frames))
        linked, ignored = self.linked, self.ignored
        self.frames, self.in_traceback, self.linked, self.ignored = [], False, False, False
        self.error = error
        if ignored or WRAPPERS.search(text, 0, LOOKED_THROUGH):
            return
        if not linked:
            self.chain = []
        self.chain.append(error)


def _chains(lines: Sequence[_Line]) -> list[list[_Error]]:
    """The last chain of each process, in the order in which they spoke last."""
    processes: dict[str, _Process] = {}
    for line in lines:
        process = processes.pop(line.process, None) or _Process()
        process.take(line)
        processes[line.process] = process
    return [process.chain for process in list(processes.values())[-MOST_PROCESSES:] if process.chain]


# --- The verdict ---


def _judge(start: _Start) -> Reading:
    found = _in_exceptions(_chains(start.lines))
    # What one request meets ends no server; but without a template no chat works.
    if start.serves and not start.dies and found.fault is not Fault.CHAT_TEMPLATE_MISSING:
        found = Reading()
    if found.fault is Fault.GPU_MISSING:
        return _warned_by_torch(start.lines) or found
    stopped = start.serves and any(_STOPS.search(line.text, 0, HEAD) for line in start.lines)
    return found if found.fault or found.seen or stopped else _in_tools(start.lines)


def _warned_by_torch(lines: Sequence[_Line]) -> Reading | None:
    """Why no GPU is seen, where torch has said so in a warning."""
    warnings = [line.text for line in lines if CUDA_WARNING in line.text[:LOOKED_THROUGH]]
    match = _first_match([_Error(warnings[-1:], ())])
    return _named(match) if match else None


def _in_exceptions(chains: Sequence[Sequence[_Error]]) -> Reading:
    """The fault of the first sign that fits any chain."""
    first = [(chain, _first_match(chain)) for chain in chains]
    unnamed = [chain for chain, match in first if not match]
    matches = sorted((match for _, match in first if match), key=lambda match: match.rank)
    # Where a peer ended for a reason unknown, that NCCL lost it explains nothing.
    if matches and not (unnamed and EXCEPTIONS[matches[0].rank].fault is Fault.NCCL_FAILED):
        return _named(matches[0])
    if not unnamed:
        return Reading()
    innermost, outermost = unnamed[-1][0].lines[0], unnamed[-1][-1].lines[0]
    return Reading(seen=tuple(dict.fromkeys((innermost, outermost))))


@dataclass(frozen=True)
class _Match:
    rank: int
    """Of the sign among all: the exact ones come first."""
    proof: tuple[str, ...]
    chain: Sequence[_Error]


def _first_match(chain: Sequence[_Error]) -> _Match | None:
    found = ((rank, _proof(sign, chain)) for rank, sign in enumerate(EXCEPTIONS))
    return next((_Match(rank, proof, chain) for rank, proof in found if proof), None)


def _proof(sign: Sign, chain: Sequence[_Error]) -> tuple[str, ...]:
    """The line that a sign fits, with the next of its message; empty if there is none."""
    for error in chain:
        for number, line in enumerate(error.lines):
            # The list of architectures is long, and has to be seen to its end.
            end = LONGEST_LINE if sign.fault is Fault.ARCHITECTURE_UNKNOWN else LOOKED_THROUGH
            if sign.pattern.search(line, 0, end):
                rest = [more.strip() for more in error.lines[number + 1 :] if more.strip()]
                return (line.strip(), *rest[:1])
    return ()


def _named(match: _Match) -> Reading:
    fault, proof = EXCEPTIONS[match.rank].fault, match.proof
    fix = fault.fix
    if fault is Fault.OUT_OF_GPU_MEMORY:
        called = " ".join(name for error in match.chain for name in error.frames)
        fault = next((phase for phase, pattern in PHASES if pattern.search(called)), fault)
        fix = fault.fix
    elif fault is Fault.KV_CACHE_TOO_SMALL and (fits := FIT_LENGTH.search(proof[0])):
        length = fits[1] or fits[2]
        fix = f"set serving.max_model_len to {length} or less, {fix.partition(', ')[2]}"
    elif fault is Fault.CONTEXT_TOO_LONG and (made_for := MODEL_LENGTH.search(proof[0])):
        fix = f"set serving.max_model_len to {made_for[1]} or less"
    return Reading(fault, proof, fix)


def _in_tools(lines: Sequence[_Line]) -> Reading:
    """The last line that says what is wrong outside of an exception."""
    spoken = [line.text[:TOOLS_HEAD] for line in lines if not line.quiet]
    for text in reversed(spoken[-TOOLS_LINES:]):
        for sign in TOOLS:
            if sign.pattern.search(text):
                return Reading(sign.fault, (text.strip(),), sign.fault.fix)
    return Reading()
