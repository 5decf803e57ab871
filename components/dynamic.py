"""What every dynamic resource here shares: a clean error, enough concurrency, checked inputs, whole outputs.

Pulumi runs all dynamic resources of a program in one Python process. This module holds what has to be
said to that process once; the providers themselves live beside the cloud they talk to.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    ConfigureRequest,
    CreateResult,
    DiffResult,
    ReadResult,
    ResourceProvider,
    UpdateResult,
)

from fleet import lifeline

Result = TypeVar("Result", CreateResult, ReadResult, UpdateResult)
Returned = TypeVar("Returned")

CONCURRENT_CALLS = 64
"""Calls the provider process serves at a time. They wait for clouds, they do not compute."""


class CloudProvider(ResourceProvider):
    """Base of the dynamic providers.

    Subclasses say which inputs replace the resource and which are only compared; they implement create,
    read, update and delete over a tested client. An input that is neither is not compared at all.

    Whatever they return, the outputs that reach the state are never less than the inputs: every later command
    about the resource begins with them. State that holds nothing all the same is taken for no resource:
    `read` lets the engine forget it, so that `create` finds the object again by its owner tag, and `delete`
    leaves the object to the owner, which removes everything that carries its tag.
    """

    # The serialized provider is a reference to a class and carries no secret: keeping it plain keeps
    # state readable and spares an encryption per resource.
    serialize_as_secret_always = False

    version = "1"
    """Stored with every resource, so that a change of provider code shows as an update."""
    replace_on: frozenset[str] = frozenset()
    """Inputs whose change needs a new object."""
    update_on: frozenset[str] = frozenset()
    """Inputs whose change is made in place."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the methods that a subclass defines, for there is nothing between them and the engine."""
        super().__init_subclass__(**kwargs)
        for name, wrap in WRAPPED.items():
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    @staticmethod
    def explained(error: Exception, operation: str) -> Exception:
        """An error of `create`, `read`, `update` or `delete` as the user is to read it."""
        return error

    def configure(self, req: ConfigureRequest) -> None:
        """Called once in the provider process, before the first call."""
        # The host process reports a failure with its own stack; the user needs the message alone.
        sys.tracebacklimit = 0
        gc.freeze()  # what is imported is not searched for garbage when the engine waits for the exit
        _widen_thread_pool(CONCURRENT_CALLS)
        lifeline.exit_with_engine()

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Accept the inputs, or say what is wrong with them before anything is called."""
        failures = [CheckFailure(field, reason) for field, reason in self.failures(olds, news)]
        return CheckResult({**news, "provider_version": self.version}, failures)

    def failures(self, olds: Mapping[str, Any], news: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        """Wrong inputs as (field, message with its fix); none by default."""
        return ()

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare what the cloud was last seen to have with what is wanted."""
        if _empty(olds):
            return DiffResult(changes=True, replaces=sorted(self.replace_on), stables=[])
        replaces = sorted(key for key in self.replace_on if self.differs(key, olds, news))
        updates = [key for key in (*self.update_on, "provider_version") if self.differs(key, olds, news)]
        return DiffResult(
            changes=bool(replaces or updates), replaces=replaces, stables=[], delete_before_replace=False
        )

    def differs(self, key: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> bool:
        """Whether one input differs from what is there."""
        return bool(olds.get(key) != news.get(key))


def _empty(outputs: Mapping[str, Any]) -> bool:
    """Whether state holds nothing of a resource but what Pulumi itself adds."""
    return not any(not key.startswith("__") for key in outputs)


def _whole(result: Result, inputs: Mapping[str, Any]) -> Result:
    result.outs = {**inputs, **(result.outs or {})}
    return result


def _create(method: Callable[..., CreateResult]) -> Callable[..., CreateResult]:
    @functools.wraps(method)
    def create(self: CloudProvider, props: dict[str, Any]) -> CreateResult:
        return _whole(_explaining(self, method, props), props)

    return create


def _read(method: Callable[..., ReadResult]) -> Callable[..., ReadResult]:
    @functools.wraps(method)
    def read(self: CloudProvider, id_: str, props: dict[str, Any]) -> ReadResult:
        if _empty(props):
            return gone()
        result = _explaining(self, method, id_, props)
        return _whole(result, props) if result.id else result

    return read


def _update(method: Callable[..., UpdateResult]) -> Callable[..., UpdateResult]:
    @functools.wraps(method)
    def update(self: CloudProvider, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return _whole(_explaining(self, method, id_, olds, news), news)

    return update


def _delete(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def delete(self: CloudProvider, id_: str, props: dict[str, Any]) -> None:
        if not _empty(props):
            _explaining(self, method, id_, props)

    return delete


WRAPPED: Mapping[str, Callable[..., Any]] = {
    "create": _create,
    "read": _read,
    "update": _update,
    "delete": _delete,
}


def _explaining(self: CloudProvider, method: Callable[..., Returned], *args: Any) -> Returned:
    try:
        return method(self, *args)
    except Exception as error:
        explained = self.explained(error, method.__name__)
        _read_as_words(explained, method.__name__)
        if explained is error:
            raise
        raise explained from None


def _read_as_words(error: Exception, operation: str) -> None:
    """Have Pulumi's host, which prints an exception as Python does, print `create failed: MESSAGE`.

    It would begin with the class and its module, which helps only with an unforeseen error.
    """
    kind = type(error)
    if kind.__module__.partition(".")[0] in ("components", "fleet"):
        error.__class__ = type(f"{operation} failed", (kind,), {"__module__": "builtins"})


def gone() -> ReadResult:
    """What `read` answers for an object that does not exist any more."""
    return ReadResult("", {})


def _widen_thread_pool(workers: int) -> None:
    """Let the process serve more than its four calls at a time.

    Pulumi's host serves dynamic resources from a pool of four threads, so of ten nodes waiting to start six
    would wait for the others. The pool has no setting; its size is a plain attribute of CPython's executor,
    reached through the arguments of the worker thread we are running in. Where that ever changes, nodes
    start four at a time again; a test with the real engine notices.
    """
    arguments = getattr(threading.current_thread(), "_args", ())
    executor = arguments[0]() if arguments and callable(arguments[0]) else None
    if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
        executor._max_workers = max(executor._max_workers, workers)
