"""Where the configuration comes from: the first source that has one wins.

It runs in PID 1 before containerd's exec, so it imports nothing that takes time, and reads TOML only as text.
A source that holds garbage is an error and not skipped: the next one would boot a node that nobody asked for.
"""

import os
from typing import NamedTuple

COMMAND_LINE = "kernel command line"
SMBIOS = "SMBIOS OEM string"
FW_CFG = "QEMU fw_cfg"
IMAGE = "image default"
BUILT_IN = "built-in default"

MAX_SIZE = 256 << 10
_KEY = "initd.config"
_OEM_PREFIX = b"io.initd.config="
_FW_CFG_FILE = "sys/firmware/qemu_fw_cfg/by_name/opt/io.initd/config/raw"
_DMI_TABLE = "sys/firmware/dmi/tables/DMI"
_IMAGE_FILE = "usr/share/initd/config.toml"
_OEM_STRINGS, _END_OF_TABLE = 11, 127
_EARLY = ("disks", "containerd")


class ConfigError(Exception):
    """A configuration that cannot be used: str() is one line with source, key, what was found and what was expected.

    key is the dotted path ("network.interfaces[0].mtu"), or "" where the trouble is with the whole text.
    """

    def __init__(self, source: str, problem: str, key: str = "") -> None:
        super().__init__(": ".join(part for part in (source, key, problem) if part))
        self.source = source
        self.key = key
        self.problem = problem


class Found(NamedTuple):
    """A configuration's text and the name of the source that gave it, as the API says it."""

    source: str
    text: str


def find(root: str = "/") -> Found:
    """Return the first source's text; built-in defaults (an empty text) if there is none. Raises ConfigError."""
    line = _read(root, "proc/cmdline", COMMAND_LINE)
    values = command_line((line or b"").decode(errors="replace"))
    if _KEY in values:
        return Found(COMMAND_LINE, decode(values[_KEY], COMMAND_LINE))
    oem = oem_string(_read(root, _DMI_TABLE, SMBIOS) or b"")
    if oem is not None:
        return Found(SMBIOS, decode(oem.decode("latin-1"), SMBIOS))
    for source, path in ((FW_CFG, _FW_CFG_FILE), (IMAGE, _IMAGE_FILE)):
        data = _read(root, path, source)
        if data is not None:
            return Found(source, _text(data, source))
    return Found(BUILT_IN, "")


def command_line(text: str) -> dict[str, str]:
    """Split a kernel command line as the kernel does (lib/cmdline.c, next_arg); of two equal keys the last wins.

    Double quotes keep spaces together, and are taken off only around a whole value or a whole argument. What follows a
    lone "--" is not the kernel's but init's. A key without "=" has the value "".
    """
    values: dict[str, str] = {}
    start, quoted = 0, False
    for index, character in enumerate(text + " "):
        if character == '"':
            quoted = not quoted
        elif (character.isspace() and not quoted) or index == len(text):
            if text[start:index] == "--":
                break
            if start < index:
                key, _, value = _unquoted(text[start:index]).partition("=")
                values[key] = _unquoted(value)
            start = index + 1
    return values


def _unquoted(text: str) -> str:
    return text[1:].removesuffix('"') if text.startswith('"') else text


def decode(value: str, source: str) -> str:
    """The TOML text in base64 of zlib that came from source; raises ConfigError that names the step which failed."""
    import binascii  # noqa: PLC0415 -- see the module's docstring
    import zlib  # noqa: PLC0415

    if not value:
        raise ConfigError(source, "found nothing, expected base64 of zlib-compressed TOML", _KEY)
    unpacker, found = zlib.decompressobj(), "base64"
    try:
        packed = binascii.a2b_base64(value.encode(), strict_mode=True)
        found = "zlib data"
        data = unpacker.decompress(packed, MAX_SIZE + 1)  # bounded: a small string can unpack to gigabytes
    except (ValueError, zlib.error) as error:  # binascii.Error is a ValueError
        problem = f"found no {found} ({error}), expected base64 of zlib-compressed TOML"
        raise ConfigError(source, problem, _KEY) from None
    if not unpacker.eof and len(data) <= MAX_SIZE:
        raise ConfigError(source, "found compressed data that is cut off; is the line too long?", _KEY)
    return _text(data, source)


def oem_string(table: bytes) -> bytes | None:
    """Return what follows io.initd.config= in a raw SMBIOS table (DMTF DSP0134, 6.1.3 and 7.12), or None.

    The table of /sys/firmware/dmi/tables is read and not .../dmi/entries, which a module has to make first. A malformed
    table ends the search without an error: firmware makes them, and such a machine must boot all the same.
    """
    position = 0
    while position + 4 <= len(table):
        kind, length = table[position], table[position + 1]
        end = table.find(b"\0\0", position + length)
        if length < 4 or kind == _END_OF_TABLE or end < 0:
            break
        if kind == _OEM_STRINGS:
            for string in table[position + length : end].split(b"\0"):
                if string.startswith(_OEM_PREFIX):
                    return string[len(_OEM_PREFIX) :]
        position = end + 2
    return None


def wants_early_var(text: str) -> bool:
    """Whether containerd must wait for /var or its own configuration: a [disks] or [containerd] table may be there.

    Without a TOML parser, and so that it errs on one side only: a needless wait costs time, an overlooked table would
    start containerd on the wrong /var. Every top-level key starts its line, and an escape may hide its name.
    """
    for line in text.splitlines():
        key = line.lstrip(" \t[")
        if key.lstrip("\"'").startswith(_EARLY) or (key.startswith('"') and "\\" in key):
            return True
    return False


def _read(root: str, path: str, source: str) -> bytes | None:
    """At most MAX_SIZE + 1 bytes of a file; None if it is not there."""
    try:
        with open(f"{root}/{path}", "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(MAX_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(source, f"reading /{path}: {error.strerror}") from None


def _text(data: bytes, source: str) -> str:
    if len(data) > MAX_SIZE:
        raise ConfigError(source, f"found more than {MAX_SIZE} bytes, expected at most that")
    if b"\0" in data:
        raise ConfigError(source, f"found a NUL at byte {data.index(0)}, expected text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(source, f"found no UTF-8 at byte {error.start}, expected text") from None
