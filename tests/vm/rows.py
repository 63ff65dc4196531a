"""The table of faults: what a node does when something fails. tests/vm/test_faults.py runs it, README.md has it.

PID 1 is not crashed while it boots: the probe that does that from outside is a pod, and comes with the boot's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from qemu import faults
from qemu.probe import http_get
from tests.vm import manifests
from tests.vm.conftest import pods

if TYPE_CHECKING:
    from qemu.machine import Machine
    from qemu.probe import Probe

SHUTDOWN = 12  # seconds; of the table's own machine
RESCUE = 60
WATCHDOG = 10
PIDS = 200  # a pod of it may have
IN_EXEC = 0.25 + 0.1  # seconds, from a kill to the next exec but for its delay: ever on a busy host, and for a flood
LIVENESS = 90  # seconds: a bad answer is found after 30 s, ended after 30 s more at a tick of 30 s; the watchdog has 60
BOOT = 60  # seconds, on a busy host


@dataclass
class Scene:
    """A machine, what was so before the fault, and what the row's faults returned."""

    machine: Machine
    probe: Probe
    fault: Any = None
    also: Any = None
    before: dict[str, Any] = field(default_factory=dict)
    seq: int = 0

    def look(self) -> dict[str, Any]:
        """Return what the API says: status, last boot, services and pods by name."""
        with self.machine.client() as client:
            services = {entry["name"]: entry for entry in client.call("services")}
            look = {"status": client.call("status"), "last": client.call("boot.last"), "services": services}
        return {**look, "pods": pods(self.machine)}

    def status(self) -> dict[str, Any]:
        """Return the node's status."""
        with self.machine.client() as client:
            status: dict[str, Any] = client.call("status")
            return status

    def wake(self) -> None:
        """Start the workers that rest; raise AssertionError if one of them knows nothing."""
        with self.machine.client() as client:
            for method in faults.WORKERS.values():
                assert client.call(method), method

    def as_before(self, anew: tuple[str, ...]) -> str:
        """Return what is not as it was before, "" if nothing is; what `anew` names must have been started anew."""
        self.wake()
        now = self.look()
        if not now["status"]["ready"] or "bomb" in running(now):
            return f"not ready, or a bomb is left: {now['status']['reasons']}, {sorted(running(now))}"
        for key in ("boot_id", "address", "name"):
            if now["status"][key] != self.before["status"][key]:
                return f"another {key}"
        for name in ("containerd", "kubelet"):
            after, before = now["services"][name], self.before["services"][name]
            if (after["pid"] != before["pid"], after["restarts"] - before["restarts"]) != (
                (name in anew),
                (name in anew),
            ):
                return f"{name}: {before['restarts']} restarts before, {after['restarts']} now"
        for name, ids in running(self.before).items():
            if (running(now).get(name) != ids) != (name in anew):
                return f"pod {name}: {ids} before, {running(now).get(name)} now"
        return ""


def running(look: dict[str, Any]) -> dict[str, list[str]]:
    """Return the ids of each pod's containers, of pods that are ready."""
    ready_pods = {name: pod for name, pod in look["pods"].items() if pod["state"] == "ready"}
    return {name: [pod["id"], *(part["id"] for part in pod["containers"])] for name, pod in ready_pods.items()}


Check: TypeAlias = Callable[[Scene], bool]


@dataclass(frozen=True)
class Row:
    """fault: its name in qemu.faults; also: another one while it lasts. happens: for the README. bound: seconds from
    the last of both within which check comes true. when: running, booting (after an event), rebooting or shutting down.
    anew: what is started anew, and nothing else is. passes: they last so many seconds, and check comes after that.
    own: on the table's own machine, which is left as it is if it `ends`; with softdog, its watchdog is the kernel's
    own. serves: no request to the web pod fails.
    """

    fault: str
    happens: str
    bound: float
    check: Check
    when: str = "running"
    also: str = ""
    anew: tuple[str, ...] = ()
    passes: float = 0.0
    after: str = ""
    own: bool = False
    ends: bool = False
    softdog: bool = False
    serves: bool = True
    quick: bool = False

    @property
    def name(self) -> str:
        words = (self.fault, self.also, self.when.replace("running", ""), self.after, "softdog" * self.softdog)
        return " ".join(filter(None, words))


def back(name: str) -> Check:
    """Whether another process of that service or worker runs than the one that was signalled, and well."""

    def check(scene: Scene) -> bool:
        look = scene.look()
        now = look["services"][name]
        well = now["state"] == "running" and (now["healthy"] or name in faults.WORKERS)
        others = [done["pid"] for done in (scene.fault, scene.also) if isinstance(done, dict) and "pid" in done]
        return bool(well) and now["pid"] not in (None, scene.before["services"][name]["pid"], *others)

    return check


