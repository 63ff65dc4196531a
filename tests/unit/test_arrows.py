"""The arrows between the rooms of initd, read from the source: who may import whom, and what PID 1 never loads."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKERS = ("network", "devices", "containers", "cluster")
# What is shared between processes: types and messages, without PID 1's state.
SHARED = tuple(f"initd.{name}" for name in ["api.protocol", "api.types", "bpf", "config", "files", "native", "worker"])
NEVER_IN_PID1 = frozenset(
    ("ctypes", "google", "grpclib", "multiprocessing", "pyroute2", "pyudev", "ssl", "subprocess", "threading")
)
# Each costs milliseconds natively and tenths of a second on an emulated machine, before containerd is started.
NEVER_BEFORE_CONTAINERD = NEVER_IN_PID1 | {
    "argparse",
    "asyncio",
    "base64",
    "dataclasses",
    "inspect",
    "ipaddress",
    "json",
}
NEVER_BEFORE_CONTAINERD |= {
    "logging",
    "msgpack",
    "msgspec",
    "pathlib",
    "random",
    "socket",
    "structlog",
    "tomllib",
    "zlib",
}


def path_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def modules() -> list[str]:
    paths = (path.relative_to(ROOT) for path in sorted((ROOT / "initd").rglob("*.py")))
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]


def statements(node: ast.AST, *, late: bool) -> list[ast.stmt]:
    """The imports below node; with late also those in functions. `if TYPE_CHECKING` is for type checkers only."""
    found: list[ast.stmt] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append(child)
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for branch in child.orelse:
                found += statements(branch, late=late)
        elif late or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += statements(child, late=late)
    return found


@cache
def imports(module: str, *, late: bool) -> frozenset[str]:
    """Modules that a module of initd imports, as full names; late: also inside functions."""
    path = path_of(module)
    assert path is not None, module
    names: set[str] = set()
    for statement in statements(ast.parse(path.read_text()), late=late):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module} has a relative import"
            base = statement.module or ""
            # `from initd import log` names a module, `from initd.log import info` a function.
            names |= {f"{base}.{alias.name}" if path_of(f"{base}.{alias.name}") else base for alias in statement.names}
    return frozenset(names)


def closure(start: str, *, late: bool) -> dict[str, str]:
    """Everything that start imports through modules of initd: name -> the module that imports it first."""
    found = {start: start}
    queue = [start]
    while queue:
        module = queue.pop()
        for name in imports(module, late=late):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):  # importing a.b imports a too
                parent = ".".join(parts[:end])
                if parent not in found:
                    found[parent] = module
                    if path_of(parent):
                        queue.append(parent)
    return found


def below(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def initd_imports(module: str) -> list[str]:
    return sorted(name for name in imports(module, late=True) if below(name, "initd") and name != "initd")


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_imports_its_own_package_and_what_is_shared(worker: str) -> None:
    own = f"initd.{worker}"
    inside = [module for module in modules() if below(module, own)]
    assert inside
    wrong = [(m, n) for m in inside for n in initd_imports(m) if not below(n, own, *SHARED, "initd._native")]
    assert wrong == []


def test_nothing_imports_a_worker() -> None:
    packages = [f"initd.{worker}" for worker in WORKERS]
    outside = [module for module in modules() if not below(module, *packages)]
    assert [(m, n) for m in outside for n in initd_imports(m) if below(n, *packages)] == []


def test_the_client_imports_only_its_own_package_and_the_messages() -> None:
    inside = [module for module in modules() if below(module, "initd.client")]
    allowed = ("initd.client", "initd.api.protocol", "initd.api.types")
    assert inside
    assert [(m, n) for m in inside for n in initd_imports(m) if not below(n, *allowed)] == []


def test_nothing_of_pid1_imports_the_client() -> None:
    outside = [module for module in modules() if not below(module, "initd.client")]
    assert [(m, n) for m in outside for n in initd_imports(m) if below(n, "initd.client")] == []


@pytest.mark.parametrize("room", ["supervise", "config", "api", "native"])
def test_rooms_below_the_boot_do_not_import_it(room: str) -> None:
    inside = [module for module in modules() if below(module, f"initd.{room}")]
    assert inside
    assert [(m, n) for m in inside for n in initd_imports(m) if below(n, "initd.init", "initd.boot")] == []


@pytest.mark.parametrize("room", ["supervise", "api"])
def test_the_configuration_is_read_by_others_and_reads_none_of_them(room: str) -> None:
    inside = [module for module in modules() if below(module, "initd.config")]
    assert [(m, n) for m in inside for n in initd_imports(m) if below(n, f"initd.{room}")] == []


def test_native_imports_nothing_of_initd_but_the_extension() -> None:
    assert [name for name in initd_imports("initd.native") if name != "initd._native"] == []


def test_pid1_never_imports_what_belongs_into_a_worker() -> None:
    found = closure("initd.init", late=True)
    assert {name: found[name] for name in found if below(name, *NEVER_IN_PID1)} == {}


def test_nothing_heavy_is_imported_before_containerd() -> None:
    found = closure("initd.init", late=False)
    assert {name: found[name] for name in found if below(name, *NEVER_BEFORE_CONTAINERD)} == {}


def test_the_walk_sees_late_imports_apart_from_early_ones() -> None:
    """So that the tests above cannot pass by seeing nothing."""
    early, late = closure("initd.init", late=False), closure("initd.init", late=True)
    assert {"initd.boot", "initd.services", "initd.config.sources", "enum"} <= early.keys()
    assert {"asyncio", "initd.config.schema", "msgspec", "tomllib"} <= late.keys() - early.keys()


def test_the_package_can_be_read_in_an_afternoon() -> None:
    """Ten thousand lines at most, docstrings and comments included; only the blank ones do not count."""
    texts = [path.read_text() for path in (ROOT / "initd").rglob("*.py")]
    assert 5_000 < sum(bool(line.strip()) for text in texts for line in text.splitlines()) <= 10_000
