"""Linters are tests: ruff, mypy --strict, codespell, and C without a warning."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-m")
WARNINGS = ("-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2", "-fsyntax-only")
SOURCES = sorted(path.relative_to(ROOT) for folder in ("native", "tests") for path in (ROOT / folder).rglob("*.c"))


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        pytest.fail((done.stdout + done.stderr)[-8000:], pytrace=False)


def test_ruff_check() -> None:
    run(*PYTHON, "ruff", "check", "--output-format=concise", ".")


def test_ruff_format() -> None:
    run(*PYTHON, "ruff", "format", "--check", ".")


def test_mypy_strict() -> None:
    run(*PYTHON, "mypy")


def test_codespell() -> None:
    run(*PYTHON, "codespell_lib")


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_c_has_no_warnings(source: Path) -> None:
    run("gcc", *WARNINGS, f"-I{sysconfig.get_path('include')}", f"-I{ROOT / 'native'}", source)
