"""The boot: one list of phases (`PHASES`, at the end), read from top to bottom.

containerd is exec'd before anything heavy is imported, and the kubelet before the loop even starts if its name and
address stand in the configuration. How phases are run is in phases.py.
"""

import os
from collections.abc import Coroutine
from typing import Any

from initd import cgroups, log, modules, mounts, services, sysctl
from initd.config import sources
from initd.config.sources import ConfigError
from initd.events import boot_id, machine_id
from initd.files import read, readable
from initd.node import Node, write_first_etc
from initd.phases import Phase, Skipped

SETTLE_SECONDS = 60.0
TIME_SECONDS = 10.0
STATE_SECONDS = 10.0
DEVICE_FIELD = 256  # characters of a device's path that an event keeps
IMPORT_SECONDS = 120.0
IMPORT_ATTEMPTS = 5
API_SOCKET = "/run/initd/api.sock"
IMAGES = "/usr/share/initd/images"
RESCUE = "/usr/lib/initd/rescue"
BACKLOG = 128
WATCHDOG_SECONDS = 60
WATCHDOG_POLL = 0.1


def mount_table(node: Node) -> None:
    """Mount what containerd and the boot need."""
    for line in mounts.mount_all(tuple(row for row in mounts.TABLE if row.needed)):
        log.warning("mount failed", mount=line)
    node.command_line = sources.command_line(read("/proc/cmdline"))
    node.boot_id = boot_id()
    mounts.make_links(mounts.LINKS)
    mounts.make_directories(mounts.RUN_DIRECTORIES)
    mounts.seed(f"{mounts.FACTORY}/kubernetes", "/etc/kubernetes")
    os.makedirs(services.STATIC_PODS, exist_ok=True)
    write_first_etc()


def cgroup_tree(_node: Node) -> None:
    """Make the tree and join PID 1's leaf, before anything is charged to the root."""
    for line in cgroups.make_tree():
        log.warning("cgroup setting refused", setting=line)


def load_modules(_node: Node) -> None:
    """Load what the boot cannot wait for."""
    _load(modules.EARLY)


def _load(names: tuple[str, ...]) -> None:
    for line in modules.load(names):
        log.warning("module not loaded", module=line)


def find_configuration(node: Node) -> None:
    """Find the first source that has a configuration; judge it now only if containerd or /var depend on it."""
    try:
        node.found = sources.find()
    except ConfigError as error:
        node.config_error = str(error)
        return
    if sources.wants_early_var(node.found.text):
        _judge(node)


def var(node: Node) -> None:
    """Make /var, empty, and what lives on it."""
    options = mounts.VAR_OPTIONS
    if node.config is not None:
        from initd.config.checks import size_bytes  # noqa: PLC0415 only such a node pays for it

        chosen = node.config.disks.var
        options = f"mode=0755,size={size_bytes(chosen.size, memory_bytes())},nr_inodes={chosen.inodes}"
    var_mount, *on_var = mounts.after_var(options)
    mounts.mount_all((var_mount,))
    mounts.make_directories(mounts.VAR_DIRECTORIES)
    mounts.make_links(mounts.VAR_LINKS)
    mounts.mount_all(tuple(on_var))
    mounts.share_root()


def containerd(node: Node) -> None:
    """Start containerd with the image's configuration, or with one rendered from a [containerd] table."""
    service = node.add_service(services.CONTAINERD)
    if node.config is not None:
        from initd.config import containerd as render  # noqa: PLC0415 only such a node pays for it

        wanted = node.config.containerd
        _write(services.CONTAINERD_CONFIG, render.render(wanted.log_level, wanted.metrics_port).encode())
        service.argv = services.containerd_argv(services.CONTAINERD_CONFIG)
    service.start("boot")


def guard(node: Node) -> None:
    """Be ready for a fault of PID 1's own: from now on there is something that must outlive it."""
    from initd import resume  # noqa: PLC0415 while containerd starts

    resume.guard(node, resuming=False)
    node.on_change()


def mount_rest(_node: Node) -> None:
    """Mount the kernel's other file systems; some load a module first, which takes its time."""
    for line in mounts.mount_all(tuple(row for row in mounts.TABLE if not row.needed)):
        log.warning("mount failed", mount=line)


def start_network(node: Node) -> None:
    """Start the network worker, the first: what all workers and PID 1's own loop need is imported before its fork."""
    _load(modules.LINKS)
    node.add_worker("network").start("boot")