def killed(name: str) -> Check:
    """Whether it is back after a SIGKILL, which the node names."""
    return lambda scene: back(name)(scene) and "SIGKILL" in scene.look()["services"][name]["last_exit"]


def late(name: str, reason: str) -> Check:
    """Whether it is back, and could not be started for that reason until then."""

    def check(scene: Scene) -> bool:
        history = scene.look()["services"][name]["history"]
        return back(name)(scene) and any(reason in entry["reason"] for entry in history)

    return check


def prompt(scene: Scene) -> bool:
    """Whether the killed kubelet was in exec again while the flood lasted, as soon as it is without one."""
    flood = scene.fault.result(timeout=0)  # raises TimeoutError while it lasts
    history = scene.look()["services"]["kubelet"]["history"]
    starts = [entry for entry in history if entry["state"] == "starting" and entry["monotonic"] > scene.also["at"]]
    assert starts, "the flood was over before its delay"
    start = starts[0]
    delay = float(start["reason"].split()[2])
    took = start["monotonic"] - scene.also["at"] - delay
    assert flood["sent"] == faults.DATAGRAMS
    assert flood["begun"] < scene.also["at"] < start["monotonic"] < flood["ended"], "it was started when all was over"
    assert took < IN_EXEC, f"{took:.3f} s"
    return True


def web_anew(scene: Scene) -> bool:
    """Whether the web pod has another sandbox."""
    return running(scene.look()).get("web", [])[:1] not in ([], running(scene.before)["web"][:1])


def bomb_killed(scene: Scene) -> bool:
    """Whether the kernel killed the bomb's container."""
    bomb = scene.look()["pods"].get("bomb", {"containers": []})
    return any(container["reason"] == "OOMKilled" for container in bomb["containers"])


def forks(scene: Scene) -> bool:
    """Whether the bomb has about as many processes as it may, and the API answers."""
    found = [process for process in scene.probe.processes() if process["argv"][-1:] == ["fork"]]
    return PIDS - 20 <= len(found) <= PIDS and scene.status()["phase"] == "running"


def no_carrier(scene: Scene) -> bool:
    """Whether the node says so."""
    status = scene.status()
    return status["phase"] == "running" and any("no carrier" in reason for reason in status["reasons"])


def all_closed(scene: Scene) -> bool:
    """Whether none of the flood's connections is left."""
    return bool(scene.fault["connected"] == scene.fault["closed"] == faults.FLOOD)


def refused(scene: Scene) -> bool:
    """Whether most connections were refused, and a killed kubelet was reaped and started all the same."""
    return scene.fault["closed"] >= faults.CONNECTIONS - 512 and killed("kubelet")(scene)


def ready(scene: Scene) -> bool:
    """Whether the node is ready."""
    return bool(scene.status()["ready"])


def resumed(cause: str) -> Check:
    """Whether PID 1 lives again in the same boot and says what it died of, and where; services had no part in it."""

    def check(scene: Scene) -> bool:
        now = scene.look()
        failures = now["status"]["failures"]
        if len(failures) == len(scene.before["status"]["failures"]) or now["status"]["phase"] != "running":
            return False
        assert "run_forever" in failures[-1]
        assert failures[-1].splitlines()[-1] == cause
        assert scene.machine.last_seq > scene.seq, "one log through all lives"
        for name in ("containerd", "kubelet"):
            assert now["services"][name]["history"] == scene.before["services"][name]["history"]
        return True

    return check


def ignored(scene: Scene) -> bool:
    """Whether the kernel's log has a line for each signal that only a fault of PID 1's own should bring."""
    with scene.machine.client() as client:
        lines = [record["text"] for record in client.stream("kernel.log", False)]
    names = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")
    told = all(any(f"{name} ignored, sent by pid " in line for line in lines) for name in names)
    return told and unmoved(scene)


def unmoved(scene: Scene) -> bool:
    """Whether PID 1 is as it was."""
    status = scene.status()
    return (status["phase"], status["failures"], status["shutdown"]) == (
        "running",
        scene.before["status"]["failures"],
        None,
    )


def crashed(scene: Scene) -> bool:
    """Whether the crashed worker is another one, and PID 1 the same."""
    now = scene.look()["services"]["network"]
    return back("network")(scene) and "SIGSEGV" in now["last_exit"] and unmoved(scene)


def in_rescue(scene: Scene) -> bool:
    """Whether rescue is in PID 1's place, and tells who asks on the node."""
    return bool(faults.ask(scene.probe, "status")["phase"] == "rescue")


