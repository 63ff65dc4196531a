"""Where the configuration comes from: order, encodings, and what garbage in each source says."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from initd.config import sources
from initd.config.schema import parse
from initd.config.sources import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = '[node]\nname = "node-1"\n'


def put(root: Path, path: str, data: bytes | str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data.encode() if isinstance(data, str) else data)


def dmi(*strings: bytes) -> bytes:
    """A raw SMBIOS table: BIOS information, OEM strings, end of table."""
    bios = struct.pack("<BBH", 0, 24, 0) + bytes(20) + b"vendor\0version\0\0"
    oem = struct.pack("<BBHB", 11, 5, 1, len(strings)) + b"\0".join(strings) + b"\0\0"
    return bios + oem + struct.pack("<BBH", 127, 4, 2) + b"\0\0"


def encoded(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def line(value: str) -> str:
    return f"console=ttyS0 initd.config={value} panic=10\n"


def oem(value: str) -> bytes:
    return dmi(b"something else", b"io.initd.config=" + value.encode())


COMMAND_LINE, DMI = "proc/cmdline", "sys/firmware/dmi/tables/DMI"
FW_CFG = "sys/firmware/qemu_fw_cfg/by_name/opt/io.initd/config/raw"
IMAGE = "usr/share/initd/config.toml"
ALL: list[tuple[str, str, bytes | str]] = [
    (COMMAND_LINE, "kernel command line", line(encoded("a = 1"))),
    (DMI, "SMBIOS OEM string", oem(encoded("a = 2"))),
    (FW_CFG, "QEMU fw_cfg", "a = 3"),
    (IMAGE, "image default", "a = 4"),
]


@pytest.mark.parametrize("first", range(len(ALL)))
def test_the_first_source_that_has_one_wins(tmp_path: Path, first: int) -> None:
    for path, _, data in ALL[first:]:
        put(tmp_path, path, data)
    assert sources.find(str(tmp_path)) == (ALL[first][1], f"a = {first + 1}")


def test_without_any_source_the_built_in_defaults_are_taken(tmp_path: Path) -> None:
    put(tmp_path, COMMAND_LINE, "console=ttyS0\n")
    put(tmp_path, DMI, dmi(b"io.systemd.credential:x=y"))
    found = sources.find(str(tmp_path))
    assert found == ("built-in default", "")
    parse(found.text, found.source)


PACKED = encoded(TEXT)


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        (COMMAND_LINE, line(""), "kernel command line: initd.config: found nothing, expected base64 of"),
        (COMMAND_LINE, line("!"), "kernel command line: initd.config: found no base64"),
        (COMMAND_LINE, line("häh"), "kernel command line: initd.config: found no base64"),
        (COMMAND_LINE, line("aGVsbG8="), "kernel command line: initd.config: found no zlib data"),
        (COMMAND_LINE, line(PACKED[:-8]), "kernel command line: initd.config: found compressed data that is cut off"),
        (
            COMMAND_LINE,
            line(base64.b64encode(zlib.compress(b"\xff\xfe")).decode()),
            "kernel command line: found no UTF-8 at byte 0, expected text",
        ),
        (
            COMMAND_LINE,
            line(base64.b64encode(zlib.compress(b"#" * 10_000_000)).decode()),
            "kernel command line: found more than 262144 bytes, expected at most that",
        ),
        (DMI, oem("%%%"), "SMBIOS OEM string: initd.config: found no base64"),
        (DMI, dmi(b"io.initd.config=\xff\xff"), "SMBIOS OEM string: initd.config: found no base64"),
        (FW_CFG, b"\xff", "QEMU fw_cfg: found no UTF-8 at byte 0, expected text"),
        (FW_CFG, b"a = 1\0", "QEMU fw_cfg: found a NUL at byte 5, expected text"),
        (FW_CFG, b"#" * (256 << 10) + b"#", "QEMU fw_cfg: found more than 262144 bytes, expected at most that"),
        (IMAGE, b"a\xe9", "image default: found no UTF-8 at byte 1, expected text"),
    ],
    ids=str,
)
def test_garbage_is_an_error_that_names_the_source(tmp_path: Path, path: str, data: bytes | str, message: str) -> None:
    put(tmp_path, IMAGE, TEXT)
    put(tmp_path, path, data)
    with pytest.raises(ConfigError) as caught:
        sources.find(str(tmp_path))
    assert str(caught.value).startswith(message)


def test_a_source_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / IMAGE).mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        sources.find(str(tmp_path))
    assert str(caught.value) == "image default: reading /usr/share/initd/config.toml: Is a directory"


def test_a_fifo_in_place_of_a_source_does_not_block(tmp_path: Path) -> None:
    put(tmp_path, COMMAND_LINE, "")
    (tmp_path / FW_CFG).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / FW_CFG)
    assert sources.find(str(tmp_path)).source == "QEMU fw_cfg"


def test_exactly_the_largest_text_is_taken(tmp_path: Path) -> None:
    put(tmp_path, FW_CFG, "#" * sources.MAX_SIZE)
    assert len(sources.find(str(tmp_path)).text) == sources.MAX_SIZE


@given(st.text(max_size=300))
@example(TEXT)
def test_what_is_encoded_is_read_back(text: str) -> None:
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        return
    value = encoded(text)
    assert sources.command_line(f"quiet initd.config={value} panic=10")["initd.config"] == value
    assert sources.decode(value, "x") == text


@given(st.text(max_size=100) | st.binary(max_size=100).map(lambda data: base64.b64encode(data).decode()))
def test_decode_raises_nothing_but_a_config_error(value: str) -> None:
    try:
        sources.decode(value, "x")
    except ConfigError as error:
        assert str(error).startswith("x: ")  # noqa: PT017 -- of random input either may be right


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("  \n", {}),
        ("quiet", {"quiet": ""}),
        ("a=1 a=2", {"a": "2"}),
        ("a=b=c", {"a": "b=c"}),
        ('a="b c" d=e\n', {"a": "b c", "d": "e"}),
        ('"a=b c" d=e', {"a": "b c", "d": "e"}),
        ('a=b" "c', {"a": 'b" "c'}),
        ('a="b c', {"a": "b c"}),
        ("a=1\tb=2", {"a": "1", "b": "2"}),
        ("a=1 -- b=2", {"a": "1"}),
        ("a=--", {"a": "--"}),
    ],
)
def test_the_command_line_is_split_as_the_kernel_does(text: str, expected: dict[str, str]) -> None:
    assert sources.command_line(text) == expected


NAMES = st.text("abcdefghijklmnopqrstuvwxyz._-", min_size=1, max_size=8).filter(lambda name: name != "--")


@given(st.dictionaries(NAMES, st.text("abc=0123456789 \t/+.", max_size=12)))
def test_what_is_put_on_a_command_line_is_read_back(values: dict[str, str]) -> None:
    text = " ".join(f'{name}="{value}"' for name, value in values.items())
    assert sources.command_line(text) == values


@given(st.text(max_size=100))
def test_no_command_line_raises(text: str) -> None:
    for key, value in sources.command_line(text).items():
        assert isinstance(key, str)
        assert isinstance(value, str)


@given(st.binary(max_size=100) | st.integers(0, 60).map(lambda cut: oem("value")[:cut]))
def test_no_smbios_table_raises(table: bytes) -> None:
    assert sources.oem_string(table) in {None, b"value"} or b"io.initd.config=" in table


@pytest.mark.parametrize(
    "text",
    [
        "[disks.var]\nsize = '2Gi'",
        "  [ disks . var ]",
        "[disks]",
        "disks.var.size = '2Gi'",
        "disks = { var = { size = '2Gi' } }",
        '["disks"]',
        "['containerd']",
        '"containerd".log_level = "info"',
        '[ "d\\u0069sks" ]',
        "[node]\nname = 'x'\n\n[containerd]\nlog_level = 'info'",
        "[node]\r\n[containerd]\r\n",
    ],
)
def test_containerd_waits_where_disks_or_containerd_may_be_configured(text: str) -> None:
    assert sources.wants_early_var(text)


@pytest.mark.parametrize(
    "text", ["", TEXT, "[kubelet]\nverbosity = 2", "# disks are fine", "[node]\nname = 'containerd'"]
)
def test_containerd_does_not_wait_otherwise(text: str) -> None:
    assert not sources.wants_early_var(text)


QUOTES = st.sampled_from(["{}", '"{}"', "'{}'"])
SPACE = st.sampled_from(["", " ", "\t", "  "])


@given(
    st.sampled_from(["disks", "containerd"]), QUOTES, SPACE, SPACE, st.sampled_from(["[{}]", "{} = {{}}", "{}.x = 1"])
)
def test_no_way_to_write_such_a_table_is_overlooked(key: str, quotes: str, before: str, inside: str, form: str) -> None:
    text = "[node]\n" * form.startswith("[") + before + form.format(inside + quotes.format(key) + inside)
    assert sources.wants_early_var(text)
