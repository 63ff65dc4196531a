"""The network worker against the kernel and real DHCP servers, in namespaces of its own."""

from __future__ import annotations

import os
import re
import select
from typing import TYPE_CHECKING, Any

import pytest

from tests.namespace.network_peers import DEADLINE, LEASE, SHORT, Lan, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root
DHCP = {"name": "eth0", "dhcp": True}


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    lan = Lan(tmp_path)
    yield lan
    lan.close()


def ready(state: dict[str, Any]) -> bool:
    return bool(state["ready"])


def link(worker: Worker, name: str = "eth0") -> dict[str, Any]:
    return next(item for item in worker.call("links") if item["name"] == name)


def test_lease_is_obtained_and_applied(lan: Lan) -> None:
    lan.plug()
    options = (
        "option:router,10.5.0.1",
        "option:dns-server,10.5.0.3,10.5.0.4",
        "option:ntp-server,10.5.0.5",
        "option:mtu,1400",
    )
    lan.dnsmasq(*LEASE, *(f"--dhcp-option={option}" for option in options), "--dhcp-host=set:x,*:*:*:*:*:*,node-7")
    worker = lan.worker()
    worker.configure(DHCP, lease={"link": "eth0", "address": "10.5.0.99/24"})  # which is none
    state = worker.wait(ready)
    assert state["reasons"] == []
    assert re.fullmatch(r"10\.5\.0\.[56]\d", state["address"])
    assert (state["dns"], state["ntp"], state["hostname"]) == (["10.5.0.3", "10.5.0.4"], ["10.5.0.5"], "node-7")
    lease = state["lease"]
    assert (lease["address"], lease["server"]) == (f"{state['address']}/24", "10.5.0.1")
    assert lease["routes"] == [["0.0.0.0/0", "10.5.0.1"]]
    assert lease["obtained"] < lease["renew"] < lease["rebind"] < lease["expires"] == lease["obtained"] + 120
    assert (link(worker)["mtu"], link(worker)["carrier"], link(worker)["managed"]) == (1400, True, True)
    assert re.search(rf"inet {state['address']}/24 .*dynamic", lan.node.ip("address", "show", "eth0"))
    assert re.search(r"valid_lft 1(1\d|20)sec", lan.node.ip("address", "show", "eth0"))
    assert f"default via 10.5.0.1 proto 73 src {state['address']}" in lan.node.ip("route", "show", "dev", "eth0")
    assert "state UNKNOWN" in lan.node.ip("link", "show", "up", "dev", "lo")


def test_classless_routes_are_set(lan: Lan) -> None:
    lan.plug()
    lan.dnsmasq(*LEASE, "--dhcp-option=option:classless-static-route,198.51.100.0/24,10.5.0.9,0.0.0.0/0,10.5.0.8")
    worker = lan.worker()
    worker.configure(DHCP)
    worker.wait(ready)
    routes = lan.node.ip("route", "show", "dev", "eth0")
    assert "198.51.100.0/24 via 10.5.0.9" in routes
    assert "default via 10.5.0.8" in routes


def test_lease_is_renewed(lan: Lan) -> None:
    lan.plug()
    lan.dnsmasq(*LEASE, *SHORT)
    worker = lan.worker()
    worker.configure(DHCP)
    first = worker.wait(ready)["lease"]
    second = worker.wait(lambda state: state["lease"]["obtained"] > first["obtained"])
    assert second["lease"]["address"] == first["address"]
    assert second["ready"]
    assert 2.9 < second["lease"]["obtained"] - first["obtained"] < 5.0


