/* Starts a child in its cgroup and reports the step that failed. See clone(2), "clone3()". */
#define _GNU_SOURCE
#include <Python.h> /* first, as its manual asks */

#include "initd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct report {
    int stage, error;
};

/* Lowers the bounding set to `keep`. Reading past the kernel's last capability is EINVAL, which ends the loop. */
static int lower_bounding_set(uint64_t keep) {
    for (int capability = 0; capability < 64; capability++) {
        int held = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
        if (held < 0)
            break;
        if (held && !(keep >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return -1;
    }
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

/* Masks the process's own sets. Inheritable ones are cleared: an exec as root would bring them back past the bounding set. */
static int mask_capabilities(uint64_t keep) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets) < 0)
        return -1;
    for (int word = 0; word < 2; word++) {
        uint32_t mask = (uint32_t)(keep >> 32 * word);
        sets[word].effective &= mask;
        sets[word].permitted &= mask;
        sets[word].inheritable = 0;
    }
    return (int)syscall(SYS_capset, &header, sets);
}

int initd_drop_capabilities(uint64_t keep) {
    return lower_bounding_set(keep) < 0 ? -1 : mask_capabilities(keep);
}

#if defined(__x86_64__)
enum { NATIVE = AUDIT_ARCH_X86_64, FOREIGN = 0x40000000 /* x32's numbers begin here */ };
#else
enum { NATIVE = AUDIT_ARCH_AARCH64, FOREIGN = 0x40000000 };
#endif

/* No privilege comes by exec, and what neither the kubelet nor a worker calls, but who breaks into it would, is EPERM: seccomp(2). */
static int seal(void) {
    static const uint32_t refused[] = {
        SYS_kexec_load, SYS_kexec_file_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_reboot,
        SYS_swapon, SYS_swapoff, SYS_settimeofday, SYS_clock_settime, SYS_acct, SYS_bpf, SYS_perf_event_open,
        SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_userfaultfd, SYS_open_by_handle_at,
        SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    };
    enum { COUNT = sizeof refused / sizeof refused[0], LAST = COUNT + 5 };
    struct sock_filter code[LAST + 1] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)NATIVE, 0, LAST - 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FOREIGN, LAST - 4, 0),
    };
    for (int i = 0; i < COUNT; i++)
        code[4 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i], COUNT - i, 0);
    code[LAST - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[LAST] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    struct sock_fprog program = {.len = LAST + 1, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

/* A child must not inherit that Python ignores SIGPIPE, nor that PID 1 blocks what it reads from a signalfd. */
static int reset_signals(void) {
    static const unsigned long standard[4]; /* the kernel's struct sigaction: SIG_DFL, no flags, an empty mask */
    sigset_t none;
    /* Not by libc's sigaction(): it refuses its own two signals, and who started us may have ignored those. */
    for (int number = 1; number < NSIG; number++)
        syscall(SYS_rt_sigaction, number, standard, NULL, sizeof(long)); /* SIGKILL and SIGSTOP refuse: nor can they be ignored */
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL);
}

static int set_oom_score(const char *score) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, score, strlen(score));
    int error = errno;
    close(fd);
    errno = error;
    return written < 0 ? -1 : 0;
}

static int set_limits(const struct initd_spawn *spec) {
    for (size_t i = 0; i < spec->limit_count; i++) {
        struct rlimit limit = {.rlim_cur = spec->limits[i].soft, .rlim_max = spec->limits[i].hard};
        if (setrlimit((__rlimit_resource_t)spec->limits[i].resource, &limit) < 0)
            return -1;
    }
    return 0;
}

static int raise_descriptor(int fd, int lowest) {
    return fcntl(fd, F_DUPFD_CLOEXEC, lowest);
}

/*
 * Gives the child exactly the descriptors of the specification. All sources are first copied above every target, so no
 * dup2 can overwrite one that is still needed, whatever the permutation. Standard streams that are not given become
 * /dev/null: with them closed, the child's first open would get number 2 and take its error messages.
 */
