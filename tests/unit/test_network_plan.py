"""From what is wanted and what is there to operations: a second look finds nothing more to do."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from initd.network.lease import Lease
from initd.network.plan import Address, Interface, Item, Link, Route, mtu, normal, operations, wanted

ETH0 = Link(2, "eth0", "ether", "52:54:00:12:34:56", 1500, up=True, carrier=True, running=True, physical=True)
LEASE = Lease("10.0.2.15/24", "10.0.2.2", 0.0, 500.0, 875.0, 1000.0, routes=(("0.0.0.0/0", "10.0.2.2"),), mtu=1400)
DHCP = Interface(name="eth0", dhcp=True)
STATIC = Interface(
    name="eth0",
    addresses=["192.0.2.10/24", "2001:DB8:0::10/64"],
    gateway="192.0.2.1",
    routes=[{"to": "198.51.100.0/24", "via": "203.0.113.1", "metric": None}, {"to": "2001:db8:1::/48"}],
)


def test_lease_gives_address_with_lifetime_and_route() -> None:
    assert wanted(DHCP, LEASE, 2) == [
        Address("10.0.2.15/24", 1000.0),
        Route("0.0.0.0/0", "10.0.2.2", 1002, source="10.0.2.15"),
    ]


def test_static_configuration() -> None:
    assert wanted(STATIC, None, 2) == [
        Address("192.0.2.10/24"),
        Address("2001:db8::10/64"),
        Route("198.51.100.0/24", "203.0.113.1", 0),
        Route("2001:db8:1::/48", None, 1024),
        Route("0.0.0.0/0", "192.0.2.1", 102),
    ]


def test_configured_mtu_goes_before_the_lease() -> None:
    assert mtu(DHCP, LEASE) == 1400
    assert mtu(dataclasses.replace(DHCP, mtu=9000), LEASE) == 9000
    assert mtu(DHCP, None) is None


def test_fresh_link_gets_everything_in_order() -> None:
    assert operations([], wanted(DHCP, LEASE, 2)) == [
        (True, Address("10.0.2.15/24", 1000.0)),
        (True, Route("0.0.0.0/0", "10.0.2.2", 1002, source="10.0.2.15")),
    ]


def test_what_others_put_on_the_link_stays() -> None:
    foreign = Address("10.0.2.99/24", None, ours=False)
    route = Route("203.0.113.0/24", "10.0.2.7", 0, ours=False)
    assert operations([route, foreign], wanted(Interface(name="eth0"), None, 2)) == []


def test_old_lease_is_removed_before_the_new_one_is_added() -> None:
    old = Address("10.0.2.14/24", 900.0)
    gone = Route("0.0.0.0/0", "10.0.2.2", 1002, source="10.0.2.14")
    changes = operations([gone, old], wanted(DHCP, LEASE, 2))
    kinds = [(add, type(item)) for add, item in changes]
    assert kinds == [(False, Route), (False, Address), (True, Address), (True, Route)]


def test_renewed_lifetime_is_set_and_drift_is_not() -> None:
    want = [Address("10.0.2.15/24", 1000.0)]
    assert operations([Address("10.0.2.15/24", 998.0)], want) == []
    assert operations([Address("10.0.2.15/24", 600.0)], want) == [(True, want[0])]
    assert operations([Address("10.0.2.15/24", None)], want) == [(True, want[0])]


TEXTS = st.sampled_from(["10.0.2.15/24", "10.0.2.16/24", "192.0.2.10/24", "2001:db8::10/64"])
DESTINATIONS = st.sampled_from(["0.0.0.0/0", "198.51.100.0/24"])
ADDRESSES = st.lists(st.builds(Address, TEXTS, ours=st.booleans()))
ROUTES = st.lists(
    st.builds(Route, DESTINATIONS, st.sampled_from([None, "10.0.2.2"]), st.integers(0, 3), ours=st.booleans())
)
INTERFACES = st.sampled_from([DHCP, STATIC, Interface()])
LEASES = st.sampled_from([None, LEASE])


@given(INTERFACES, LEASES, ADDRESSES, ROUTES)
def test_operations_lead_to_what_is_wanted(
    interface: Interface, lease: Lease | None, addresses: list[Address], routes: list[Route]
) -> None:
    want = wanted(interface, lease, 2)

    def place(item: Item) -> tuple[str, int | None]:
        return (item.to, item.metric) if isinstance(item, Route) else (item.text, None)

    items: list[Item] = [*routes, *addresses]
    there = {place(item): item for item in items}
    foreign = {key for key, item in there.items() if not item.ours}
    for add, item in operations(there.values(), want):
        there.pop(place(item), None)
        there |= {place(item): item} if add else {}
    assert operations(there.values(), want) == []
    assert foreign <= there.keys()


def test_interface_finds_its_link() -> None:
    assert Interface(name="eth0").matches(ETH0)
    assert not Interface(name="eth1").matches(ETH0)
    assert Interface(mac="52:54:00:12:34:56").matches(ETH0)
    assert Interface(dhcp=True).matches(ETH0)
    assert not Interface(dhcp=True).matches(dataclasses.replace(ETH0, physical=False))


def test_addresses_are_compared_as_the_kernel_writes_them() -> None:
    assert normal("2001:0DB8:0:0::1/64") == "2001:db8::1/64"
