"""The DHCP client's states, driven by a clock and a server of the test's own."""

from __future__ import annotations

from socket import inet_aton, inet_ntoa

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from initd.network import packet
from initd.network.dhcp import TRIES, Client, Send, State
from initd.network.packet import BROADCAST, Kind, Option

MAC = b"\x02\0\0\0\0\1"


def sent(messages: list[Send]) -> packet.Message:
    """The one message that was sent."""
    (message,) = messages
    data = b"\x02" + message.payload[1:]  # the decoder reads replies only
    return packet.decode(data)


def answer(
    request: packet.Message,
    kind: Kind,
    address: str = "10.0.2.15",
    server: str = "10.0.2.2",
    seconds: int = 1000,
) -> bytes:
    """A server's answer to a request."""
    options: dict[int, bytes] = {
        Option.SERVER_ID: inet_aton(server),
        Option.LEASE_TIME: seconds.to_bytes(4, "big"),
        Option.SUBNET_MASK: inet_aton("255.255.255.0"),
    }
    message = packet.Message(kind, request.xid, MAC, yours=inet_aton(address), options=options)
    return b"\x02" + packet.encode(message)[1:]


def client() -> Client:
    """A client without chance."""
    return Client(MAC, random=lambda: 0.5)


def address(of: Client) -> str | None:
    """The address that the client may use."""
    return of.lease.host if of.lease else None


def bound(now: float = 0.0) -> Client:
    """A client that got a lease at `now`."""
    new = client()
    discover = sent(new.start(now))
    request = sent(new.receive(answer(discover, Kind.OFFER), now))
    assert new.receive(answer(request, Kind.ACK), now) == []
    assert new.state is State.BOUND
    return new


def test_discover_goes_out_at_once_and_the_first_offer_is_taken() -> None:
    new = client()
    discover = sent(new.start(10.0))
    assert discover.kind == Kind.DISCOVER
    request = sent(new.receive(answer(discover, Kind.OFFER), 10.1))
    assert request.kind == Kind.REQUEST
    assert request.options[Option.REQUESTED_ADDRESS] == inet_aton("10.0.2.15")
    assert request.options[Option.SERVER_ID] == inet_aton("10.0.2.2")
    assert address(new) is None
    new.receive(answer(request, Kind.ACK), 10.2)
    assert new.lease
    assert (new.lease.host, new.lease.obtained, new.deadline) == ("10.0.2.15", 10.1, 510.1)


def test_discover_is_repeated_for_ever_with_growing_pauses() -> None:
    new = client()
    new.start(0.0)
    pauses, now = [], 0.0
    for _ in range(10):
        assert new.deadline is not None
        pauses.append(new.deadline - now)
        now = new.deadline
        assert sent(new.timer(now)).kind == Kind.DISCOVER
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert new.since == 0.0


def test_timer_called_early_does_nothing() -> None:
    new = client()
    new.start(0.0)
    assert new.timer(0.5) == []


def test_offer_that_is_absurd_is_refused_with_a_reason() -> None:
    new = client()
    discover = sent(new.start(0.0))
    assert new.receive(answer(discover, Kind.OFFER, seconds=0), 0.1) == []
    assert new.state is State.SELECTING
    assert new.problem == "DHCP answer refused: its lease time is 0 s, at least 5 are needed"
    assert sent(new.receive(answer(discover, Kind.OFFER), 0.2)).kind == Kind.REQUEST


def test_answers_for_others_are_ignored() -> None:
    new = client()
    discover = sent(new.start(0.0))
    other = packet.Message(Kind.DISCOVER, discover.xid ^ 1, MAC)
    assert new.receive(answer(other, Kind.OFFER), 0.1) == []
    assert new.receive(answer(discover, Kind.ACK), 0.1) == []
    assert new.state is State.SELECTING


def test_only_the_chosen_server_may_acknowledge() -> None:
    new = client()
    request = sent(new.receive(answer(sent(new.start(0.0)), Kind.OFFER), 0.0))
    for kind in (Kind.ACK, Kind.NAK):
        new.receive(answer(request, kind, server="10.0.2.9"), 0.1)
        assert new.state is State.REQUESTING


def test_request_without_answer_starts_over() -> None:
    new = client()
    new.receive(answer(sent(new.start(0.0)), Kind.OFFER), 0.0)
    kinds = []
    for _ in range(TRIES):
        assert new.deadline is not None
        kinds.append(sent(new.timer(new.deadline)).kind)
    assert kinds == [Kind.REQUEST] * (TRIES - 1) + [Kind.DISCOVER]
    assert new.problem == "the DHCP server does not acknowledge"


def test_renewal_is_unicast_and_extends_the_lease() -> None:
    new = bound()
    (message,) = new.timer(500.0)
    request = sent([message])
    assert (message.source, message.destination) == ("10.0.2.15", "10.0.2.2")
    assert request.client == inet_aton("10.0.2.15")
    assert not request.options.keys() & {Option.SERVER_ID, Option.REQUESTED_ADDRESS}
    new.receive(answer(request, Kind.ACK), 500.1)
    assert new.lease
    assert (new.state, new.lease.expires) == (State.BOUND, 1500.0)