def daemons_go_on(scene: Scene) -> bool:
    """Whether the daemons are the same, and have made the web pod anew, of which they write a lot."""
    pids = {process["pid"] for process in scene.probe.processes()}
    services = scene.before["services"]
    same = {services["containerd"]["pid"], services["kubelet"]["pid"]} <= pids and scene.also["pid"] not in pids
    return same and http_get(scene.machine.port(manifests.WEB_PORT), "/")[0] == 200 and in_rescue(scene)


def off(scene: Scene) -> bool:
    """Whether the machine is off."""
    return scene.machine.wait_exit(0.1)


def restarted(scene: Scene) -> bool:
    """Whether the machine was reset: the events begin anew, and are few for some seconds."""
    return scene.machine.last_seq < scene.seq


def told(cause: str, text: str) -> Check:
    """Whether the next boot says why the last one ended."""

    def check(scene: Scene) -> bool:
        now, before = scene.look(), scene.before["status"]["boot_id"]
        last = now["last"]
        return now["status"]["boot_id"] != before and cause in (last["cause"] or "") and text in (last["log"] or "")

    return check


OWN: dict[str, Any] = {"own": True, "ends": True, "serves": False}
END: dict[str, Any] = {**OWN, "when": "shutting down"}
BOOTING: dict[str, Any] = {"when": "booting", "own": True, "serves": False}
OFF = f"off by the deadline ({SHUTDOWN} s here)"
RESTART = f"a restart by the deadline ({SHUTDOWN} s here)"
AGAIN = "a killed kubelet is started again"
WORKER = "a killed worker is started again"
LATER = "a killed worker is started when there are some again (after 2 s)"

