"""The C programs of this folder, which go into no image: compiled when they are needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from qemu.errors import HarnessError

_COMPILE = ("gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s")


def compiled(name: str, folder: Path) -> Path:
    """Compile NAME.c into a static program in `folder`; returns its path. Raises HarnessError."""
    source, program = Path(__file__).with_name(f"{name}.c"), folder / f"bench-{name}"
    try:
        subprocess.run((*_COMPILE, source, "-o", program), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HarnessError(
            f"{source.name} was not compiled: {error}", "install a compiler: apt-get install gcc libc6-dev"
        ) from error
    return program