def test_a_worker_that_rests_comes_back_without_a_question_and_asks_after_news(lan: Lan) -> None:
    lan.plug()
    lan.node.ip("link", "set", "eth0", "addrgenmode", "none")  # an IPv6 address becomes usable at any time: news too
    lan.dnsmasq(*LEASE, "--dhcp-option=option:classless-static-route,198.51.100.0/24,10.5.0.9,0.0.0.0/0,10.5.0.8")
    first = lan.worker(quiet=0.2)
    first.configure(DHCP)
    lease = first.wait(ready)["lease"]
    wake_after, kept = first.rested()
    assert wake_after is not None
    assert lease["renew"] - lease["obtained"] == pytest.approx(60)
    assert 50 < wake_after <= 60
    assert not select.select([kept], [], [], 0)[0]

    second = lan.worker(quiet=0.2, kept=kept)
    second.configure(DHCP, lease=lease)
    assert second.wait(ready)["lease"] == lease
    _, kept = second.rested()
    assert second.state["lease"] == lease
    assert "198.51.100.0/24 via 10.5.0.9" in lan.node.ip("route", "show", "dev", "eth0")

    lan.node.ip("link", "add", "veth7", "type", "veth", "peer", "name", "veth8")  # a pod's
    assert not select.select([kept], [], [], 0.1)[0]
    lan.node.ip("link", "set", "eth0", "down")
    lan.node.ip("link", "set", "eth0", "up")
    assert select.select([kept], [], [], DEADLINE)[0]
    third = lan.worker(quiet=0.2, kept=kept)
    third.configure(DHCP, lease=lease)
    assert third.wait(lambda state: ready(state) and state["lease"]["obtained"] > lease["obtained"])
    _, kept = third.rested(meanwhile=lambda: lan.node.ip("link", "set", "eth0", "down"))
    assert select.select([kept], [], [], DEADLINE)[0], "what comes after the offer is for the next process"
    os.close(kept)


def test_server_that_comes_late_is_found(lan: Lan) -> None:
    lan.plug()
    worker = lan.worker()
    worker.configure(DHCP)
    state = worker.wait(lambda state: re.fullmatch(r"eth0: no DHCP answer for [1-9]\d* s", "".join(state["reasons"])))
    assert not state["ready"]
    assert state["address"] is None
    lan.dnsmasq()
    assert worker.wait(ready)["address"]


def test_refused_renewal_gives_a_new_address(lan: Lan) -> None:
    lan.plug()
    first_server = lan.dnsmasq(*LEASE, *SHORT)
    worker = lan.worker()
    worker.configure(DHCP)
    old = worker.wait(ready)["address"]
    first_server.kill()
    first_server.wait()
    lan.dnsmasq("--dhcp-range=10.5.0.200,10.5.0.210,255.255.255.0,120", "--dhcp-authoritative")
    new = worker.wait(lambda state: ready(state) and state["address"] != old)["address"]
    assert new.startswith("10.5.0.2")
    addresses = lan.node.ip("-4", "address", "show", "dev", "eth0")
    assert new in addresses
    assert old not in addresses
    assert f"src {new}" in lan.node.ip("route", "show", "default")


def test_expired_lease_is_taken_away(lan: Lan) -> None:
    lan.plug()
    lan.script("network_server.py", "once").until("ready")
    worker = lan.worker()
    worker.configure(DHCP)
    assert worker.wait(ready)["address"] == "10.5.0.77"
    state = worker.wait(lambda state: not ready(state))
    assert state["reasons"] == ["eth0: the DHCP lease expired"]
    assert (state["address"], state["lease"]) == (None, None)
    assert "10.5.0.77" not in lan.node.ip("address") + lan.node.ip("route")
    lan.dnsmasq()
    worker.wait(ready)


def test_garbage_from_the_network_changes_nothing(lan: Lan) -> None:
    lan.plug()
    server = lan.script("network_server.py", "garbage")
    server.until("ready")
    worker = lan.worker()
    worker.configure(DHCP)
    server.until("sent")
    lan.dnsmasq()
    assert worker.wait(ready)["address"] != "10.5.0.77"


def test_cable_pulled_and_plugged_again(lan: Lan) -> None:
    lan.plug()
    lan.dnsmasq()
    worker = lan.worker()
    worker.configure(DHCP)
    address = worker.wait(ready)["address"]
    lan.server.ip("link", "set", "srv0", "down")
    assert worker.wait(lambda state: not ready(state))["reasons"] == ["eth0: no carrier"]
    lan.server.ip("link", "set", "srv0", "up")
    assert worker.wait(ready)["address"] == address


def test_link_that_someone_sets_down_comes_up_again(lan: Lan) -> None:
    lan.plug()
    lan.dnsmasq()
    worker = lan.worker()
    worker.configure(DHCP)
    address = worker.wait(ready)["address"]
    monitor = lan.monitor("route")
    lan.node.ip("link", "set", "eth0", "down")
    monitor.until(f"default via 10.5.0.1 dev eth0 proto 73 src {address}")
    assert worker.wait(ready)["address"] == address


