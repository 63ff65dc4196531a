// A bare init that takes the steps of initd with nothing around them: the yardstick of `make bench`.
//
// It gets into the shipped image without changing it: the kernel starts it from an initramfs appended to the shipped one
// (rdinit=/bench-init), it copies itself into a memfd and execs the shipped stage 1, which execs init=/proc/self/fd/100.
// Kubelet configuration and static pod are the ones that initd would write, handed over through fw_cfg.
// bench.mode=parallel starts the kubelet right after containerd, bench.mode=sequential once containerd's socket answers.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MEMFD 100
#define FW_CFG "/sys/firmware/qemu_fw_cfg/by_name/opt/io.initd/bench/"
#define SAFE (MS_NOSUID | MS_NODEV)
#define SEALED (SAFE | MS_NOEXEC)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void mark(const char *what, double time)
{
    char line[128];
    int length = snprintf(line, sizeof line, "bench: %s %.6f\n", what, time);
    int console = open("/dev/console", O_WRONLY | O_NOCTTY);
    if (console < 0 || write(console, line, (size_t)length) < 0)
        _exit(1);
    close(console);
}

static void put(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, text, strlen(text)) < 0)
        fprintf(stderr, "bench: %s: %s\n", path, strerror(errno));
    if (file >= 0)
        close(file);
}

static void copy(const char *from, const char *to)
{
    char buffer[65536];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ssize_t size;
    while (in >= 0 && out >= 0 && (size = read(in, buffer, sizeof buffer)) > 0)
        if (write(out, buffer, (size_t)size) != size)
            break;
    if (in < 0 || out < 0)
        fprintf(stderr, "bench: %s to %s: %s\n", from, to, strerror(errno));
    close(in);
    close(out);
}

// Modules are not compressed in the image and listed here each after what it needs, as modules.dep has them.
static void load(const char *const paths[])
{
    struct utsname kernel;
    char path[256];
    uname(&kernel);
    for (; *paths; paths++) {
        snprintf(path, sizeof path, "/usr/lib/modules/%s/kernel/%s.ko", kernel.release, *paths);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
            fprintf(stderr, "bench: %s: %s\n", path, strerror(errno));
        close(file);
    }
}

struct row {
    const char *target, *type;
    unsigned long flags;
    const char *data;
};

static void mount_row(const struct row *row)
{
    mkdir(row->target, 0755);
    // ENODEV, ENOENT: not on this machine, which is no failure for initd either.
    if (mount(row->type, row->target, row->type, row->flags, row->data) && errno != ENODEV && errno != ENOENT)
        fprintf(stderr, "bench: %s: %s\n", row->target, strerror(errno));
}

