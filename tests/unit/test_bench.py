"""The bench's arithmetic, and that the C init which it measures against takes the steps that initd takes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd import mounts, sysctl
from tests.bench import parse, report
from tests.bench.boots import CONTENDERS, Boot
from tests.bench.orphans import Flood
from tests.bench.rest import Rest

C_INIT = (Path(__file__).parents[1] / "bench" / "init.c").read_text(encoding="utf-8")
BY_STAGE_1 = {"/proc", "/sys", "/dev"}
NOT_IN_THE_MACHINE = {"/sys/firmware/efi/efivars"}
OF_INITD_ALONE = {"/var/log/initd"}


def test_c_init_mounts_what_initd_mounts() -> None:
    rows = re.findall(r'\{"(/[^"]*)", "(\w+)", \w', C_INIT)
    wanted = {(row.target, row.type) for row in (*mounts.TABLE, *mounts.after_var())}
    assert set(rows) == {row for row in wanted if row[0] not in BY_STAGE_1 | NOT_IN_THE_MACHINE | OF_INITD_ALONE}


def test_c_init_sets_the_parameters_that_initd_sets() -> None:
    rows = re.findall(r'\{"([a-z0-9_]+/[a-z0-9_/]+)", "(\w+)"\}', C_INIT)
    assert [(name.replace("/", "."), value) for name, value in rows] == list(sysctl.TABLE)


def test_start_time_of_a_process_whose_name_looks_like_fields() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert parse.start_time(f"1 (web) S 1 (x) S {fields}") == pytest.approx(0.22)


def test_memory_total() -> None:
    assert parse.memory_total("MemTotal:        2014236 kB\nMemFree: 1 kB\n") == 2014236 * 1024
    with pytest.raises(ValueError, match="MemTotal"):
        parse.memory_total("nothing")


def test_use_of_a_thread_and_since() -> None:
    status = "Name:\tinit\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t30\n"
    used = parse.use(status, "2500000000 17 180\n")
    assert used == parse.Use(2.5, 150, 30)
    assert used.since(parse.Use(2.0, 100, 30)) == parse.Use(0.5, 50, 0)


def test_console_marks_are_whole_lines() -> None:
    console = "[    1.0] x\r\nbench: exec 2.100000\r\nbench: kubelet 2.4"
    assert parse.console_marks(console) == {"exec": 2.1}
    assert parse.console_marks(console + "00000\r\n") == {"exec": 2.1, "kubelet": 2.4}


def test_partition_bytes() -> None:
    disk = bytearray(4096)
    disk[512:520] = b"EFI PART"
    struct.pack_into("<Q", disk, 512 + 72, 2)
    struct.pack_into("<QQ", disk, 1024 + 32, 2048, 4095)
    assert parse.partition_bytes(bytes(disk)) == 1 << 20
    with pytest.raises(ValueError, match="GPT"):
        parse.partition_bytes(bytes(4096))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_percentile_is_a_value_that_the_fraction_does_not_exceed(values: list[float], fraction: float) -> None:
    found = parse.percentile(values, round(fraction, 3) or 0.001)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * min(1.0, round(fraction, 3)) - 1e-9


def runs(**pods: float) -> report.Runs:
    times = dict(zip(CONTENDERS, pods.values(), strict=True))
    return {name: [Boot({"containerd": pod / 10, "kubelet": pod / 5, "pod": pod})] * 3 for name, pod in times.items()}


def verdicts(rows: list[report.Row]) -> dict[str, bool | None]:
    return {row.what: row.ok for row in rows}


def test_boots_within_the_bounds() -> None:
    found = verdicts(report.boot_rows(runs(parallel=10.0, sequential=12.0, static=10.5, dhcp=12.5)))
    assert set(found.values()) == {True, None, False}
    assert [what for what, ok in found.items() if ok is False] == ["containerd's exec: initd, DHCP - C, parallel"]
    assert found["the pod Running: initd, static / C, parallel"] is True


def test_boots_over_the_bounds() -> None:
    found = verdicts(report.boot_rows(runs(parallel=10.0, sequential=12.0, static=12.0, dhcp=11.0)))
    assert found["the pod Running: initd, static / C, parallel"] is False
    assert found["the pod Running: initd, static / C, sequential"] is False
    assert found["the kubelet's exec: initd, static - C, parallel"] is False


def test_rest_is_counted_by_the_minute_and_summed() -> None:
    rest = Rest(
        120.0,
        {"PID 1": 10e6, "network": 18.5e6},
        {"PID 1": parse.Use(0.2, 20, 4), "network": parse.Use(0.0, 6, 0)},
        49.0,
    )
    rows = {row.what: row for row in report.rest_rows(rest)}
    assert rows["CPU: PID 1"].value == pytest.approx(100)
    assert (rows["wake-ups: all"].value, rows["wake-ups: all"].ok) == (13, False)
    assert (rows["memory (PSS), mean: all"].value, rows["memory (PSS), mean: all"].ok) == (28.5, False)
    assert rows["killed kubelet: exit to exec"].ok is True


def test_a_flood_is_held_against_its_bounds() -> None:
    within = report.orphan_rows(Flood(10_400.0, 40.0, 0, [1.0] * 99 + [60.0], 95.0))
    assert [row.ok for row in within] == [True] * 5
    beyond = report.orphan_rows(Flood(9_999.0, 1010.0, 1, [1.0] * 98 + [60.0] * 2, 201.0))
    assert [row.cells()[-1] for row in beyond] == ["under", "over", "over", "over", "over"]


def test_sizes_count_the_disk_once() -> None:
    rows = report.size_rows({"disk": 100_000_000, "kernel": 12_000_000, "initramfs": 8_000_000, "erofs": 99_000_000})
    assert (rows[-1].value, rows[-1].ok) == (120.0, True)


def test_table_is_aligned() -> None:
    text = report.table(("what", "n", ""), [("first", "1", "ok"), ("x", "1000", "")])
    assert text.splitlines() == ["what      n", "first     1  ok", "x      1000"]


def test_phases_are_medians_in_order() -> None:
    def boot(start: float) -> Boot:
        phases = [
            {"name": "b", "start": start + 1, "milliseconds": 20.0, "waited_for": "a"},
            {"name": "a", "start": start, "milliseconds": 10.0, "waited_for": None},
        ]
        return Boot({}, phases)

    lines = report.phase_table([boot(0.1), boot(0.3), boot(0.2)]).splitlines()[1:]
    assert [line.split() for line in lines] == [["a", "0.200", "10"], ["b", "1.200", "20", "a"]]
