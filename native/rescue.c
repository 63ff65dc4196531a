/*
 * What PID 1 executes in its own place, from a memfd, when it cannot go on; argv[1] says why.
 *
 * It keeps services alive (reaps, drains their output, feeds the watchdog), says what happened on the console, in the
 * kernel's log and through the API, and reboots. It assumes nothing: the root device may be what died, so it opens only
 * what is in /dev and /proc; it allocates nothing; what PID 1 left it may be missing or wrong.
 *
 *   INITD_RESCUE_SECONDS=N      until it reboots; 0: never; 300 if not given
 *   INITD_LISTENER=FD           the API's listening Unix socket: status, version, reboot, shutdown (initd/api/protocol.py)
 *   INITD_WATCHDOG=FD           /dev/watchdog, or a pipe that gets a byte instead
 *   INITD_PIPES="FD FD ..."     read ends of the services' output, read and thrown away
 *   INITD_CRASHES="TIME ..."    when PID 1 failed, in seconds since boot
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/watchdog.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "bare.h"
#include "rpc.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

enum { SECOND = 1000, FEED_EVERY = 2 * SECOND, REPORT_EVERY = 60 * SECOND, SYNC_DEADLINE = SECOND }; /* milliseconds */
enum { DEFAULT_SECONDS = 300, CONNECTIONS = 16, PIPES = 128, FRAME_MAX = 4096, REAP_BATCH = 1000, SIGNAL_BATCH = 64 };
enum { WAKE, LISTENER, CLIENTS, OUTPUTS = CLIENTS + CONNECTIONS, POLLS = OUTPUTS + PIPES }; /* places in `polls` */

enum role { NOBODY, READER, ADMIN };

struct client {
    enum role role;
    char peer[48];
    long heard; /* when something last came; 0: the place is free */
    size_t used;
    unsigned char data[FRAME_MAX];
};

struct rescue {
    char reason[600], boot_id[40]; /* the kernel refuses log records over about 1 KiB */
    struct utsname system;
    long deadline, report, feed, accept; /* when each is due, in milliseconds since boot; deadline 0: never */
    int listener, watchdog;
    int command;  /* of reboot(2), once somebody or the deadline asked for it */
    long attempt; /* when reboot(2) is called next */
    pid_t sync;
    struct pollfd polls[POLLS];
    struct client clients[CONNECTIONS];
};

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char text[800], line[880];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(line, sizeof line, "<2>initd rescue: %s\n", text);
    write_line("/dev/kmsg", line);
    snprintf(line, sizeof line, "\r\ninitd rescue: %s\r\n", text);
    write_line("/dev/console", line);
}

/* Printable ASCII on one line, which a console, the kernel's log and every reader of MessagePack take. */
static void copy_plain(char *to, size_t size, const char *from) {
    size_t length = 0;
    for (; *from && length < size - 1; from++)
        to[length++] = *from >= ' ' && *from <= '~' ? *from : *from == '\n' ? ' ' : '?';
    to[length] = 0;
}

/* "reboots in 20 s", beginning with `verb`. */
static void outlook(const struct rescue *rescue, const char *verb, char *text, size_t size) {
    long left = rescue->deadline - milliseconds();
    if (rescue->deadline)
        snprintf(text, size, "%s in %ld s", verb, left > 0 ? (left + SECOND - 1) / SECOND : 0);
    else
        snprintf(text, size, "waits to be rebooted");
}

static void report(const struct rescue *rescue) {
    char text[48];
    outlook(rescue, "reboot", text, sizeof text);
    say("%s; %s", rescue->reason, text);
}

/* Reboots or powers off soon. A child syncs: a dead disk holds that up for ever. */
static void leave(struct rescue *rescue, int command, const char *who) {
    say("%s, asked for by %s", command == RB_POWER_OFF ? "power off" : "reboot", who);
    if (!rescue->command) {
        rescue->sync = fork();
        if (rescue->sync == 0) {
            sync();
            _exit(0);
        }
        rescue->attempt = milliseconds() + (rescue->sync > 0 ? SYNC_DEADLINE : 0);
    }
    rescue->command = command;
}

/* Whether there may be more to reap: a flood of orphans must not hold up the rest. */
static bool reap(struct rescue *rescue) {
    pid_t pid = 1;
    for (int i = 0; i < REAP_BATCH && (pid = waitpid(-1, NULL, WNOHANG)) > 0; i++)
        if (pid == rescue->sync)
            rescue->attempt = milliseconds();
    return pid > 0;
}