static int arrange_descriptors(const struct initd_spawn *spec, int *report) {
    int lowest = 3, given = 0;
    for (size_t i = 0; i < spec->descriptor_count; i++) {
        int child = spec->descriptors[i].child;
        if (child >= lowest)
            lowest = child + 1;
        if (child >= 0 && child < 3)
            given |= 1 << child;
    }
    int moved = raise_descriptor(*report, lowest);
    if (moved < 0)
        return -1;
    *report = moved;
    int null = -1;
    if (given != 7) {
        int opened = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (opened < 0 || (null = raise_descriptor(opened, lowest)) < 0)
            return -1;
    }
    for (size_t i = 0; i < spec->descriptor_count; i++) {
        struct initd_descriptor *descriptor = &spec->descriptors[i];
        if ((descriptor->scratch = raise_descriptor(descriptor->parent, lowest)) < 0)
            return -1;
    }
    if (close_range(0, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
        return -1;
    for (size_t i = 0; i < spec->descriptor_count; i++)
        if (dup2(spec->descriptors[i].scratch, spec->descriptors[i].child) < 0)
            return -1;
    for (int fd = 0; fd < 3; fd++)
        if (!(given >> fd & 1) && dup2(null, fd) < 0)
            return -1;
    return 0;
}

/* Closes what only the parent may hold, the report pipe among it: for a child that goes on without an exec. */
static void close_others(const struct initd_spawn *spec) {
    int beyond = 3;
    for (size_t i = 0; i < spec->descriptor_count; i++)
        if (spec->descriptors[i].child >= beyond)
            beyond = spec->descriptors[i].child + 1;
    for (int fd = 3; fd < beyond; fd++) {
        int given = 0;
        for (size_t i = 0; i < spec->descriptor_count; i++)
            given |= spec->descriptors[i].child == fd;
        if (!given)
            close(fd);
    }
    close_range((unsigned)beyond, ~0U, 0);
}

/*
 * The child's whole life before exec: system calls only, for it is a copy of a process with an interpreter in it. Without
 * a program it is that copy which goes on, and INITD_STARTED is returned.
 */
static enum initd_stage prepare_and_exec(const struct initd_spawn *spec, int *report) {
    if (setsid() < 0)
        return INITD_SESSION;
    if (reset_signals() < 0)
        return INITD_SIGNALS;
    if (spec->oom_score && set_oom_score(spec->oom_score) < 0)
        return INITD_OOM_SCORE;
    if (arrange_descriptors(spec, report) < 0) /* before the limits: RLIMIT_NOFILE may be lower than what is open here */
        return INITD_DESCRIPTORS;
    if (set_limits(spec) < 0)
        return INITD_LIMITS;
    if (chdir(spec->cwd) < 0)
        return INITD_WORKING_DIRECTORY;
    if (spec->bounded && initd_drop_capabilities(spec->keep) < 0)
        return INITD_CAPABILITIES;
    if (spec->sealed && seal() < 0)
        return INITD_SEAL;
    if (!spec->argv) {
        close_others(spec);
        return INITD_STARTED;
    }
    execve(spec->argv[0], spec->argv, spec->envp);
    return INITD_EXEC;
}

static pid_t clone_child(const struct initd_spawn *spec, int *pidfd) {
    struct clone_args arguments = {
        .flags = CLONE_PIDFD | spec->namespaces,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    if (spec->cgroup >= 0) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)spec->cgroup;
    }
    return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

/* A child that goes on as a copy of this interpreter needs Python's own steps around fork(2), for which it holds the GIL. */
static pid_t clone_interpreter(const struct initd_spawn *spec, int *pidfd) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyOS_BeforeFork();
    pid_t pid = clone_child(spec, pidfd);
    int error = errno;
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    PyGILState_Release(state);
    errno = error;
    return pid;
}

static int is_cgroup_error(int error) {
    return error == EBADF || error == EBUSY || error == ENODEV || error == ENOENT || error == EOPNOTSUPP || error == EACCES;
}

/*
 * Waits until exec closes the pipe or the child says what failed, but not for long: a child in a frozen cgroup, or one
 * whose program is on a disk that no longer answers, does neither. Its pipe is then the caller's.
 */
static void await_exec(int fd, int timeout, struct initd_child *child) {
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    struct report report;
    int ready;
    do
        ready = poll(&poller, 1, timeout);
    while (ready < 0 && errno == EINTR);
    if (ready <= 0) {
        child->report = fd;
        return;
    }
    ssize_t length = read(fd, &report, sizeof report);
    close(fd);
    if (length == 0)
        return;
    if (length != sizeof report)
        report = (struct report){INITD_EXEC, EIO};
    child->stage = report.stage;
    child->error = report.error;
    syscall(SYS_pidfd_send_signal, child->pidfd, SIGKILL, NULL, 0);
    siginfo_t info;
    while (waitid((idtype_t)P_PIDFD, (id_t)child->pidfd, &info, WEXITED) < 0 && errno == EINTR)
        continue;
    close(child->pidfd);
    child->pidfd = -1;
}

/*
 * Fills in `child`; returns 0 if the program runs or is about to, else -1 with the stage and its errno in `child`. Without a program it
 * returns 0 twice, as fork(2) does: the pid is 0 in the child.
 */
int initd_spawn(const struct initd_spawn *spec, struct initd_child *child) {
    int ends[2];
    *child = (struct initd_child){.pid = -1, .pidfd = -1, .stage = INITD_STARTED, .report = -1};
    if (pipe2(ends, O_CLOEXEC) < 0) {
        child->stage = INITD_CLONE;
        child->error = errno;
        return -1;
    }
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before); /* a handler of the parent's must not run in the child */
    child->pid = (spec->argv ? clone_child : clone_interpreter)(spec, &child->pidfd);
    if (child->pid == 0) {
        struct report report = {.stage = (int)prepare_and_exec(spec, &ends[1])};
        report.error = errno;
        if (report.stage == INITD_STARTED)
            return 0;
        ssize_t written = write(ends[1], &report, sizeof report);
        _exit(written == sizeof report ? 127 : 126);
    }
    int error = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    if (child->pid < 0) {
        child->stage = spec->cgroup >= 0 && is_cgroup_error(error) ? INITD_CGROUP : INITD_CLONE;
        child->error = error;
        close(ends[0]);
    } else
        await_exec(ends[0], spec->timeout, child);
    return child->stage == INITD_STARTED ? 0 : -1;
}
