"""What was measured, against the bounds that the design sets. No I/O."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.boots import CONFIGS, CONTENDERS, MARKS
from tests.bench.parse import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.boots import Boot
    from tests.bench.cluster import Joined
    from tests.bench.orphans import Flood
    from tests.bench.rest import Rest

MB = 1_000_000
PARALLEL, SEQUENTIAL = CONTENDERS[:2]
STATIC, DHCP = CONFIGS
POD_RATIO = 1.05  # of the parallel C init
EXEC_SECONDS = 0.150  # more than it
MEMORY_MB, WAKEUPS, KUBELET_MS, IMAGE_MB = 28, 12, 50, 120
P99_MS = 2
ORPHANS, ZOMBIE_MS, FLOOD_P99_MS = 10, 1000, 50  # thousands a second; of age; of a call
BACK_MS = 200  # the first delay before a start is 100 ms, and the flood may add as much
_TITLES = {"containerd": "containerd's exec", "kubelet": "the kubelet's exec", "pod": "the pod Running"}

Runs = dict[str, list["Boot"]]


class Row(NamedTuple):
    """One measured number; `ok` is None where the design sets no bound, which is then empty."""

    what: str
    value: float
    unit: str
    bound: str = ""
    ok: bool | None = None

    def cells(self) -> tuple[str, ...]:
        wrong = "under" if self.bound.startswith("at least") else "over"
        return self.what, f"{self.value:.4g} {self.unit}", self.bound, {None: "", True: "ok", False: wrong}[self.ok]


def at_most(what: str, value: float, bound: float, unit: str) -> Row:
    return Row(what, value, unit, f"at most {bound:g} {unit}", ok=value <= bound)


def at_least(what: str, value: float, bound: float, unit: str) -> Row:
    return Row(what, value, unit, f"at least {bound:g} {unit}", ok=value >= bound)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join((row[0].ljust(widths[0]), *rest)).rstrip()

    return "\n".join(map(line, (header, *rows)))


def medians(runs: Runs) -> dict[str, dict[str, float]]:
    """Seconds by contender and mark."""
    return {name: {mark: median(boot.marks[mark] for boot in boots) for mark in MARKS} for name, boots in runs.items()}


def boot_table(runs: Runs) -> str:
    """The medians of each contender, and the fastest and slowest run of each."""
    middle = medians(runs)

    def cell(name: str, mark: str) -> str:
        seconds = [boot.marks[mark] for boot in runs[name]]
        return f"{middle[name][mark]:.2f} ({min(seconds):.2f}-{max(seconds):.2f})"

    return table(
        ("seconds from PID 1's exec to", *runs),
        [(_TITLES[mark], *(cell(name, mark) for name in runs)) for mark in MARKS],
    )


def boot_rows(runs: Runs) -> list[Row]:
    """initd against the C init: differences, and for the pod the ratio."""
    middle = medians(runs)
    rows = []
    for name in CONFIGS:
        for mark in ("containerd", "kubelet"):
            what = f"{_TITLES[mark]}: {name} - {PARALLEL}"
            more = round(middle[name][mark] - middle[PARALLEL][mark], 3)
            bounded = name == STATIC or mark == "containerd"  # a lease takes what its server takes
            rows.append(at_most(what, more, EXEC_SECONDS, "s") if bounded else Row(what, more, "s"))
    for name in CONFIGS:
        pod = middle[name]["pod"]
        what = f"{_TITLES['pod']}: {name} / "
        ratio = round(pod / middle[PARALLEL]["pod"], 3)
        bounded = name == STATIC
        rows.append(
            at_most(what + PARALLEL, ratio, POD_RATIO, "times") if bounded else Row(what + PARALLEL, ratio, "times")
        )
        ratio = round(pod / middle[SEQUENTIAL]["pod"], 3)
        rows.append(Row(what + SEQUENTIAL, ratio, "times", *(("less than 1 times", ratio < 1) if bounded else ())))
    return rows


def rest_rows(rest: Rest) -> list[Row]:
    """Memory, CPU and wake-ups at rest, of each process and of all; the kubelet's return."""
    minutes = rest.seconds / 60
    wakeups = {name: used.wakeups / minutes for name, used in rest.used.items()}
    rows = [Row(f"memory (PSS), mean: {name}", size / MB, "MB") for name, size in rest.memory.items()]
    rows.append(at_most("memory (PSS), mean: all", sum(rest.memory.values()) / MB, MEMORY_MB, "MB"))
    rows += [Row(f"CPU: {name}", used.cpu_seconds * 1000 / minutes, "ms/min") for name, used in rest.used.items()]
    rows += [Row(f"wake-ups: {name}", count, "/min") for name, count in wakeups.items()]
    rows.append(at_most("wake-ups: all", sum(wakeups.values()), WAKEUPS, "/min"))
    rows += [Row(f"preempted: {name}", used.preemptions / minutes, "/min") for name, used in rest.used.items()]
    rows.append(at_most("killed kubelet: exit to exec", rest.kubelet_back, KUBELET_MS, "ms"))
    return rows


