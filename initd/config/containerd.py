"""containerd's configuration file, version 4, with what the user may change of it.

The image ships it unchanged, so that containerd can start before any configuration is read.
"""

import os

_FILE = os.path.join(os.path.dirname(__file__), "containerd.toml")


def render(log_level: str = "info", metrics_port: int | None = None) -> str:
    with open(_FILE, encoding="utf-8") as file:
        text = file.read().replace("level = 'info'", f"level = '{log_level}'")
    if metrics_port is None:
        return text
    return f"{text}\n[plugins.'io.containerd.server.v1.metrics']\naddress = '127.0.0.1:{metrics_port}'\n"