@pytest.mark.parametrize("kind", ["address", "route"])
def test_what_someone_removes_is_restored(lan: Lan, kind: str) -> None:
    lan.plug()
    lan.dnsmasq()
    worker = lan.worker()
    worker.configure(DHCP)
    address = worker.wait(ready)["lease"]["address"]
    monitor = lan.monitor("route")
    if kind == "address":
        lan.node.ip("address", "del", address, "dev", "eth0")
        monitor.until("Deleted")
        monitor.until(f"inet {address}")
    else:
        lan.node.ip("route", "del", "default")
        monitor.until("Deleted default")
    monitor.until("default via 10.5.0.1")
    worker.call("links")  # whatever it had to say has been read by now
    assert worker.state["ready"]


def test_static_configuration(lan: Lan) -> None:
    lan.plug()
    worker = lan.worker()
    routes = [{"to": "198.51.100.0/24", "via": "10.5.0.9", "metric": 7}, {"to": "203.0.113.0/24", "via": "192.0.2.1"}]
    worker.configure(
        {
            "name": "eth0",
            "addresses": ["10.5.0.20/24", "2001:DB8::20/64"],
            "gateway": "10.5.0.1",
            "mtu": 1300,
            "routes": routes,
        },
        dns=["10.5.0.53"],
    )
    state = worker.wait(ready)
    assert (state["address"], state["dns"], state["lease"]) == ("10.5.0.20", ["10.5.0.53"], None)
    assert {"10.5.0.20/24", "2001:db8::20/64"} <= set(link(worker)["addresses"])
    assert link(worker)["mtu"] == 1300
    shown = lan.node.ip("route")
    assert "default via 10.5.0.1 dev eth0" in shown
    assert "198.51.100.0/24 via 10.5.0.9 dev eth0 proto 73 metric 7" in shown
    assert "203.0.113.0/24 via 192.0.2.1 dev eth0 proto 73 onlink" in shown
    worker.configure({"name": "eth0", "addresses": ["10.5.0.21/24"]})
    assert worker.wait(lambda state: state["address"] == "10.5.0.21")["ready"]
    shown = lan.node.ip("address") + lan.node.ip("route")
    assert "10.5.0.20" not in shown
    assert "default via" not in shown


def test_link_of_others_is_left_alone_and_addresses_of_others_stay(lan: Lan) -> None:
    lan.plug()
    lan.node.ip("address", "add", "10.5.0.99/24", "dev", "eth0")
    lan.node.ip("link", "add", "cni0", "type", "bridge")
    worker = lan.worker()
    worker.configure({"name": "eth0", "addresses": ["10.5.0.20/24"]})
    worker.wait(ready)
    assert "10.5.0.99/24" in lan.node.ip("address", "show", "dev", "eth0")
    assert link(worker, "cni0")["managed"] is False
    assert link(worker, "cni0")["up"] is False


def test_link_that_appears_late_is_configured(lan: Lan) -> None:
    worker = lan.worker()
    worker.configure(DHCP)
    assert worker.wait(lambda state: state["reasons"])["reasons"] == ["eth0: no such link"]
    lan.plug("eth9")
    lan.dnsmasq()
    lan.node.ip("link", "set", "eth9", "name", "eth0")
    worker.wait(ready)
    lan.server.ip("link", "del", "srv0")
    state = worker.wait(lambda state: not ready(state))
    assert state["reasons"] == ["eth0: no such link"]
    assert state["lease"] is None


def test_link_is_found_by_its_hardware_address(lan: Lan) -> None:
    lan.plug("anything")
    lan.node.ip("link", "set", "anything", "address", "02:00:00:00:00:07")
    worker = lan.worker()
    worker.configure({"mac": "02:00:00:00:00:07", "addresses": ["10.5.0.20/24"]})
    worker.wait(ready)
    assert "10.5.0.20/24" in link(worker, "anything")["addresses"]


def test_links_of_pods_do_not_wake_the_worker(lan: Lan) -> None:
    lan.plug()
    worker = lan.worker()
    worker.configure({"name": "eth0", "addresses": ["10.5.0.20/24"]})
    worker.wait(ready)
    worker.call("links")  # whatever its own changes had to say has been read by now
    before = worker.wakeups()
    for number in range(10):
        lan.node.ip("link", "add", f"veth{number}", "type", "veth", "peer", "name", f"pod{number}")
        lan.node.ip("link", "set", f"veth{number}", "up")
        lan.node.ip("address", "add", f"10.88.{number}.1/24", "dev", f"veth{number}")
        lan.node.ip("link", "del", f"veth{number}")
    worker.call("links")
    assert worker.wakeups() - before <= 3  # the call


