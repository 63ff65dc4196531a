/*
 * The initramfs's /init: from a kernel that has just started to the root file system's /sbin/init.
 *
 * Loads the modules that reach the root (named in /modules/load, one file a line, in order), finds the root by its
 * partition's name or as /root.erofs in the initramfs itself, mounts it read-only, switches to it, executes init.
 * Command line: initd.root=NAME (default initd-root-a), init=PATH (default /sbin/init).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "bare.h"

#define ROOT_IMAGE "/root.erofs"
#define LOOP_MODULE "/modules/loop.ko" /* needed only then, so not in /modules/load */
#define NEW_ROOT "/new"
#define DEVICE_DEADLINE 10000 /* milliseconds for the root device to appear */
#define REBOOT_DELAY 10       /* seconds to read the message */

struct search {
    const char *wanted;
    char device[256]; /* kernel name of the match */
    int matches;
    char others[512]; /* what else was found, for the message */
};

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...) {
    char line[900] = "<6>initd stage 1: "; /* the kernel refuses records over about 1 KiB */
    size_t prefix = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + prefix, sizeof line - prefix - 1, format, arguments);
    va_end(arguments);
    strcat(line, "\n");
    write_line("/dev/kmsg", line);
}

/* A PID 1 that returns is a kernel panic without a reason: say it, leave time to read, reboot. */
__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
    char text[800], line[880];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    note("%s", text);
    snprintf(line, sizeof line, "\r\ninitd stage 1: %s\r\ninitd stage 1: reboot in %d s\r\n", text, REBOOT_DELAY);
    write_line("/dev/console", line);
    struct timespec rest = {.tv_sec = REBOOT_DELAY};
    while (nanosleep(&rest, &rest) < 0 && errno == EINTR)
        continue;
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

static void mount_kernel_file_systems(void) {
    static const struct {
        const char *type, *target;
        unsigned long flags;
    } table[] = {
        {"devtmpfs", "/dev", MS_NOSUID},
        {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC},
        {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        mkdir(table[i].target, 0755);
        if (mount(table[i].type, table[i].target, table[i].type, table[i].flags, NULL) < 0 && errno != EBUSY)
            die("mount %s: %s", table[i].target, strerror(errno));
    }
}

/* The value of the last `key=value` in a text of parts that the separators end, copied to `value`. */
static bool find_value(const char *text, const char *separators, const char *key, char *value, size_t size) {
    bool found = false;
    for (const char *word = text; *word; word += strcspn(word, separators), word += strspn(word, separators)) {
        size_t length = strcspn(word, separators), name = strlen(key);
        if (length > name && length - name <= size && !strncmp(word, key, name) && word[name] == '=') {
            snprintf(value, size, "%.*s", (int)(length - name - 1), word + name + 1);
            found = true;
        }
    }
    return found;
}

static void load_module(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t length = strlen(path);
    bool plain = length > 3 && !strcmp(path + length - 3, ".ko");
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", plain ? 0 : MODULE_INIT_COMPRESSED_FILE) < 0 && errno != EEXIST))
        note("module %s: %s", path, strerror(errno)); /* the root may well be reached without it */
    if (fd >= 0)
        close(fd);
}

static int load_modules(void) {
    FILE *list = fopen("/modules/load", "re");
    char name[256], path[300];
    int count = 0;
    while (list && fgets(name, sizeof name, list)) {
        name[strcspn(name, "\n")] = 0;
        snprintf(path, sizeof path, "/modules/%s", name);
        if (name[0] && ++count)
            load_module(path);
    }
    if (list)
        fclose(list);
    return count;
}

/* Looks at every block device for a partition of the wanted name. */
static void scan_partitions(struct search *search) {
    DIR *directory = opendir("/sys/class/block");
    search->matches = 0;
    search->others[0] = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char path[320], uevent[1024], name[128] = "";
        snprintf(path, sizeof path, "/sys/class/block/%s/uevent", entry->d_name);
        if (entry->d_name[0] == '.' || !strncmp(entry->d_name, "loop", 4) || !read_text(path, uevent, sizeof uevent))
            continue;
        if (find_value(uevent, "\n", "PARTNAME", name, sizeof name) && !strcmp(name, search->wanted)) {
            search->matches++;
            snprintf(search->device, sizeof search->device, "%s", entry->d_name);
        }
        size_t used = strlen(search->others);
        snprintf(search->others + used, sizeof search->others - used, "%s%s (%s)", used ? ", " : "", entry->d_name,
                 name[0] ? name : "no name");
    }
    if (directory)
        closedir(directory);
}

