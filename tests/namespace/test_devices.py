"""The devices worker on the kernel's own uevents. No module is loaded: what would be is recorded."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import struct
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import pytest

from initd import native
from initd.api.protocol import Decoder, Notification, Request, Response, encode
from initd.devices import aliases, buttons, worker
from initd.devices.uevents import Uevents, UeventsLostError
from initd.files import readable
from initd.worker import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from initd.api.protocol import Message

pytestmark = pytest.mark.root

DEADLINE = 20
LOOPBACK = Path("/sys/class/net/lo/uevent")
PRESS = struct.pack("@llHHi", 1, 2, 1, 116, 1)  # EV_KEY, KEY_POWER, down
FLOOD = 400  # more uevents than SMALL bytes hold
SMALL = 2048


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


@pytest.fixture(scope="module")
def device() -> Path:
    """A disk or network interface that is hardware, in sysfs."""
    found = [path.resolve() for path in Path("/sys/class").glob("[bn]*/*") if path.parent.name in ("block", "net")]
    hardware = [path for path in found if "/virtual/" not in str(path)]
    assert hardware, f"no hardware among {found}"
    return hardware[0]


def is_report(message: Message) -> TypeGuard[Notification]:
    return isinstance(message, Notification) and message.method == "device"


def is_about(device: Path) -> Callable[[Message], bool]:
    """Whether a message reports that device."""
    return lambda message: is_report(message) and device.name in str(message.params)


def is_settled(message: Message) -> bool:
    return isinstance(message, Notification) and message.method == "settled"


class Peer:
    """PID 1's end of the link."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._decoder = Decoder()
        self._unread: list[Message] = []

    async def until(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """All messages up to the first that is wanted."""
        seen: list[Message] = []
        while True:
            while self._unread:
                seen.append(self._unread.pop(0))
                if wanted(seen[-1]):
                    return seen
            data = await asyncio.get_running_loop().sock_recv(self._end, 1 << 16)
            assert data, f"the worker closed its end after {seen}"
            self._unread = self._decoder.feed(data)

    async def send(self, message: Message) -> None:
        await asyncio.get_running_loop().sock_sendall(self._end, encode(message))


def with_worker(test: Callable[[Peer], Coroutine[Any, Any, None]]) -> None:
    """Run `test` beside the worker, then close the link and see that the worker ends."""

    async def main() -> None:
        near, far = socket.socketpair()
        serving = asyncio.create_task(worker.serve(Link(far.detach())))
        with near:
            testing = asyncio.create_task(test(Peer(near)))
            await asyncio.wait((serving, testing), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                testing.cancel()
                await serving
            await testing
        await serving

    run(main())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The aliases that the worker wanted loaded, in order."""
    wanted: list[str] = []

    def load(alias: str) -> list[str]:
        wanted.append(alias)
        if len(wanted) == 1:
            raise OSError(19, "load_module: No such device", alias)
        return ["module"]

    monkeypatch.setattr(native, "load_module", load)
    return wanted


def test_coldplug_asks_for_every_alias_once_in_order_and_says_when_it_is_done(loads: list[str]) -> None:
    expected = list(dict.fromkeys(aliases.walk()))

    async def test(peer: Peer) -> None:
        *_, settled = await peer.until(is_settled)
        assert isinstance(settled, Notification)
        (summary,) = settled.params
        assert isinstance(summary, dict)
        assert summary["modules"] == len(expected) - 1, "one failed, which stops nothing"
        assert summary["devices"] == len(aliases.walk())
        assert summary["milliseconds"] > 0

    with_worker(test)
    assert loads == expected


def test_hotplug_loads_by_alias_once_and_reports_the_device(
    loads: list[str], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modalias = next(iter(sorted(Path("/sys/bus").glob("*/devices/*/modalias"))), None)
    assert modalias is not None, "no device of this machine has a modalias"
    monkeypatch.setattr(aliases, "walk", list)  # nothing is there at first

    async def test(peer: Peer) -> None:
        await peer.until(is_settled)
        for _ in range(2):
            (modalias.parent / "uevent").write_text("add")
        LOOPBACK.write_text("change")  # no hardware: not heard of
        (device / "uevent").write_text("change")
        seen = await peer.until(is_about(device))
        subsystem = device.parent.name
        devname = device.name if subsystem == "net" else f"/dev/{device.name}"
        devpath = str(device).removeprefix("/sys")
        fields = {"action": "change", "subsystem": subsystem, "devpath": devpath, "devname": devname}
        assert [message for message in seen if is_report(message)] == [Notification("device", [fields])]

    with_worker(test)
    assert loads.count(modalias.read_text().strip()) == 1


def test_after_lost_uevents_sysfs_is_walked_again(
    loads: list[str], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Uevents", functools.partial(Uevents, SMALL))

    async def test(peer: Peer) -> None:
        await peer.until(is_settled)
        known = len(loads)
        for _ in range(FLOOD):
            (device / "uevent").write_text("change")
        await peer.until(is_settled)
        assert len(loads) == known, "nothing new was there"
        (device / "uevent").write_text("change")
        await peer.until(is_about(device))

    with_worker(test)


def test_an_overflow_is_told_once_and_costs_only_what_did_not_fit(device: Path) -> None:
    async def main() -> None:
        devpath = str(device).removeprefix("/sys")
        with closing(Uevents(SMALL)) as uevents:
            for _ in range(FLOOD):
                (device / "uevent").write_text("change")
            await readable(uevents.fileno())
            with pytest.raises(UeventsLostError):
                list(uevents.pending())
            assert 0 < sum(event.devpath == devpath for event in uevents.pending()) < FLOOD
            assert not any(event.devpath == devpath for event in uevents.pending())

    run(main())


@pytest.mark.usefixtures("loads")
def test_a_press_is_told_and_a_button_that_is_unplugged_is_let_go(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    also = os.dup(reading)  # as PID 1 has it
    monkeypatch.setattr(buttons, "find", lambda: ["event9"])
    monkeypatch.setattr(buttons, "open_button", lambda _name: reading)
    os.write(writing, PRESS)

    async def test(peer: Peer) -> None:
        assert Notification("power_button", []) in await peer.until(is_settled), "coldplug makes no press wait"
        for _ in range(2):
            os.write(writing, PRESS)
            assert (await peer.until(lambda _message: True)) == [Notification("power_button", [])]
        monkeypatch.setattr(buttons, "find", list)
        os.close(writing)
        (device / "uevent").write_text("change")
        await peer.until(is_about(device))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reading)

    with_worker(test)
    os.close(also)


def test_requests_are_answered_and_bad_ones_named(loads: list[str]) -> None:
    async def answer(peer: Peer, method: str, *params: object) -> Response:
        await peer.send(Request(1, method, list(params)))
        *_, response = await peer.until(lambda message: isinstance(message, Response))
        assert isinstance(response, Response)
        return response

    async def test(peer: Peer) -> None:
        await peer.until(is_settled)
        assert (await answer(peer, "modprobe", "virtio_net")).result == ["module"]
        bad = await answer(peer, "modprobe", "a\0b")
        assert bad.error == ["INVALID_ARGUMENT", "modprobe: alias: 'a\\x00b', expected a module's name or alias"]
        disks = (await answer(peer, "disks")).result
        assert isinstance(disks, list)
        assert [disk["name"] for disk in disks] == sorted(disk["name"] for disk in disks)
        assert all(disk["size_bytes"] > 0 for disk in disks)
        files = (await answer(peer, "files", "/proc", "/proc/1/comm")).result
        assert isinstance(files, list)
        assert [(file["name"], file["type"]) for file in files] == [("comm", "file")]
        assert (await answer(peer, "files", "/", "/nowhere")).error == ["NOT_FOUND", "files: no file '/nowhere'"]

    with_worker(test)
    assert loads[-1] == "virtio_net"


@pytest.mark.usefixtures("loads")
def test_what_an_earlier_process_left_unread_is_told(device: Path) -> None:
    async def main() -> list[Message]:
        near, far = socket.socketpair()
        link = Link(far.detach())
        reading, writing = os.pipe2(os.O_NONBLOCK)
        with closing(Uevents()) as earlier, near:
            (device / "uevent").write_text("change")
            link.kept += [os.dup(earlier.fileno()), reading]
            os.write(writing, PRESS)
            serving = asyncio.create_task(worker.serve(link))
            messages = await Peer(near).until(is_settled)
            near.close()
            await serving
        os.close(writing)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reading)
        return messages

    messages = run(main())
    assert Notification("power_button", []) in messages
    (told,) = filter(is_about(device), messages)
    with closing(Uevents()) as uevents:
        (device / "uevent").write_text("change")
        run(readable(uevents.fileno()))
        (event,) = (event for event in uevents.pending() if event.devpath in str(device))
    assert isinstance(told, Notification)
    fields = ("action", "subsystem", "devpath", "devname")
    assert told.params == [{field: getattr(event, field) for field in fields}], "the same as pyudev would say"
