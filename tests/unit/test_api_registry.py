"""Methods: their parameters are checked, and the references say what is true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.api import methods as _registers_all  # noqa: F401 - what the reference is made of
from initd.api import registry
from initd.api.protocol import HELLO, ApiError, Code
from initd.api.registry import METHODS, Call, Method, Role, schema
from initd.client.commands import COMMANDS
from tests.readme import reference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


async def _every(_call: Call, text: str, number: int, flag: bool, most: int = 5) -> bool:
    """Takes one of each.

    More about it.
    """
    return bool((text, number, flag, most))


async def _stream(_call: Call, tail: int = 100) -> AsyncIterator[dict[str, Any]]:
    """Streams."""
    yield {"tail": tail}


EVERY, STREAM = Method("every", Role.OPERATOR, _every), Method("stream", Role.READER, _stream)
GOOD: list[object] = ["a", 1, True, 7]


@pytest.mark.parametrize("count", [3, 4])
def test_good_parameters_are_passed_on_and_defaults_may_be_left_out(count: int) -> None:
    assert EVERY.bind(GOOD[:count]) == GOOD[:count]


@pytest.mark.parametrize(
    ("index", "value", "found"),
    [
        (0, 5, 'parameter "text": found int 5'),
        (0, None, 'parameter "text": found NoneType None'),
        (0, b"x", 'parameter "text": found bytes'),
        (1, True, 'parameter "number": found bool True'),
        (1, 1.0, 'parameter "number": found float 1.0'),
        (2, 1, 'parameter "flag": found int 1'),
        (2, "x" * 1000, 'parameter "flag": found str'),
        (3, None, 'parameter "most": found NoneType None'),
    ],
)
def test_a_bad_parameter_is_named_with_what_was_found_and_expected(index: int, value: object, found: str) -> None:
    with pytest.raises(ApiError) as caught:
        EVERY.bind([*GOOD[:index], value, *GOOD[index + 1 :]])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert found in caught.value.message
    assert "expected every(text: str, number: int" in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("count", [0, 2, 5])
def test_too_few_or_too_many_are_refused(count: int) -> None:
    with pytest.raises(ApiError, match="missing" if count < 3 else "found 5 parameters"):
        EVERY.bind([*GOOD, 1][:count])


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), max_size=8))
def test_any_parameters_are_bound_or_refused_with_a_reason(params: list[object]) -> None:
    for entry in (EVERY, STREAM):
        try:
            assert entry.bind(params) == params
        except ApiError as error:
            assert error.code is Code.INVALID_ARGUMENT  # noqa: PT017 - both ways are right


def test_an_annotation_that_no_client_can_send_is_a_mistake_that_shows() -> None:
    async def bad(_call: Call, value: set[int]) -> None:
        del value

    with pytest.raises(TypeError, match=r"found value: set\[int\], expected any of bool, int"):
        Method("bad", Role.READER, bad)


def test_only_async_functions_can_be_methods_and_each_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", {})
    blocking: Callable[..., Any] = lambda _call: None  # noqa: E731 - a function that is not async
    with pytest.raises(TypeError, match="not an async function"):
        registry.method("x", Role.READER)(blocking)
    registry.method("every", Role.READER)(_every)
    with pytest.raises(ValueError, match="declared twice"):
        registry.method("every", Role.READER)(_stream)


def test_the_reference_has_every_method_with_signature_role_and_text() -> None:
    text = reference({"stream": STREAM, "every": EVERY})
    assert "| `stream(tail: int = 100)` | reader | stream of `dict[str, Any]` |" in text
    assert "`every(text: str, number: int, flag: bool, most: int = 5)` | operator | `bool` |" in text
    assert "**every**: Takes one of each.\n\nMore about it." in text


def test_the_schema_describes_parameters_as_json_schema() -> None:
    every = schema({"every": EVERY})["every"]
    assert isinstance(every, dict)
    params = every["params"]
    assert (params["minItems"], params["maxItems"]) == (3, 4)
    assert params["prefixItems"][1] == {"title": "number", "type": "integer"}
    assert params["prefixItems"][3]["default"] == 5


def test_every_method_of_the_node_can_be_called_and_is_documented() -> None:
    assert METHODS
    for name, entry in METHODS.items():
        assert entry.parameters is not None
        assert entry.function.__doc__, name
        assert entry.role > Role.NONE
    assert all(name in reference(METHODS) for name in METHODS)


def test_initctl_has_a_command_for_every_method_with_its_parameters() -> None:
    assert {command.method for command in COMMANDS} == set(METHODS) - {HELLO}
    for command in COMMANDS:
        entry = METHODS[command.method]
        assert (command.streaming or command.listed) == entry.streaming, command.words
        parameters = [parameter.name for parameter in entry.parameters]
        assert [argument.name for argument in command.arguments] == parameters, command.words
