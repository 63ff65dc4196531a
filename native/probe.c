/*
 * The tests' eyes and hands in a node: an HTTP server in a privileged pod with hostPID. Not part of what a node runs.
 *
 * `probe deaf` ends by SIGKILL only, `probe eat` takes all memory there is, `probe fork` all pids. `probe PORT [deaf]`; GET, answers are JSON, {"error": "EROFS"} when a call failed. Paths are those of PID 1's mount namespace:
 *   /read?path=P             {"text"}: up to 4 MiB, each byte a character (latin-1); /proc/PID/limits, mountinfo, ... too
 *   /readlink?path=P         {"text"}
 *   /list?path=P             {"names": [...]}
 *   /write?path=P            {"error": null} if the file could be made (it is removed again)
 *   /walk?path=P             {"directories": N, "others": [{"path", "error"}]}: tries to make a file in every directory of one
 *                            file system, and names those where that did not fail with EROFS
 *   /processes               {"processes": [{"pid", "ppid", "comm", "cgroup", "argv", "pss"}]}: pss in bytes
 *   /kill?pid=N&signal=N     {"error": null, "pid", "at"}: when, in seconds since boot
 *   /limit?pid=N&soft=N      {"error": null}: how many descriptors the process may have; `max` is as many as it could
 *   /fault?pid=N&kind=K      {"error": null}: what the process waits in fails with EBADF (K is error), it goes on at address 0
 *                            (jump), or it does not go on (hang), by ptrace(2): the program itself knows nothing of it. Or the
 *                            kernel panics (panic)
 *   /flood?path=P&count=N    {"connected", "closed"}: as many connections at once (5,000 at most) to a Unix socket, a frame of garbage
 *                            on each; how many there were and how many the server closed
 *   /hold?path=P&count=N     {"pid", "connected", "closed"}: the same without a word; those that are not closed stay until that
 *                            process of the probe is killed
 *   /datagrams?path=P&count=N {"sent", "begun", "ended"}: so many `STOPPING=1`, one after the other, to a Unix datagram socket;
 *                            when, in seconds since boot
 *   /call?path=P&frame=HEX   {"text"}: what a Unix socket answers to that, once, to a process that is in no pod
 *   /busy?path=P             {"error": null}: makes the file, which a loop device then holds until the machine's end
 *   /put?path=P&text=T       {"error": null}: makes the file, with that text
 *   /fill?path=P&leave=N     {"bytes"}: makes a file as large as its file system has room for, but for N bytes (0 if not given);
 *                            counted to no pod
 *   /remove?path=P           {"error": null}
 *   /clock?seconds=N         {"error": null}: the wall clock jumps by that much
 *   /clock                   {"synchronized": true}: what the kernel takes it for (adjtimex(2))
 *   /mount?path=P            in this pod's own mount namespace: a tmpfs at P, holding the file `marker`
 */
#define _GNU_SOURCE
#include "faults.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define TEXT_SIZE (4 << 20)
#define OTHERS_MAX 200
#define DEPTH_MAX 64

static ssize_t read_file(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    size_t length = 0;
    ssize_t part = fd < 0 ? -1 : 0;
    while (fd >= 0 && length < size && (part = read(fd, text + length, size - length)) > 0)
        length += (size_t)part;
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return part < 0 ? -1 : (ssize_t)length;
}

/* Enters PID 1's mount namespace for good: every request has a process of its own. */
static bool enter_host(void) {
    int fd = open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && setns(fd, CLONE_NEWNS) == 0;
}

static void do_read(FILE *out, const char *path) {
    char *text = malloc(TEXT_SIZE);
    ssize_t length = text ? read_file(path, text, TEXT_SIZE) : -1;
    if (length < 0)
        return put_error(out, errno);
    fputs("{\"text\": ", out);
    put_string(out, text, (size_t)length);
    fputc('}', out);
}

