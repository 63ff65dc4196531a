"""The API's methods: what each reads and answers, and that all are declared as they should be."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd import shutdown
from initd.api.methods import node as node_methods
from initd.api.methods import services as service_methods
from initd.api.methods.system import mounts, parse_mount, parse_record, processes, read_process
from initd.api.protocol import MAX_RESPONSE, ApiError, Code, Response, encode
from initd.api.registry import METHODS, Call, Peer, Role, schema
from initd.node import Node
from initd.services import ServiceSpec
from initd.supervise.service import LAST_LINES, Service
from tests.readme import reference
from tests.unit.core_support import World, states

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from initd.api.registry import Method

# What changes the node, or shows what only root could see.
RESTRICTED = {
    "service.restart": Role.OPERATOR,
    "files": Role.OPERATOR,
    "reboot": Role.ADMIN,
    "shutdown": Role.ADMIN,
    "reboot.cancel": Role.ADMIN,
}
PEER = Peer(10, 0, 0, Role.ADMIN, "pid 10, uid 0")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_each_method_is_declared_and_documented(method: Method) -> None:
    text = (method.function.__doc__ or "").strip()
    assert text.endswith(".")
    assert method.role is RESTRICTED.get(method.name, Role.READER), "what changes or shows more is not for readers"
    assert method.returns not in {"None", ""}
    assert f"`{method.name}(" in reference(METHODS)
    assert method.name in schema(METHODS)


def test_the_methods_of_the_design_are_there() -> None:
    wanted = """version status services service.restart events logs kernel.log mounts processes links pods images disks
        config config.schema boot.times reboot shutdown"""
    assert set(wanted.split()) <= METHODS.keys()


def test_a_kernel_record() -> None:
    record = parse_record(b"30,1234,5678901,-,caller=T1;initd: running\n SUBSYSTEM=x\n")
    assert record == {"seq": 1234, "monotonic": 5.678901, "priority": 6, "facility": 3, "text": "initd: running"}
    for nonsense in (b"", b"no header", b"1,2;text", b"a,b,c;text", b"-1,2,3;text"):
        assert parse_record(nonsense) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    record = parse_record(data)
    assert record is None or (0 <= record["priority"] <= 7 and "\n" not in record["text"])


def test_a_mount() -> None:
    line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/my\\134disk rw,errors=continue\n"
    assert parse_mount(line) == {
        "target": "/mnt 2",
        "source": "/dev/my\\disk",
        "type": "ext3",
        "flags": ["rw", "noatime"],
        "options": ["rw", "errors=continue"],
        "propagation": ["master:1", "shared:2"],
    }
    assert parse_mount("22 1 0:5 / / rw - tmpfs  rw")["source"] == ""


def test_every_mount_of_this_machine_is_read() -> None:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        lines = list(file)
    found = asyncio.run(collect(mounts(cast("Call", None))))
    assert found == [parse_mount(line) for line in lines]
    assert {mount["target"] for mount in found} >= {"/", "/proc"}
    assert all(mount["type"] and mount["flags"] for mount in found)


def test_this_process() -> None:
    process = read_process(os.getpid())
    assert process is not None
    assert (process["pid"], process["parent"]) == (os.getpid(), os.getppid())
    assert process["cgroup"].startswith("/")
    assert process["resident_bytes"] > 1 << 20
    assert process["cpu_seconds"] > 0
    assert read_process(1 << 30) is None


STAT = "7 ({name}) S 1 7 7 0 -1 {flags} 100 0 0 0 250 50 0 0 20 0 1 0 9 1000 25 18446744073709551615 1 1 0\n"


@pytest.fixture
def procfs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process 7 whose files the test writes; open() finds them here."""
    real = open

    def fake(path: str, *options: Any, **names: Any) -> Any:
        if str(path).startswith("/proc/7/"):
            assert path.removeprefix("/proc/7/") in {"stat", "cgroup"}, "another could wait for the process's mmap_lock"
            path = path.replace("/proc/7", str(tmp_path))
        return real(path, *options, **names)

    monkeypatch.setattr("builtins.open", fake)
    (tmp_path / "cgroup").write_text("0::/kubepods/a b\n")
    return tmp_path


@pytest.mark.parametrize("name", ["sh", "a) S 9 (b", "(", ") ", "\xff" * 4, "a\nb"])
def test_a_process_may_call_itself_anything(procfs: Any, name: str) -> None:
    (procfs / "stat").write_bytes(STAT.format(name=name, flags=0x400100).encode("latin-1"))
    process = read_process(7)
    assert process is not None
    assert process["name"] == name.encode("latin-1").decode(errors="replace")
    assert (process["parent"], process["state"], process["cpu_seconds"]) == (1, "S", 300 / os.sysconf("SC_CLK_TCK"))
    assert process["resident_bytes"] == 25 * os.sysconf("SC_PAGE_SIZE")
    assert process["cgroup"] == "/kubepods/a b"


