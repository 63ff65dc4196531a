/* What the probe does to a node: the faults that qemu/faults.py knows by name. */
#ifndef FAULTS_H
#define FAULTS_H
#include "http.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/un.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#define FLOOD_MAX 5000
#define FILL_CHUNK (64 << 20)
#define EAT_CHUNK (1 << 20)

static void put_string(FILE *out, const char *text, size_t length) {
    fputc('"', out);
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte < 0x20 || byte > 0x7e || byte == '"' || byte == '\\')
            fprintf(out, "\\u%04x", byte);
        else
            fputc(byte, out);
    }
    fputc('"', out);
}

static void put_error(FILE *out, int error) {
    const char *name = error ? strerrorname_np(error) : NULL;
    if (name)
        fprintf(out, "{\"error\": \"%s\"}", name);
    else
        fputs("{\"error\": null}", out);
}

static bool holding; /* what this process' end would let go */

static double boottime(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* The root cgroup has no limit, and who is in it is in no pod. Enter the host's mount namespace before. */
static bool leave_pod(void) {
    int group = open("/sys/fs/cgroup/cgroup.procs", O_WRONLY | O_CLOEXEC);
    return group < 0 || write(group, "0", 1) == 1;
}

static bool connect_to(int fd, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = HTTP_TIMEOUT};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    return connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
}

/* Connects `count` times; returns how many could be. */
static int connect_all(struct pollfd *sockets, int count, const char *path) {
    for (int i = 0; i < count; i++) {
        sockets[i] = (struct pollfd){.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        if (sockets[i].fd < 0 || !connect_to(sockets[i].fd, path))
            return i;
    }
    return count;
}

static void do_datagrams(FILE *out, const struct http_request *request, const char *path) {
    static const char text[] = "STOPPING=1";
    char number[16];
    int count = http_parameter(request, "count", number, sizeof number) ? atoi(number) : 0, sent = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (count <= 0 || !connect_to(fd, path))
        return put_error(out, count <= 0 ? EINVAL : errno);
    double begun = boottime();
    while (sent < count && send(fd, text, sizeof text - 1, MSG_NOSIGNAL) > 0)
        sent++;
    fprintf(out, "{\"sent\": %d, \"begun\": %.6f, \"ended\": %.6f}", sent, begun, boottime());
}

static void do_call(FILE *out, const struct http_request *request, const char *path) {
    char hex[512], answer[4096], frame[sizeof hex / 2];
    size_t size = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (!http_parameter(request, "frame", hex, sizeof hex))
        return put_error(out, EINVAL);
    while (sscanf(hex + 2 * size, "%2hhx", (unsigned char *)frame + size) == 1)
        size++;
    ssize_t length = leave_pod() && connect_to(fd, path) && http_send(fd, frame, size) ? recv(fd, answer, sizeof answer, 0) : -1;
    if (length < 0)
        return put_error(out, errno);
    fputs("{\"text\": ", out);
    put_string(out, answer, (size_t)length);
    fputc('}', out);
}

/* Until the number of those that the server closed has not changed for a second. */
static int count_closed(struct pollfd *sockets, int count) {
    int closed = 0, before = -1;
    for (int calm = 0; calm < 10; calm = closed == before ? calm + 1 : 0, before = closed) {
        usleep(100000);
        closed = 0;
        if (poll(sockets, (nfds_t)count, 0) > 0)
            for (int i = 0; i < count; i++)
                closed += (sockets[i].revents & POLLHUP) != 0;
    }
    return closed;
}

static void do_flood(FILE *out, const struct http_request *request, const char *path) {
    static const char garbage[] = "\xc1 is no MessagePack\r\n\r\n";
    static struct pollfd sockets[FLOOD_MAX];
    char number[16];
    int count = http_parameter(request, "count", number, sizeof number) ? atoi(number) : 0;
    if (count <= 0 || count > FLOOD_MAX)
        return put_error(out, EINVAL);
    holding = !strcmp(request->path, "/hold");
    int connected = connect_all(sockets, count, path);
    for (int i = 0; i < connected && !holding; i++)
        send(sockets[i].fd, garbage, sizeof garbage - 1, MSG_NOSIGNAL);
    int closed = count_closed(sockets, connected);
    fprintf(out, "{\"pid\": %d, \"connected\": %d, \"closed\": %d}", getpid(), connected, closed);
}

static void do_put(FILE *out, const struct http_request *request, const char *path) {
    char text[4096];
    if (!http_parameter(request, "text", text, sizeof text))
        return put_error(out, EINVAL);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    put_error(out, written ? 0 : errno);
}

static void do_fill(FILE *out, const struct http_request *request, const char *path) {
    char leave[32] = "0";
    struct statvfs room;
    off_t bytes = 0;
    http_parameter(request, "leave", leave, sizeof leave);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || !leave_pod()) /* pages of a tmpfs count to who first has them: this pod would be killed for them */
        return put_error(out, errno);
    for (off_t size = FILL_CHUNK; size >= 4096; size /= 2)
        while (fstatvfs(fd, &room) == 0 && (off_t)(room.f_bfree * room.f_frsize) >= size + atoll(leave) &&
               fallocate(fd, 0, bytes, size) == 0) /* by the kernel without copying: all of it, or none */
            bytes += size;
    fprintf(out, "{\"bytes\": %lld}", (long long)bytes);
}