def start_workers(node: Node) -> None:
    """Start the other workers, which nothing that the kubelet needs to start waits for."""
    node.add_worker("devices").start("boot")
    node.add_worker("containers").start("boot")


def listen(node: Node) -> None:
    """Listen on the API's socket before the configuration is judged; calls wait in its backlog until the loop runs."""
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket  # noqa: PLC0415 before `socket` is paid for

    if os.path.lexists(API_SOCKET):
        os.unlink(API_SOCKET)  # of a life of PID 1 that failed just then
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
    listener.bind(API_SOCKET)
    os.chmod(API_SOCKET, 0o666)  # noqa: S103 who may do what is decided by peer credentials
    listener.listen(BACKLOG)
    node.listener = listener.detach()


def set_parameters(_node: Node) -> None:
    """Write the kernel parameters, before the kubelet checks them."""
    for line in sysctl.apply():
        log.warning("kernel parameter not set", parameter=line)


def judge_configuration(node: Node) -> None:
    """Read the configuration; a bad one is maintenance mode, with the reason in the API and on the console."""
    if node.config is None and node.config_error is None:
        _judge(node)
    if node.config is None:
        raise RuntimeError(node.config_error or "no source of configuration could be read")


def _judge(node: Node) -> None:
    from initd.config.schema import parse  # noqa: PLC0415 msgspec and tomllib: while containerd starts

    if node.found is None:
        return
    try:
        node.config = parse(node.found.text, node.found.source)
    except ConfigError as error:
        node.config_error = str(error)


def identify(node: Node) -> Coroutine[Any, Any, None] | None:
    """Decide node name and address: from the configuration, else from the lease, else from the machine id."""
    if node.config is None:
        raise Skipped("no configuration")
    wanted, links = node.config.node, node.config.network.interfaces
    static = [address for link in links for address in link.addresses]
    address = wanted.address or (static[0].partition("/")[0] if static else None)
    asks_lease = not links or any(link.dhcp for link in links)
    if address is not None and (wanted.name is not None or not asks_lease):
        node.identify(wanted.name or _machine_name(), address)
        return None
    return _identify_from_lease(node, wanted.name, address)


async def _identify_from_lease(node: Node, name: str | None, address: str | None) -> None:
    wait = node.config.network.timeout if node.config is not None else 0
    await _wait_for(node, "network", "address", wait)
    lease = node.network or {"hostname": None, "address": None}
    node.identify(name or lease["hostname"] or _machine_name(), address or lease["address"])


async def _wait_for(node: Node, kind: str, key: str, seconds: float) -> None:
    """Wait for an event of that kind in which this key has a value; without one the boot goes on."""
    import asyncio  # noqa: PLC0415 the loop runs now
    import contextlib  # noqa: PLC0415

    try:
        async with asyncio.timeout(seconds), contextlib.aclosing(node.events.follow()) as events:
            async for event in events:
                if event["kind"] == kind and event.get(key):
                    break
    except TimeoutError:
        log.warning(f"{kind}: no {key} yet; the boot goes on", waited_seconds=seconds)


def _machine_name() -> str:
    return f"initd-{machine_id()[:8]}"


def keep_identity(node: Node) -> Coroutine[Any, Any, None]:
    """Mount the partition that keeps the node's identity, if there is one: the keys of this node in this cluster."""
    from initd import state  # noqa: PLC0415 while containerd starts

    if node.config is None or node.name is None:
        raise Skipped("no configuration")
    try:
        device = state.find()
        if device is None:
            raise Skipped(f"no partition {state.PARTITION}")  # noqa: TRY301 the reason is noted like any other
        return _keep_identity(node, device, state.begin(device, state.owner(node.name, node.config), STATE_SECONDS))
    except (OSError, Skipped) as error:
        node.identity = f"ephemeral: {error}"
        raise


async def _keep_identity(node: Node, device: str, report: int) -> None:
    import asyncio  # noqa: PLC0415 the loop runs now
    from contextlib import suppress  # noqa: PLC0415

    from initd import state  # noqa: PLC0415

    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(readable(report), STATE_SECONDS)
        node.identity = state.outcome(device, report)
    except OSError as error:
        node.identity = f"ephemeral: {error}"
        raise
    finally:
        os.close(report)
    if node.identity != state.PERSISTENT:
        log.warning(f"identity {node.identity}")


