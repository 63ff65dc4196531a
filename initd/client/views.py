"""What a person sees of each answer of the API: a table's columns, or a function, for each shape."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from initd.api import types
from initd.client.output import Style, clean, cut, duration, size, table, to_json

_COMMON = {"seq", "time", "monotonic", "kind"}
_BAR_WIDTH = 40
_PRIORITIES = {0: "red", 1: "red", 2: "red", 3: "red", 4: "yellow", 7: "dim"}


def listing(keys: str) -> Callable[[Iterable[Mapping[str, Any]], Style], str]:
    """Return the view that is a table of these keys of each item. A unit at a key's end says how its value is shown."""
    names = keys.split()
    headers = [re.sub(r"_(bytes|seconds)$", "", name).replace("_", " ").upper() for name in names]

    def view(items: Iterable[Mapping[str, Any]], style: Style) -> str:
        return table(headers, ([_cell(name, item.get(name, "-")) for name in names] for item in items), style)

    return view


def _cell(name: str, value: Any) -> object:
    match value:
        case bool():
            return name.replace("_", "-") if value else "-"
        case list():
            return ", ".join(value)
        case int() | float() if name.endswith("_bytes"):
            return size(value)
        case int() | float() if name.endswith("_seconds"):
            return f"{value:.1f} s"
        case str() if value.startswith("sha256:"):
            return value[:19]
        case _:
            return value


_pods = listing("pod address container state restarts reason image")
_services = listing("name state healthy pid restarts last_exit status_text")


def pods(value: list[types.PodInfo], style: Style) -> str:
    empty = dict.fromkeys(("name", "restarts", "reason", "image"))
    rows = [
        {**pod, **item, "pod": f"{pod['namespace']}/{pod['name']}", "container": item["name"]}
        for pod in value
        for item in pod["containers"] or (empty,)
    ]
    return _pods(rows, style)


def services(value: list[types.ServiceStatus], style: Style) -> str:
    """Return a line for each service, and below the table why one is not as it should be."""
    notes = []
    for item in value:
        if item["next_start_seconds"] is not None:
            delay = duration(item["next_start_seconds"])
            notes.append(f"{clean(item['name'])} starts again in {delay}; its last lines:")
            notes += [f"  {cut(clean(line), style)}" for line in item["last_lines"][-5:]]
    return "\n".join([_services(value, style), *notes])


def fields(value: Mapping[str, Any], style: Style) -> str:
    width = max(map(len, value), default=0) + 2
    return "\n".join(f"{style.paint(f'{key}:'.ljust(width), 'bold')}{clean(item)}" for key, item in value.items())


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
        f"identity {clean(value['identity']).partition(':')[0]}",  # what is wrong is among the reasons
        f"time {clean(value['time'])}",
    ]
    failures = [f"PID 1 failed and was resumed: {text.splitlines()[-1]}" for text in value["failures"] if text]
    notes = [f"  {style.paint('!', 'yellow')} {clean(note)}" for note in [*value["reasons"], *failures]]
    return "\n".join(["  ".join(parts), *_cluster(value, style), *notes])


def _cluster(value: types.NodeStatus, style: Style) -> list[str]:
    lines = []
    if state := value["cluster"]:
        joined = style.state("Ready" if state["ready"] else "NotReady") if state["joined"] else "not joined"
        cordoned = [style.paint("cordoned", "yellow")] if state["cordoned"] else []
        # Why it is not ready is a reason of the node's.
        note = [style.paint(clean(state["reason"]), "yellow")] if state["ready"] and state["reason"] else []
        lines.append("  ".join(["  cluster", clean(state["server"]), joined, *cordoned, *note]))
    if turn := value["turn"]:
        lines.append(f"  reboot, asked for by {clean(turn['by'])}, waits: {clean(turn['waits_for'])}")
    return lines


def last_boot(value: types.LastBoot, _style: Style) -> str:
    cause = value["cause"] or "not known: neither a watchdog nor the kernel left word"
    return "\n".join([f"the last boot's end: {cause}", *map(clean, (value["log"] or "").splitlines())])


def config(value: types.ConfigInfo, style: Style) -> str:
    """Return the configuration as it was written, with where it came from."""
    head = style.paint(f"# from {clean(value['source'] or 'nowhere yet')}", "dim")
    error = [style.paint(f"# error: {clean(value['error'])}", "red")] if value["error"] else []
    return "\n".join([head, *error, *map(clean, value["text"].splitlines())])


def plain(value: object, _: Style) -> str:
    """Return what has no better form as JSON."""
    return to_json(value)


def ending(value: float | None, _: Style) -> str:
    if value is None:
        return "the node reboots when its turn has come: see `initctl status`; `initctl reboot` does not wait for it"
    return f"the node stops within {duration(value)}"


def called_off(value: bool, _: Style) -> str:
    return "called off" if value else "no reboot waits for its turn"


def restarted(value: bool, _: Style) -> str:
    return "restarting" if value else "not restarted"


def log_line(value: Mapping[str, Any], style: Style) -> str:
    if "text" not in value:
        return _dropped(value, style)
    lost = f"({value['dropped']} lines dropped)\n" if value["dropped"] else ""
    clock = f"{time.strftime('%H:%M:%S', time.localtime(value['time']))}.{int(value['time'] % 1 * 1000):03d}"
    return f"{style.paint(lost, 'yellow')}{style.paint(clock, 'dim')} {clean(value['text'])}"


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
        case {"kind": "service", "name": name, "state": state}:
            reason = f" ({clean(value['reason'])})" if value.get("reason") else ""
            return f"{clean(name)}: {style.state(clean(state))}{reason}"
        case {"kind": "node", "phase": phase, "ready": ready, "reasons": reasons}:
            state = style.state("ready") if ready else f"not ready ({clean(', '.join(map(str, reasons)))})"
            return f"{style.state(clean(phase))}, {state}"
        case {"kind": "images", "images": [*images]}:
            names = (str(image["name"]) for image in images if isinstance(image, dict) and "name" in image)
            return f"imported {clean(', '.join(names))}"
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
