"""What every provider stand-in shares: Pulumi's provider protocol over plain Python values.

A stand-in lists `ResourceType`s and functions and calls `serve_provider`. It sees plain dicts; which of
them are secret, unknown at preview or changed is worked out here:

- An output that repeats an input keeps that input's secrecy. Outputs named in `ResourceType.derived` are
  computed from the inputs as a whole: one secret input makes them secret.
- Outputs named in `ResourceType.computed` are the cloud's own: never secret, and known once it exists.
- Nothing runs at preview: outputs that only the run would tell are unknown.
- Diff compares inputs with inputs, property by property. A change below a name in `replace_on` replaces.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value

from tools.protocol import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)
from tools.serving import CHANNEL_OPTIONS, serve

# Marks of the wire format, from the SDK's `pulumi.runtime.rpc`.
SIGNATURE_KEY = "4dabf18193072939515e22adb298388d"
SECRET_SIGNATURE = "1b47061264138c4ac30d75fd1eb44270"
UNKNOWN_TEXT = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

# The engine is on this machine: if it does not take a log line in this time, it is ending.
LOG_TIMEOUT_S = 5.0

Props = dict[str, Any]


class Unknown:
    """A value that the run will tell; only at preview."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN = Unknown()


@dataclass(frozen=True)
class Secret:
    """A value that the engine encrypts in state and hides in output."""

    value: Any

    def __repr__(self) -> str:
        return "[secret]"


class ProviderError(Exception):
    """An operation failed. The message is what the user reads."""


class MadeInPart(ProviderError):
    """A creation failed after the object was made: the engine keeps it, and the next update finishes it."""

    def __init__(self, id_: str, outputs: Props, reason: ProviderError) -> None:
        super().__init__(str(reason))
        self.id, self.outputs = id_, outputs


def decode(value: Value) -> Any:
    """A wire value as plain Python, with `Secret` and `UNKNOWN` in their places. Whole numbers become int."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        fields = value.struct_value.fields
        if SIGNATURE_KEY in fields and fields[SIGNATURE_KEY].string_value == SECRET_SIGNATURE:
            return Secret(decode(fields["value"]))
        return {name: decode(field) for name, field in fields.items()}
    if kind == "list_value":
        return [decode(item) for item in value.list_value.values]
    if kind == "number_value":
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    if kind == "string_value":
        return UNKNOWN if value.string_value == UNKNOWN_TEXT else value.string_value
    return value.bool_value if kind == "bool_value" else None


def encode(value: Any) -> Value:  # noqa: PLR0911 - one line for each kind of value
    """The opposite of `decode`."""
    match value:
        case None:
            return Value(null_value=NullValue.NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() | float():
            return Value(number_value=value)
        case str():
            return Value(string_value=value)
        case Unknown():
            return Value(string_value=UNKNOWN_TEXT)
        case Secret():
            marked = {SIGNATURE_KEY: SECRET_SIGNATURE, "value": value.value}
            return Value(struct_value=encode_props(marked))
        case Mapping():
            return Value(struct_value=encode_props(value))
        case Sequence():
            return Value(list_value=ListValue(values=[encode(item) for item in value]))
    raise TypeError(f"{type(value).__name__} has no form in Pulumi's protocol")


def decode_props(struct: Struct) -> Props:
    return {name: decode(value) for name, value in struct.fields.items()}


def encode_props(props: Mapping[str, Any]) -> Struct:
    return Struct(fields={name: encode(value) for name, value in props.items()})


def reveal(value: Any) -> Any:
    """The value without its `Secret` marks."""
    match value:
        case Secret():
            return reveal(value.value)
        case dict():
            return {name: reveal(item) for name, item in value.items()}
        case list():
            return [reveal(item) for item in value]
    return value


def holds(value: Any, kind: type) -> bool:
    """Whether the value is, or somewhere holds, one of that kind (`Secret` or `Unknown`)."""
    match value:
        case _ if isinstance(value, kind):
            return True
        case Secret():
            return holds(value.value, kind)
        case dict():
            return any(holds(item, kind) for item in value.values())
        case list():
            return any(holds(item, kind) for item in value)
    return False


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, "ADD" | "DELETE" | "UPDATE") of each difference between two revealed values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            below = f"{path}.{name}" if path else name
            if name not in new:
                yield below, "DELETE"
            elif name not in old:
                yield below, "ADD"
            else:
                yield from changes(old[name], new[name], below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from changes(*pair, f"{path}[{index}]")
    elif old != new or holds(new, Unknown):
        yield path, "UPDATE"


@dataclass(frozen=True)
class Call:
    """What an operation knows of the engine's request."""

    urn: str
    timeout_s: float | None
    """From the resource's `custom_timeouts`; None where it sets none."""
    cancelled: threading.Event
    """Set when the user interrupts the update."""
    log: Callable[[str], None]
    """Shows a line under the resource while the operation runs."""