def wait_for_time(node: Node) -> Coroutine[Any, Any, None] | None:
    """Wait for a time server's first answer, if there is one to ask, or go on with the clock as it is."""
    configured = node.config.network.ntp if node.config is not None else ()
    known = configured or (node.network["ntp"] if node.network is not None else ())
    return _wait_for(node, "time", "server", TIME_SECONDS) if known else None


def start_kubelet(node: Node) -> None:
    """Write the kubelet's files and those of registries, and start it; it needs CRI only seconds later."""
    from initd.config import kubelet as render  # noqa: PLC0415 with the schema, while containerd starts

    if node.config is None or node.name is None:
        raise Skipped("no configuration")
    for path, data in render.files(node.config, memory_bytes()).items():
        _write(path, data)
    if node.config.cluster is None:
        mounts.seed(f"{mounts.FACTORY}/cni", "/etc/cni")
    else:  # pods wait for the network that the cluster gives them, and that takes a module by no other way
        _load(modules.CLUSTER)
    service = node.add_service(services.KUBELET)
    service.argv = services.kubelet_argv(node.name, node.address, node.config)
    service.start("boot")
    if node.loop is not None:
        service.attach(node.loop)


async def start_log(node: Node) -> None:
    """Records go through structlog to the kernel log from here on."""
    log.configure(node.config.log.console if node.config is not None else "auto")


async def serve_api(node: Node) -> None:
    """Answer on the socket that listens since early on, and on the serial port if the command line gives it a role."""
    from initd.api import start  # noqa: PLC0415 while containerd starts

    await start.serve(node)


async def settle_devices(node: Node) -> None:
    """Wait until the devices worker has loaded what the hardware asks for; make the static device nodes."""
    import asyncio  # noqa: PLC0415 the loop runs now

    from initd import shutdown  # noqa: PLC0415

    worker, settled = node.workers["devices"], asyncio.Event()

    def on_settled(summary: dict[str, Any]) -> None:
        settled.set()
        node.works("devices")
        log.info("devices settled", **{key: summary.get(key) for key in ("modules", "devices", "milliseconds")})

    def on_device(device: dict[str, Any]) -> None:
        fields = {key: device.get(key) for key in ("action", "subsystem", "devpath", "devname")}
        node.events.emit("device", **{key: value and str(value)[:DEVICE_FIELD] for key, value in fields.items()})

    def on_power_button() -> None:
        shutdown.request(node, "shutdown", by="power button")

    worker.on("settled", on_settled)
    worker.on("device", on_device)
    worker.on("power_button", on_power_button)
    try:
        modules.make_static_nodes()
    except OSError as error:
        log.warning("static device nodes not made", error=str(error))
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            await settled.wait()
    except TimeoutError:
        raise RuntimeError(f"the devices worker has not settled in {SETTLE_SECONDS:g} s") from None


def configure_network(node: Node) -> None:
    """Give the network worker its configuration, now and at each of its starts, then with the lease in force."""
    import msgspec  # noqa: PLC0415 imported with the schema

    from initd.config.schema import NetworkConfig  # noqa: PLC0415 while containerd starts

    worker = node.workers["network"]
    wanted = msgspec.to_builtins(node.config.network if node.config is not None else NetworkConfig())

    def configure() -> None:
        worker.tell("configure", wanted, node.network["lease"] if node.network is not None else None, node.clock)

    worker.on("state", node.network_changed)
    worker.on("time", node.time_changed)
    worker.on_start = configure
    configure()


def start_cluster(node: Node) -> None:
    """Start the cluster worker, if the node is to join one."""
    config = node.config.cluster if node.config is not None else None
    if config is None or node.name is None:
        raise Skipped("no [cluster] table")
    wanted = {
        "kubeconfig": services.KUBELET_BOOTSTRAP,
        "name": node.name,
        "boot_id": node.boot_id,
        "max_unavailable": config.max_unavailable,
    }
    worker = node.add_worker("cluster")
    worker.on("state", node.cluster_changed)
    worker.on_start = lambda: worker.tell("configure", wanted, node.cluster)
    worker.start("boot")
    if node.loop is not None:
        worker.attach(node.loop)


