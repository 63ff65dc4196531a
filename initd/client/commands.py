"""initctl's commands as data: the method that each calls, with what, and how a person sees the answer.

The argument parser and the shell completions are made from this table; a test holds it against the API's methods.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from initd.client import views
from initd.client.output import Style


class Argument(NamedTuple):
    """One argument of a command: the method's parameter of that name.

    With a default it is an option of the default's type, else a required word; known are words that completion offers.
    """

    name: str
    help: str
    default: int | bool | None = None
    short: str = ""
    known: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """How it is written on the command line; nothing for a word."""
        return [] if self.default is None else [*([f"-{self.short}"] if self.short else []), f"--{self.name}"]


class Command(NamedTuple):
    """One command: its words; the API's method, the parameters in their order, and the view of its result or item.

    A listed one shows all items of a stream as one list.
    """

    words: str
    help: str
    method: str = ""
    arguments: tuple[Argument, ...] = ()
    view: Callable[[Any, Style], str] = views.plain
    streaming: bool = False
    listed: bool = False


_SERVICES = ("containerd", "kubelet", "network", "devices", "containers", "cluster")
_FOLLOW = Argument("follow", "go on with what comes", default=False, short="f")
_FORCE = Argument("force", "wait for no service and no pod", default=False)
_COORDINATED = Argument("coordinated", "wait until few enough nodes of the cluster are down", default=False)

COMMANDS = (
    Command("version", "versions of initd, kernel and image", "version", view=views.fields),
    Command("status", "the node: name, address, phase, and why it is not ready", "status", view=views.status),
    Command("services", "state of every service and worker", "services", view=views.services),
    Command(
        "service restart", "end a service and start it again", "service.restart",
        (Argument("name", "the service", known=_SERVICES),), views.restarted,
    ),
    Command(
        "events", "what happened since the boot", "events",
        (Argument("since", "only events after this sequence number", 0), _FOLLOW), views.event, streaming=True,
    ),
    Command(
        "logs", "what a service wrote", "logs",
        (
            Argument("service", "the service or worker", known=_SERVICES),
            Argument("tail", "how many lines to begin with", 100),
            _FOLLOW,
        ),
        views.log_line, streaming=True,
    ),
    Command("dmesg", "the kernel log", "kernel.log", (_FOLLOW,), views.kernel_record, streaming=True),
    Command("mounts", "every mount", "mounts", (), views.listing("target type source flags propagation"), listed=True),
    Command(
        "processes", "every process", "processes",
        view=views.listing("pid parent state resident_bytes cpu_seconds name cgroup"), listed=True,
    ),
    Command(
        "files", "a file, or those in a directory", "files", (Argument("path", "an absolute path"),),
        views.listing("mode uid gid size_bytes type name"), listed=True,
    ),
    Command(
        "links", "network links, their addresses and routes", "links",
        view=views.listing("name kind up mtu mac addresses routes"),
    ),
    Command("pods", "pods and their containers", "pods", view=views.pods),
    Command("images", "container images", "images", view=views.listing("names size_bytes pinned id")),
    Command(
        "disks", "disks and partitions", "disks",
        view=views.listing("device size_bytes read_only type label partition_label"),
    ),
    Command("config", "the configuration in force, and where it came from", "config", view=views.config),
    Command("config schema", "the configuration's JSON Schema", "config.schema"),
    Command("schema", "the API's methods, with JSON Schema of their parameters", "schema"),
    Command("boot-times", "the boot's phases as bars, with the critical path", "boot.times", view=views.boot_times),
    Command("last-boot", "why the boot before this one ended", "boot.last", view=views.last_boot),
    Command("reboot", "restart the machine", "reboot", (_FORCE, _COORDINATED), views.ending),
    Command("reboot cancel", "call off a reboot that waits for its turn", "reboot.cancel", view=views.called_off),
    Command("shutdown", "power the machine off", "shutdown", (_FORCE,), views.ending),
)  # fmt: skip

# The commands that are no method of the API; initctl has their code.
OTHERS = (
    Command("watch", "a live view of node, services and pods"),
    Command("call", "call a method of the API", arguments=(
        Argument("method", "its name", known=tuple(command.method for command in COMMANDS if command.method)),
        Argument("params", "its parameters, each as JSON"),
    )),
    Command("completion", "print the completion script of a shell", arguments=(
        Argument("shell", "bash, zsh or fish", known=("bash", "zsh", "fish")),
    )),
)  # fmt: skip