/* The signals to which systemd(1) gives a meaning. Without a signalfd, which only wakes, they wait for a second. */
static void take_signals(struct rescue *rescue, const sigset_t *set) {
    siginfo_t info;
    char who[64];
    for (int i = 0; i < SIGNAL_BATCH && sigtimedwait(set, &info, &(struct timespec){0}) > 0; i++) {
        bool off = info.si_signo == SIGPWR || info.si_signo == SIGRTMIN + 4;
        snprintf(who, sizeof who, "signal %d from pid %d", info.si_signo, info.si_pid);
        if (info.si_signo != SIGCHLD)
            leave(rescue, off ? RB_POWER_OFF : RB_AUTOBOOT, who);
    }
}

static bool feed(const struct rescue *rescue) {
    return ioctl(rescue->watchdog, WDIOC_KEEPALIVE, 0) == 0 || (errno == ENOTTY && write(rescue->watchdog, "", 1) == 1);
}

static void look_at_clock(struct rescue *rescue) {
    long now = milliseconds();
    if (!rescue->command && rescue->deadline && now >= rescue->deadline)
        leave(rescue, RB_AUTOBOOT, "INITD_RESCUE_SECONDS");
    if (rescue->command && now >= rescue->attempt) {
        reboot(rescue->command);
        say("reboot: %s", strerrorname_np(errno));
        rescue->attempt = now + SECOND;
    }
    if (rescue->watchdog >= 0 && !rescue->command && now >= rescue->feed) { /* if reboot(2) hangs, the watchdog has to do it */
        feed(rescue);
        rescue->feed = now + FEED_EVERY;
    }
    if (now >= rescue->report) {
        report(rescue);
        rescue->report = now + REPORT_EVERY;
    }
    rescue->polls[LISTENER].fd = now >= rescue->accept ? rescue->listener : -1;
}

/* Whether /proc/PID/cgroup (cgroups(7)) names a cgroup of the kubelet's, with either of its cgroup drivers. */
static bool in_pod(const char *text) {
    for (; *text; text += strcspn(text, "\n"), text += *text == '\n') {
        const char *path = strchr(text, ':');
        path = path ? strchr(path + 1, ':') : NULL;
        path = path ? path + 1 + strspn(path + 1, "/") : "";
        size_t length = strcspn(path, "/\n");
        if ((length == 8 && !strncmp(path, "kubepods", 8)) || (length == 14 && !strncmp(path, "kubepods.slice", 14)))
            return true;
    }
    return false;
}

/* What the process that connected may do: nothing if it has ended, since its pid may be another's by now. */
static enum role role_of(int fd, char *peer, size_t size) {
    char path[40], cgroup[4096];
    struct ucred who = {0};
    int pidfd = -1;
    bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &(socklen_t){sizeof who}) == 0 && who.pid > 0;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &(socklen_t){sizeof pidfd}) < 0 && errno != ENOPROTOOPT)
        known = false;
    snprintf(path, sizeof path, "/proc/%d/cgroup", who.pid);
    size_t length = read_text(path, cgroup, sizeof cgroup);
    known = known && length && length < sizeof cgroup - 1;
    known = known && (pidfd < 0 || syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) == 0);
    if (pidfd >= 0)
        close(pidfd);
    bool pod = known && in_pod(cgroup);
    snprintf(peer, size, "uid %u pid %d%s", who.uid, who.pid, pod ? " in a pod" : known ? "" : " (gone)");
    return !known || pod ? NOBODY : who.uid == 0 ? ADMIN : READER;
}

static void drop(struct rescue *rescue, int place) {
    close(rescue->polls[place].fd);
    rescue->polls[place].fd = -1;
    if (place < OUTPUTS)
        rescue->clients[place - CLIENTS] = (struct client){0};
}

/* Accepts one; if all places are taken, in the place of the one with the smallest role that was silent for longest. */
static void admit(struct rescue *rescue) {
    struct client new = {.heard = milliseconds()}, *place = rescue->clients;
    int fd = accept4(rescue->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno != EAGAIN) /* no memory or descriptor is free, and the listener stays ready: rest */
            rescue->accept = new.heard + SECOND;
        return;
    }
    new.role = role_of(fd, new.peer, sizeof new.peer);
    for (struct client *other = place + 1; other < rescue->clients + CONNECTIONS; other++)
        if (other->role < place->role || (other->role == place->role && other->heard < place->heard))
            place = other;
    if (place->role > new.role) {
        close(fd);
        return;
    }
    struct pollfd *poller = &rescue->polls[CLIENTS + (place - rescue->clients)];
    if (poller->fd >= 0)
        close(poller->fd);
    poller->fd = fd;
    *place = new;
}

