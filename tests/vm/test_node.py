"""A node at rest, as its user sees it: what runs, where, with what; what can be written and what cannot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from initd import cgroups, services
from qemu.probe import http_get
from tests.vm import manifests
from tests.vm.conftest import pods, until

if TYPE_CHECKING:
    from qemu.machine import Machine
    from qemu.probe import Probe


def mounts(machine: Machine) -> dict[str, dict[str, Any]]:
    with machine.client() as client:
        return {mount["target"]: mount for mount in client.stream("mounts")}


def test_verdict_is_a_nonce_echoed_by_pid_1(node: Machine) -> None:
    with node.client() as client:
        assert node.verify()["boot_id"] == client.call("status")["boot_id"]


def test_pid_1_is_initd_and_services_are_two(running: Machine, probe: Probe) -> None:
    assert probe.read("/proc/1/cmdline").split("\0")[0] == "/sbin/init"
    with running.client() as client:
        states = {entry["name"]: entry for entry in client.call("services")}
    assert {name for name in states if states[name]["healthy"]} == {"containerd", "kubelet"}
    assert set(states) == {"containerd", "kubelet", "network", "devices", "containers"}


def test_root_is_read_only_erofs_and_var_is_tmpfs(running: Machine) -> None:
    table = mounts(running)
    assert table["/"]["type"] == "erofs"
    assert "ro" in table["/"]["flags"]
    assert table["/var"]["type"] == "tmpfs"
    assert any(entry.startswith("shared:") for entry in table["/"]["propagation"])


def test_mount_flags_are_those_of_the_table(running: Machine) -> None:
    from initd.mounts import TABLE, after_var  # noqa: PLC0415 needs the native extension, the other tests do not

    table = mounts(running)
    for row in (*TABLE, *after_var()):
        if not row.needed and row.target not in table:
            continue
        wanted = {flag.name.lower() for flag in type(row.flags) if flag in row.flags and flag.name} - {"bind"}
        wanted = {"ro" if name == "rdonly" else name for name in wanted}
        assert wanted <= set(table[row.target]["flags"]), row.target
        assert table[row.target]["type"] == row.type


def test_no_directory_of_the_root_can_be_written(probe: Probe) -> None:
    answer = probe("walk", path="/")
    assert answer["directories"] > 100
    assert answer["others"] == []


def test_there_is_no_shell_and_no_interpreter(probe: Probe) -> None:
    for directory in ("/usr/bin", "/usr/sbin"):
        names = probe("list", path=directory)["names"]
        assert not [
            name
            for name in names
            if re.fullmatch(r"(ba|da|z)?sh|busybox|python.*|perl.*|apt.*|dpkg.*|ctr|crictl", name)
        ]


def test_dhcp_gives_the_address(running: Machine) -> None:
    with running.client() as client:
        assert client.call("status")["address"] == "10.0.2.15"
        links = {link["name"]: link for link in client.call("links")}
    assert "10.0.2.15/24" in links["eth0"]["addresses"]
    assert any("10.0.2.2" in route for route in links["eth0"]["routes"])


def test_a_disk_that_is_plugged_in_is_told(running: Machine) -> None:
    seen = running.last_seq
    running.qmp("blockdev-add", driver="null-co", node_name="nothing", size=1 << 20)
    running.qmp("device_add", driver="virtio-blk-pci", drive="nothing", bus="hotplug0")
    added = running.wait_for(lambda event: event["kind"] == "device", 30.0, seen, "a disk that was plugged in")
    assert (added["action"], added["subsystem"], added["devname"]) == ("add", "block", "/dev/vdb")
    with running.client() as client:
        assert {disk["name"] for disk in client.call("disks")} >= {"vda", "vdb"}


def test_processes_are_in_their_cgroups(running: Machine, probe: Probe) -> None:
    with running.client() as client:
        for method in ("links", "disks", "images"):  # a worker that rests is started by a call
            client.call(method)
    where = {process["comm"]: process["cgroup"] for process in probe.processes()}
    assert where["containerd"] == "/runtime"
    assert where["kubelet"] == "/kubelet"
    assert where["containerd-shim"] == "/shims"
    assert where["web"].startswith("/kubepods/")
    pid1 = next(process for process in probe.processes() if process["pid"] == 1)
    assert pid1["cgroup"] == "/initd/pid1"
    workers = {process["cgroup"] for process in probe.processes() if process["comm"].startswith("initd-")}
    assert workers == {"/initd/network", "/initd/devices", "/initd/containers"}


def test_the_kernel_has_the_cgroups_settings(running: Machine, probe: Probe) -> None:
    """Protection that the level above lacks is none, and without its controller a cgroup has no such file at all."""
    with running.client() as client:
        for method in ("links", "disks", "images"):
            client.call(method)
    wanted = {f"{path}/{name}": str(value) for path, settings in cgroups.TREE for name, value in settings.items()}
    here = {name: memory for name, (memory, _) in services.WORKERS.items() if name != "cluster"}
    wanted |= {f"initd/{name}/memory.max": str(memory) for name, memory in here.items()}
    assert wanted.keys() >= {"initd/memory.min", "initd/pid1/memory.min", "runtime/memory.min", "kubelet/memory.low"}
    assert {path: probe.read(f"{cgroups.ROOT}/{path}").strip() for path in wanted} == wanted
    there = set(probe.read(f"{cgroups.ROOT}/cgroup.controllers").split())
    assert there >= {"cpuset", "cpu", "io", "memory", "pids"}
    for parent in ("", "initd/"):
        enabled = probe.read(f"{cgroups.ROOT}/{parent}cgroup.subtree_control").split()
        assert there & set(cgroups.CONTROLLERS) <= set(enabled), parent


def test_limits_and_oom_scores(probe: Probe) -> None:
    limits = probe.read(f"/proc/{probe.process('web')['pid']}/limits")
    assert re.search(r"Max open files\s+1048576\s+1048576", limits)
    assert re.search(r"Max processes\s+unlimited\s+unlimited", limits)
    assert re.search(r"Max core file size\s+0\s+0", limits)
    for name, score in (("containerd", -999), ("kubelet", -450), ("web", 1000)):
        assert int(probe.read(f"/proc/{probe.process(name)['pid']}/oom_score_adj")) == score


def test_nobody_has_more_privileges_than_it_uses(node: Machine, probe: Probe) -> None:
    from initd.services import NET_ADMIN, SYS_BOOT, SYS_MODULE, SYS_RAWIO  # noqa: PLC0415 as above

    def status(name: str) -> tuple[int, str, str]:
        pid = next(process["pid"] for process in probe.processes() if process["comm"] == name)
        text = probe.read(f"/proc/{pid}/status")
        fields = dict(line.split(":\t", 1) for line in text.splitlines())
        return int(fields["CapBnd"], 16), fields["NoNewPrivs"], fields["Seccomp"]

    with node.client() as client:
        assert client.call("links")
        assert client.call("disks")  # both workers are awake now
    sealed, open_ = ("1", "2"), ("0", "0")
    for name, seal, has, lacks in (
        ("containerd", open_, SYS_MODULE, SYS_BOOT),
        ("containerd-shim", open_, SYS_MODULE, SYS_BOOT),
        ("kubelet", sealed, NET_ADMIN, SYS_MODULE),
        ("initd-network", sealed, NET_ADMIN, SYS_RAWIO),
        ("initd-devices", open_, SYS_MODULE, SYS_RAWIO),
    ):
        capabilities, *found = status(name)
        assert tuple(found) == seal, name
        assert capabilities >> has & 1, name
        assert not capabilities >> lacks & 1, name


def test_volumes(running: Machine) -> None:
    port = running.port(manifests.WEB_PORT)
    assert http_get(port, "/file/downward/labels") == (200, 'app="web"')
    assert http_get(port, "/file/label") == (200, 'app="web"'), "a subPath that is a file"
    mounted = http_get(port, "/file/../proc/self/mounts")[0]
    assert mounted != 200, "a path that leads out of the root is served"


def test_volume_kinds_as_the_kernel_sees_them(probe: Probe) -> None:
    info = probe.read(f"/proc/{probe.process('web')['pid']}/mountinfo")
    found = {line.split()[4]: line for line in info.splitlines()}
    kinds = {target: line.split(" - ")[1].split() for target, line in found.items()}
    assert kinds["/data/downward"][0] == "tmpfs"
    assert kinds["/data/memory"][0] == "tmpfs"
    assert "size=1024k" in kinds["/data/memory"][2].split(","), "the volume's sizeLimit"
    assert found["/data/part"].split()[3].endswith("/kubernetes.io~empty-dir/parts/deep/down"), "the subPath, made"


def test_hostport_reaches_the_pod(running: Machine) -> None:
    status, body = http_get(running.port(manifests.WEB_PORT), "/")
    assert (status, body.startswith("web-")) == (200, True)


def test_outside_is_reached_through_masquerade(running: Machine, outside: int) -> None:
    status, body = http_get(running.port(manifests.WEB_PORT), f"/fetch/10.0.2.2/{outside}/hello")
    assert (status, body) == (200, "hello from outside")


def test_bidirectional_mount_is_seen_by_the_host_and_another_pod(running: Machine, probe: Probe) -> None:
    assert probe("mount", path="/shared/mounted") == {"error": None}
    assert probe.read(f"{manifests.HOST_SHARED}/mounted/marker") == "marker\n"
    assert http_get(running.port(manifests.WEB_PORT), "/file/shared/mounted/marker") == (200, "marker\n")


def test_pods_and_images_are_listed(running: Machine) -> None:
    found = pods(running)
    assert found["web"]["state"] == "ready"
    assert found["web"]["address"].startswith("10.88.")
    assert [container["state"] for container in found["web"]["containers"]] == ["running"]
    with running.client() as client:
        names = {name for image in client.call("images") for name in image["names"] if image["pinned"]}
    assert any("pause" in name for name in names)


def test_events_replay_from_a_number(node: Machine) -> None:
    with node.client() as client:
        events = list(client.stream("events", 0, False))
        numbers = [event["seq"] for event in events]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert next(client.stream("events", numbers[5], False)) == events[6]
        phases = [phase["name"] for phase in client.call("boot.times")["phases"]]
    assert phases.index("mounts") < phases.index("containerd") < phases.index("config")


def test_logs_are_in_var_too_as_the_kubelet_writes_those_of_pods(node: Machine, probe: Probe) -> None:
    with node.client() as client:
        lines = [line["text"] for line in client.stream("logs", "containerd", 1000, False)]
    written = "".join(probe("read", path=f"/var/log/initd/containerd.log{end}").get("text", "") for end in (".1", ""))
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout F ", written)
    assert lines[0] in written
    assert lines[-1] in written
    assert probe("remove", path="/var/log/initd/containerd.log")["error"] == "EROFS"


def test_logs_kernel_log_and_processes(node: Machine) -> None:
    with node.client() as client:
        assert any("containerd" in line["text"] for line in client.stream("logs", "containerd", 1000, False))
        assert any(record["text"].startswith("initd: {") for record in client.stream("kernel.log", False))
        assert {"containerd", "kubelet"} <= {process["name"] for process in client.stream("processes")}
        assert any(disk["partition_label"] == "initd-root-a" for disk in client.call("disks"))
        assert client.call("config")["source"] == "QEMU fw_cfg"


def test_node_is_ready_and_says_why_not_if_it_is_not(node: Machine) -> None:
    def ready() -> bool:
        with node.client() as client:
            status = client.call("status")
        assert status["ready"] == (not status["reasons"])
        return bool(status["ready"])

    assert until("ready", ready, 60.0)
