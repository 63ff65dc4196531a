"""Compiles everything in this folder; needs a C compiler and, for the extension, cffi.

    build.py [extension] --output DIR    initd._native for the Python that runs this script
    build.py entry --output FILE         /sbin/init: this Python, embedded (needs its static library)
    build.py program NAME --output FILE  a static program: stage1, rescue, pause, web, probe
    build.py images --output DIR         OCI archives of the pod programs

Outputs appear whole or not at all (written beside their name, then renamed) and equal inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c17", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", f"-ffile-prefix-map={HERE}=native")
STRIP = ("-s", "-Wl,--gc-sections", "-Wl,-z,relro,-z,now")
EXTENSION_SOURCES = ("initd.c", "spawn.c", "survive.c", "libraries.c")
IMAGES = ("pause", "web", "probe")
PROGRAMS = ("stage1", "rescue", *IMAGES)

# libc's own calls, as Python calls them.
LIBC = """
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
int reboot(int command);
int setns(int fd, int kind);
int unshare(int flags);
"""
# The compiler gives their values: numbers copied by hand go wrong unseen.
CONSTANTS = """
MS_RDONLY MS_NOSUID MS_NODEV MS_NOEXEC MS_SYNCHRONOUS MS_REMOUNT MS_DIRSYNC MS_BIND MS_MOVE MS_REC MS_PRIVATE MS_SHARED
MNT_DETACH UMOUNT_NOFOLLOW RB_AUTOBOOT RB_POWER_OFF RB_DISABLE_CAD
RESOLVE_NO_XDEV RESOLVE_NO_MAGICLINKS RESOLVE_NO_SYMLINKS RESOLVE_BENEATH
CLONE_NEWNS CLONE_NEWPID CLONE_NEWNET CLONE_NEWUTS CLONE_NEWIPC PR_SET_PDEATHSIG PR_SET_NO_NEW_PRIVS
"""
HEADERS = """
#include "initd.h"
#include <linux/openat2.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <unistd.h>
"""


def run(*command: str | Path) -> None:
    """Run a compiler; its own messages say what is wrong, so a failure only ends this script."""
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        sys.exit(f"build.py: {command[0]} is not installed (Debian: apt install gcc libc6-dev)")
    except subprocess.CalledProcessError as error:
        sys.exit(f"build.py: {command[0]} failed with status {error.returncode}")


def compile_to(output: Path, *arguments: str | Path) -> None:
    """Compile into a temporary file in the output's folder and rename it, so that no half-written file is ever used."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as scratch:
        result = Path(scratch, output.name)
        run("gcc", *FLAGS, *arguments, "-o", result)
        result.rename(output)


def declarations() -> str:
    """What cffi is told: our header without its preprocessor lines, libc's calls and the constants."""
    header = (HERE / "initd.h").read_text()
    plain = "\n".join(line for line in header.splitlines() if not line.startswith("#"))
    return plain + LIBC + "".join(f"#define {name} ...\n" for name in CONSTANTS.split())


def python_headers() -> tuple[str, ...]:
    """Where the running Python keeps them."""
    return tuple(f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude"))


def extension(directory: Path) -> Path:
    """Build initd._native for the running Python. cffi's own compile() would need setuptools, which 3.12 dropped."""
    try:
        from cffi import FFI  # noqa: PLC0415 - the other commands work without cffi
    except ImportError:
        sys.exit(f"build.py: {sys.executable} has no cffi (pip install cffi, or Debian: apt install python3-cffi)")
    builder = FFI()
    builder.cdef(declarations())
    builder.set_source("initd._native", HEADERS)
    output = directory / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    with tempfile.TemporaryDirectory() as scratch:
        generated = Path(scratch, "_native.c")
        with contextlib.redirect_stdout(io.StringIO()):  # it says where its temporary file is
            builder.emit_c_code(str(generated))
        sources = [HERE / name for name in EXTENSION_SOURCES]
        flags = ("-shared", "-fPIC", f"-I{HERE}", f"-ffile-prefix-map={scratch}=native", *python_headers())
        compile_to(output, *flags, generated, *sources, *STRIP)
    return output


def entry(output: Path) -> None:
    """Build /sbin/init. The whole static library goes in: extension modules use parts that the interpreter does not.

    Debian compiles that library for a fixed address, as its own python3, which also spares PID 1 the relocations.
    """
    library = Path(sysconfig.get_config_var("LIBPL"), f"libpython{sysconfig.get_config_var('LDVERSION')}.a")
    if not library.exists():
        sys.exit(f"build.py: {library} is missing (Debian: apt install libpython3-dev)")
    whole = ("-Wl,--whole-archive", library, "-Wl,--no-whole-archive")
    needs = " ".join(sysconfig.get_config_var(name) or "" for name in ("MODLIBS", "LIBS", "SYSLIBS")).split()
    others = [flag for flag in dict.fromkeys(needs) if flag.startswith("-l")]
    flags = ("-fno-pie", "-no-pie", "-rdynamic", *python_headers())
    compile_to(output, *flags, HERE / "entry.c", HERE / "sha2.c", *whole, *others, *STRIP)


def program(name: str, output: Path) -> None:
    """Build one static program."""
    compile_to(output, "-static", "-ffunction-sections", "-fdata-sections", HERE / f"{name}.c", *STRIP)


def images(directory: Path) -> None:
    """Build the archives of the pod programs; see oci.py."""
    from oci import File, Image, write  # type: ignore[import-not-found]  # noqa: PLC0415 - a neighbour, found by path

    with tempfile.TemporaryDirectory() as scratch:
        for name in IMAGES:
            binary = Path(scratch, name)
            program(name, binary)
            image = Image(f"initd.local/{name}:1", {f"/{name}": File(binary, 0o755)}, (f"/{name}",))
            write(directory / f"{name}.tar", image)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder, or for entry and program the file")
    parser.add_argument("what", nargs="?", default="extension", choices=("extension", "entry", "program", "images"))
    parser.add_argument("name", nargs="?", choices=PROGRAMS, help="which program")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    if (arguments.what == "program") != (arguments.name is not None):
        parser.error(f"'program' takes one of {', '.join(PROGRAMS)}; the others take no name")
    match arguments.what:
        case "extension":
            extension(output)
        case "entry":
            entry(output)
        case "program":
            program(arguments.name, output)
        case "images":
            images(output)


if __name__ == "__main__":
    main()
