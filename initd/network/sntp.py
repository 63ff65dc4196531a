"""The time from others' clocks: an SNTP client (RFC 5905 section 14, RFC 4330), which says how far this one is off.

One server after the other is asked until one answers: at once, then after a while that doubles, from a second to
seventeen minutes while none answers, from four minutes to an hour once one has. PID 1 sets the clock.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable

from initd.api.types import TimeState
from initd.network.netlink import boottime
from initd.network.packet import RefusedError

PORT = 123
ANSWER_SECONDS = 2.0
ANSWERS = 16  # to one question, of which fifteen are not for it
FAILING, WORKING = (1.0, 1024.0), (256.0, 3600.0)  # seconds from one round to the next: the least and the most
FAR = 1.0  # seconds: by one so far off PID 1 has set the clock, or wants a second word, so it is asked again soon
SLOWEST = 1.0  # seconds that an answer may be under way: half of it is what the offset may be wrong by
FURTHEST = 16.0  # seconds from a clock that is right, the way included: RFC 5905's MAXDISP
_PACKET = struct.Struct("!BBbbII4sQ8sQQ")
_CLIENT, _SERVER = 4 << 3 | 3, 4  # version 4 and the mode; the mode
_EPOCH = 2_208_988_800  # seconds from 1900 to 1970
_FIRST_ERA_FROM = 1_735_689_600  # 2025: what a timestamp of 32 bits says before that is meant for after 2036


class KissError(RefusedError):
    """The server wants to be asked no more; the text has its kiss code."""


class RateError(KissError):
    """The server wants to be asked, but more rarely."""


_KISSES = {b"DENY": KissError, b"RSTR": KissError, b"RATE": RateError}  # INIT and others: it has no time yet


def request(nonce: bytes) -> bytes:
    """A question that tells nothing of this machine; the nonce of 8 bytes takes its timestamp's place, and returns."""
    return _PACKET.pack(_CLIENT, 0, 0, 0, 0, 0, b"", 0, b"", 0, int.from_bytes(nonce, "big"))


def judge(data: bytes, nonce: bytes, sent: float, received: float) -> float:
    """How many seconds this clock is behind the server's; `sent` and `received` are what it said then.

    Raises RefusedError; KissError or RateError if the answer is a kiss-o'-death.
    """
    if len(data) < _PACKET.size:
        raise RefusedError(f"{len(data)} bytes, an NTP packet has at least {_PACKET.size}")
    flags, stratum, _, _, delay, dispersion, code, _, origin, arrival, departure = _PACKET.unpack_from(data)
    if flags & 7 != _SERVER or origin != nonce:
        raise RefusedError("an answer to another question")
    if stratum == 0 and code in _KISSES:
        raise _KISSES[code](f"kiss-o'-death {code.decode()!r}")
    if flags >> 6 == 3 or not 0 < stratum < 16 or not departure or (delay / 2 + dispersion) / 65536 > FURTHEST:
        raise RefusedError("the server does not know the time itself")
    arrived, left = _seconds(arrival), _seconds(departure)
    if not -0.001 <= (received - sent) - (left - arrived) <= SLOWEST:
        raise RefusedError("it was too long under way")
    return ((arrived - sent) + (left - received)) / 2


def _seconds(timestamp: int) -> float:
    """Since 1970; the era of 32 bits of seconds that begins in 2036 is meant where the first would be long ago."""
    seconds = timestamp / 2**32 - _EPOCH
    return seconds if seconds >= _FIRST_ERA_FROM else seconds + 2**32


async def ask(server: str) -> float:
    """See `judge`. Raises what that does, or OSError if it cannot be asked."""
    loop, problem = asyncio.get_running_loop(), f"no answer for {ANSWER_SECONDS:g} s"
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            try:
                found = socket.getaddrinfo(server, PORT, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
            except socket.gaierror:
                found = await loop.getaddrinfo(server, PORT, type=socket.SOCK_DGRAM)
            family, kind, _, _, address = found[0]
            with socket.socket(family, kind | socket.SOCK_NONBLOCK) as sock:
                sock.connect(address)  # it hears nobody else
                nonce, sent, began = os.urandom(8), time.time(), boottime()
                sock.send(request(nonce))
                for _ in range(ANSWERS):
                    data = await loop.sock_recv(sock, 1024)
                    try:
                        return judge(data, nonce, sent, sent + boottime() - began)
                    except KissError:
                        raise
                    except RefusedError as error:
                        problem = str(error)  # one that is good may still come
    except TimeoutError:
        pass  # `problem` says whether nothing came, or nothing good
    raise RefusedError(problem)


class Clock:
    """Asks the servers that it is told of. `state` is what came of it, for PID 1, and by it for a later process."""

    def __init__(self) -> None:
        self.state: TimeState | None = None
        self.asking = False
        self._servers: list[str] = []
        self._changed = asyncio.Event()

    @property
    def due(self) -> float | None:
        """When it asks next, in seconds since boot."""
        return None if not self._servers else self.state["due"] if self.state else 0.0

    def use(self, servers: list[str]) -> None:
        """These are the servers from now on; what others said counts no more."""
        if servers != self._servers:
            if self._servers:
                self.state = None
            self._servers = servers
            self._changed.set()

    async def run(self, tell: Callable[[TimeState], Awaitable[None]]) -> None:
        """Ask when it is time, for ever."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self.due is None else max(0.0, self.due - boottime())):
                    await self._changed.wait()
            except TimeoutError:
                self.asking, servers = True, self._servers
                state = await self._round(servers, self.state)
                self.asking = False
                if servers is self._servers:  # else it is about others
                    self.state = state
                    await tell(state)

    async def _round(self, servers: list[str], before: TimeState | None) -> TimeState:
        denied = list(before["denied"]) if before else []
        chosen, offset, problems, rarely = None, None, [], False
        for server in servers:
            if server in denied:
                continue
            try:
                chosen, offset = server, await ask(server)
                break
            except (RefusedError, OSError) as error:
                chosen = None
                problems.append(f"{server}: {error}")
                if isinstance(error, RateError):
                    rarely = True
                elif isinstance(error, KissError):
                    denied.append(server)
        least, most = FAILING if chosen is None else WORKING
        same = before is not None and (before["server"] is None) == (chosen is None) and abs(offset or 0.0) < FAR
        wait = (
            most
            if rarely and abs(offset or 0.0) < FAR
            else min(most, max(least, 2 * before["wait"]))
            if before and same
            else least
        )
        reason = None if chosen else "; ".join(problems) or "no server wants to be asked"
        due = boottime() + wait
        return {"server": chosen, "offset": offset, "reason": reason, "due": due, "wait": wait, "denied": denied}