/* Waits for the partition by the kernel's own events: one that is late must not be missed, and none is polled for. */
static void await_partition(struct search *search) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (events < 0 || bind(events, (struct sockaddr *)&address, sizeof address) < 0)
        die("kernel event socket: %s", strerror(errno));
    long deadline = milliseconds() + DEVICE_DEADLINE, left;
    for (scan_partitions(search); !search->matches && (left = deadline - milliseconds()) > 0; scan_partitions(search)) {
        struct pollfd poller = {.fd = events, .events = POLLIN};
        char event[4096];
        poll(&poller, 1, (int)left);
        while (recv(events, event, sizeof event, 0) >= 0 || errno == ENOBUFS)
            continue;
    }
    close(events);
    const char *others = search->others[0] ? search->others : "no block device";
    if (!search->matches)
        die("no partition named %s after %d s; found: %s", search->wanted, DEVICE_DEADLINE / 1000, others);
    if (search->matches > 1) /* to take either would make the root depend on the order of devices */
        die("%d partitions named %s; found: %s", search->matches, search->wanted, others);
}

/* Gives a file a loop device, which goes away with its mount. */
static void attach_loop(const char *file, char *device, size_t size) {
    load_module(LOOP_MODULE);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
    int backing = open(file, O_RDONLY | O_CLOEXEC);
    snprintf(device, size, "loop%d", number);
    char path[300];
    snprintf(path, sizeof path, "/dev/%s", device);
    int loop = number < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    struct loop_config config = {
        .fd = (uint32_t)backing, .block_size = 4096, .info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR};
    if (loop < 0 || backing < 0 || ioctl(loop, LOOP_CONFIGURE, &config) < 0)
        die("loop device for %s: %s", file, strerror(errno));
    close(control);
    close(backing); /* `loop` stays open until exec, or the device would be cleared before it is mounted */
}

static void mount_root(const char *device) {
    static const char *const types[] = {"erofs", "squashfs"};
    char path[300];
    int error = ENODEV;
    snprintf(path, sizeof path, "/dev/%s", device);
    mkdir(NEW_ROOT, 0755);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (mount(path, NEW_ROOT, types[i], MS_RDONLY | MS_NODEV, NULL) == 0)
            return;
        if (errno != ENODEV) /* "no such type" would hide what is wrong with the disk */
            error = errno;
    }
    die("mount %s as erofs or squashfs: %s", path, strerror(error));
}

/* Removes what is below a directory, on one file system only: the initramfs's memory is given back. */
static void remove_tree(int fd, dev_t device) {
    DIR *directory = fdopendir(fd);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        struct stat status;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0 || status.st_dev != device)
            continue;
        if (!S_ISDIR(status.st_mode)) {
            unlinkat(dirfd(directory), entry->d_name, 0);
            continue;
        }
        int child = openat(dirfd(directory), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (child >= 0)
            remove_tree(child, device);
        unlinkat(dirfd(directory), entry->d_name, AT_REMOVEDIR);
    }
    if (directory)
        closedir(directory);
}

static void switch_root(void) {
    static const char *const kept[] = {"/dev", "/proc", "/sys"};
    char target[64];
    struct stat status;
    struct statfs kind;
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        snprintf(target, sizeof target, NEW_ROOT "%s", kept[i]);
        if (mount(kept[i], target, NULL, MS_MOVE, NULL) < 0)
            umount2(kept[i], MNT_DETACH); /* init mounts them itself if they are missing */
    }
    int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (chdir(NEW_ROOT) < 0 || old < 0)
        die("open the roots: %s", strerror(errno));
    if (fstat(old, &status) == 0 && fstatfs(old, &kind) == 0 && (kind.f_type == RAMFS_MAGIC || kind.f_type == TMPFS_MAGIC))
        remove_tree(old, status.st_dev);
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        die("switch root: %s", strerror(errno));
}

int main(int argc, char **argv) {
    static char command_line[4096], wanted[128] = "initd-root-a", init[256] = "/sbin/init";
    if (getpid() != 1 || argc < 1) {
        fprintf(stderr, "stage1 is the init of an initramfs: it removes the root file system it was started from\n");
        return 1;
    }
    long started = milliseconds();
    mount_kernel_file_systems();
    read_text("/proc/cmdline", command_line, sizeof command_line);
    find_value(command_line, " \n", "initd.root", wanted, sizeof wanted);
    find_value(command_line, " \n", "init", init, sizeof init);
    int modules = load_modules();
    long loaded = milliseconds();
    struct search search = {.wanted = wanted};
    if (access(ROOT_IMAGE, F_OK) == 0)
        attach_loop(ROOT_IMAGE, search.device, sizeof search.device);
    else
        await_partition(&search);
    long found = milliseconds();
    mount_root(search.device);
    note("root on %s: %d modules %ld ms, device %ld ms, mount %ld ms", search.device, modules, loaded - started,
         found - loaded, milliseconds() - found);
    switch_root();
    argv[0] = init;
    execv(init, argv);
    die("execute %s: %s", init, strerror(errno));
}
