"""The DHCPv4 client as a state machine (RFC 2131 section 4.4) without sockets, clocks or chance of its own.

    INIT        no carrier: silent. A lease is kept until it expires, since a cable that comes back is mostly the same.
    SELECTING   DISCOVER until a server offers something usable; a lease from before a move is used until it expires.
    REQUESTING  REQUEST of that offer; given up after four tries, a NAK goes back to SELECTING.
    REBOOTING   carrier or process came back with a lease: REQUEST of the same address; a NAK or silence: SELECTING.
    BOUND       silent until T1.
    RENEWING    REQUEST to the server that gave the lease, until T2.
    REBINDING   REQUEST to every server, until the lease expires; then the lease is gone, and SELECTING.

The owner calls `start` when the link has carrier, `stop` when it loses it, `receive` for each payload and `timer` at
`deadline` (seconds, any clock that the owner also passes as `now`), sends what they return, and looks at `lease`
afterwards. pyroute2 has a client, which cannot be used: it loads ssl and ctypes, keeps a lease that was never checked,
retransmits after 4 s at the earliest, and its decoder fails on options of unexpected length.
"""

import math
import os
from collections.abc import Callable
from enum import Enum
from socket import inet_aton
from typing import NamedTuple

from initd.network import packet
from initd.network.lease import Lease, judge
from initd.network.packet import ANY, BROADCAST, Kind, Message, Option, RefusedError

SLOWEST = 64.0  # seconds between two tries at most
TRIES = 4  # of a REQUEST, before everything starts over
_PARAMETERS = bytes((
    Option.SUBNET_MASK, Option.CLASSLESS_ROUTES, Option.ROUTER,  # in this order, says RFC 3442
    Option.DNS, Option.HOST_NAME, Option.MTU, Option.NTP,
    Option.LEASE_TIME, Option.RENEWAL_TIME, Option.REBINDING_TIME,
))  # fmt: skip


State = Enum("State", ("INIT", "SELECTING", "REQUESTING", "REBOOTING", "BOUND", "RENEWING", "REBINDING"))


class Send(NamedTuple):
    """A message to put on the wire; broadcast if `destination` is packet.BROADCAST."""

    payload: bytes
    source: str
    destination: str


def chance() -> float:
    return int.from_bytes(os.urandom(4), "big") / 2**32


