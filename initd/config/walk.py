"""From parsed TOML to the schema's structs, with errors in the words of the file that the user wrote.

msgspec says where a type is wrong but neither what was found there nor which keys would have been right, and it knows
nothing of checks and secrets. One walk over type and value side by side gives all of that.
"""

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from initd.config import checks
from initd.config.errors import ConfigError, MismatchError

_S = TypeVar("_S", bound=Struct)
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_AT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?P<how>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_EXPECTED: Final = re.compile(r"Expected `(?P<type>[^`]*)`(?P<bound> [<>]=? -?[0-9]+)?.*", re.DOTALL)
_WORDS: Final = {
    "int": "an integer",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
}


class Entry(NamedTuple):
    """One value of the file beside its type; path is dotted, as it would be written in TOML."""

    path: str
    type: Any
    metas: tuple[Meta, ...]
    value: Any

    @property
    def secret(self) -> bool:
        return any((meta.extra_json_schema or {}).get("x-initd-secret") for meta in self.metas)

    @property
    def found(self) -> str:
        """The value for an error message: a secret is not repeated, since messages go to logs and consoles."""
        return "a secret" if self.secret else checks.describe(self.value)


def join(path: str, key: str) -> str:
    """Append a table's key to a dotted path, quoted where TOML wants that."""
    part = key if _BARE.fullmatch(key) else repr(key)
    return f"{path}.{part}" if path else part


def entries(type_: Any, value: Any, path: str = "", metas: tuple[Meta, ...] = ()) -> Iterator[Entry]:
    """Every value that the schema describes, parents first; values of the wrong type are not entered."""
    if get_origin(type_) is Annotated:
        inner, *outer = get_args(type_)
        yield from entries(inner, value, path, (*metas, *(meta for meta in outer if isinstance(meta, Meta))))
        return
    if get_origin(type_) in {Union, types.UnionType}:  # the schema has no union but "or None", and TOML no None
        (member,) = (arg for arg in get_args(type_) if arg is not types.NoneType)
        yield from entries(member, value, path, metas)
        return
    yield Entry(path, type_, metas, value)
    if isinstance(value, dict):
        if isinstance(type_, type) and issubclass(type_, Struct):
            for field in msgspec.structs.fields(type_):
                if field.encode_name in value:
                    yield from entries(field.type, value[field.encode_name], join(path, field.encode_name))
        elif get_origin(type_) is dict:
            for key, item in value.items():
                yield from entries(get_args(type_)[1], item, join(path, key))
    elif isinstance(value, list) and get_origin(type_) in {tuple, list}:
        for index, item in enumerate(value):
            yield from entries(get_args(type_)[0], item, f"{path}[{index}]")


def convert(table: dict[str, Any], type_: type[_S], source: str, *, secrets: bool) -> _S:
    """Make a struct of a parsed TOML table; raises ConfigError. secrets: whether source may hold any."""
    for entry in entries(type_, table):
        if entry.secret and not secrets:
            problem = "found a secret, which every pod could read there; expected it in another source"
            raise ConfigError(source, problem, entry.path)
    try:
        config = msgspec.convert(table, type_)
    except msgspec.ValidationError as error:
        raise _translate(error, type_, table, source) from None
    for entry in entries(type_, table):
        for check in (meta.extra["check"] for meta in entry.metas if meta.extra and "check" in meta.extra):
            try:
                check(entry.value)
            except MismatchError as error:
                problem = str(error) if not entry.secret else "found a secret of the wrong form"
                raise ConfigError(source, problem, entry.path + error.at) from None
    return config


def _translate(error: msgspec.ValidationError, type_: Any, table: dict[str, Any], source: str) -> ConfigError:
    at = _AT.fullmatch(str(error))
    what, path = (at["what"], (at["path"] or "").removeprefix(".")) if at else (str(error), "")
    if isinstance(error.__cause__, MismatchError):
        return ConfigError(source, str(error.__cause__), path + error.__cause__.at)
    known = {entry.path: entry for entry in entries(type_, table)}
    if path.endswith("[...]"):  # msgspec does not say under which key; all such tables hold strings
        path = next(p for p, e in known.items() if p.startswith(path[:-5] + ".") and not isinstance(e.value, str))
    entry = known[path]
    if field := _FIELD.fullmatch(what):
        key = join(path, field["name"])
        if field["how"] == "missing required":
            return ConfigError(source, "found nothing, expected a value", key)
        names = [item.encode_name for item in msgspec.structs.fields(entry.type)]
        return ConfigError(source, str(checks.unknown_key(field["name"], names)), key)
    if get_origin(entry.type) is Literal:
        wanted = "one of " + ", ".join(repr(choice) for choice in get_args(entry.type))
    elif expected := _EXPECTED.fullmatch(what):
        wanted = _WORDS.get(expected["type"].removesuffix(" | null"), expected["type"]) + (expected["bound"] or "")
    else:
        wanted = what
    return ConfigError(source, f"found {entry.found}, expected {wanted}", path)
