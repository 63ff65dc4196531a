"""What a person sees of each answer of the API: one function a shape."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from initd.client.output import Style, clean, cut, duration, size, table, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from initd.api import types

_COMMON = {"seq", "time", "monotonic", "kind"}
_BAR_WIDTH = 40
_PRIORITIES = {0: "red", 1: "red", 2: "red", 3: "red", 4: "yellow", 7: "dim"}


def version(value: types.VersionInfo, style: Style) -> str:
    """Versions, one a line."""
    return fields(value, style)


def fields(value: Mapping[str, Any], style: Style) -> str:
    """Return the pairs of a flat map, one a line."""
    width = max(map(len, value), default=0)
    return "\n".join(
        f"{style.paint(f'{clean(key)}:'.ljust(width + 2), 'bold')}{clean(item)}" for key, item in value.items()
    )


def status(value: types.NodeStatus, style: Style) -> str:
    """Return the node in one line, and a line for each reason why it is not ready."""
    ready = style.state("ready") if value["ready"] else style.paint("not ready", "red")
    parts = [
        style.paint(clean(value["name"] or "(no name yet)"), "bold"),
        clean(value["address"] or "no address"),
        style.state(clean(value["phase"])),
        ready,
        f"up {duration(value['uptime_seconds'])}",
        f"configuration from {clean(value['config_source'] or 'nowhere yet')}",
    ]
    return "\n".join(
        ["  ".join(parts), *(f"  {style.paint('!', 'yellow')} {clean(reason)}" for reason in value["reasons"])]
    )


def services(value: list[types.ServiceStatus], style: Style) -> str:
    """Return a line for each service, and below the table why one is not as it should be."""
    rows = [
        (
            item["name"],
            item["state"],
            "healthy" if item["healthy"] else "-",
            item["pid"],
            item["restarts"],
            item["last_exit"],
            item["status_text"],
        )
        for item in value
    ]
    notes = []
    for item in value:
        if item["next_start_seconds"] is not None:
            notes.append(
                f"{clean(item['name'])} starts again in {duration(item['next_start_seconds'])}; its last lines:"
            )
            notes += [f"  {cut(clean(line), style)}" for line in item["last_lines"][-5:]]
    return "\n".join(
        [table(("SERVICE", "STATE", "HEALTH", "PID", "RESTARTS", "LAST EXIT", "STATUS"), rows, style), *notes]
    )


def pods(value: list[types.PodInfo], style: Style) -> str:
    """Return a line for each container, with its pod."""
    rows: list[tuple[object, ...]] = []
    for pod in value:
        name = f"{pod['namespace']}/{pod['name']}"
        rows += [
            (name, pod["address"], item["name"], item["state"], item["restarts"], item["reason"] or "-", item["image"])
            for item in pod["containers"]
        ] or [(name, pod["address"], "-", pod["state"], "-", "-", "-")]
    return table(("POD", "ADDRESS", "CONTAINER", "STATE", "RESTARTS", "REASON", "IMAGE"), rows, style)


def images(value: list[types.ImageInfo], style: Style) -> str:
    """Return a line for each name of an image."""
    rows = [
        (name, size(item["size_bytes"]), "pinned" if item["pinned"] else "-", item["id"][:19])
        for item in value
        for name in item["names"] or ["-"]
    ]
    return table(("IMAGE", "SIZE", "PINNED", "ID"), rows, style)


def disks(value: list[types.DiskInfo], style: Style) -> str:
    """Return a line for each disk and partition."""
    rows = [
        (
            item["device"],
            size(item["size_bytes"]),
            "ro" if item["read_only"] else "rw",
            item["type"],
            item["label"],
            item["partition_label"],
        )
        for item in value
    ]
    return table(("DEVICE", "SIZE", "MODE", "TYPE", "LABEL", "PARTITION"), rows, style)


def links(value: list[types.LinkInfo], style: Style) -> str:
    """Return a line for each link."""
    rows = [
        (
            item["name"],
            item["kind"],
            "up" if item["up"] else "down",
            item["mtu"],
            item["mac"],
            " ".join(item["addresses"]) or "-",
            ", ".join(item["routes"]) or "-",
        )
        for item in value
    ]
    return table(("LINK", "KIND", "STATE", "MTU", "MAC", "ADDRESSES", "ROUTES"), rows, style)


def mounts(value: list[types.MountInfo], style: Style) -> str:
    """Return a line for each mount."""
    rows = [
        (item["target"], item["type"], item["source"], ",".join([*item["flags"], *item["propagation"]]))
        for item in value
    ]
    return table(("TARGET", "TYPE", "SOURCE", "FLAGS"), rows, style)


def processes(value: list[types.ProcessInfo], style: Style) -> str:
    """Return a line for each process."""
    rows = [
        (
            item["pid"],
            item["parent"],
            item["state"],
            size(item["resident_bytes"]),
            f"{item['cpu_seconds']:.1f} s",
            item["cgroup"],
            " ".join(item["argv"]) or item["name"],
        )
        for item in value
    ]
    return table(("PID", "PARENT", "STATE", "MEMORY", "CPU", "CGROUP", "COMMAND"), rows, style)


def config(value: types.ConfigInfo, style: Style) -> str:
    """Return the configuration as it was written, with where it came from."""
    head = style.paint(f"# from {clean(value['source'] or 'nowhere yet')}", "dim")
    error = [style.paint(f"# error: {clean(value['error'])}", "red")] if value["error"] else []
    return "\n".join([head, *error, *map(clean, value["text"].splitlines())])


def plain(value: object, style: Style) -> str:  # noqa: ARG001 - the shape of a view
    """Return what has no better form as JSON."""
    return to_json(value)


def ending(value: float, style: Style) -> str:  # noqa: ARG001 - the shape of a view
    """Return what to expect of a reboot or shutdown."""
    return f"the node stops within {duration(value)}"


def restarted(value: bool, style: Style) -> str:  # noqa: ARG001 - the shape of a view
    """Return what a restart came to."""
    return "restarting" if value else "not restarted"


def log_line(value: Mapping[str, Any], style: Style) -> str:
    """Return one line of a service, a LogLine."""
    if "text" not in value:
        return _dropped(value, style)
    lost = f"({value['dropped']} lines dropped)\n" if value["dropped"] else ""
    return f"{style.paint(lost, 'yellow')}{style.paint(_clock(value['time']), 'dim')} {clean(value['text'])}"


def kernel_record(value: Mapping[str, Any], style: Style) -> str:
    """Return one record of the kernel log, a KernelRecord, as dmesg writes it."""
    if "text" not in value:
        return _dropped(value, style)
    text, colour = clean(value["text"]), _PRIORITIES.get(value["priority"])
    when = style.paint(f"[{value['monotonic']:12.6f}]", "dim")
    return f"{when} {style.paint(text, colour) if colour else text}"


def event(value: Mapping[str, Any], style: Style) -> str:
    """Return one event in a line: when, what kind, and what happened."""
    if "kind" not in value:
        return _dropped(value, style)
    when = style.paint(f"{value['monotonic']:9.3f}", "dim")
    return f"{when} {style.paint(clean(value['kind']).ljust(8), 'blue')} {_happened(value, style)}"


def _happened(value: Mapping[str, Any], style: Style) -> str:
    match value:
        case {"kind": "phase", "name": name, "index": index, "total": total, "status": state, "milliseconds": spent}:
            waited = f", waited for {clean(value['waited_for'])}" if value.get("waited_for") else ""
            error = f": {clean(value['error'])}" if value.get("error") else ""
            return f"{index}/{total} {clean(name)}: {style.state(clean(state))}, {spent:.0f} ms{waited}{error}"
        case {"kind": "service" | "worker", "name": name, "state": state}:
            reason = f" ({clean(value['reason'])})" if value.get("reason") else ""
            return f"{clean(name)}: {style.state(clean(state))}{reason}"
        case {"kind": "node", "phase": phase, "ready": ready, "reasons": reasons}:
            state = style.state("ready") if ready else f"not ready ({clean(', '.join(map(str, reasons)))})"
            return f"{style.state(clean(phase))}, {state}"
        case _:
            return " ".join(f"{clean(key)}={clean(item)}" for key, item in value.items() if key not in _COMMON)


def _dropped(value: Mapping[str, Any], style: Style) -> str:
    return style.paint(f"({clean(value.get('dropped'))} dropped: this client was too slow)", "yellow")


def boot_times(value: types.BootTimes, style: Style) -> str:
    """Return the boot as bars on one time axis, with the critical path: what the last phase waited for, in turn."""
    phases = value["phases"]
    ends = {phase["name"]: phase["start"] + phase["milliseconds"] / 1000 for phase in phases}
    scale = max([0.001, *ends.values(), *value["marks"].values()]) / _BAR_WIDTH
    critical = critical_path(phases)
    width = max([*map(len, ends), *map(len, value["marks"])], default=0)
    lines = []
    for phase in phases:
        start, end = phase["start"], ends[phase["name"]]
        bar = " " * int(start / scale) + ("█" * int((end - start) / scale) or "▏")
        on_path = phase["name"] in critical
        waited = f"after {clean(phase['waited_for'])}" if phase["waited_for"] else ""
        notes = " ".join(filter(None, ["" if phase["status"] == "done" else phase["status"], waited]))
        label = f"{'*' if on_path else ' '} {clean(phase['name']).ljust(width)} {phase['milliseconds']:8.0f} ms"
        bar = bar.ljust(_BAR_WIDTH + 1)
        lines.append(f"{label} {style.paint(bar, 'red' if on_path else 'blue')} {clean(notes)}".rstrip())
    for name, at in sorted(value["marks"].items(), key=lambda mark: mark[1]):
        lines.append(f"  {clean(name).ljust(width)} {at:9.3f} s {' ' * int(at / scale)}▲")
    path = " > ".join(reversed(critical))
    return "\n".join([*lines, f"* critical path: {clean(path) or 'none'}; times since PID 1's exec"])


def critical_path(phases: list[types.BootPhase]) -> list[str]:
    """Return the names of the phases that decided how long the boot took, the last one first."""
    by_name = {phase["name"]: phase for phase in phases}
    last = max(phases, key=lambda phase: phase["start"] + phase["milliseconds"] / 1000, default=None)
    path: list[str] = []
    while last and last["name"] not in path:
        path.append(last["name"])
        last = by_name.get(last["waited_for"] or "")
    return path


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"