def test_silence_leads_from_renewing_over_rebinding_to_expiry() -> None:
    new = bound()
    history = []
    while new.lease:
        assert new.deadline is not None
        now = new.deadline
        message = new.timer(now)[0]
        history.append((now, new.state, message.destination))
    assert history == [
        (500.0, State.RENEWING, "10.0.2.2"),
        (687.5, State.RENEWING, "10.0.2.2"),
        (781.25, State.RENEWING, "10.0.2.2"),
        (841.25, State.RENEWING, "10.0.2.2"),
        (875.0, State.REBINDING, BROADCAST),
        (937.5, State.REBINDING, BROADCAST),
        (997.5, State.REBINDING, BROADCAST),
        (1000.0, State.SELECTING, BROADCAST),
    ]
    assert (new.problem, new.since) == ("the DHCP lease expired", 1000.0)


def test_nak_takes_the_lease_away_and_asks_for_another() -> None:
    new = bound()
    request = sent(new.timer(500.0))
    discover = sent(new.receive(answer(request, Kind.NAK), 500.1))
    assert discover.kind == Kind.DISCOVER
    assert new.lease is None


def test_server_that_refuses_what_it_offers_is_not_asked_in_a_loop() -> None:
    new = client()
    discover, now, asked = sent(new.start(0.0)), 0.0, 0
    while now < 300.0:
        request = sent(new.receive(answer(discover, Kind.OFFER), now))
        asked += 1
        following = new.receive(answer(request, Kind.NAK), now)
        if not following:
            assert new.deadline is not None
            now = new.deadline
            following = new.timer(now)
        discover = sent(following)
    assert asked < 12


def test_carrier_that_comes_back_asks_for_the_same_address() -> None:
    new = bound()
    new.stop()
    assert new.lease
    assert not new.listening
    request = sent(new.start(100.0))
    assert (new.state, request.kind) == (State.REBOOTING, Kind.REQUEST)
    assert request.options[Option.REQUESTED_ADDRESS] == inet_aton("10.0.2.15")
    assert Option.SERVER_ID not in request.options
    new.receive(answer(request, Kind.ACK), 100.1)
    assert new.state is State.BOUND


def test_other_network_after_carrier_loss_gives_another_lease() -> None:
    new = bound()
    new.stop()
    messages = new.start(100.0)
    while new.state is State.REBOOTING:
        assert new.deadline is not None
        messages = new.timer(new.deadline)
    assert new.lease  # used until there is a better one
    request = sent(new.receive(answer(sent(messages), Kind.OFFER, address="10.9.0.7"), 120.0))
    new.receive(answer(request, Kind.ACK, address="10.9.0.7"), 120.0)
    assert new.lease.host == "10.9.0.7"


def test_lease_expires_without_carrier_too() -> None:
    new = bound()
    new.stop()
    assert (new.deadline, address(new)) == (1000.0, "10.0.2.15")
    assert new.timer(1000.0) == []
    assert new.deadline is None
    assert address(new) is None


def test_infinite_lease_is_renewed_some_day() -> None:
    new = client()
    request = sent(new.receive(answer(sent(new.start(0.0)), Kind.OFFER), 0.0))
    new.receive(answer(request, Kind.ACK, seconds=0xFFFFFFFF), 0.0)
    assert new.deadline == 0xFFFFFFFF / 2


@given(st.binary(max_size=400), st.sampled_from([State.SELECTING, State.REQUESTING, State.RENEWING]))
def test_random_bytes_change_no_state(data: bytes, state: State) -> None:
    new = bound() if state is State.RENEWING else client()
    now = 500.0
    messages = new.timer(now) if state is State.RENEWING else new.start(now)
    if state is State.REQUESTING:
        new.receive(answer(sent(messages), Kind.OFFER), now)
    assert new.receive(data, now) == []
    assert new.state is state


class AnyOrder(RuleBasedStateMachine):
    """Events in any order: a lease is never kept beyond its end, and the client never waits without a deadline."""

    def __init__(self) -> None:
        super().__init__()
        self.client = client()
        self.now = 0.0
        self.last: packet.Message | None = None

    def take(self, messages: list[Send]) -> None:
        for message in messages:
            self.last = sent([message])
            assert inet_ntoa(self.last.client) == message.source

    @rule()
    def start(self) -> None:
        self.take(self.client.start(self.now))

    @rule()
    def stop(self) -> None:
        self.client.stop()

    @rule()
    def wait(self) -> None:
        if self.client.deadline is not None:
            assert self.client.deadline > self.now
            self.now = self.client.deadline
            self.take(self.client.timer(self.now))

    @precondition(lambda self: self.last)
    @rule(kind=st.sampled_from(Kind), seconds=st.integers(0, 5000), server=st.sampled_from(["10.0.2.2", "10.0.2.3"]))
    def answer(self, kind: Kind, seconds: int, server: str) -> None:
        assert self.last
        self.take(self.client.receive(answer(self.last, kind, server=server, seconds=seconds), self.now))

    @invariant()
    def has_a_lease_only_while_it_lasts(self) -> None:
        assert self.client.lease is None or self.now < self.client.lease.expires
        assert self.client.lease or self.client.state in (State.INIT, State.SELECTING, State.REQUESTING)

    @invariant()
    def has_a_deadline_while_something_is_due(self) -> None:
        assert self.client.deadline is not None or (self.client.state is State.INIT and not self.client.lease)


TestAnyOrder = AnyOrder.TestCase