def test_a_kernel_thread_is_known_by_its_flag(procfs: Any) -> None:
    (procfs / "stat").write_text(STAT.format(name="kworker/0:1", flags=0x0420_8060))
    assert read_process(7) is None
    (procfs / "stat").write_text(STAT.format(name="sneaky", flags=0x400100))
    assert read_process(7) is not None


def test_the_list_of_processes_has_this_one() -> None:
    found = asyncio.run(collect(processes(cast("Call", None))))
    assert os.getpid() in {process["pid"] for process in found}
    assert [process["pid"] for process in found] == sorted(process["pid"] for process in found)


class Bench:
    """A node with one service on a kernel of the test's own."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.world = World(patch)
        self.node = Node()
        self.node.events = self.world.events
        self.service = Service(ServiceSpec("kubelet", ("/k",), {}, "k"), self.world.events, self.world.reaper)
        self.service.start()
        self.node.services["kubelet"] = self.service
        self.call = Call(self.node, PEER)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    os.close(made.service.output.reader)
    os.close(made.service.output.writer)
    if made.service.process is not None:
        os.close(made.service.process.pidfd)


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_services(bench: Bench) -> None:
    (status,) = asyncio.run(service_methods.services(bench.call))
    assert (status["name"], status["state"], status["desired"]) == ("kubelet", "starting", "up")
    with pytest.raises(ApiError, match="no service named 'x'; there are kubelet") as caught:
        asyncio.run(service_methods.restart(bench.call, "x"))
    assert caught.value.code is Code.NOT_FOUND


def test_services_fit_an_answer_whatever_they_write(bench: Bench) -> None:
    bench.service.output.feed(b"\xff" * 8000 + b"\n" + (b"\xfe" * 8000 + b"\n") * 30)
    (status,) = asyncio.run(service_methods.services(bench.call))
    assert status["last_lines"] == ["\ufffd" * 1000] * LAST_LINES
    assert len(encode(Response(1, None, [status] * 5))) < MAX_RESPONSE


def test_restart_says_who_asked_and_is_refused_at_the_end(bench: Bench) -> None:
    assert asyncio.run(service_methods.restart(bench.call, "kubelet"))
    assert states(bench.service)[-1] == "restarting"
    assert bench.service.history[-1]["reason"] == "restart requested by pid 10, uid 0"
    bench.node.enter("stopping")
    with pytest.raises(ApiError) as caught:
        asyncio.run(service_methods.restart(bench.call, "kubelet"))
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_logs_and_events(bench: Bench) -> None:
    bench.service.output.feed(b"one\ntwo\nthree\n")
    lines = asyncio.run(collect(service_methods.logs(bench.call, "kubelet", 2)))
    assert [line["text"] for line in lines] == ["two", "three"]
    events = asyncio.run(collect(node_methods.events(bench.call, 0, follow=False)))
    assert [event["kind"] for event in events] == ["service"]


def test_following_leaves_nothing_behind_when_the_client_goes(bench: Bench) -> None:
    async def client() -> None:
        bench.service.output.feed(b"line\n")
        lines: Any = service_methods.logs(bench.call, "kubelet", 1, follow=True)
        events: Any = node_methods.events(bench.call)
        await anext(lines)
        await anext(events)
        await lines.aclose()
        await events.aclose()
        assert not bench.service.output._wakers
        assert not bench.node.events._wakers

    asyncio.run(client())


def test_boot_times(bench: Bench) -> None:
    times = asyncio.run(node_methods.boot_times(bench.call))
    assert list(times["marks"]) == ["kubelet exec"]
    bench.service._accept({"READY": "1"})
    assert "kubelet ready" in asyncio.run(node_methods.boot_times(bench.call))["marks"]


@pytest.mark.parametrize(
    ("function", "action"), [(node_methods.reboot, "reboot"), (node_methods.power_off, "shutdown")]
)
def test_the_end_is_requested_in_the_name_of_the_peer(bench: Bench, function: Any, action: str) -> None:
    assert asyncio.run(function(bench.call)) == shutdown.DEADLINE
    assert bench.node.shutdown is not None
    assert (bench.node.shutdown.action, bench.node.shutdown.by) == (action, "API, pid 10, uid 0")
    assert asyncio.run(function(bench.call, force=True)) <= shutdown.FORCED
    other = node_methods.power_off if action == "reboot" else node_methods.reboot
    with pytest.raises(ApiError, match=f"on its way to {action}") as refused:
        asyncio.run(other(bench.call))
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert bench.node.phase == "stopping"
