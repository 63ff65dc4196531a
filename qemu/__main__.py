"""python -m qemu: boot a node and say how it went; list and stop the machines that run."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from initd.api.protocol import ApiError
from initd.client import live as node_live
from qemu import vms
from qemu.cluster import Cluster
from qemu.cluster import live as cluster_live
from qemu.errors import HarnessError
from qemu.image import Files
from qemu.machine import Machine, checked_name
from qemu.report import Report
from qemu.until import condition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_POWER_OFF = 60.0  # seconds for a clean end before the plug is pulled
_FOREVER = 365 * 86400.0


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except HarnessError as error:
        print(f"qemu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qemu", description="Boot nodes in QEMU.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    boot = commands.add_parser("boot", help="boot a node; exit 0 when EVENT came and the node echoed a nonce")
    boot.set_defaults(run=_boot)
    boot.add_argument("--until", metavar="EVENT", default="ready", help="ready, phase:NAME, service:NAME:STATE, ...")
    boot.add_argument("--timeout", metavar="S", type=float, default=180.0, help="seconds for EVENT to come (180)")
    boot.add_argument("--config", metavar="FILE", type=Path, help="the node's configuration, TOML")
    boot.add_argument("--name", default="default", help="the machine's name (default)")
    boot.add_argument("--memory", metavar="MIB", type=int, default=2048, help="the machine's memory (2048)")
    boot.add_argument("--output", choices=("table", "json"), default="table", help="lines, or one object at the end")
    after = boot.add_mutually_exclusive_group()
    after.add_argument("--keep", action="store_true", help="leave the machine running in the background")
    after.add_argument("--live", action="store_true", help="then watch the node; Ctrl-C powers it off")
    boot.add_argument("--kernel", metavar="FILE", type=Path, help="boot this instead of what rootfs builds")
    boot.add_argument("--initrd", metavar="FILE", type=Path)
    boot.add_argument("--disk", metavar="FILE", type=Path, help="the root disk, attached read-only")
    cluster = commands.add_parser("cluster", help="start a control plane and nodes that join it; Ctrl-C ends all")
    cluster.set_defaults(run=_cluster)
    cluster.add_argument("--nodes", metavar="N", type=int, default=2, help="how many (2)")
    cluster.add_argument("--name", default="cluster", help="the name (cluster); nodes are VMs NAME-node-1, ...")
    cluster.add_argument("--memory", metavar="MIB", type=int, default=3072, help="each node's memory (3072)")
    listing = commands.add_parser("list", help="list the machines that run")
    listing.set_defaults(run=_list)
    stop = commands.add_parser("stop", help="power a machine off")
    stop.set_defaults(run=_stop)
    stop.add_argument("name", nargs="?", default="default")
    return parser


def _boot(options: argparse.Namespace) -> int:
    condition(options.until)  # a wrong name is an error before anything is started
    if options.kernel is None and (options.initrd or options.disk):
        raise HarnessError("--initrd and --disk need --kernel")
    try:
        config = options.config.read_bytes() if options.config else None
    except OSError as error:
        raise HarnessError(f"--config {options.config}: {error.strerror}") from None
    files = Files(options.kernel, options.initrd, options.disk) if options.kernel else None
    machine = Machine(options.name, files, config=config, memory=options.memory)
    return _in_background(machine, options) if options.keep else _in_foreground(machine, options)


def _in_foreground(machine: Machine, options: argparse.Namespace) -> int:
    try:
        decided = _watch_boot(machine, options)
        if decided and options.live:
            _live(machine, decided)
        return 0 if decided else 1
    finally:
        machine.kill()


def _in_background(machine: Machine, options: argparse.Namespace) -> int:
    """Boot in a child that goes on serving the machine's socket; return when the boot is decided."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _stay(machine, options, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        try:
            verdict = pipe.read()
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            raise
    return verdict[0] if verdict else 1


