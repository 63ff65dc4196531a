"""The cluster worker: the only process of initd with ssl, which PID 1 and so its forks keep out (see initd.init)."""

import sys

if sys.modules.get("ssl", sys) is None:
    del sys.modules["ssl"]
