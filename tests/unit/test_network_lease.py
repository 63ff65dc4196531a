"""What a server may grant: absurd values are refused with a reason, torn ones are left out."""

from __future__ import annotations

from contextlib import suppress
from socket import inet_aton

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.network.lease import judge
from initd.network.packet import Kind, Message, Option, RefusedError

GOOD: dict[int, bytes] = {
    Option.SERVER_ID: inet_aton("10.0.2.2"),
    Option.LEASE_TIME: (3600).to_bytes(4, "big"),
    Option.SUBNET_MASK: inet_aton("255.255.255.0"),
    Option.ROUTER: inet_aton("10.0.2.2"),
    Option.DNS: inet_aton("10.0.2.3"),
}


def offer(address: str = "10.0.2.15", **changes: bytes) -> Message:
    """An offer whose options differ from a good one's by name."""
    options = GOOD | {int(Option[name]): value for name, value in changes.items()}
    return Message(Kind.OFFER, 1, b"\x02\0\0\0\0\1", yours=inet_aton(address), options=options)


def test_good_offer() -> None:
    lease = judge(offer(HOST_NAME=b"node-1\0", MTU=b"\x05\xa0", NTP=inet_aton("10.0.2.4")), 100.0)
    assert (lease.address, lease.server, lease.routes) == ("10.0.2.15/24", "10.0.2.2", (("0.0.0.0/0", "10.0.2.2"),))
    assert (lease.dns, lease.ntp, lease.hostname, lease.mtu) == (("10.0.2.3",), ("10.0.2.4",), "node-1", 1440)
    assert (lease.obtained, lease.renew, lease.rebind, lease.expires) == (100.0, 1900.0, 3250.0, 3700.0)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (offer(LEASE_TIME=bytes(4)), "lease time is 0 s"),
        (offer(LEASE_TIME=b"\0\0\1"), "lease time is 0 s"),
        (offer(SERVER_ID=bytes(4)), "no server"),
        (offer(SUBNET_MASK=b""), "no subnet mask"),
        (offer(SUBNET_MASK=bytes(4)), "/0"),
        (offer(SUBNET_MASK=inet_aton("255.0.255.0")), "255.0.255.0 is no subnet mask"),
        (offer("10.0.2.255"), "broadcast"),
        (offer("10.0.2.0"), "network"),
        (offer("0.0.0.0"), "no host's address"),
        (offer("127.0.0.1"), "no host's address"),
        (offer("224.0.0.1"), "no host's address"),
        (offer("255.255.255.255"), "no host's address"),
    ],
)
def test_absurd_offer_is_refused(message: Message, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        judge(message, 0.0)


def test_host_route_lease_is_fine() -> None:
    assert judge(offer("10.0.2.255", SUBNET_MASK=b"\xff\xff\xff\xff"), 0.0).address == "10.0.2.255/32"


@pytest.mark.parametrize(("renew", "rebind"), [(0, 0), (3000, 2000), (10, 4000), (4000, 5000), (1, 2), (3600, 3600)])
def test_timers_out_of_order_are_replaced(renew: int, rebind: int) -> None:
    lease = judge(offer(RENEWAL_TIME=renew.to_bytes(4, "big"), REBINDING_TIME=rebind.to_bytes(4, "big")), 0.0)
    assert (lease.renew, lease.rebind) == (1800.0, 3150.0)


def test_classless_routes_replace_the_router() -> None:
    routes = b"\x00\x0a\x00\x02\x01" + b"\x18\xc6\x33\x64\x0a\x00\x02\x05" + b"\x20\xa9\xfe\xa9\xfe\x00\x00\x00\x00"
    lease = judge(offer(CLASSLESS_ROUTES=routes), 0.0)
    assert lease.routes == (("0.0.0.0/0", "10.0.2.1"), ("198.51.100.0/24", "10.0.2.5"), ("169.254.169.254/32", None))


@pytest.mark.parametrize("torn", [b"\x18\xc6\x33\x64\x0a\x00", b"\x21" + bytes(9), b"\x00"])
def test_torn_classless_routes_are_no_routes(torn: bytes) -> None:
    assert judge(offer(CLASSLESS_ROUTES=torn), 0.0).routes == (("0.0.0.0/0", "10.0.2.2"),)


@pytest.mark.parametrize("name", [b"", b"-x", b"a b", b"a\nb", b"\xff", b"a" * 64, b"a..b", b"x;reboot"])
def test_host_name_that_is_none_is_left_out(name: bytes) -> None:
    assert judge(offer(HOST_NAME=name), 0.0).hostname is None


def test_absurd_mtu_and_servers_are_left_out() -> None:
    lease = judge(offer(MTU=b"\0\1", DNS=bytes(4) + inet_aton("255.255.255.255") + inet_aton("10.0.2.3") + b"\1"), 0.0)
    assert (lease.mtu, lease.dns) == (None, ("10.0.2.3",))


@given(st.dictionaries(st.sampled_from(Option), st.binary(max_size=40)), st.binary(min_size=4, max_size=4))
def test_whatever_is_granted_is_sane(options: dict[int, bytes], address: bytes) -> None:
    with suppress(RefusedError):
        lease = judge(Message(Kind.ACK, 1, b"\x02\0\0\0\0\1", yours=address, options=GOOD | options), 50.0)
        assert 50.0 + 1 < lease.renew < lease.rebind < lease.expires
        assert 1 <= int(lease.address.partition("/")[2]) <= 32
        assert 0 < address[0] < 224
