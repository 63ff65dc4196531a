"""`make bench`: initd against a bare C init, at rest and under a flood of orphans, measured on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qemu.errors import HarnessError
from qemu.image import Bootable, built
from tests.bench import api, cluster, orphans, report, rest
from tests.bench.boots import CONTENDERS, Bench
from tests.bench.parse import partition_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

_BEGUN = time.monotonic()


def say(text: str) -> None:
    """Tell how far the run is; the results alone go to standard output."""
    minutes, seconds = divmod(int(time.monotonic() - _BEGUN), 60)
    print(f"[{minutes:2d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", metavar="N", type=int, default=5, help="boots of each init (5)")
    parser.add_argument(
        "--rest", metavar="S", type=float, default=120.0, help="seconds to watch the node at rest (120)"
    )
    parser.add_argument("--output", choices=("table", "json"), default="table", help="tables, or one object")
    options = parser.parse_args(argv)
    if options.runs < 1 or options.rest <= 0:
        parser.error(f"--runs {options.runs} --rest {options.rest:g}: expected at least one run and some rest")
    return options


def boots(bench: Bench, count: int) -> report.Runs:
    """Boot all contenders in turn, count times: what else the machine does then falls on all of them alike."""
    runs: report.Runs = {name: [] for name in CONTENDERS}
    for number in range(1, count + 1):
        for name in CONTENDERS:
            boot = bench.boot(name)
            runs[name].append(boot)
            marks = ", ".join(f"{mark} {seconds:.2f} s" for mark, seconds in boot.marks.items())
            say(f"boot {number} of {count}, {name}: {marks}")
    return runs


def sizes(image: Bootable) -> dict[str, int]:
    """Bytes of what a boot reads."""
    files = {"disk": image.disk, "kernel": image.kernel, "initramfs": image.initramfs}
    found = {name: path.stat().st_size for name, path in files.items() if path is not None}
    if image.disk is not None:
        with image.disk.open("rb") as disk:
            found["erofs"] = partition_bytes(disk.read(1 << 16))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    try:
        image = built()
        with tempfile.TemporaryDirectory(prefix="initd-bench-") as name:
            folder = Path(name)
            say("API round trips on this host")
            trips = api.round_trips(folder)
            say(f"orphans on this host, for {orphans.SECONDS} s")
            flood = orphans.measure(folder)
            say("first boot, not counted")
            bench = Bench(image, folder)
            runs = boots(bench, options.runs)
        say("node at rest: booting with the probe")
        resting = rest.measure(image, options.rest, say)
        joined = cluster.measure(image, options.rest, say)
    except HarnessError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    rows = [
        *report.boot_rows(runs),
        *report.rest_rows(resting),
        *report.cluster_rows(joined),
        *report.api_rows(trips),
        *report.orphan_rows(flood),
        *report.size_rows(sizes(image)),
    ]
    if options.output == "json":
        every = {name: [dict(boot.marks) for boot in boots] for name, boots in runs.items()}
        found = {"accelerator": bench.accelerator, "runs": every, "medians": report.medians(runs)}
        print(json.dumps({**found, "rest_seconds": resting.seconds, "rows": [row._asdict() for row in rows]}, indent=1))
        return 0
    head = (
        f"{bench.accelerator}, 2 CPUs; median of {options.runs} (fastest-slowest); at rest for {resting.seconds:.0f} s"
    )
    phases = report.phase_table(runs[report.STATIC])
    print(head, report.boot_table(runs), report.bound_table(rows), phases, sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
