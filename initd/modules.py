"""Kernel modules that PID 1 loads itself, before the devices worker runs, and the device nodes that modules name.

The devices worker loads what the hardware asks for; here stands only what the boot cannot wait for. Modules in the
image are not compressed, so loading one is a single finit_module(2).
"""

import errno
import os
import stat

from initd import native

# overlay: containerd and /opt. qemu_fw_cfg: a source of configuration.
EARLY = ("overlay", "qemu_fw_cfg")
# A lease is on the kubelet's way, so the commonest link of a virtual machine does not wait for the devices worker.
LINKS = ("virtio_net", "af_packet")
# What nothing asks the kernel for: kube-proxy sets net.netfilter before its first rule, and without br_netfilter the
# answers of Services' pods go past it to their neighbours on a bridge.
CLUSTER = ("nf_conntrack", "br_netfilter")


def directory() -> str:
    return f"/usr/lib/modules/{os.uname().release}"


def load(names: tuple[str, ...]) -> list[str]:
    """Load `names` with what they depend on; returns one line for each that failed.

    One built in, loaded already or without hardware (qemu_fw_cfg outside of QEMU) is no failure.
    """
    try:
        with open(f"{directory()}/modules.dep", encoding="ascii") as file:
            text = file.read()
    except OSError as error:
        return [f"modules.dep: {error.strerror}"]
    failures: list[str] = []
    for name in names:
        for path in dependencies(text, name):
            try:
                native.finit_module(f"{directory()}/{path}")
            except FileExistsError:
                continue  # loaded already, by stage 1 or for another one
            except OSError as error:
                if error.errno != errno.ENODEV:
                    failures.append(f"{path}: {error.strerror}")
    return failures


def dependencies(text: str, name: str) -> list[str]:
    """The files to load for the module `name`, in order; none if modules.dep(5), the `text`, does not have it.

    The file lists what a module needs, the nearest first. It is searched, not parsed: it has thousands of lines.
    """
    for spelling in (name, name.replace("_", "-")):
        end = text.find(f"/{spelling}.ko")
        if end >= 0:
            line = text[text.rfind("\n", 0, end) + 1 :].partition("\n")[0]
            path, _, needs = line.partition(":")
            return [*reversed(needs.split()), path]
    return []


def make_static_nodes() -> None:
    """Make the device nodes that modules.devname lists, so that opening one (/dev/fuse, /dev/net/tun) loads its module.

    Raises OSError if the list or /dev cannot be used.
    """
    with open(f"{directory()}/modules.devname", encoding="ascii") as file:
        lines = [line.split() for line in file if not line.startswith("#")]
    for _, node, device in lines:
        path = f"/dev/{node}"
        if os.path.exists(path):
            continue
        major, minor = device[1:].split(":")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        kind = stat.S_IFBLK if device[0] == "b" else stat.S_IFCHR
        try:
            os.mknod(path, kind | 0o600, os.makedev(int(major), int(minor)))
        except FileExistsError:
            continue  # its module has just been loaded, and devtmpfs made it