static void mounts(void)
{
    static const struct row table[] = {
        {"/run", "tmpfs", SAFE, "mode=0755,size=10%,nr_inodes=200k"},
        {"/sys/fs/cgroup", "cgroup2", SEALED, "nsdelegate,memory_recursiveprot"},
        {"/tmp", "tmpfs", SEALED, "mode=1777,size=10%,nr_inodes=100k"},
        {"/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
        {"/dev/shm", "tmpfs", SEALED, "mode=1777,size=10%"},
        {"/etc/kubernetes", "tmpfs", SEALED, "mode=0755,size=64m"},
        {"/etc/cni", "tmpfs", SEALED, "mode=0755,size=16m"},
        {"/var", "tmpfs", SAFE, "mode=0755,size=50%,nr_inodes=1m"},
    };
    static const char *const directories[] = {
        "/run/lock", "/run/initd", "/run/initd/etc", "/run/initd/kubelet", "/run/containerd", "/etc/kubernetes/manifests",
        "/etc/cni/net.d", "/var/tmp", "/var/log", "/var/log/pods", "/var/log/containers", "/var/lib", "/var/lib/kubelet",
        "/var/lib/kubelet/volumeplugins", "/var/lib/containerd", "/var/lib/initd", "/var/lib/initd/opt",
        "/var/lib/initd/opt/upper", "/var/lib/initd/opt/work",
    };
    static const char *const modules[] = {"fs/overlayfs/overlay", "drivers/firmware/qemu_fw_cfg", NULL};
    static const struct row opt = {"/opt", "overlay", SAFE,
                                   "lowerdir=/opt,upperdir=/var/lib/initd/opt/upper,workdir=/var/lib/initd/opt/work"};
    for (size_t i = 0; i < LENGTH(table); i++)
        mount_row(&table[i]);
    for (size_t i = 0; i < LENGTH(directories); i++)
        mkdir(directories[i], 0755);
    if (symlink("/run", "/var/run") || symlink("/proc/self/fd", "/dev/fd"))
        fprintf(stderr, "bench: symlink: %s\n", strerror(errno));
    load(modules);
    mount_row(&opt);
    mount("", "/", "", MS_SHARED | MS_REC, NULL);
    put("/run/initd/etc/hosts", "127.0.0.1 localhost\n10.0.2.15 bench\n");
    put("/run/initd/etc/resolv.conf", "nameserver 10.0.2.3\n");
    put("/run/initd/etc/hostname", "bench\n");
    put("/run/initd/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    copy("/usr/share/initd/factory/cni/net.d/10-initd.conflist", "/etc/cni/net.d/10-initd.conflist");
}

// What no service waits for.
static void mount_rest(void)
{
    static const struct row table[] = {
        {"/dev/mqueue", "mqueue", SEALED, ""},
        {"/dev/hugepages", "hugetlbfs", SEALED, ""},
        {"/sys/fs/bpf", "bpf", SEALED, "mode=0700"},
        {"/sys/fs/pstore", "pstore", SEALED, ""},
        {"/sys/kernel/security", "securityfs", SEALED, ""},
        {"/sys/kernel/debug", "debugfs", SEALED, ""},
        {"/sys/kernel/tracing", "tracefs", SEALED, ""},
        {"/sys/kernel/config", "configfs", SEALED, ""},
        {"/sys/fs/fuse/connections", "fusectl", SEALED, ""},
    };
    for (size_t i = 0; i < LENGTH(table); i++)
        mount_row(&table[i]);
}

static void cgroups(void)
{
    static const char *const tree[] = {"initd", "initd/pid1", "initd/containers", "runtime", "shims", "kubelet"};
    char path[128];
    for (size_t i = 0; i < LENGTH(tree); i++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", tree[i]);
        mkdir(path, 0755);
    }
    put("/sys/fs/cgroup/initd/pid1/cgroup.procs", "0");
    put("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids");
    put("/sys/fs/cgroup/initd/cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids");
}

static void sysctls(void)
{
    static const char *const table[][2] = {
        {"kernel/printk", "4"},
        {"vm/overcommit_memory", "1"}, {"vm/panic_on_oom", "0"}, {"kernel/panic", "10"}, {"kernel/panic_on_oops", "1"},
        {"kernel/keys/root_maxkeys", "1000000"}, {"kernel/keys/root_maxbytes", "25000000"},
        {"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"}, {"net/ipv6/conf/default/forwarding", "1"},
        {"net/ipv6/conf/all/accept_ra", "2"}, {"net/ipv6/conf/default/accept_ra", "2"},
        {"net/ipv4/conf/all/rp_filter", "2"}, {"net/ipv4/conf/default/rp_filter", "2"},
        {"net/ipv4/conf/all/accept_redirects", "0"}, {"net/ipv4/conf/default/accept_redirects", "0"},
        {"net/ipv4/conf/all/send_redirects", "0"}, {"net/ipv6/conf/all/accept_redirects", "0"},
        {"fs/inotify/max_user_instances", "8192"}, {"fs/inotify/max_user_watches", "1048576"},
        {"net/core/somaxconn", "32768"}, {"kernel/pid_max", "4194304"}, {"vm/max_map_count", "262144"},
        {"kernel/core_pattern", "core"}, {"fs/suid_dumpable", "0"}, {"kernel/kptr_restrict", "2"},
        {"kernel/dmesg_restrict", "1"}, {"fs/protected_symlinks", "1"}, {"fs/protected_hardlinks", "1"},
        {"fs/protected_fifos", "1"}, {"fs/protected_regular", "2"},
    };
    char path[128];
    for (size_t i = 0; i < LENGTH(table); i++) {
        snprintf(path, sizeof path, "/proc/sys/%s", table[i][0]);
        put(path, table[i][1]);
    }
}

static void address(struct sockaddr *into, const char *text)
{
    struct sockaddr_in *in = (struct sockaddr_in *)into;
    in->sin_family = AF_INET;
    inet_pton(AF_INET, text, &in->sin_addr);
}

static void network(void)
{
    static const char *const modules[] = {"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net", NULL};
    load(modules);
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    ioctl(sock, SIOCSIFFLAGS, &request);
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "eth0");
    address(&request.ifr_addr, "10.0.2.15");
    if (ioctl(sock, SIOCSIFADDR, &request))
        fprintf(stderr, "bench: eth0: %s\n", strerror(errno));
    address(&request.ifr_netmask, "255.255.255.0");
    ioctl(sock, SIOCSIFNETMASK, &request);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ioctl(sock, SIOCSIFFLAGS, &request);
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    address(&route.rt_dst, "0.0.0.0");
    address(&route.rt_genmask, "0.0.0.0");
    address(&route.rt_gateway, "10.0.2.2");
    if (ioctl(sock, SIOCADDRT, &route))
        fprintf(stderr, "bench: default route: %s\n", strerror(errno));
    close(sock);
}

static void start(const char *cgroup, int link, const char *const argv[])
{
    if (fork())
        return;
    char path[128];
    snprintf(path, sizeof path, "/sys/fs/cgroup/%s/cgroup.procs", cgroup);
    put(path, "0");
    static const struct rlimit files = {1 << 20, 1 << 20}, processes = {RLIM_INFINITY, RLIM_INFINITY}, cores = {0, 0};
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_NPROC, &processes);
    setrlimit(RLIMIT_CORE, &cores);
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        dup2(null, i);
    if (link >= 0)
        dup2(link, 3);
    close_range(link >= 0 ? 4 : 3, ~0U, 0);
    static char *const environment[] = {"PATH=/usr/sbin:/usr/bin", NULL};
    execve(argv[0], (char *const *)argv, environment);
    _exit(127);
}