class Client:
    """One link's client. `lease` is what may be used now, `since` when waiting for one began, `problem` what went
    wrong last (None once a lease is granted), `deadline` when `timer` is to be called.
    """

    def __init__(self, mac: bytes, lease: Lease | None = None, random: Callable[[], float] = chance) -> None:
        self.state = State.INIT
        self.lease = lease
        self.since = 0.0
        self.problem: str | None = None
        self.deadline: float | None = lease.expires if lease else None
        self._mac = mac
        self._random = random
        self._offer: Lease | None = None
        self._xid = 0
        self._tries = 0
        self._refusals = 0
        self._requested = 0.0

    @property
    def listening(self) -> bool:
        return self.state not in (State.INIT, State.BOUND)

    def start(self, now: float) -> list[Send]:
        """The link has carrier."""
        self.since = now
        self._drop_expired(now)
        return self._enter(State.REBOOTING if self.lease else State.SELECTING, now)

    def resume(self, now: float) -> bool:
        """The link has had carrier since the lease was granted: return whether it holds, and nothing is to be asked."""
        if self._drop_expired(now) or self.lease is None:
            return False
        self._bind(self.lease)
        return True

    def stop(self) -> list[Send]:
        """The link has no carrier."""
        self.state = State.INIT
        self.deadline = self.lease.expires if self.lease else None
        return []

    def timer(self, now: float) -> list[Send]:
        """Do what is due; safe to call early."""
        if self.deadline is None or now < self.deadline:
            return []
        expired = self._drop_expired(now)
        match self.state:
            case State.INIT:
                return self.stop()
            case State.BOUND | State.RENEWING | State.REBINDING | State.REBOOTING if expired:
                following = State.SELECTING
            case State.BOUND:
                following = State.RENEWING
            case State.RENEWING if self.lease and now >= self.lease.rebind:
                following = State.REBINDING
            case State.REQUESTING | State.REBOOTING if self._tries >= TRIES:
                self.problem = "the DHCP server does not acknowledge"
                following = State.SELECTING
            case _:
                return self._transmit(now)
        return self._enter(following, now)

    def receive(self, payload: bytes, now: float) -> list[Send]:
        """Take a UDP payload from a server; anything that is not for this client and state is ignored."""
        if not self.listening:
            return []
        try:
            message = packet.decode(payload)
            if message.xid != self._xid or message.mac != self._mac:
                return []
            return self._answer(message, now)
        except RefusedError as error:
            self.problem = f"DHCP answer refused: {error}"
            return []

    def _answer(self, message: Message, now: float) -> list[Send]:
        if self.state is State.SELECTING:
            if message.kind == Kind.OFFER:
                self._offer = judge(message, now)
                return self._enter(State.REQUESTING, now)
            return []
        # Several servers may hear a REQUEST of an offer; only the chosen one's answer counts.
        chosen = self._offer if self.state is State.REQUESTING else None
        if chosen and message.options.get(Option.SERVER_ID) != inet_aton(chosen.server):
            return []
        if message.kind == Kind.ACK:
            self._bind(judge(message, self._requested))
        elif message.kind == Kind.NAK:
            return self._start_over(message, now)
        return []

    def _bind(self, lease: Lease) -> None:
        self.state = State.BOUND
        self.lease = lease
        self.deadline = lease.renew
        self.problem = None
        self._refusals = 0

    def _start_over(self, message: Message, now: float) -> list[Send]:
        text = message.options.get(Option.MESSAGE, b"").decode("ascii", "replace")
        reason = text if text.isprintable() and text else "no reason given"
        self.problem = f"the DHCP server refused the address: {reason}"
        self.lease = None
        self.since = now
        self._refusals += 1
        discover = self._enter(State.SELECTING, now)
        if self._refusals == 1:
            return discover
        # A server that offers what it then refuses must not be asked a thousand times a second.
        self.deadline = now + self._backoff(self._refusals)
        return []

    def _drop_expired(self, now: float) -> bool:
        if self.lease is None or now < self.lease.expires:
            return False
        self.lease = None
        self.since = now
        self.problem = "the DHCP lease expired"
        return True

    def _enter(self, state: State, now: float) -> list[Send]:
        self.state = state
        self._tries = 0
        if state is not State.REQUESTING:  # which belongs to the exchange that the DISCOVER began
            self._xid = int(self._random() * 2**32)
        return self._transmit(now)

    def _backoff(self, tries: int) -> float:
        """1, 2, 4 .. 64 s, each up to a quarter more or less, so that a rack that powers on does not answer in step."""
        return min(SLOWEST, 2.0 ** min(tries, 8)) * (0.75 + self._random() / 2)

    def _transmit(self, now: float) -> list[Send]:
        """Send the current state's message and set the deadline for the next try."""
        wait = self._backoff(self._tries)
        self._tries += 1
        self._requested = now
        end = math.inf if self.lease is None else self.lease.expires
        if self.lease and self.state in (State.RENEWING, State.REBINDING):
            # RFC 2131 section 4.4.5: half of what is left, but not more often than once a minute.
            end = self.lease.rebind if self.state is State.RENEWING else end
            wait = max(60.0, (end - now) / 2)
        self.deadline = min(end, now + wait)
        return [self._message(now)]

    def _message(self, now: float) -> Send:
        options: dict[int, bytes] = {
            Option.CLIENT_ID: b"\x01" + self._mac,
            Option.PARAMETERS: _PARAMETERS,
            Option.MAX_SIZE: (1472).to_bytes(2, "big"),
        }
        kind, client, source, destination = Kind.REQUEST, ANY, ANY, BROADCAST
        lease = self.lease
        match self.state:
            case State.REQUESTING if self._offer:
                options[Option.REQUESTED_ADDRESS] = inet_aton(self._offer.host)
                options[Option.SERVER_ID] = inet_aton(self._offer.server)
            case State.REBOOTING if lease:
                options[Option.REQUESTED_ADDRESS] = inet_aton(lease.host)
            case State.RENEWING if lease:
                client, source, destination = lease.host, lease.host, lease.server
            case State.REBINDING if lease:
                client, source = lease.host, lease.host
            case _:
                kind = Kind.DISCOVER
        seconds = int(max(0.0, now - self.since)) if not lease else 0
        message = Message(kind, self._xid, self._mac, seconds, inet_aton(client), options=options)
        return Send(packet.encode(message), source, destination)
