"""The API's methods: how one is declared, who may call it, what its parameters are.

A method is a function in initd/api/methods:

    @method("service.restart", Role.OPERATOR)
    async def restart(call: Call, name: str) -> bool:
        ...

Its docstring is its text in the reference. The first parameter is the call; the others are what the client sends, by
position, checked against their annotations (_TYPES says which there are, each also as `X | None`). An asynchronous
generator is a streaming call: each item goes out as it comes.

Annotations are read as text, and at the first call: to evaluate them would import every result type while PID 1 starts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from initd.api.protocol import ApiError, Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from initd.node import Node

_COROUTINE, _ASYNC_GENERATOR = 0x80, 0x200  # code flags (Include/cpython/code.h); inspect is slow to import
_REQUIRED = object()


class Role(IntEnum):
    """What a peer may do; each role includes those before it."""

    NONE = 0
    READER = 1
    OPERATOR = 2
    ADMIN = 3


class Peer(NamedTuple):
    """Who is at the other end. pid, uid and gid are -1 where the line has no such thing; text is for the log."""

    pid: int
    uid: int
    gid: int
    role: Role
    text: str


class Call(NamedTuple):
    """What a method is called with: the node it is about and who asks."""

    node: Node
    peer: Peer


class Parameter(NamedTuple):
    """One parameter of a method: its types as written ("int", "None"), and its default if it has one."""

    name: str
    types: tuple[str, ...]
    default: object = _REQUIRED

    @property
    def required(self) -> bool:
        """Whether a caller must give it."""
        return self.default is _REQUIRED

    def __str__(self) -> str:
        """Write it as Python would."""
        default = "" if self.required else f" = {self.default!r}"
        return f"{self.name}: {' | '.join(self.types)}{default}"


class _Type(NamedTuple):
    accepts: Callable[[object], bool]
    schema: dict[str, object]


_TYPES = {
    "bool": _Type(lambda value: type(value) is bool, {"type": "boolean"}),
    "int": _Type(lambda value: type(value) is int, {"type": "integer"}),
    "float": _Type(lambda value: type(value) in (int, float), {"type": "number"}),
    "str": _Type(lambda value: type(value) is str, {"type": "string"}),
    "None": _Type(lambda value: value is None, {"type": "null"}),
    "list[str]": _Type(
        lambda value: type(value) is list and all(type(item) is str for item in value),
        {"type": "array", "items": {"type": "string"}},
    ),
}


class Method:
    """One callable method of the API."""

    __slots__ = ("_parameters", "function", "name", "role", "streaming")

    def __init__(self, name: str, role: Role, function: Callable[..., Any]) -> None:
        flags = function.__code__.co_flags
        if not flags & (_COROUTINE | _ASYNC_GENERATOR):
            message = f"API method {name}: {function.__qualname__} is not an async function"
            raise TypeError(message)
        self.name = name
        self.role = role
        self.function = function
        self.streaming = bool(flags & _ASYNC_GENERATOR)
        self._parameters: tuple[Parameter, ...] | None = None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What a client sends. Raises TypeError if an annotation is none that a client can send."""
        if self._parameters is None:
            self._parameters = tuple(self._read_parameters())
        return self._parameters

    @property
    def returns(self) -> str:
        """The result's type as written, or for a stream that of an item."""
        text = str(self.function.__annotations__.get("return", "None"))
        return text.partition("[")[2].removesuffix("]").partition(", None")[0] if self.streaming else text

    def bind(self, params: list[object]) -> list[object]:
        """Return params if the method can be called with them; ApiError INVALID_ARGUMENT names what cannot be."""
        if len(params) > len(self.parameters):
            raise self._invalid(f"found {len(params)} parameters")
        for parameter in self.parameters[len(params) :]:
            if parameter.required:
                raise self._invalid(f'parameter "{parameter.name}" is missing')
        for parameter, value in zip(self.parameters, params, strict=False):
            if not any(_TYPES[name].accepts(value) for name in parameter.types):
                raise self._invalid(f'parameter "{parameter.name}": found {_describe(value)}')
        return params

    def signature(self) -> str:
        """Write the method as a caller sees it: `logs(service: str, tail: int = 100)`."""
        return f"{self.name}({', '.join(map(str, self.parameters))})"

    def _invalid(self, found: str) -> ApiError:
        return ApiError(Code.INVALID_ARGUMENT, f"{self.name}: {found}, expected {self.signature()}")

    def _read_parameters(self) -> list[Parameter]:
        code, annotations = self.function.__code__, self.function.__annotations__
        names = code.co_varnames[1 : code.co_argcount]
        defaults = self.function.__defaults__ or ()
        padded = (_REQUIRED,) * (len(names) - len(defaults)) + tuple(defaults)
        parameters = []
        for name, default in zip(names, padded, strict=True):
            annotation = annotations.get(name, "")
            text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
            types = tuple(part.strip() for part in text.split("|"))
            if not all(part in _TYPES for part in types):
                message = f"API method {self.name}: {name} is of type {text!r}, expected any of {', '.join(_TYPES)}"
                raise TypeError(message)
            parameters.append(Parameter(name, types, default))
        return parameters


METHODS: dict[str, Method] = {}

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def method(name: str, role: Role) -> Callable[[_Function], _Function]:
    """Register a function as the API method of that name, for peers of that role or a higher one."""

    def register(function: _Function) -> _Function:
        if name in METHODS:
            message = f"API method {name} is declared twice"
            raise ValueError(message)
        METHODS[name] = Method(name, role, function)
        return function

    return register


def reference(methods: dict[str, Method]) -> str:
    """Write the reference of the API as Markdown: a table of all methods, then what each is for."""
    rows = ["| method | role | result |", "| --- | --- | --- |"]
    texts = []
    for entry in (methods[name] for name in sorted(methods)):
        result = entry.returns.replace("|", "\\|")
        signature = entry.signature().replace("|", "\\|")
        kind = "stream of " if entry.streaming else ""
        rows.append(f"| `{signature}` | {entry.role.name.lower()} | {kind}`{result}` |")
        texts.append(f"**{entry.name}**: {_documentation(entry)}")
    return "\n".join([*rows, "", *("\n\n".join(texts)).splitlines(), ""])


def schema(methods: dict[str, Method]) -> dict[str, object]:
    """Describe the methods as plain data, the parameters of each as the JSON Schema of an array."""
    return {
        name: {
            "role": entry.role.name.lower(),
            "streaming": entry.streaming,
            "result": entry.returns,
            "description": _documentation(entry),
            "params": {
                "type": "array",
                "prefixItems": [_parameter_schema(parameter) for parameter in entry.parameters],
                "minItems": sum(parameter.required for parameter in entry.parameters),
                "maxItems": len(entry.parameters),
            },
        }
        for name, entry in sorted(methods.items())
    }


def _parameter_schema(parameter: Parameter) -> dict[str, object]:
    types = [_TYPES[name].schema for name in parameter.types]
    described: dict[str, object] = {"title": parameter.name, **(types[0] if len(types) == 1 else {"anyOf": types})}
    return described if parameter.required else {**described, "default": parameter.default}


def _documentation(entry: Method) -> str:
    """Return the docstring without its indentation; inspect.cleandoc would import inspect."""
    return "\n".join(line.strip() for line in (entry.function.__doc__ or "").strip().splitlines())


def _describe(value: object) -> str:
    text = repr(value)
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return f"{type(value).__name__} {shown}"
