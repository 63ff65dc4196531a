"""The live view of a cluster: nodes and pods as kubectl shows them, and what changed last; on a terminal redrawn in
place, elsewhere a line each change.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

from initd.client.live import Screen
from initd.client.output import Style, clean, table
from qemu.cluster.api import StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qemu.cluster import Cluster

_SECONDS = 2.0
_API = "API server"


def watch(cluster: Cluster, file: TextIO, until: Callable[[], bool]) -> None:
    """Show the cluster until `until` says so, asked about every two seconds, or Ctrl-C (KeyboardInterrupt). Raises
    HarnessError if etcd or the API server ends.
    """
    plane, screen, changes = cluster.control_plane, Screen(file), deque[str](maxlen=200)
    before, tables = {_API: "answers"}, list[Any]()
    try:
        while True:
            with contextlib.suppress(PermissionError):  # made by root in this user's cache
                os.utime(plane.programs.parent)  # a build that trims the cache must see that this is in use
            plane.check("the cluster")
            try:
                tables = [plane.api.table(path) for path in ("/api/v1/nodes", "/api/v1/pods")]
                now = {_API: "answers", **_states(*tables)}
            except (OSError, StatusError) as error:
                tables, now = [], {**before, _API: str(error)}
            style = Style(file)  # the terminal may have another size by now
            news = [(name, state) for name, state in now.items() if before.get(name) != state]
            news += [(name, "gone") for name in before if name not in now]
            lines = [f"{time.strftime('%H:%M:%S')} {clean(name)}: {style.state(clean(state))}" for name, state in news]
            changes.extend(lines)
            before = now
            if file.isatty():
                screen.draw(_lines(tables, style, list(changes)))
            elif lines:
                print(*lines, sep="\n", file=file, flush=True)
            if until():
                return
            time.sleep(_SECONDS)
    finally:
        screen.close()


def _states(nodes: Mapping[str, Any], pods: Mapping[str, Any]) -> dict[str, str]:
    """What each node and pod is, by its kind and name."""
    states = {}
    for node in (row["object"] for row in nodes["rows"]):
        ready = next((c for c in node["status"].get("conditions", ()) if c["type"] == "Ready"), None)
        good = ready is not None and ready["status"] == "True"
        state = "ready" if good else f"not ready: {ready['message'] if ready else 'it has said nothing yet'}"
        if node["spec"].get("unschedulable"):
            state += ", cordoned"
        states[f"node {node['metadata']['name']}"] = state
    for pod in (row["object"] for row in pods["rows"]):
        where = pod["spec"].get("nodeName", "no node yet")
        name = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']} ({where})"
        states[name] = str(pod["status"].get("phase", "Unknown")).lower()
    return states


def _lines(tables: list[Any], style: Style, changes: list[str]) -> list[str]:
    lines = []
    for answer, keys in zip(tables, ((), ("namespace",)), strict=False):  # nodes are in none
        headers = [*keys, *(column["name"] for column in answer["columnDefinitions"])]
        rows = [[*(row["object"]["metadata"][key] for key in keys), *row["cells"]] for row in answer["rows"]]
        if rows:
            lines += [*table([name.upper() for name in headers], rows, style).splitlines(), ""]
    room = shutil.get_terminal_size().lines - len(lines) - 1
    return lines + changes[-room:] if room > 0 else lines
