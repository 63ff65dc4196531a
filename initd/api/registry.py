"""The API's methods: how one is declared, who may call it, what its parameters are.

A method is a function in initd/api/methods:

    @method("service.restart", Role.OPERATOR)
    async def restart(call: Call, name: str) -> bool:
        ...

Its docstring is its text in the reference. The first parameter is the call; the others are what the client sends, by
position, checked against their annotations (_TYPES says which there are). What returns an AsyncIterator is a streaming
call: each item goes out as it comes.

Annotations are read as text, as the reference shows them, so those modules defer them.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from initd.api.protocol import ApiError, Code
from initd.node import Node

_COROUTINE = 0x80  # code flag (Include/cpython/code.h); inspect is slow to import
_REQUIRED = object()
_TYPES = {"bool": "boolean", "int": "integer", "str": "string"}  # of parameters -> in JSON Schema


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
    """One parameter of a method: its type as written, and its default if it has one."""

    name: str
    type: str
    default: object = _REQUIRED

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    def __str__(self) -> str:
        return f"{self.name}: {self.type}{'' if self.required else f' = {self.default!r}'}"


class Method:
    """One callable method of the API. Raises TypeError for a function that cannot be one."""

    def __init__(self, name: str, role: Role, function: Callable[..., Any]) -> None:
        code, annotations = function.__code__, function.__annotations__
        returns = annotations.get("return", "None")
        self.name = name
        self.role = role
        self.function = function
        self.streaming = returns.startswith("AsyncIterator[")
        self.returns = returns[len("AsyncIterator[") : -1] if self.streaming else returns  # as written; of an item
        if not (self.streaming or code.co_flags & _COROUTINE):
            raise TypeError(f"API method {name}: {function.__qualname__} is not an async function")
        names, defaults = code.co_varnames[1 : code.co_argcount], function.__defaults__ or ()
        padded = (_REQUIRED,) * (len(names) - len(defaults)) + defaults
        pairs = zip(names, padded, strict=True)
        self.parameters = [Parameter(key, annotations[key], default) for key, default in pairs]
        for parameter in self.parameters:
            if parameter.type not in _TYPES:
                raise TypeError(f"API method {name}: found {parameter}, expected any of {', '.join(_TYPES)}")

    def bind(self, params: list[object]) -> list[object]:
        """Return params if the method can be called with them; ApiError INVALID_ARGUMENT names what cannot be."""
        if len(params) > len(self.parameters):
            raise self._invalid(f"found {len(params)} parameters")
        for parameter in self.parameters[len(params) :]:
            if parameter.required:
                raise self._invalid(f'parameter "{parameter.name}" is missing')
        for parameter, value in zip(self.parameters, params, strict=False):
            if type(value).__name__ != parameter.type:
                text = repr(value)
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                raise self._invalid(f'parameter "{parameter.name}": found {type(value).__name__} {shown}')
        return params

    def signature(self) -> str:
        """Write the method as a caller sees it: `logs(service: str, tail: int = 100)`."""
        return f"{self.name}({', '.join(map(str, self.parameters))})"

    def documentation(self) -> str:
        """Return the docstring without its indentation; inspect.cleandoc would import inspect."""
        return "\n".join(line.strip() for line in (self.function.__doc__ or "").strip().splitlines())

    def _invalid(self, found: str) -> ApiError:
        return ApiError(Code.INVALID_ARGUMENT, f"{self.name}: {found}, expected {self.signature()}")


METHODS: dict[str, Method] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])
_T = TypeVar("_T")


def method(name: str, role: Role) -> Callable[[_Function], _Function]:
    """Register a function as the API method of that name, for peers of that role or a higher one."""

    def register(function: _Function) -> _Function:
        if name in METHODS:
            raise ValueError(f"API method {name} is declared twice")
        METHODS[name] = Method(name, role, function)
        return function

    return register


def schema(methods: dict[str, Method]) -> dict[str, object]:
    """Describe the methods as plain data, the parameters of each as the JSON Schema of an array."""
    return {
        name: {
            "role": entry.role.name.lower(),
            "streaming": entry.streaming,
            "result": entry.returns,
            "description": entry.documentation(),
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
    described: dict[str, object] = {"title": parameter.name, "type": _TYPES[parameter.type]}
    return described if parameter.required else {**described, "default": parameter.default}


async def each(items: Iterable[_T]) -> AsyncIterator[_T]:
    """Make the items of a streaming call of what is there already."""
    for item in items:
        yield item