def _stay(machine: Machine, options: argparse.Namespace, writer: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        code = 0 if _watch_boot(machine, options) else 1
        if machine.running and options.output == "table":
            print(f"VM {machine.name} goes on: initctl --vm {machine.name} status; python -m qemu stop {machine.name}")
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # whoever reads our output must see its end
            os.dup2(null, descriptor)
        os.write(writer, bytes([code]))
        os.close(writer)
        machine.wait_exit(_FOREVER)
    except KeyboardInterrupt:
        _power_off(machine)
    except HarnessError as error:
        print(f"qemu: {error}", file=sys.stderr, flush=True)
    finally:
        machine.kill()
        os._exit(code)


def _watch_boot(machine: Machine, options: argparse.Namespace) -> int:
    """Start the machine and report until the event came; return its number, or 0 if it cannot come any more."""
    report = Report(machine, options.until, lines=options.output == "table")
    try:
        machine.start()
        report.started()
        holds = condition(options.until)

        def seen(event: Mapping[str, Any]) -> bool:
            report.event(event)
            return holds(event)

        decided = machine.wait_for(seen, options.timeout, name=options.until)
        report.reached(machine.verify())
    except HarnessError as error:
        report.failed(error)
        return 0
    finally:
        report.finish()
    return int(decided["seq"])


def _live(machine: Machine, since: int) -> None:
    """Show the node until Ctrl-C, then power it off; or until it goes off by itself."""
    try:
        node_live.watch(machine.client, sys.stdout, lambda: not machine.running, since)
        print(f"VM {machine.name} went off")
    except KeyboardInterrupt:
        print(f"\npowering VM {machine.name} off; Ctrl-C again pulls the plug", flush=True)
        print(_power_off(machine))


def _cluster(options: argparse.Namespace) -> int:
    """Start a cluster, say how to use it, and show it until Ctrl-C."""
    names = [f"node-{number}" for number in range(1, options.nodes + 1)]
    with Cluster(options.name) as cluster:
        plane = cluster.control_plane
        print(f"Kubernetes API at https://127.0.0.1:{plane.port}; try it:")
        print(f"  export KUBECONFIG={plane.kubeconfig}")
        print(f"  alias kubectl={plane.programs}/kubectl", flush=True)
        for name in names:
            machine = cluster.machine(name, memory=options.memory)
            machine.start()
            print(f"{name} starts; its API: initctl --vm {machine.name} status", flush=True)
        try:
            cluster_live.watch(cluster, sys.stdout, lambda: not any(m.running for m in cluster.machines.values()))
            print("every node went off")
        except KeyboardInterrupt:
            print("\nending nodes and control plane", flush=True)
    return 0


def _power_off(machine: Machine) -> str:
    """Shut down through the API, or else by the power button, or else by pulling the plug; say which it was."""
    try:
        try:
            with machine.client() as client:
                client.call("shutdown")
        except (ConnectionError, ApiError):
            with contextlib.suppress(HarnessError):  # it went off at this moment
                machine.power_button()
        if machine.wait_exit(_POWER_OFF):
            return f"VM {machine.name} is off"
    except KeyboardInterrupt:
        pass  # the second Ctrl-C
    machine.kill()
    return f"VM {machine.name} did not end by itself and was killed"


def _list(_options: argparse.Namespace) -> int:
    machines = vms.running()
    for machine in machines:
        minutes, seconds = divmod(int(time.time() - machine["started"]), 60)
        print(f"{machine['name']:<20} pid {machine['pid']:<8} up {minutes}:{seconds:02d}")
    if not machines:
        print("no machine runs")
    return 0


def _stop(options: argparse.Namespace) -> int:
    name = checked_name(options.name)
    found = [machine for machine in vms.running() if machine["name"] == name]
    if not found:
        names = ", ".join(machine["name"] for machine in vms.running()) or "none"
        raise HarnessError(f"no VM named {name}; running: {names}")
    process = os.pidfd_open(found[0]["pid"])
    signal.pidfd_send_signal(process, signal.SIGTERM)
    if not select.select([process], [], [], _POWER_OFF + 10)[0]:
        raise HarnessError(f"VM {name} did not end in {_POWER_OFF + 10:g} s")
    return 0


def _interrupt(number: int, _frame: object) -> NoReturn:
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)  # kernel and shell both send it, and the second would end the clean-up
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
