"""How long to wait before a service is started again: exponential, with jitter, on the monotonic clock."""

import os

FIRST = 0.1
LONGEST = 30.0
HEALTHY = 60.0
LOOP = 3


class Backoff:
    """Counts failures in a row; one that was ready for `HEALTHY` seconds makes the next failure the first again."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self, ready: float) -> float:
        """Note a failure of a process that was ready for so many seconds; returns the seconds to wait before a start.

        One that was healthy long enough is started again at once: that cannot spin, and its absence is what costs. The
        jitter (a fifth, downwards) keeps services that fail together from starting together.
        """
        if ready >= HEALTHY:
            self.failures = 1
            return 0.0
        self.failures += 1
        longest: float = min(FIRST * 2.0 ** min(self.failures - 1, 32), LONGEST)
        return longest * (1.0 - 0.2 * os.urandom(1)[0] / 256)

    @property
    def looping(self) -> bool:
        """Whether it failed so often in a row that this is a crash loop."""
        return self.failures >= LOOP