class ResourceType:
    """One type of a provider. Inputs and state are plain values; a `ProviderError` reaches the user."""

    token: ClassVar[str]
    replace_on: ClassVar[frozenset[str]] = frozenset()
    derived: ClassVar[frozenset[str]] = frozenset()
    computed: ClassVar[frozenset[str]] = frozenset()

    def check(self, inputs: Props) -> tuple[Props, dict[str, str]]:
        """The inputs with their defaults, and what is wrong with them by property name."""
        return inputs, {}

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        """The new resource's id and its outputs."""
        raise NotImplementedError

    def read(self, call: Call, id_: str, state: Props, inputs: Props) -> tuple[Props, Props] | None:
        """The state and inputs that the resource has now, or None where it is gone."""
        return state, inputs

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        """The outputs after the change."""
        raise NotImplementedError

    def delete(self, call: Call, id_: str, state: Props) -> None:
        """Deletes it; one that is gone already counts as deleted."""


Function = Callable[[Call, Props], Props]


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Pulumi's provider service over resource types and functions."""

    def __init__(
        self,
        types: Sequence[ResourceType],
        functions: Mapping[str, Function],
        configure: Callable[[Props], None],
        on_cancel: Callable[[], None],
        version: str,
        engine_address: str,
    ) -> None:
        self._version = version
        self._types = {each.token: each for each in types}
        self._functions = functions
        self._configure = configure
        self._on_cancel = on_cancel
        self._cancelled = threading.Event()
        channel = grpc.insecure_channel(engine_address, options=CHANNEL_OPTIONS)
        self._engine = engine_pb2_grpc.EngineStub(channel)

    def stop(self) -> None:
        """Ends what is running: the user interrupts the update, or the engine is done."""
        self._cancelled.set()
        self._on_cancel()

    def Handshake(
        self, request: provider_pb2.ProviderHandshakeRequest, context: grpc.ServicerContext
    ) -> provider_pb2.ProviderHandshakeResponse:
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

    def GetPluginInfo(self, request: Empty, context: grpc.ServicerContext) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=self._version)

    def CheckConfig(
        self, request: provider_pb2.CheckRequest, context: grpc.ServicerContext
    ) -> provider_pb2.CheckResponse:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(
        self, request: provider_pb2.DiffRequest, context: grpc.ServicerContext
    ) -> provider_pb2.DiffResponse:
        return _diff(decode_props(request.old_inputs), decode_props(request.news), frozenset())

    def Configure(
        self, request: provider_pb2.ConfigureRequest, context: grpc.ServicerContext
    ) -> provider_pb2.ConfigureResponse:
        with _told(context):
            self._configure(reveal(decode_props(request.args)))
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Check(
        self, request: provider_pb2.CheckRequest, context: grpc.ServicerContext
    ) -> provider_pb2.CheckResponse:
        wired = decode_props(request.news)
        inputs, failures = self._type(request.urn, context).check(reveal(wired))
        return provider_pb2.CheckResponse(
            inputs=encode_props(_with_secrets(inputs, wired, frozenset())),
            failures=[
                provider_pb2.CheckFailure(property=name, reason=reason) for name, reason in failures.items()
            ],
        )

    def Diff(
        self, request: provider_pb2.DiffRequest, context: grpc.ServicerContext
    ) -> provider_pb2.DiffResponse:
        replace_on = self._type(request.urn, context).replace_on
        return _diff(decode_props(request.old_inputs), decode_props(request.news), replace_on)

    def Create(
        self, request: provider_pb2.CreateRequest, context: grpc.ServicerContext
    ) -> provider_pb2.CreateResponse:
        type_ = self._type(request.urn, context)
        wired = decode_props(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=encode_props(_at_preview(type_, wired, {})))
        with _told(context):
            id_, outputs = type_.create(self._call(request.urn, request.timeout), reveal(wired))
        outputs = _with_secrets(outputs, wired, type_.derived)
        return provider_pb2.CreateResponse(id=id_, properties=encode_props(outputs))

    def Read(
        self, request: provider_pb2.ReadRequest, context: grpc.ServicerContext
    ) -> provider_pb2.ReadResponse:
        type_ = self._type(request.urn, context)
        state, inputs = decode_props(request.properties), decode_props(request.inputs)
        with _told(context):
            call = self._call(request.urn, request.timeout)
            found = type_.read(call, request.id, reveal(state), reveal(inputs))
        if found is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(
            id=request.id,
            properties=encode_props(_with_secrets(found[0], state | inputs, type_.derived)),
            inputs=encode_props(_with_secrets(found[1], inputs, frozenset())),
        )

    def Update(
        self, request: provider_pb2.UpdateRequest, context: grpc.ServicerContext
    ) -> provider_pb2.UpdateResponse:
        type_ = self._type(request.urn, context)
        wired = decode_props(request.news)
        if request.preview:
            known = _at_preview(type_, wired, decode_props(request.olds))
            return provider_pb2.UpdateResponse(properties=encode_props(known))
        with _told(context):
            state = reveal(decode_props(request.olds))
            call = self._call(request.urn, request.timeout)
            outputs = type_.update(call, request.id, state, reveal(wired))
        outputs = _with_secrets(outputs, wired, type_.derived)
        return provider_pb2.UpdateResponse(properties=encode_props(outputs))

    def Delete(self, request: provider_pb2.DeleteRequest, context: grpc.ServicerContext) -> Empty:
        type_ = self._type(request.urn, context)
        with _told(context):
            call = self._call(request.urn, request.timeout)
            type_.delete(call, request.id, reveal(decode_props(request.properties)))
        return Empty()

    def Invoke(
        self, request: provider_pb2.InvokeRequest, context: grpc.ServicerContext
    ) -> provider_pb2.InvokeResponse:
        if request.tok not in self._functions:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{request.tok}: the stand-in has no such function")
        with _told(context):
            call = self._call("", 0)
            returned = self._functions[request.tok](call, reveal(decode_props(request.args)))
        response = provider_pb2.InvokeResponse()
        getattr(response, "return").CopyFrom(encode_props(returned))
        return response

    def Cancel(self, request: Empty, context: grpc.ServicerContext) -> Empty:
        self.stop()
        return Empty()

    def _type(self, urn: str, context: grpc.ServicerContext) -> ResourceType:
        token = urn.split("::")[2].rsplit("$", maxsplit=1)[-1]
        if token not in self._types:
            known = ", ".join(sorted(self._types))
            reason = f"{token}: the stand-in plugin has only {known}; the real plugin has every type"
            context.abort(grpc.StatusCode.UNIMPLEMENTED, reason)
        return self._types[token]

    def _call(self, urn: str, timeout_s: float) -> Call:
        def log(message: str) -> None:
            request = engine_pb2.LogRequest(severity=engine_pb2.INFO, message=message, urn=urn)
            with contextlib.suppress(grpc.RpcError):  # a line nobody can show any more
                self._engine.Log(request, timeout=LOG_TIMEOUT_S)

        return Call(urn, timeout_s or None, self._cancelled, log)