def test_successor_keeps_the_lease(lan: Lan) -> None:
    lan.plug()
    lan.dnsmasq()
    worker = lan.worker()
    worker.configure(DHCP)
    lease = worker.wait(ready)["lease"]
    assert worker.close() == 0
    monitor = lan.monitor()
    successor = lan.worker()
    successor.configure(DHCP, lease=lease)
    state = successor.wait(lambda state: ready(state) and state["lease"]["obtained"] > lease["obtained"])
    assert state["lease"]["address"] == lease["address"]
    lan.node.ip("address", "add", "127.2.0.1/32", "dev", "lo")
    assert "Deleted" not in monitor.before("127.2.0.1/32")


def test_no_ethernet_link_at_all(lan: Lan) -> None:
    worker = lan.worker()
    worker.configure()
    state = worker.wait(lambda state: state["reasons"])
    assert (state["ready"], state["reasons"]) == (False, ["any Ethernet link: no such link"])


def test_worker_is_small(lan: Lan) -> None:
    lan.plug()
    lan.dnsmasq()
    worker = lan.worker()
    worker.configure(DHCP)
    worker.wait(ready)
    with open(f"/proc/{worker.pid}/maps") as maps:
        loaded = maps.read()
    for library in ("_ctypes", "_multiprocessing"):
        assert library not in loaded
    with open(f"/proc/{worker.pid}/status") as status:
        assert "Threads:\t1\n" in status.read()


def test_time_is_asked_of_the_leases_server_and_told_as_an_offset(lan: Lan) -> None:
    lan.plug()
    server = lan.script("sntp_server.py", "good", "86400")
    server.until("ready")
    lan.dnsmasq(*LEASE, "--dhcp-option=option:ntp-server,10.5.0.1")
    worker = lan.worker()
    worker.configure(DHCP)
    told = worker.heard_of_time()
    assert (told["server"], told["reason"], told["wait"]) == ("10.5.0.1", None, 256)
    assert told["offset"] == pytest.approx(86400, abs=0.5)
    server.until("asked")
    assert not server.are_there(), "once is enough"


@pytest.mark.parametrize(
    ("how", "problem", "wait", "again"),
    [
        ("silent", "no answer for 2 s", 1, "no answer for 2 s"),
        ("lying", "an answer to another question", 1, "an answer to another question"),
        ("INIT", "the server does not know the time itself", 1, "the server does not know the time itself"),
        ("DENY", "kiss-o'-death 'DENY'", 1, None),
        ("RATE", "kiss-o'-death 'RATE'", 1024, ""),
        (None, "[Errno 111] Connection refused", 1, "[Errno 111] Connection refused"),
    ],
)
def test_a_time_server_that_gives_no_time(
    lan: Lan, how: str | None, problem: str, wait: int, again: str | None
) -> None:
    lan.plug()
    server = lan.script("sntp_server.py", how, "0") if how else None
    if server:
        server.until("ready")
    worker = lan.worker()
    worker.configure({"name": "eth0", "addresses": ["10.5.0.20/24"]}, ntp=["10.5.0.1"])
    told = worker.heard_of_time()
    assert (told["server"], told["offset"], told["wait"]) == (None, None, wait)
    assert told["reason"] == f"10.5.0.1: {problem}"
    if again != "":
        assert worker.heard_of_time()["reason"] == (f"10.5.0.1: {again}" if again else "no server wants to be asked")


def test_a_worker_that_rests_is_back_when_the_time_is_to_be_asked_again(lan: Lan) -> None:
    lan.plug()
    lan.script("sntp_server.py", "good", "0").until("ready")
    worker = lan.worker(0.05)
    worker.configure({"name": "eth0", "addresses": ["10.5.0.20/24"]}, ntp=["10.5.0.1"])
    told = worker.heard_of_time()
    wake_after, kept = worker.rested()
    assert wake_after == pytest.approx(256, abs=30)
    successor = lan.worker(0.05, kept)
    successor.configure({"name": "eth0", "addresses": ["10.5.0.20/24"]}, ntp=["10.5.0.1"], clock=told)
    again, kept = successor.rested()
    os.close(kept)
    assert again is not None
    assert again == pytest.approx(wake_after, abs=30)
    assert successor.times == [], "nothing was asked"