// The containers worker of the image imports the pod images, asked in MessagePack-RPC as PID 1 would.
static void import_images(void)
{
    static const char *const worker[] = {"/sbin/init", "worker", "containers", NULL};
    static const char *const images[] = {"/usr/share/initd/images/pause.tar", "/usr/share/initd/images/probe.tar",
                                         "/usr/share/initd/images/web.tar"};
    unsigned char frame[256];
    size_t size = 0;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        return;
    start("initd/containers", pair[1], worker);
    memcpy(frame, "\x94\x00\x01\xad" "import_images" "\x91\x93", size = 19);
    for (size_t i = 0; i < LENGTH(images); i++) {
        frame[size++] = 0xd9;
        frame[size++] = (unsigned char)strlen(images[i]);
        memcpy(frame + size, images[i], strlen(images[i]));
        size += strlen(images[i]);
    }
    if (write(pair[0], frame, size) < 0)
        fprintf(stderr, "bench: images: %s\n", strerror(errno));
}

static void wait_for_containerd(void)
{
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/run/containerd/containerd.sock"};
    for (;;) {
        int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int connected = connect(sock, (struct sockaddr *)&path, sizeof path);
        close(sock);
        if (connected == 0)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

static bool sequential(void)
{
    char line[4096] = "";
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t size = read(file, line, sizeof line - 1);
    close(file);
    return size > 0 && strstr(line, "bench.mode=sequential") != NULL;
}

// First life, in the initramfs: hand a copy of this program through stage 1.
static void through_stage1(char *argv[])
{
    char buffer[65536];
    int self = open(argv[0], O_RDONLY), copied = memfd_create("bench-init", 0);
    ssize_t size;
    while ((size = read(self, buffer, sizeof buffer)) > 0)
        if (write(copied, buffer, (size_t)size) != size)
            _exit(1);
    dup2(copied, MEMFD);
    close(copied);
    close(self);
    argv[0] = "/init";
    execv("/init", argv);
    _exit(1);
}

int main(int argc, char *argv[])
{
    double begun = now();
    (void)argc;
    if (access("/usr/bin/kubelet", X_OK))
        through_stage1(argv);
    static const char *const containerd[] = {"/usr/bin/containerd", "--config", "/usr/share/initd/containerd.toml", NULL};
    static const char *const kubelet[] = {"/usr/bin/kubelet", "--config=/run/initd/kubelet/config.yaml",
                                          "--hostname-override=bench", "--node-ip=10.0.2.15", "-v=1", NULL};
    mounts();
    cgroups();
    double containerd_exec = now();
    start("runtime", -1, containerd);
    copy(FW_CFG "kubelet.json/raw", "/run/initd/kubelet/config.yaml");
    copy(FW_CFG "pod.json/raw", "/etc/kubernetes/manifests/pod.json");
    sysctls();
    network();
    if (sethostname("bench", 5))
        fprintf(stderr, "bench: hostname: %s\n", strerror(errno));
    bool in_sequence = sequential();
    if (in_sequence) {
        import_images();
        wait_for_containerd();
    }
    double kubelet_exec = now();
    start("kubelet", -1, kubelet);
    if (!in_sequence)
        import_images();
    mount_rest();
    mark("exec", begun);
    mark("containerd", containerd_exec);
    mark("kubelet", kubelet_exec);
    for (;;)
        if (waitpid(-1, NULL, 0) < 0)
            pause();
}