@contextlib.contextmanager
def _told(context: grpc.ServicerContext) -> Iterator[None]:
    """Tells the engine of a failed operation in its own words, without a Python traceback."""
    try:
        yield
    except MadeInPart as part:
        unknown, reason, details = grpc.StatusCode.UNKNOWN.value[0], str(part), Any_()
        made = provider_pb2.ErrorResourceInitFailed(
            id=part.id, properties=encode_props(part.outputs), reasons=[reason]
        )
        details.Pack(made)
        status = status_pb2.Status(code=unknown, message=reason, details=[details])
        # How gRPC carries what a status alone does not hold.
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.UNKNOWN, reason)
    except ProviderError as error:
        context.abort(grpc.StatusCode.UNKNOWN, str(error))


def _with_secrets(outputs: Props, wired: Props, derived: frozenset[str]) -> Props:
    """The outputs with the secrecy that the inputs they come from had."""
    any_secret = holds(wired, Secret)
    marked = {}
    for name, value in outputs.items():
        if name in wired and reveal(wired[name]) == value:
            marked[name] = wired[name]
        elif (name in derived and any_secret) or holds(wired.get(name), Secret):
            marked[name] = Secret(value)
        else:
            marked[name] = value
    return marked


def _at_preview(type_: ResourceType, wired: Props, state: Props) -> Props:
    kept = {name: state.get(name, UNKNOWN) for name in type_.computed}
    return kept | wired | dict.fromkeys(type_.derived, UNKNOWN)


def _diff(old: Props, new: Props, replace_on: frozenset[str]) -> provider_pb2.DiffResponse:
    found = dict(changes(reveal(old), reveal(new)))
    detailed, replaces = {}, []
    for path, kind in found.items():
        replace = path.replace("[", ".").split(".")[0] in replace_on
        if replace:
            replaces.append(path)
        name = f"{kind}_REPLACE" if replace else kind
        detailed[path] = provider_pb2.PropertyDiff(
            kind=provider_pb2.PropertyDiff.Kind.Value(name), inputDiff=True
        )
    response = provider_pb2.DiffResponse
    return response(
        changes=response.DIFF_SOME if found else response.DIFF_NONE,
        replaces=replaces,
        diffs=sorted({path.replace("[", ".").split(".")[0] for path in found}),
        detailedDiff=detailed,
        hasDetailedDiff=True,
    )


def serve_provider(
    types: Sequence[ResourceType],
    functions: Mapping[str, Function] | None = None,
    configure: Callable[[Props], None] = lambda settings: None,
    on_cancel: Callable[[], None] = lambda: None,
) -> None:
    """Serves the types and functions to the engine, as `python -m … VERSION ENGINE_ADDRESS`.

    `configure` gets the provider's settings; `on_cancel` ends what operations wait for (`Call.cancelled` is
    set).
    """
    # The engine's own flags, for logs and traces, come between the two.
    version, *_, engine_address = sys.argv[1:]
    provider = Provider(types, functions or {}, configure, on_cancel, version, engine_address)
    serve(
        lambda server: provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server),
        on_stop=provider.stop,
    )
