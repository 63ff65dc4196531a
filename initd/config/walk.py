"""Checks beside msgspec's, and its errors in the words of the file that the user wrote.

msgspec says where a type is wrong, but neither what was found there nor which keys would have been right.
"""

import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from initd.config import checks
from initd.config.checks import MismatchError

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_WHERE: Final = re.compile(r"(.*) - at `\$((?:\.[\w-]+|\[[0-9.]+\])+)`", re.DOTALL)
_FIELD: Final = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)
_EXPECTED: Final = re.compile(r"Expected `(\w+)[^`]*`((?: of length)? [<>]=? -?[0-9]+)?.*", re.DOTALL)
_WORDS: Final = {
    "int": "an integer",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
}


def check(struct: Struct) -> None:
    """Call each field's Meta.extra["check"] with its value, or with each item where those have one."""
    for field in msgspec.structs.fields(type(struct)):
        for judge, value, at in _judged(field.type, getattr(struct, field.name), f".{field.name}"):
            try:
                judge(value)
            except MismatchError as error:
                error.at = at + error.at
                raise


def _judged(declared: Any, value: Any, at: str) -> Iterator[tuple[Any, Any, str]]:
    bare, metas = _unwrap(declared)
    if value is not None:
        yield from ((meta.extra["check"], value, at) for meta in metas if meta.extra)
    if get_origin(bare) is tuple:
        for index, item in enumerate(value):
            yield from _judged(get_args(bare)[0], item, f"{at}[{index}]")


def secrets(struct: type[Struct], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each field below `struct` whose Meta.extra says "secret"; none lies in an array."""
    for field in msgspec.structs.fields(struct):
        bare, metas = _unwrap(field.type)
        path = (*at, field.encode_name)
        if any(meta.extra and "secret" in meta.extra for meta in metas):
            yield path
        elif isinstance(bare, type) and issubclass(bare, Struct):
            yield from secrets(bare, path)


def explain(
    error: Exception, type_: Any, value: Any, describe: Callable[[object], str] = checks.describe
) -> MismatchError:
    """Say in the file's words why msgspec.convert() did not make a `type_` of a value, and where below it."""
    if isinstance(error, MismatchError):
        return error
    where = _WHERE.fullmatch(str(error))
    what, path = where.groups() if where else (str(error), "")
    try:
        at, bare, found = _follow(path, type_, value)
    except (LookupError, TypeError, StopIteration):  # no path of msgspec's, but a key that looks like one
        what, at, bare, found = str(error), "", type_, value
    if isinstance(error.__cause__, MismatchError):
        error.__cause__.at = at + error.__cause__.at
        return error.__cause__
    if field := _FIELD.fullmatch(what):
        at += _key(field[2])
        if field[1] == "missing required":
            return MismatchError("a value", "nothing", at)
        return checks.unknown_key(field[2], [item.encode_name for item in msgspec.structs.fields(bare)], at)
    wanted = what
    if get_origin(bare) is Literal:
        wanted = " or ".join(repr(choice) for choice in get_args(bare))
    elif expected := _EXPECTED.fullmatch(what):
        wanted = _WORDS.get(expected[1], expected[1]) + (expected[2] or "")
        if isinstance(found, str) and expected[1] in {"array", "object"}:
            return MismatchError(wanted, "text", at)  # which may be a secret, or have one in it
    return MismatchError(wanted, describe(found), at)


def _follow(path: str, type_: Any, value: Any) -> tuple[str, Any, Any]:
    """Go down one of msgspec's paths; return it in TOML's words, with the type and the value at its end."""
    at = ""
    for key, index in re.findall(r"\.([\w-]+)|\[([0-9.]+)\]", path):
        if key:
            type_ = {field.encode_name: field.type for field in msgspec.structs.fields(type_)}[key]
            at, value = at + _key(key), value[key]
        elif index == "...":  # some key of a table of strings
            name = next(name for name, item in value.items() if not isinstance(item, str))
            at, type_, value = at + _key(name), str, value[name]
        else:
            at, type_, value = f"{at}[{index}]", get_args(type_)[0], value[int(index)]
        type_ = _unwrap(type_)[0]
    return at, type_, value


def _key(name: str) -> str:
    """A table's key as part of a dotted path, quoted where TOML wants that."""
    return f".{name if _BARE.fullmatch(name) else repr(name)}"


def _unwrap(declared: Any) -> tuple[Any, list[Meta]]:
    """Take off metas and "or None": the schema has no other union, and TOML no None."""
    metas: list[Meta] = []
    while True:
        if get_origin(declared) is Annotated:
            declared, *outer = get_args(declared)
            metas += outer
        elif get_origin(declared) in {Union, types.UnionType}:
            (declared,) = (arg for arg in get_args(declared) if arg is not types.NoneType)
        else:
            return declared, metas