/* Whether the whole answer went out: a client that does not read is not waited for. */
static bool respond(struct rescue *rescue, int fd, const struct client *client, const struct rpc_request *request) {
    struct rpc_answer answer = {0};
    bool off = rpc_is(request, "shutdown"), end = off || rpc_is(request, "reboot"), denied = client->role < (end ? ADMIN : READER);
    char when[48];
    rpc_pack(&answer, "auu", 4, 1, request->msgid);
    if (denied)
        rpc_pack(&answer, "assn", 2, "PERMISSION_DENIED", client->peer);
    else if (end)
        rpc_pack(&answer, "nf", 0.0);
    else if (rpc_is(request, "status")) {
        outlook(rescue, "reboots", when, sizeof when);
        rpc_pack(&answer, "nm" "ss" "sn" "ss", 14, "name", rescue->system.nodename, "address", "phase", "rescue");
        rpc_pack(&answer, "sb" "sass", "ready", "reasons", 2, rescue->reason, when);
        rpc_pack(&answer, "ss" "sf", "boot_id", rescue->boot_id, "uptime_seconds", (double)milliseconds() / SECOND);
        rpc_pack(&answer, "sn" "ss" "sa" "sn", "config_source", "identity", "unknown", "failures", 0, "shutdown");
        rpc_pack(&answer, "ss" "sn" "sn", "time", "not asked", "cluster", "turn");
    } else if (rpc_is(request, "version")) {
        rpc_pack(&answer, "nm" "ss" "ss", 5, "version", "rescue", "kernel", rescue->system.release);
        rpc_pack(&answer, "ss" "ss" "sn", "python", "none", "boot_id", rescue->boot_id, "image");
    } else
        rpc_pack(&answer, "assn", 2, "UNAVAILABLE", "rescue mode: there are status, version, reboot and shutdown");
    bool sent = send(fd, answer.data, answer.used, MSG_NOSIGNAL) == (ssize_t)answer.used;
    if (end && !denied)
        leave(rescue, off ? RB_POWER_OFF : RB_AUTOBOOT, client->peer);
    return sent;
}

/* Whether the connection stays. */
static bool receive(struct rescue *rescue, int fd, struct client *client) {
    ssize_t length = recv(fd, client->data + client->used, FRAME_MAX - client->used, 0);
    if (length <= 0)
        return length < 0 && errno == EAGAIN;
    client->heard = milliseconds();
    client->used += (size_t)length;
    struct rpc_request request;
    while ((length = rpc_frame(client->data, client->used, &request)) > 0) {
        if (request.wanted && !respond(rescue, fd, client, &request))
            return false;
        client->used -= (size_t)length;
        memmove(client->data, client->data + length, client->used);
    }
    return length == 0 && client->used < FRAME_MAX;
}

/* Whether more may come. */
static bool drain(int fd) {
    static char scrap[1 << 16];
    ssize_t length = read(fd, scrap, sizeof scrap);
    return length > 0 || (length < 0 && errno == EAGAIN);
}

static void look_at_descriptors(struct rescue *rescue) {
    struct pollfd *polls = rescue->polls;
    for (int i = CLIENTS; i < POLLS; i++) {
        bool ready = polls[i].fd >= 0 && polls[i].revents;
        if (ready && !(i < OUTPUTS ? receive(rescue, polls[i].fd, &rescue->clients[i - CLIENTS]) : drain(polls[i].fd)))
            drop(rescue, i);
    }
    if (polls[LISTENER].fd >= 0 && polls[LISTENER].revents) /* last: a new client has no events yet */
        admit(rescue);
}

/* The number that a word, ended by a space, is; -1, and a word about it, if it is none. */
static int number(const char *name, const char *word) {
    char *end = NULL, shown[24];
    long value = word ? strtol(word, &end, 10) : -1;
    if (word && end != word && (*end == 0 || *end == ' ') && value >= 0 && value <= INT_MAX)
        return (int)value;
    copy_plain(shown, sizeof shown, word ? word : "nothing");
    say("%s: found %s, expected a number", name, shown);
    return -1;
}

