"""README.md holds what is true: made chapters as the code is, commands, links, paths and examples that exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from typing import TYPE_CHECKING

import pytest
import yaml

import qemu.__main__
from initd.client import initctl
from initd.config.schema import parse
from tests import readme

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = readme.README.parent
TEXT = readme.README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
STARTS = ("make ", "initctl ", "python -m ")
FEWEST = 30  # commands that are there for sure, so that the tests below cannot pass by seeing none


def commands() -> list[str]:
    """Every command that the README names, without its prompt and the venv it comes from."""
    lines = [line[2:] for kind, block in BLOCKS if kind == "console" for line in block.splitlines() if line[:2] == "$ "]
    lines += re.findall(r"^    (make [\w-]+)$", PROSE, re.MULTILINE)
    lines += SPANS
    plain = [line.partition(" | ")[0].removeprefix(".venv/bin/") for line in lines]
    return sorted({line for line in plain if line.startswith(STARTS)})


def check_make(words: list[str]) -> None:
    """Raise ValueError unless make has the target, and, for `make boot`, its ARGS are options that there are."""
    targets = [word for word in words if "=" not in word]
    unknown = set(targets) - TARGETS
    if unknown or not targets:
        raise ValueError(f"make has no target {', '.join(unknown)}")
    extra = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    if targets == ["boot"] and extra:
        qemu.__main__._parser().parse_args(["boot", *shlex.split(extra[0])])


def check_initctl(words: list[str]) -> None:
    """End as argparse does unless initctl takes these words. `[...]` marks what may be left out, N a number."""
    given = ["1" if word.strip("[]") == "N" else word.strip("[]") for word in words]
    initctl._parser().parse_args([word for word in given if word != "..."])


def check_python(words: list[str]) -> None:
    """Raise ValueError unless `python -m` finds the module, and the harness takes its arguments."""
    if words[0] == "qemu" and len(words) > 1 and words[1] != "...":
        qemu.__main__._parser().parse_args(words[1:])
    elif importlib.util.find_spec(words[0]) is None:
        raise ValueError(f"there is no module {words[0]}")


CHECKS: dict[str, Callable[[list[str]], None]] = {"make": check_make, "initctl": check_initctl}


@pytest.mark.parametrize("name", readme.SECTIONS)
def test_made_chapter_is_as_the_code_is(name: str) -> None:
    made = TEXT.partition(f"<!-- made: {name} -->\n")[2].partition(f"<!-- /made: {name} -->")[0]
    assert made.strip() == readme.SECTIONS[name]().strip(), (
        f"{name} is out of date; run: .venv/bin/python -m tests.readme"
    )


def test_render_refuses_a_readme_without_a_place_for_each_chapter() -> None:
    with pytest.raises(ValueError, match="found places for"):
        readme.render(TEXT.replace("<!-- made: api -->", ""))


@pytest.mark.parametrize("command", commands())
def test_command_exists(command: str) -> None:
    first, *words = shlex.split(command)
    try:
        if first == "python":
            check_python(words[1:])
        else:
            CHECKS[first](words)
    except (SystemExit, ValueError) as error:
        pytest.fail(f"README.md names `{command}`: {error}")


def test_commands_are_seen_and_wrong_ones_refused() -> None:
    assert len(commands()) >= FEWEST
    with pytest.raises(ValueError, match="no target nothing"):
        check_make(["nothing"])
    with pytest.raises(SystemExit):
        check_initctl(["nothing"])


def anchors() -> set[str]:
    """The anchors that GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert len(targets) >= 10
    inside = [target for target in targets if not target.startswith("https://")]
    assert [t for t in inside if (t[1:] not in anchors() if t.startswith("#") else not (ROOT / t).exists())] == []


def test_paths_exist() -> None:
    paths = {span for span in SPANS if re.fullmatch(r"(initd|native|qemu|rootfs|tests)/[\w./]*", span)}
    assert len(paths) >= 20
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_examples_are_read_by_what_they_are_for() -> None:
    kinds = {kind for kind, _ in BLOCKS}
    assert {"toml", "python", "console"} <= kinds <= {"toml", "python", "console", "json", "yaml"}
    for kind, block in BLOCKS:
        if kind == "toml":
            parse(block, "README.md")
        elif kind == "python":
            ast.parse(block)
        elif kind == "yaml":
            assert all(document["kind"] for document in yaml.safe_load_all(block))