static void do_readlink(FILE *out, const char *path) {
    char text[4096];
    ssize_t length = readlink(path, text, sizeof text);
    if (length < 0)
        return put_error(out, errno);
    fputs("{\"text\": ", out);
    put_string(out, text, (size_t)length);
    fputc('}', out);
}

static void do_list(FILE *out, const char *path) {
    DIR *directory = opendir(path);
    bool first = true;
    if (!directory)
        return put_error(out, errno);
    fputs("{\"names\": [", out);
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        fputs(first ? "" : ", ", out);
        put_string(out, entry->d_name, strlen(entry->d_name));
        first = false;
    }
    fputs("]}", out);
    closedir(directory);
}

/* The errno of making a new file; 0 if that worked. */
static int try_write(int directory, const char *path) {
    int fd = openat(directory, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    close(fd);
    unlinkat(directory, path, 0);
    return 0;
}

static void do_write(FILE *out, const char *path) {
    put_error(out, try_write(AT_FDCWD, path));
}

struct walk {
    FILE *out;
    dev_t device;
    int directories, others;
};

static void put_other(struct walk *walk, const char *path, int error) {
    if (walk->others++ >= OTHERS_MAX) /* enough to see what is wrong */
        return;
    fputs(walk->others > 1 ? ", {\"path\": " : "{\"path\": ", walk->out);
    put_string(walk->out, path, strlen(path));
    fprintf(walk->out, ", \"error\": \"%s\"}", error ? strerrorname_np(error) : "none");
}

static void walk_directory(struct walk *walk, int fd, const char *path, int depth) {
    DIR *directory = fdopendir(fd);
    int error = directory ? try_write(fd, ".initd-probe") : errno;
    walk->directories++;
    if (error != EROFS)
        put_other(walk, path, error);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char child_path[4096];
        struct stat status;
        int length = snprintf(child_path, sizeof child_path, "%s/%s", strcmp(path, "/") ? path : "", entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || length >= (int)sizeof child_path || depth >= DEPTH_MAX)
            continue;
        if (fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(status.st_mode) || status.st_dev != walk->device)
            continue;
        int child = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (child >= 0)
            walk_directory(walk, child, child_path, depth + 1);
    }
    if (directory)
        closedir(directory);
}

static void do_walk(FILE *out, const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        return put_error(out, errno);
    struct walk walk = {.out = out, .device = status.st_dev};
    fputs("{\"others\": [", out);
    walk_directory(&walk, fd, path, 0);
    fprintf(out, "], \"directories\": %d}", walk.directories);
}

static void put_argv(FILE *out, const char *text, size_t length) {
    fputc('[', out);
    for (size_t start = 0; start < length; start += strnlen(text + start, length - start) + 1) {
        fputs(start ? ", " : "", out);
        put_string(out, text + start, strnlen(text + start, length - start));
    }
    fputc(']', out);
}

/* Nothing is written for a process that ended meanwhile. */
static bool put_process(FILE *out, const char *pid, bool first) {
    static char stat[4096], cgroup[4096], argv[65536], memory[4096];
    char path[300];
    ssize_t sizes[4];
    char *texts[] = {stat, cgroup, argv, memory};
    static const char *const names[] = {"stat", "cgroup", "cmdline", "smaps_rollup"};
    static const size_t limits[] = {sizeof stat, sizeof cgroup, sizeof argv, sizeof memory};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, names[i]);
        sizes[i] = read_file(path, texts[i], limits[i] - 1);
        texts[i][sizes[i] > 0 ? sizes[i] : 0] = 0;
    }
    char *open = strchr(stat, '('), *close = strrchr(stat, ')'), *group = strstr(cgroup, "0::"), *pss = strstr(memory, "\nPss:");
    if (sizes[0] <= 0 || !open || !close || close[1] == 0)
        return false;
    group = group ? group + 3 : cgroup; /* kernel threads have no memory map: their pss is 0 */
    fprintf(out, "%s{\"pid\": %s, \"ppid\": %d, \"comm\": ", first ? "" : ", ", pid, atoi(close + 4));
    put_string(out, open + 1, (size_t)(close - open - 1));
    fputs(", \"cgroup\": ", out);
    put_string(out, group, strcspn(group, "\n"));
    fputs(", \"argv\": ", out);
    put_argv(out, argv, sizes[2] > 0 ? (size_t)sizes[2] : 0);
    fprintf(out, ", \"pss\": %ld}", pss ? 1024 * atol(pss + 5) : 0);
    return true;
}