static void do_remove(FILE *out, const char *path) {
    put_error(out, unlink(path) < 0 ? errno : 0);
}

/* The kernel itself holds the file open: who unmounts its file system finds no process to end. */
static void do_busy(FILE *out, const char *path) {
    char name[32];
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    snprintf(name, sizeof name, "/dev/loop%d", control < 0 ? 0 : ioctl(control, LOOP_CTL_GET_FREE));
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), loop = open(name, O_RDWR | O_CLOEXEC);
    bool held = file >= 0 && loop >= 0 && ftruncate(file, EAT_CHUNK) == 0 && ioctl(loop, LOOP_SET_FD, file) == 0;
    put_error(out, held ? 0 : errno);
}

static void do_limit(FILE *out, const struct http_request *request) {
    char pid[16], soft[16];
    struct rlimit limit;
    bool given = http_parameter(request, "pid", pid, sizeof pid) && http_parameter(request, "soft", soft, sizeof soft);
    pid_t target = given ? atoi(pid) : 0;
    if (target <= 0)
        return put_error(out, EINVAL);
    bool done = prlimit(target, RLIMIT_NOFILE, NULL, &limit) == 0;
    limit.rlim_cur = strcmp(soft, "max") ? strtoul(soft, NULL, 10) : limit.rlim_max;
    put_error(out, done && prlimit(target, RLIMIT_NOFILE, &limit, NULL) == 0 ? 0 : errno);
}

static void do_clock(FILE *out, const struct http_request *request) {
    char seconds[32];
    struct timespec now;
    if (!http_parameter(request, "seconds", seconds, sizeof seconds)) {
        fprintf(out, "{\"synchronized\": %s}", adjtimex(&(struct timex){0}) == TIME_ERROR ? "false" : "true");
        return;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec += atoll(seconds);
    put_error(out, clock_settime(CLOCK_REALTIME, &now) < 0 ? errno : 0);
}

static void do_kill(FILE *out, const struct http_request *request) {
    char pid[16], number[16];
    bool given = http_parameter(request, "pid", pid, sizeof pid) && http_parameter(request, "signal", number, sizeof number);
    int target = given ? atoi(pid) : 0;
    double now = boottime();
    if (target <= 0 || kill(target, atoi(number)) < 0)
        return put_error(out, target <= 0 ? EINVAL : errno);
    fprintf(out, "{\"error\": null, \"pid\": %d, \"at\": %.6f}", target, now);
}

/* Changes the registers of a process once it waits in epoll_wait(2), where what it does next is known. */
static int fault(pid_t pid, const char *kind) {
    struct user_regs_struct registers;
    int status;
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
        return errno;
    for (int tries = 0; tries < 1000; tries++, usleep(10000)) {
        if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) < 0 || waitpid(pid, &status, __WALL) < 0 ||
            ptrace(PTRACE_GETREGS, pid, NULL, &registers) < 0)
            return errno;
        void *pending = (void *)(long)(status >> 16 ? 0 : WSTOPSIG(status)); /* a signal that it is to get all the same */
        if (registers.orig_rax != SYS_epoll_wait && registers.orig_rax != SYS_epoll_pwait) {
            if (ptrace(PTRACE_CONT, pid, NULL, pending) < 0)
                return errno;
            continue;
        }
        if ((holding = !strcmp(kind, "hang")))
            return 0;
        registers.orig_rax = (unsigned long)-1; /* the call is over, not to be restarted */
        registers.rax = (unsigned long)-EBADF;
        registers.rip = strcmp(kind, "jump") ? registers.rip : 0;
        return ptrace(PTRACE_SETREGS, pid, NULL, &registers) < 0 || ptrace(PTRACE_DETACH, pid, NULL, pending) < 0 ? errno : 0;
    }
    return EBUSY;
}

static void do_fault(FILE *out, const struct http_request *request) {
    char pid[16], kind[16];
    bool given = http_parameter(request, "pid", pid, sizeof pid) && http_parameter(request, "kind", kind, sizeof kind);
    int fd = given && !strcmp(kind, "panic") ? open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC) : -1;
    if (fd >= 0 && write(fd, "c", 1) < 0)
        given = false;
    put_error(out, given && atoi(pid) > 0 ? fault(atoi(pid), kind) : EINVAL);
}

/* Takes memory until there is none: a kernel that is asked for it kills somebody. */
static void eat(void) {
    for (;;) {
        void *memory = mmap(NULL, EAT_CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (memory == MAP_FAILED)
            sched_yield();
    }
}

static void fork_for_ever(void) {
    for (;;)
        if (fork() < 0)
            sched_yield();
}
#endif
