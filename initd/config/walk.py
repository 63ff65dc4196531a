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
_FIELD: Final = re.compile(r"Object (?P<how>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_EXPECTED: Final = re.compile(r"Expected `(?P<type>\w+)[^`]*`(?P<bound> [<>]=? -?[0-9]+)?.*", re.DOTALL)
_WORDS: Final = {
    "int": "an integer",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
}


class Entry(NamedTuple):
    """One value of the file beside its declared type, the same without metas and "or None", and those metas."""

    path: str
    declared: Any
    bare: Any
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


def _unwrap(declared: Any) -> tuple[Any, tuple[Meta, ...]]:
    """Take off metas and "or None": the schema has no other union, and TOML no None."""
    metas: tuple[Meta, ...] = ()
    while True:
        if get_origin(declared) is Annotated:
            declared, *outer = get_args(declared)
            metas += tuple(meta for meta in outer if isinstance(meta, Meta))
        elif get_origin(declared) in {Union, types.UnionType}:
            (declared,) = (arg for arg in get_args(declared) if arg is not types.NoneType)
        else:
            return declared, metas


def entries(declared: Any, value: Any, path: str = "") -> Iterator[Entry]:
    """Every value that the schema describes, parents first; values of the wrong type are not entered."""
    bare, metas = _unwrap(declared)
    yield Entry(path, declared, bare, metas, value)
    if isinstance(value, dict) and isinstance(bare, type) and issubclass(bare, Struct):
        for field in msgspec.structs.fields(bare):
            if field.encode_name in value:
                yield from entries(field.type, value[field.encode_name], join(path, field.encode_name))
    elif isinstance(value, dict) and get_origin(bare) is dict:
        for key, item in value.items():
            yield from entries(get_args(bare)[1], item, join(path, key))
    elif isinstance(value, list) and get_origin(bare) in {tuple, list}:
        for index, item in enumerate(value):
            yield from entries(get_args(bare)[0], item, f"{path}[{index}]")


def convert(table: dict[str, Any], type_: type[_S], source: str, *, secrets: bool) -> _S:
    """Make a struct of a parsed TOML table; raises ConfigError. secrets: whether source may hold any."""
    for entry in entries(type_, table):
        if entry.secret and not secrets:
            problem = "found a secret, which every pod could read there; expected it in another source"
            raise ConfigError(source, problem, entry.path)
    try:
        config = msgspec.convert(table, type_)
    except msgspec.ValidationError as error:
        raise _explain(error, type_, table, source) from None
    for entry in entries(type_, table):
        if entry.value is None:  # never from TOML
            continue
        for check in (meta.extra["check"] for meta in entry.metas if meta.extra and "check" in meta.extra):
            try:
                check(entry.value)
            except MismatchError as error:
                problem = str(error) if not entry.secret else "found a secret of the wrong form"
                raise ConfigError(source, problem, entry.path + error.at) from None
    return config


def _explain(error: msgspec.ValidationError, type_: Any, table: dict[str, Any], source: str) -> ConfigError:
    """Find the value that is wrong by itself: msgspec's path has no keys of tables like manifests."""
    for entry in entries(type_, table):
        try:
            msgspec.convert(entry.value, entry.declared)
        except msgspec.ValidationError as own:
            if isinstance(own.__cause__, MismatchError) and "- at `$" not in str(own):
                return ConfigError(source, str(own.__cause__), entry.path + own.__cause__.at)
            if "- at `$" not in str(own):
                return _problem(entry, str(own), source)
    return ConfigError(source, str(error))  # no entry is wrong by itself: msgspec's own words are better than none


def _problem(entry: Entry, what: str, source: str) -> ConfigError:
    if field := _FIELD.fullmatch(what):
        key = join(entry.path, field["name"])
        if field["how"] == "missing required":
            return ConfigError(source, "found nothing, expected a value", key)
        names = [item.encode_name for item in msgspec.structs.fields(entry.bare)]
        return ConfigError(source, str(checks.unknown_key(field["name"], names)), key)
    if get_origin(entry.bare) is Literal:
        wanted = "one of " + ", ".join(repr(choice) for choice in get_args(entry.bare))
    elif expected := _EXPECTED.fullmatch(what):
        wanted = _WORDS.get(expected["type"], expected["type"]) + (expected["bound"] or "")
    else:
        wanted = what
    return ConfigError(source, f"found {entry.found}, expected {wanted}", entry.path)