static void do_processes(FILE *out) {
    DIR *directory = opendir("/proc");
    bool first = true;
    fputs("{\"processes\": [", out);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (isdigit((unsigned char)entry->d_name[0]) && put_process(out, entry->d_name, first))
            first = false;
    fputs("]}", out);
    if (directory)
        closedir(directory);
}

static void do_mount(FILE *out, const char *path) {
    char marker[4200];
    snprintf(marker, sizeof marker, "%s/marker", path);
    mkdir(path, 0755);
    if (mount("probe", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k") < 0)
        return put_error(out, errno);
    int fd = open(marker, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    bool written = fd >= 0 && write(fd, "marker\n", 7) == 7;
    put_error(out, written ? 0 : errno);
}

static void handle(int fd, const struct http_request *request) {
    static const struct {
        const char *name;
        void (*run)(FILE *, const char *);
        void (*run_with)(FILE *, const struct http_request *, const char *);
        bool host;
    } commands[] = {{"/read", do_read, NULL, true},   {"/readlink", do_readlink, NULL, true}, {"/list", do_list, NULL, true},
                    {"/write", do_write, NULL, true}, {"/walk", do_walk, NULL, true},         {"/mount", do_mount, NULL, false},
                    {"/flood", NULL, do_flood, true}, {"/hold", NULL, do_flood, true},        {"/put", NULL, do_put, true},
                    {"/fill", NULL, do_fill, true},   {"/remove", do_remove, NULL, true},     {"/busy", do_busy, NULL, true},
                    {"/call", NULL, do_call, true},   {"/datagrams", NULL, do_datagrams, true}};
    char path[4096], *body = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&body, &length);
    if (!out)
        return http_fail(fd, "500 Internal Server Error", strerror(errno));
    if (!strcmp(request->path, "/processes"))
        do_processes(out);
    else if (!strcmp(request->path, "/kill"))
        do_kill(out, request);
    else if (!strcmp(request->path, "/limit"))
        do_limit(out, request);
    else if (!strcmp(request->path, "/fault"))
        do_fault(out, request);
    else if (!strcmp(request->path, "/clock"))
        do_clock(out, request);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(request->path, commands[i].name))
            continue;
        if (!http_parameter(request, "path", path, sizeof path) || path[0] != '/')
            put_error(out, EINVAL);
        else if (commands[i].host && !enter_host())
            put_error(out, errno);
        else if (commands[i].run)
            commands[i].run(out, path);
        else
            commands[i].run_with(out, request, path);
    }
    fclose(out);
    if (length)
        http_respond(fd, "200 OK", "application/json", body, length);
    else
        http_fail(fd, "404 Not Found", "no such command");
    if (holding)
        shutdown(fd, SHUT_WR); /* the answer is whole */
    while (holding)
        pause();
}

int main(int argc, char **argv) {
    const char *word = argc == 2 ? argv[1] : argc == 3 ? argv[2] : "";
    sigset_t termination;
    sigemptyset(&termination);
    sigaddset(&termination, SIGTERM);
    if (!strcmp(word, "deaf")) /* process 1 of a pod: no signal but SIGKILL does anything */
        sigprocmask(SIG_BLOCK, &termination, NULL);
    if (!strcmp(word, "eat"))
        eat();
    if (!strcmp(word, "fork"))
        fork_for_ever();
    if (argc > 1 && atoi(argv[1]) > 0)
        return http_serve(atoi(argv[1]), handle);
    while (!strcmp(word, "deaf"))
        pause();
    fprintf(stderr, "usage: probe PORT [deaf]\n");
    return 2;
}
