// Makes orphans: processes whose parent has ended, so that PID 1 has to reap them.
//
// orphans COUNT RATE makes COUNT of them, RATE a second, in batches by parents that end at once; each ends at once too.
// With a RATE of 0 one parent makes all, as fast as it can; they wait, and end all together at the end of standard input.
//
// Prints how many it made, and in how many seconds: it counts, as a machine may be slower than what was asked of it.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH 10
#define NANO 1000000000LL

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * NANO + time.tv_nsec;
}

static void sleep_until(long long moment)
{
    struct timespec time = {moment / NANO, moment % NANO};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

static void fail(const char *what)
{
    fprintf(stderr, "orphans: %s: %s\n", what, strerror(errno));
    exit(1);
}

// Copies no address space: all that it costs is a process.
static pid_t ends_at_once(void)
{
    pid_t pid = vfork();
    if (pid == 0)
        _exit(0);
    return pid;
}

static pid_t ends_with_the_input(void)
{
    char byte;
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    close_range(1, ~0U, 0); // or who reads these waits too
    while (read(0, &byte, 1) > 0)
        ;
    _exit(0);
}

// Be their parent, until all are made or one cannot be. `made` is shared.
static void make(long count, pid_t (*orphan)(void), long *made)
{
    while (count-- > 0 && orphan() > 0)
        ++*made;
    _exit(0);
}

int main(int argc, char *argv[])
{
    if (argc != 3)
        return fprintf(stderr, "usage: orphans COUNT RATE\n"), 2;
    long count = atol(argv[1]), rate = atol(argv[2]), batch = rate ? BATCH : count;
    long *made = mmap(NULL, sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED)
        fail("mmap");
    long long begun = now();
    for (long asked = 0; asked < count; asked += batch) {
        if (rate)
            sleep_until(begun + asked * NANO / rate);
        long size = count - asked < batch ? count - asked : batch;
        pid_t parent = fork();
        if (parent == 0)
            make(size, rate ? ends_at_once : ends_with_the_input, made);
        if (parent < 0 || waitpid(parent, NULL, 0) < 0)
            fail("fork");
    }
    printf("%ld %.6f\n", *made, (double)(now() - begun) / NANO);
}