def cluster_rows(joined: Joined) -> list[Row]:
    """From power-on to work in a cluster; then what everything that is no pod takes."""
    rows = [
        Row("power-on to Ready in a cluster", joined.ready, "s"),
        Row("power-on to the first scheduled pod Running", joined.running, "s"),
    ]
    rows += [Row(f"in a cluster, at rest: CPU of {name}", use, "ms/s") for name, use in joined.cpu.items()]
    return rows + [
        Row(f"in a cluster, at rest: memory of {name}", size / MB, "MB") for name, size in joined.memory.items()
    ]


def api_rows(milliseconds: list[float]) -> list[Row]:
    return [
        Row("API round trip on this host, p50", percentile(milliseconds, 0.5), "ms"),
        at_most("API round trip on this host, p99", percentile(milliseconds, 0.99), P99_MS, "ms"),
    ]


def orphan_rows(flood: Flood) -> list[Row]:
    """What a flood of orphans did to PID 1."""
    return [
        at_least("orphans made on this host", flood.rate / 1000, ORPHANS, "thousand/s"),
        at_most("with them: oldest zombie", flood.oldest, ZOMBIE_MS, "ms"),
        at_most("with them: API round trip, p99", percentile(flood.calls, 0.99), FLOOD_P99_MS, "ms"),
        at_most("with them: killed service, SIGKILL to exec", flood.back, BACK_MS, "ms"),
        at_most("with them: left a second later", flood.left, 0, "zombies"),
    ]


def size_rows(sizes: Mapping[str, int]) -> list[Row]:
    """Sizes of what a boot reads; `erofs` is in `disk` and does not count twice."""
    rows = [Row(f"size: {name}", size / MB, "MB") for name, size in sizes.items()]
    whole = sum(size for name, size in sizes.items() if name != "erofs")
    return [*rows, at_most("size: disk, kernel and initramfs", whole / MB, IMAGE_MB, "MB")]


def bound_table(rows: Sequence[Row]) -> str:
    return table(("measured", "value", "bound", ""), [row.cells() for row in rows])


def phase_table(boots: Sequence[Boot]) -> str:
    """Where the time goes: medians of when each phase began, in seconds since exec, and of what it took."""
    found: dict[str, list[dict[str, Any]]] = {}
    for boot in boots:
        for phase in boot.phases:
            found.setdefault(phase["name"], []).append(phase)
    rows: list[tuple[float, tuple[str, ...]]] = []
    for name, entries in found.items():
        start, took = (median(entry[key] for entry in entries) for key in ("start", "milliseconds"))
        waited = next((entry["waited_for"] for entry in entries if entry["waited_for"]), "")
        rows.append((start, (name, f"{start:.3f}", f"{took:.0f}", waited)))
    return table(("phase of initd, static", "begins, s", "takes, ms", "waits for"), [row for _, row in sorted(rows)])
