"""Kernel parameters of the node as data. Sources: the kernel's admin-guide/sysctl; the kubelet's container manager,
which refuses to start under `protectKernelDefaults` unless its values are set already.
"""

TABLE: tuple[tuple[str, str], ...] = (
    # Below level 4 only: a record of ours that the kernel printed itself, on a slow serial port, would hold PID 1 up.
    ("kernel.printk", "4"),
    # What the kubelet checks (k8s.io/kubernetes pkg/util/sysctl).
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.keys.root_maxbytes", "25000000"),
    # Pods route through the node.
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
    # 2: router advertisements are still accepted although the node forwards.
    ("net.ipv6.conf.all.accept_ra", "2"),
    ("net.ipv6.conf.default.accept_ra", "2"),
    ("net.ipv4.conf.all.rp_filter", "2"),
    ("net.ipv4.conf.default.rp_filter", "2"),
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.default.accept_redirects", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv6.conf.all.accept_redirects", "0"),
    # Many pods watch many files and listen on many sockets.
    ("fs.inotify.max_user_instances", "8192"),
    ("fs.inotify.max_user_watches", "1048576"),
    ("net.core.somaxconn", "32768"),
    ("kernel.pid_max", "4194304"),
    ("vm.max_map_count", "262144"),
    # A pipe handler would run a program of the node's for a pod's crash; there is none.
    ("kernel.core_pattern", "core"),
    ("fs.suid_dumpable", "0"),
    ("kernel.kptr_restrict", "2"),
    ("kernel.dmesg_restrict", "1"),
    ("fs.protected_symlinks", "1"),
    ("fs.protected_hardlinks", "1"),
    ("fs.protected_fifos", "1"),
    ("fs.protected_regular", "2"),
)


def apply(rows: tuple[tuple[str, str], ...] = TABLE, root: str = "/proc/sys") -> list[str]:
    """Write each parameter; returns one line for each that this kernel does not have or refuses."""
    failures = []
    for name, value in rows:
        try:
            with open(f"{root}/{name.replace('.', '/')}", "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            failures.append(f"{name}={value}: {error.strerror}")
    return failures