# fmt: off
# Three crashes of the shared machine's PID 1 must not come within a minute. Who is killed again and again is started
# the later each time: a flood of datagrams is over by then.
ROWS: tuple[Row, ...] = (
    *(Row(f"kill-{name}", "started again, and does its work", 10, killed(name), quick=True) for name in faults.WORKERS),
    Row("kill-containerd", "started again; pods go on", 20, killed("containerd"), anew=("containerd",), quick=True),
    Row("kill-kubelet", "started again; pods go on", 20, killed("kubelet"), anew=("kubelet",), quick=True),
    Row("kill-shim", "the kubelet makes that pod anew", 60, web_anew, anew=("web",), serves=False),
    Row("crash-c", "PID 1 goes on, containerd and kubelet too, and make that pod anew", 60, web_anew, also="kill-shim",
        anew=("web",), serves=False),
    Row("stop-kubelet", "ended and started again", LIVENESS, back("kubelet"), anew=("kubelet",)),
    Row("stop-containerd", "ended and started again; pods go on", LIVENESS, back("containerd"), anew=("containerd",)),
    Row("stop-network", "ended and started again", LIVENESS, back("network")),
    Row("notify", f"{AGAIN}, in exec {IN_EXEC:g} s after the kill and its delay", 120, prompt, also="kill-kubelet",
        anew=("kubelet",)),
    Row("fill-var", AGAIN, 20, killed("kubelet"), also="kill-kubelet", anew=("kubelet",), quick=True),
    Row("fill-run", AGAIN, 20, killed("kubelet"), also="kill-kubelet", anew=("kubelet",)),
    Row("link-cut", "not ready, for that reason", 10, no_carrier, serves=False, quick=True),
    Row("link-cut", "the boot goes on; not ready, for that reason", BOOT, no_carrier, **BOOTING),
    Row("disk-stalled", WORKER, 10, killed("network"), also="kill-network"),
    Row("disk-stalled", "the boot goes on (after 10 s)", BOOT, ready, passes=10, **BOOTING),
    Row("disk-broken", WORKER, 10, killed("network"), also="kill-network"),
    Row("disk-broken", "a restart, until the root can be mounted (after 10 s)", 2 * BOOT, ready, passes=10, **BOOTING),
    Row("disk-broken", "the boot goes on (after 10 s)", BOOT, ready, passes=10, after="phase:api", **BOOTING),
    Row("disk-slow", "the boot takes longer", 180, ready, **BOOTING),
    Row("clock-forward", AGAIN, 20, killed("kubelet"), also="kill-kubelet", anew=("kubelet",), quick=True),
    Row("clock-back", AGAIN, 20, killed("kubelet"), also="kill-kubelet", anew=("kubelet",)),
    Row("pause", "nothing is started anew (after 30 s)", 10, ready, passes=30, serves=False),
    Row("pause", "the boot goes on (after 10 s)", BOOT, ready, passes=10, **BOOTING),
    Row("flood", "each is closed, nothing else notices", 30, all_closed, quick=True),
    Row("connections", f"most are refused; {AGAIN}", 60, refused, also="kill-kubelet", anew=("kubelet",)),
    Row("descriptors", LATER, 20, late("devices", "Too many open files"), also="kill-devices", passes=2, quick=True),
    Row("pids", LATER, 20, late("containers", "temporarily unavailable"), also="kill-containers", passes=2, quick=True),
    Row("memory-bomb", "the kernel kills it; PID 1, containerd, kubelet go on", 60, bomb_killed, quick=True),
    Row("fork-bomb", "it has no more than podPidsLimit; the API answers", 60, forks, own=True, serves=False),
    Row("crash-c", "PID 1 goes on, with its children, and tells what it died of", 20,
        resumed("SIGSEGV at instruction 0x0, address 0x0, code 1"), quick=True),
    Row("crash-python", "PID 1 goes on, with its children, and tells what it died of", 20,
        resumed("OSError: [Errno 9] Bad file descriptor"), quick=True),
    Row("crash-worker", "that is started again; PID 1 goes on", 10, crashed, quick=True),
    Row("signals-crash", "logged and ignored", 10, ignored, quick=True),
    Row("signals-other", "ignored", 10, unmoved, quick=True),
    Row("crash-often", "rescue, which the API's socket tells; pods go on", 20, in_rescue, **{**OWN, "serves": True}),
    Row("crash-often", "containerd and kubelet go on, and make it anew", 50, daemons_go_on, also="kill-shim", **OWN),
    Row("crash-often", "rescue; a restart at once", 2, restarted, also="local-reboot", **OWN, quick=True),
    Row("crash-often", f"a restart after rescue_seconds ({RESCUE} s here); the next boot tells", RESCUE + BOOT,
        told("reboot, asked for by INITD_RESCUE_SECONDS", "PID 1 failed"), also="signals-other", **OWN),
    Row("disk-gone", "rescue, from memory", 20, in_rescue, also="crash-c", **OWN),
    Row("hang", f"a reset by the watchdog ({WATCHDOG} s here), which the next boot tells", WATCHDOG + BOOT,
        told("watchdog", ""), **OWN, quick=True),
    Row("hang", "the same by the kernel's own watchdog (softdog)", WATCHDOG + BOOT,
        told("watchdog", "softdog: Initiating system reboot"), **OWN, softdog=True),
    Row("panic", "a restart after 10 s; the next boot has the kernel's last lines", 10 + BOOT,
        told("panic", "sysrq triggered crash"), **OWN, quick=True),
    Row("hang", f"a reset by the watchdog ({WATCHDOG} s here)", WATCHDOG + 2, restarted, **END),
    Row("panic", "a restart after 10 s", 10 + 2, restarted, **END),
    Row("force-reboot", "a restart at once", 2, restarted, **{**END, "when": "rebooting"}, quick=True),
    Row("force-reboot", "a restart at once", 2, restarted, after="phase:api", ends=True, **BOOTING),
    Row("force-reboot", "a restart at once", 2, restarted, **END),
    Row("force-shutdown", "off at once", 2, off, **END),
    Row("power", OFF, SHUTDOWN + 2, off, **END),
    Row("power", OFF, SHUTDOWN + 2, off, after="phase:devices", ends=True, **BOOTING),
    Row("ctrl-alt-del", RESTART, SHUTDOWN + 2, restarted, **OWN),
    Row("reboot", f"{RESTART}; the next boot tells who asked", SHUTDOWN + BOOT,
        told("reboot, asked for by API, ", "initd: "), **OWN),
    Row("ctrl-alt-del", RESTART, SHUTDOWN + 2, restarted, after="phase:devices", ends=True, **BOOTING),
    *(Row(f"signal-{name}", RESTART, SHUTDOWN + 2, restarted, **OWN) for name in ("int", "rtmin+5")),
    *(Row(f"signal-{name}", OFF, SHUTDOWN + 2, off, **OWN) for name in ("pwr", "rtmin+4")),
    Row("shutdown", f"{OFF}, though a pod hears no SIGTERM and may take ten minutes", SHUTDOWN + 2, off, **OWN),
    *(Row(name, OFF, SHUTDOWN + 2, off, **END) for name in ("shutdown", "flood", "crash-c", "crash-python")),
    *(Row(name, OFF, SHUTDOWN + 2, off, **OWN, also="shutdown")
      for name in ("stop-shim", "stop-containerd", "stop-kubelet", "busy", "fill-var", "connections", "descriptors",
                   "pids", "disk-stalled", "disk-broken", "link-cut")),
)
# fmt: on
