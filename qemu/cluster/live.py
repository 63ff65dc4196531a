"""The live view of a cluster: nodes and pods as kubectl shows them, and what changed last; on a terminal redrawn in
place, elsewhere a line each change.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from typing import TYPE_CHECKING, TextIO

from initd.client.live import Screen
from initd.client.output import Style, clean, cut
from qemu.cluster.api import StatusError
from qemu.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemu.cluster import Cluster

_SECONDS = 2.0


def watch(cluster: Cluster, file: TextIO, until: Callable[[], bool]) -> None:
    """Show the cluster until `until` says so, asked about every two seconds, or Ctrl-C (KeyboardInterrupt)."""
    screen, changes, before = Screen(file), deque[str](maxlen=200), dict[str, str]()
    try:
        while True:
            style = Style(file)  # the terminal may have another size by now
            try:
                now = _states(cluster)
            except (OSError, StatusError) as error:
                now = {**before, "API server": str(error)}
            for name, state in now.items():
                if before.get(name) != state:
                    changes.append(f"{time.strftime('%H:%M:%S')} {clean(name)}: {style.state(clean(state))}")
                    if not file.isatty():
                        print(changes[-1], file=file, flush=True)
            changes.extend(f"{time.strftime('%H:%M:%S')} {clean(name)}: gone" for name in before if name not in now)
            before = now
            if file.isatty():
                screen.draw(_lines(cluster, style, list(changes)))
            if until():
                return
            time.sleep(_SECONDS)
    finally:
        screen.close()


def _states(cluster: Cluster) -> dict[str, str]:
    """What each node and pod is, by its kind and name."""
    api, states = cluster.control_plane.api, {}
    for node in api.get("/api/v1/nodes")["items"]:
        ready = next((c for c in node["status"].get("conditions", ()) if c["type"] == "Ready"), None)
        good = ready is not None and ready["status"] == "True"
        state = "ready" if good else f"not ready: {ready['message'] if ready else 'it has said nothing yet'}"
        if node["spec"].get("unschedulable"):
            state += ", cordoned"
        states[f"node {node['metadata']['name']}"] = state
    for pod in api.get("/api/v1/pods")["items"]:
        where = pod["spec"].get("nodeName", "no node yet")
        name = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']} ({where})"
        states[name] = str(pod["status"].get("phase", "Unknown")).lower()
    return states


def _lines(cluster: Cluster, style: Style, changes: list[str]) -> list[str]:
    lines = []
    for command in (("get", "nodes", "-o", "wide"), ("get", "pods", "-A", "-o", "wide")):
        try:
            rows = [cut(line, style) for line in cluster.kubectl(*command).splitlines()]
        except HarnessError as error:
            rows = [style.paint(cut(clean(error.message), style), "yellow")]
        lines += [style.paint(rows[0], "bold"), *rows[1:], ""] if rows else []
    room = shutil.get_terminal_size().lines - len(lines) - 1
    return lines + changes[-room:] if room > 0 else lines
