/*
 * What initd._native offers to Python beside libc's own calls.
 *
 * build.py gives this file to cffi without its preprocessor lines, so it holds plain declarations only.
 * Every function returns -1 with errno set on failure, unless its comment says otherwise.
 */
#ifndef INITD_H
#define INITD_H
#include <stddef.h>
#include <stdint.h>

/* The step at which starting a child failed. */
enum initd_stage {
    INITD_STARTED,
    INITD_CLONE,
    INITD_CGROUP,
    INITD_SESSION,
    INITD_SIGNALS,
    INITD_OOM_SCORE,
    INITD_LIMITS,
    INITD_DESCRIPTORS,
    INITD_WORKING_DIRECTORY,
    INITD_CAPABILITIES,
    INITD_SEAL,
    INITD_EXEC,
};

struct initd_descriptor {
    int child;   /* the number in the child */
    int parent;  /* the caller's descriptor */
    int scratch; /* used by the child between clone and exec */
};

struct initd_limit {
    int resource;
    uint64_t soft, hard;
};

struct initd_spawn {
    char *const *argv; /* argv[0] is the path; NULL: the child goes on as a copy of this process */
    char *const *envp;
    const char *cwd;
    int cgroup;          /* directory descriptor, or -1 to stay */
    uint64_t namespaces; /* further CLONE_NEW* flags */
    struct initd_descriptor *descriptors;
    size_t descriptor_count;
    const struct initd_limit *limits;
    size_t limit_count;
    const char *oom_score; /* decimal text, or NULL to inherit */
    int bounded;           /* whether keep counts */
    uint64_t keep;         /* mask of the capabilities that stay in the bounding set */
    int sealed; /* no_new_privs, and a filter of system calls */
    int timeout; /* milliseconds to wait for exec */
};

struct initd_child {
    int pid, pidfd;
    int stage; /* enum initd_stage; INITD_STARTED is success */
    int error; /* errno of that stage */
    int report; /* if exec is still to come: a pipe that gets stage and error should it fail; else -1 */
};

int initd_spawn(const struct initd_spawn *spec, struct initd_child *child);
int initd_drop_capabilities(uint64_t keep);

int initd_pivot_root(const char *new_root, const char *put_old);
int initd_openat2(int directory, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int initd_finit_module(int fd, const char *parameters, int flags);
int initd_pidfd_getfd(int pidfd, int fd);
int initd_adjtime(long microseconds);
int initd_signalfd(const int *signals, size_t count);
int initd_prctl(int option, unsigned long value);

/*
 * A fault of this process makes it execute program again, with the argument "resume" and the descriptors that initd_keep
 * named last. The memfd report gets what happened. If that cannot help, rescue (a memfd with a program, or -1) is executed
 * instead. resuming: this life began so; initd_resumed tells that it has come as far as to be trusted.
 * program must live as long as the process. initd_restart does the same for a fault that the caller found.
 * Between initd_survive and initd_catch_faults, Python's faulthandler is to be enabled.
 */
int initd_survive(const char *program, int report, int resuming);
int initd_catch_faults(void);
int initd_keep(const int *descriptors, size_t count, int rescue);
void initd_resumed(void);
void initd_restart(const char *reason);

/* libkmod and libblkid are opened when first used: PID 1 must not pay for what only the devices worker needs. */
struct initd_kmod {
    void *context;
    void *functions[16];
};
int initd_kmod_open(struct initd_kmod *kmod);
/* Writes the names of the modules that were loaded, each ended by a NUL, and returns their length. */
int initd_kmod_load(struct initd_kmod *kmod, const char *alias, char *names, size_t size);
/* Writes NAME=value strings, each ended by a NUL, and returns their length: 0 if nothing is found. */
int initd_blkid_probe(const char *path, char *values, size_t size);

#endif