/* A descriptor that PID 1 left, made not to block; -1, and a word about it, if it is none. */
static int adopt(const struct rescue *rescue, const char *name, const char *word) {
    int fd = number(name, word), flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
    for (int i = 0; i < POLLS; i++)
        if (fd == rescue->watchdog || fd == rescue->polls[i].fd)
            flags = -1; /* if it was closed for one of its two uses, the other's would be somebody else's */
    if (flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0)
        return fd;
    if (fd >= 0)
        say("%s: descriptor %d cannot be used", name, fd);
    return -1;
}

/* Takes over what PID 1 left. Why is said before the rest is looked at. */
static void begin(struct rescue *rescue, const char *reason) {
    const char *seconds = getenv("INITD_RESCUE_SECONDS"), *crashes = getenv("INITD_CRASHES"), *word = getenv("INITD_PIPES");
    int left = seconds ? number("INITD_RESCUE_SECONDS", seconds) : DEFAULT_SECONDS, listening = 0, place = OUTPUTS;
    char plain[200];
    rescue->deadline = left ? milliseconds() + (left < 0 ? DEFAULT_SECONDS : left) * (long)SECOND : 0;
    size_t length = strlen(reason), most = sizeof rescue->reason - 1; /* the end of a traceback says what it was */
    copy_plain(rescue->reason, sizeof rescue->reason, reason + (length > most ? length - most : 0));
    report(rescue);
    rescue->report = milliseconds() + REPORT_EVERY;
    copy_plain(plain, sizeof plain, crashes ? crashes : "not known when");
    say("PID 1 failed (seconds since boot, 0: never): %s", plain);
    for (int i = 0; i < POLLS; i++)
        rescue->polls[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    rescue->watchdog = -1;
    rescue->listener = rescue->polls[LISTENER].fd = adopt(rescue, "INITD_LISTENER", getenv("INITD_LISTENER"));
    getsockopt(rescue->listener, SOL_SOCKET, SO_ACCEPTCONN, &listening, &(socklen_t){sizeof listening});
    if (rescue->listener >= 0 && !listening)
        say("INITD_LISTENER: descriptor %d does not listen", rescue->listener);
    if (getenv("INITD_WATCHDOG"))
        rescue->watchdog = adopt(rescue, "INITD_WATCHDOG", getenv("INITD_WATCHDOG"));
    if (rescue->watchdog >= 0 && !feed(rescue))
        say("INITD_WATCHDOG: descriptor %d: %s", rescue->watchdog, strerrorname_np(errno));
    if (!word)
        say("INITD_PIPES: found nothing");
    for (word = word ? word : ""; *(word += strspn(word, " ")) && place < POLLS; word += strcspn(word, " "))
        place += (rescue->polls[place].fd = adopt(rescue, "INITD_PIPES", word)) >= 0;
    if (*word)
        say("INITD_PIPES: found more than %d", PIPES);
    read_text("/proc/sys/kernel/random/boot_id", rescue->boot_id, sizeof rescue->boot_id);
    rescue->boot_id[strcspn(rescue->boot_id, "\n")] = 0;
    uname(&rescue->system);
}

int main(int argc, char **argv) {
    static const int ignored[] = {SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE};
    const int taken[] = {SIGCHLD, SIGINT, SIGPWR, SIGRTMIN + 4, SIGRTMIN + 5};
    static struct rescue rescue;
    sigset_t set;
    if (getpid() != 1) {
        fprintf(stderr, "rescue takes the place of a PID 1 that failed: it reboots the machine\n");
        return 1;
    }
    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
        signal(ignored[i], SIG_IGN);
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
        sigaddset(&set, taken[i]);
    sigprocmask(SIG_SETMASK, &set, NULL);
    begin(&rescue, argc > 1 ? argv[1] : "no reason given");
    rescue.polls[WAKE].fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    for (;;) {
        take_signals(&rescue, &set); /* before reaping: a SIGCHLD that comes after it still wakes poll(2) */
        bool more = reap(&rescue);
        look_at_clock(&rescue);
        if (poll(rescue.polls, POLLS, more ? 0 : rescue.command ? 50 : SECOND) < 0) {
            for (int i = 0; i < POLLS; i++)
                rescue.polls[i].revents = POLLIN; /* nothing blocks, so each may be tried, but not too often */
            nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        }
        look_at_descriptors(&rescue);
    }
}