async def import_images(node: Node) -> None:
    """Have the images of the root imported into containerd, beside the boot and not in its way."""
    import asyncio  # noqa: PLC0415 the loop runs now

    if not os.path.isdir(IMAGES):
        raise Skipped(f"no {IMAGES}")
    from initd.api.protocol import ApiError, Code  # noqa: PLC0415 the loop runs now

    paths = sorted(entry.path for entry in os.scandir(IMAGES) if entry.name.endswith(".tar"))
    for attempt in range(1, IMPORT_ATTEMPTS + 1):
        try:
            results = await node.workers["containers"].call("import_images", paths, timeout=IMPORT_SECONDS)
        except ApiError as error:
            # The worker or containerd died under it; both come back, and a node without its images is of no use.
            if attempt == IMPORT_ATTEMPTS or error.code is Code.INVALID_ARGUMENT:
                raise
            log.warning("images not imported; trying again", error=error.message, attempt=attempt)
            await asyncio.sleep(attempt)
        else:
            node.events.emit("images", images=results)
            return


async def start_watchdog(node: Node) -> None:
    """Let the hardware's watchdog watch PID 1, and see what it and the kernel say of the last boot's end."""
    import asyncio  # noqa: PLC0415 the loop runs now

    from initd import watchdog  # noqa: PLC0415

    while not os.path.exists(watchdog.DEVICE):  # a module makes it; what becomes of other devices is nothing to it
        if any(phase["name"] == "devices" for phase in node.boot_phases):
            break
        await asyncio.sleep(WATCHDOG_POLL)
    cause, log_text = watchdog.last_boot()
    node.last_boot = {"cause": cause, "log": log_text}
    if cause is not None:
        log.info(f"the last boot ended: {cause}")
    try:
        watchdog.keep_log()
    except OSError as error:
        log.warning("the next boot will not know this one's end", error=str(error))
    wanted = node.config.watchdog if node.config is not None else None
    if wanted is not None and not wanted.seconds:
        raise Skipped("watchdog.seconds is 0")
    if wanted is not None and wanted.software and not os.path.exists(watchdog.DEVICE):
        await node.workers["devices"].call("modprobe", "softdog")
    try:
        node.watchdog = watchdog.start(wanted.seconds if wanted is not None else WATCHDOG_SECONDS)
    except FileNotFoundError:
        raise Skipped("no hardware watchdog") from None
    node.on_service_change()  # so that it is fed in time


async def keep_rescue(node: Node) -> None:
    """Keep what PID 1 becomes if it cannot go on, in memory: the root's device may be what failed."""
    import fcntl  # noqa: PLC0415 needed here only

    if not os.path.exists(RESCUE):
        raise Skipped(f"no {RESCUE}: PID 1 that cannot be resumed reboots")
    with open(RESCUE, "rb") as file:  # noqa: ASYNC230 a file of the root, once
        program = file.read()
    node.rescue = os.memfd_create("rescue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(node.rescue, program)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(node.rescue, fcntl.F_ADD_SEALS, seals)
    node.on_change()


async def watch_services(node: Node) -> None:
    """Ask the services whether they live, from now on."""
    from initd.supervise import liveness  # noqa: PLC0415 the loop runs now

    node.spawn_task(lambda: liveness.watch(node), "liveness")


def memory_bytes() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _write(path: str, data: bytes) -> None:
    """Write a file that is root's alone, and make its folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)


PHASES = (
    Phase("mounts", mount_table, fatal=True),
    Phase("cgroups", cgroup_tree, fatal=True),
    Phase("modules", load_modules),
    Phase("source", find_configuration),
    Phase("var", var, fatal=True),
    Phase("containerd", containerd, after=("var",)),
    Phase("listen", listen),
    Phase("guard", guard),
    Phase("config", judge_configuration, fatal=True, each_life=True),
    Phase("sysctl", set_parameters),
    Phase("identity", identify, after=("config",)),
    Phase("state", keep_identity, after=("identity",)),
    Phase("time", wait_for_time, after=("identity",)),
    Phase("kubelet", start_kubelet, after=("identity", "time", "sysctl", "containerd"), behind=("state",)),
    Phase("links", start_network),
    Phase("network", configure_network, after=("links",), each_life=True),
    Phase("workers", start_workers),
    Phase("filesystems", mount_rest),
    Phase("cluster", start_cluster, after=("kubelet",), each_life=True),
    Phase("log", start_log, each_life=True),
    Phase("api", serve_api, after=("listen",), each_life=True),
    Phase("devices", settle_devices, after=("workers",), each_life=True),
    Phase("images", import_images, after=("containerd", "workers")),
    Phase("liveness", watch_services, each_life=True),
    Phase("rescue", keep_rescue),
    Phase("watchdog", start_watchdog, after=("liveness",)),
)
