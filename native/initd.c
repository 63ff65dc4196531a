/* System calls that libc has no function for, or one that takes variable arguments. */
#define _GNU_SOURCE
#include "initd.h"

#include <linux/openat2.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <unistd.h>

int initd_pivot_root(const char *new_root, const char *put_old) {
    return (int)syscall(SYS_pivot_root, new_root, put_old);
}

int initd_openat2(int directory, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

int initd_finit_module(int fd, const char *parameters, int flags) {
    return (int)syscall(SYS_finit_module, fd, parameters, flags);
}

int initd_pidfd_getfd(int pidfd, int fd) {
    return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
}

/* As adjtime(3); besides, the kernel is told that its clock is synchronized, which it forgets when the clock is set. */
int initd_adjtime(long microseconds) {
    struct timex slew = {.modes = ADJ_OFFSET_SINGLESHOT, .offset = microseconds};
    struct timex known = {.modes = ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR, .esterror = labs(microseconds)};
    known.maxerror = known.esterror + 500000;
    return adjtimex(&slew) < 0 || adjtimex(&known) < 0 ? -1 : 0;
}

/* Blocks the signals, so that they are only ever read, and returns a non-blocking descriptor for them. */
int initd_signalfd(const int *signals, size_t count) {
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < count; i++)
        if (sigaddset(&set, signals[i]) < 0)
            return -1;
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -1;
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int initd_prctl(int option, unsigned long value) {
    return prctl(option, value, 0UL, 0UL, 0UL);
}
