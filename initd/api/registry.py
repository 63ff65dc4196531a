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

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from initd.api.protocol import ApiError, Code
from initd.node import Node

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


class Method:
    """One callable method of the API. Raises TypeError for a function that cannot be one."""

    def __init__(self, name: str, role: Role, function: Callable[..., Any]) -> None:
        signature = inspect.signature(function)
        returns = str(signature.return_annotation)
        self.name = name
        self.role = role
        self.function = function
        self.streaming = returns.startswith("AsyncIterator[")
        self.returns = returns[len("AsyncIterator[") : -1] if self.streaming else returns  # as written; of an item
        if not (self.streaming or inspect.iscoroutinefunction(function)):
            raise TypeError(f"API method {name}: {function.__qualname__} is not an async function")
        self.parameters = list(signature.parameters.values())[1:]
        for parameter in self.parameters:
            if parameter.annotation not in _TYPES:
                raise TypeError(f"API method {name}: found {_text(parameter)}, expected any of {', '.join(_TYPES)}")

    def bind(self, params: list[object]) -> list[object]:
        """Return params if the method can be called with them; ApiError INVALID_ARGUMENT names what cannot be."""
        if len(params) > len(self.parameters):
            raise self._invalid(f"found {len(params)} parameters")
        for parameter in self.parameters[len(params) :]:
            if parameter.default is parameter.empty:
                raise self._invalid(f'parameter "{parameter.name}" is missing')
        for parameter, value in zip(self.parameters, params, strict=False):
            if type(value).__name__ != parameter.annotation:
                text = repr(value)
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                raise self._invalid(f'parameter "{parameter.name}": found {type(value).__name__} {shown}')
        return params

    def signature(self) -> str:
        """Write the method as a caller sees it: `logs(service: str, tail: int = 100)`."""
        return f"{self.name}({', '.join(map(_text, self.parameters))})"

    def documentation(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "")

    def _invalid(self, found: str) -> ApiError:
        return ApiError(Code.INVALID_ARGUMENT, f"{self.name}: {found}, expected {self.signature()}")


def _text(parameter: inspect.Parameter) -> str:
    """As a caller sees it: `tail: int = 100`."""
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


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
                "minItems": sum(parameter.default is parameter.empty for parameter in entry.parameters),
                "maxItems": len(entry.parameters),
            },
        }
        for name, entry in sorted(methods.items())
    }


def _parameter_schema(parameter: inspect.Parameter) -> dict[str, object]:
    default = {} if parameter.default is parameter.empty else {"default": parameter.default}
    return {"title": parameter.name, "type": _TYPES[parameter.annotation], **default}


async def each(items: Iterable[_T]) -> AsyncIterator[_T]:
    """Make the items of a streaming call of what is there already."""
    for item in items:
        yield item
