"""A virtual machine that runs a node."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from typing import TYPE_CHECKING, Any, Self

from initd.client.connection import Client
from qemu import accel, arguments, claims, disks, vms
from qemu.bridge import Bridge
from qemu.errors import HarnessError, MachineStoppedError, MachineTimeoutError
from qemu.image import built
from qemu.journal import Journal
from qemu.net import Network, Segment, forwards
from qemu.process import Process
from qemu.qmp import QmpClient
from qemu.until import Condition, condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from initd.api.types import VersionInfo
    from qemu.disks import Disk
    from qemu.image import Bootable

QEMU = "qemu-system-x86_64"
_TAIL = 3000  # characters of console that explain a failure


class Machine:
    """One virtual machine, from start() to stop(). As a context manager it is started, and killed at the end.

    name: unique among the user's machines; `initctl --vm NAME` finds it. image: what to boot, by default what rootfs
    builds. config: the node's configuration as TOML text (or anything else, to see what the node makes of it), given
    through fw_cfg; None for none. memory: MiB. kernel_arguments are appended to the standard ones, qemu_arguments to
    QEMU's command line.
    """

    def __init__(  # noqa: PLR0913 a machine has that many parts, all given by name
        self,
        name: str = "default",
        image: Bootable | None = None,
        *,
        config: str | bytes | None = None,
        memory: int = 2048,
        cpus: int = 2,
        disks: Sequence[Disk] = (),
        networks: Sequence[Network | Segment] = (Network(),),
        kernel_arguments: str = "",
        qemu_arguments: Sequence[str] = (),
    ) -> None:
        self.name = checked_name(name)
        self.journal = Journal()
        self._image = image
        self._config = config
        self._memory = memory
        self._cpus = cpus
        self._disks = disks
        self._networks = networks
        self._kernel_arguments = f"{arguments.KERNEL_ARGUMENTS} {kernel_arguments}".rstrip()
        self._qemu_arguments = qemu_arguments
        self._folder = vms.directory() / name
        self._storage = disks_folder(name)
        self._cleanup = contextlib.ExitStack()
        self._process: Process | None = None
        self._qmp: QmpClient | None = None
        self._console_text: str | None = None  # the last of it, kept when the files go
        self.started = 0.0
        self.accelerator = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def __repr__(self) -> str:
        return f"<Machine {self.name}>"

    # Life.

    def start(self) -> None:
        """Start QEMU; returns when it runs, long before the node does. Raises HarnessError, which says what is
        missing.
        """
        if self._process is not None:
            raise HarnessError(f"machine {self.name} was started already")
        qemu = shutil.which(QEMU)
        if qemu is None:
            raise HarnessError(f"{QEMU} is not installed", "install it: apt-get install qemu-system-x86")
        try:
            self._start(qemu, self._image or built())
        except BaseException:
            self.kill()
            raise

    def _start(self, qemu: str, image: Bootable) -> None:
        kernel = disks.existing(image.kernel, "kernel")
        initramfs = image.initramfs and disks.existing(image.initramfs, "initramfs")
        root = image.disk and disks.existing(image.disk, "root disk")
        self._claim()
        accelerator = accel.arguments(qemu, kernel)
        self.accelerator = accelerator[1].partition(",")[0]
        api, api_far = socket.socketpair()
        qmp, qmp_far = socket.socketpair()
        with api_far, qmp_far:
            hardware = arguments.Hardware(
                name=self.name,
                memory=self._memory,
                cpus=self._cpus,
                accelerator=accelerator,
                kernel=kernel,
                initramfs=initramfs,
                kernel_arguments=self._kernel_arguments,
                root=root,
                disks=[(disk.prepare(self._storage, index), disk) for index, disk in enumerate(self._disks)],
                networks=self._networks,
                config=self._written_config(),
                console=self.console,
                api=api_far.fileno(),
                qmp=qmp_far.fileno(),
                extra=self._qemu_arguments,
            )
            fds = (api_far.fileno(), qmp_far.fileno())
            self._process = Process(arguments.command(qemu, hardware), fds, self._folder / "qemu.log", self._exited)
            self.started = time.monotonic()
            self._process.start()
        self._cleanup.callback(self._process.kill)
        self._bridge = Bridge(api, self._folder / "api.sock", self.journal)
        self._bridge.start()
        self._cleanup.callback(self._bridge.close)
        self._qmp = QmpClient(qmp, self._on_qmp)
        self._cleanup.callback(self._qmp.close)
        self.qmp("qmp_capabilities")
        self._register(kernel)

    def _claim(self) -> None:
        """Take the name, for as long as this process or the machine lives, and make its folders afresh."""
        registry = made_registry()
        claims.sweep(registry, _remove)
        if not claims.claim(registry, self.name, self._cleanup):
            hint = f"use another name, or stop it: python -m qemu stop {self.name}"
            raise HarnessError(f"a machine named {self.name} runs already", hint)
        _remove(self.name)
        self._cleanup.callback(_remove, self.name)
        for folder in (self._folder, self._storage):
            disks.make_folder(folder)
            disks.check_space(folder)
        self._cleanup.callback(self._keep_console)

    def _register(self, kernel: Path) -> None:
        """Let initctl find the machine."""
        entry = {
            "name": self.name,
            "pid": os.getpid(),
            "started": time.time(),
            "accelerator": self.accelerator,
            "kernel": str(kernel),
            "console": str(self.console),
        }
        new = self._folder / ".machine.json"
        new.write_text(json.dumps(entry), encoding="utf-8")
        new.rename(self._folder / "machine.json")

    def _written_config(self) -> Path | None:
        if self._config is None:
            return None
        path = self._folder / "config.toml"
        path.write_bytes(self._config if isinstance(self._config, bytes) else self._config.encode())
        return path

    def stop(self, timeout: float = 60.0) -> bool:
        """Press the power button, and kill the machine if it is not off in time. Say whether it went off by itself."""
        clean = False
        if self.running:
            with contextlib.suppress(HarnessError):  # it went off at this moment
                self.power_button()
            clean = self.wait_exit(timeout)
        self.kill()
        return clean

    def kill(self) -> None:
        """End QEMU as a power cut would, and remove the machine's files. Does nothing if that was done."""
        self._cleanup.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.pid != 0 and self._process.status is None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid if self._process else 0

    def wait_exit(self, timeout: float) -> bool:
        """Wait until QEMU ended, as it does when the guest powers off; False if it still runs after timeout seconds."""
        return self._process is None or self._process.wait(timeout)

    # The board: buttons and plugs.

    def qmp(self, command: str, arguments: Mapping[str, object] | None = None, /, **args: object) -> Any:
        """Run a QMP command and return its result. Arguments as they are, or by name with underscores for dashes."""
        given = {**(arguments or {}), **{name.replace("_", "-"): value for name, value in args.items()}}
        if self._qmp is None:
            raise HarnessError(f"machine {self.name} is not started")
        with self._explained():
            return self._qmp.execute(command, given)

    def power_button(self) -> None:
        """Press the ACPI power button."""
        self.qmp("system_powerdown")

    def reset(self) -> None:
        """Press the reset button: the guest is not asked."""
        self.qmp("system_reset")

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        self.qmp("stop")

    def resume(self) -> None:
        """Let the guest's CPUs run again."""
        self.qmp("cont")

    def set_link(self, up: bool, network: int = 0) -> None:
        """Plug the cable of a network card in, or pull it out."""
        self.qmp("set_link", name=f"nic{network}", up=up)

    def start_dhcp(self, network: int = 0) -> None:
        """Bring DHCP, DNS and a way out to a network that was made with dhcp=False."""
        wire = self._networks[network]
        if isinstance(wire, Segment):
            raise HarnessError(f"network {network} is a segment of the machines' own, which has no DHCP server")
        for command, args in wire.plug(network):
            self.qmp(command, args)

    def port(self, guest: int) -> int:
        """Return the port of 127.0.0.1 that is forwarded to a TCP port of the guest, which one of the networks must
        name in `forward`.
        """
        found = forwards(self.qmp("human-monitor-command", command_line="info usernet"))
        if guest not in found:
            raise HarnessError(
                f"port {guest} is not forwarded", f"forwarded are: {sorted(found) or 'none'}; see Network.forward"
            )
        return found[guest]

    # The console.

    @property
    def console(self) -> Path:
        """The file that the console's output goes to, while the machine lives."""
        return self._folder / "console.log"

    def console_tail(self, characters: int = _TAIL) -> str:
        """Return the end of what the console printed; after the machine's end, of what it had printed by then."""
        if self._console_text is not None:
            return self._console_text[-characters:]
        return _tail(self.console, characters)

    # The node.

    def client(self) -> Client:
        """Return a new connection to the node's API; close it, or use it in a with statement."""
        return Client(str(self._folder / "api.sock"))

    def events(self, since: int = 0, timeout: float = 120.0) -> Iterator[Mapping[str, Any]]:
        """Yield the API's events after the sequence number `since` of this boot and all of later boots, as they come,
        for timeout seconds.

        Raises MachineTimeoutError at the end of that time, and MachineStoppedError as soon as QEMU is gone.
        """
        with self._explained():
            yield from self.journal.events(since, timeout)

    def wait_for(
        self, what: str | Condition, timeout: float = 120.0, since: int = 0, name: str = "the event"
    ) -> Mapping[str, Any]:
        """Return the first event that is `what`: text as qemu.until reads it ("ready", "service:kubelet:running") or a
        predicate, which an error then calls by name.

        Looks at all events of this boot after the sequence number since, past ones too. Raises as events() does.
        """
        holds, text = (condition(what), what) if isinstance(what, str) else (what, name)
        with self._explained():
            return self.journal.wait_for(holds, text, since, timeout)

    @property
    def last_seq(self) -> int:
        """The number of the last event so far: wait_for(..., since=last_seq) waits for what comes after now."""
        return self.journal.last_seq

    @property
    def boots(self) -> int:
        """How many boots answered so far. A kernel that failed before PID 1 could answer is none."""
        return self.journal.boots

    def wait_api(self, timeout: float = 60.0) -> VersionInfo:
        """Wait until the node answers on its API channel, in whatever state it is; return who answers."""
        with self._explained():
            return self._bridge.wait(timeout)

    def verify(self, timeout: float = 30.0) -> VersionInfo:
        """Return who echoes a fresh nonce over the API channel: the proof that a living PID 1 speaks, not a line on a
        console.

        Ends the calls that are outstanding on the channel (UNAVAILABLE); event iterators go on.
        """
        with self._explained():
            return self._bridge.verify(timeout)

    @contextlib.contextmanager
    def next_boot(self, timeout: float = 120.0) -> Iterator[None]:
        """Run the body, which must make the node reboot, then wait until another boot answers."""
        before = self.journal.boot_id
        yield
        with self._explained():
            self.journal.wait_boot(before, timeout)

    # What QEMU tells.

    def _on_qmp(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "RESET"}:
                self.journal.reset()
                self._bridge.lost()
            case {"event": "VSERPORT_CHANGE", "data": {"id": "api", "open": False}}:
                self._bridge.lost()
            case {"event": "VSERPORT_CHANGE", "data": {"id": "api", "open": True}}:
                self._bridge.opened()

    def _exited(self, status: int) -> None:
        self.journal.stop(f"machine {self.name}: QEMU ended with status {status}")

    def _keep_console(self) -> None:
        self._console_text = _tail(self.console, 1 << 20)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Add what QEMU and the console said to an error that means that the node is not as it should be."""
        try:
            yield
        except (MachineStoppedError, MachineTimeoutError) as error:
            if not error.detail:
                said = [("QEMU", _tail(self._folder / "qemu.log", _TAIL)), ("the console's end", self.console_tail())]
                error.detail = "\n".join(f"--- {what} ---\n{text}" for what, text in said if text.strip())
            raise


def checked_name(name: str) -> str:
    """Return name; raise HarnessError if no machine can have it."""
    try:
        return vms.checked(name)
    except ValueError as error:
        raise HarnessError(str(error)) from None


def disks_folder(name: str) -> Path:
    """Return where a machine's new disks live."""
    return disks.cache() / "vms" / name


def made_registry() -> Path:
    """Make the folder of the VMs of this user, and return it. Raises HarnessError."""
    registry = vms.directory()
    disks.make_folder(registry, exist_ok=True)
    if registry.stat().st_uid != os.getuid():  # /tmp is everybody's, and api.sock gives every right to a node
        raise HarnessError(f"{registry} belongs to another user", "set XDG_RUNTIME_DIR to a folder of your own")
    return registry


def _remove(name: str) -> None:
    for folder in (vms.directory() / name, disks_folder(name)):
        shutil.rmtree(folder, ignore_errors=True)


def _tail(path: Path, characters: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - characters))
            return file.read().decode("utf-8", "replace").replace("\r", "")
    except OSError:
        return ""
