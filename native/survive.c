/*
 * What PID 1 does when it fails itself: it executes its program again, in the same process, so that its children stay
 * its children and what it has open stays open. initd/resume.py is the other half of it.
 *
 * SIGSEGV, SIGBUS, SIGABRT, SIGILL and SIGFPE are caught on a stack of their own. From there on nothing is trusted but
 * system calls and what lies in `self`.
 */
#define _GNU_SOURCE
#include "initd.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { KEPT = 64, VARIABLES = 64, CRASHES = 3, WINDOW = 60 /* seconds */, FRAMES = 32 };

/* What the next life, and rescue, are told besides what Python put into the environment. */
enum { CRASHES_VARIABLE, KEPT_VARIABLE, RESCUE_VARIABLE, OWN_VARIABLES };
static const char *const names[OWN_VARIABLES] = {"INITD_CRASHES=", "INITD_KEPT=", "INITD_RESCUE="};

static const struct {
    int number;
    const char *name;
} faults[] = {{SIGSEGV, "SIGSEGV"}, {SIGBUS, "SIGBUS"}, {SIGABRT, "SIGABRT"}, {SIGILL, "SIGILL"}, {SIGFPE, "SIGFPE"}};

enum { FAULTS = sizeof faults / sizeof faults[0] };

/* A line of text, put together without stdio. */
struct line {
    char text[512];
    size_t length;
};

static struct {
    long pid; /* 0: initd_survive was not called */
    const char *program;
    int report, rescue; /* memfds */
    int resuming;
    int kept[KEPT];
    size_t kept_count;
    unsigned long crashes[CRASHES]; /* when, in seconds since boot, the latest first; 0: never */
    struct sigaction dump[FAULTS]; /* faulthandler's */
    struct line what;              /* the fault that is being dealt with */
} self = {.rescue = -1};

static void add(struct line *line, const char *text) {
    while (*text && line->length < sizeof line->text - 1)
        line->text[line->length++] = *text++;
    line->text[line->length] = 0;
}

static void add_number(struct line *line, unsigned long number, unsigned base) {
    char digits[2 * sizeof number * 8 / 3], *first = digits + sizeof digits;
    *--first = 0;
    do
        *--first = "0123456789abcdef"[number % base];
    while (number /= base);
    add(line, base == 16 ? "0x" : "");
    add(line, first);
}

static void put(int fd, const char *text) {
    if (write(fd, text, strlen(text)) < 0 || write(fd, "\n", 1) < 0)
        return; /* a report that cannot be written must not stop what it is about */
}

/* Whether PID 1 gets another life: not after CRASHES within WINDOW, nor after one that did not come as far as its loop. */
static int may_resume(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_BOOTTIME, &now);
    memmove(self.crashes + 1, self.crashes, sizeof self.crashes - sizeof *self.crashes);
    self.crashes[0] = (unsigned long)now.tv_sec + !now.tv_sec;
    unsigned long first = self.crashes[CRASHES - 1];
    return !self.resuming && !(first && self.crashes[0] - first < WINDOW);
}

static int is_own(const char *variable) {
    for (int i = 0; i < OWN_VARIABLES; i++)
        if (!strncmp(variable, names[i], strlen(names[i])))
            return 1;
    return 0;
}

static char **environment(void) {
    static struct line own[OWN_VARIABLES];
    static char *variables[VARIABLES + OWN_VARIABLES + 1];
    size_t count = 0;
    for (char **each = environ; each && *each && count < VARIABLES; each++)
        if (!is_own(*each))
            variables[count++] = *each;
    for (int i = 0; i < OWN_VARIABLES; i++) {
        add(&own[i], names[i]);
        variables[count++] = own[i].text;
    }
    for (size_t i = 0; i < CRASHES; i++, add(&own[CRASHES_VARIABLE], " "))
        add_number(&own[CRASHES_VARIABLE], self.crashes[i], 10);
    for (size_t i = 0; i < self.kept_count; i++, add(&own[KEPT_VARIABLE], " "))
        add_number(&own[KEPT_VARIABLE], (unsigned long)self.kept[i], 10);
    if (self.rescue >= 0)
        add_number(&own[RESCUE_VARIABLE], (unsigned long)self.rescue, 10);
    return variables;
}

static void unblock_faults(void) {
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < FAULTS; i++)
        sigaddset(&set, faults[i].number);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

/* Returns only if there is nothing to be executed. */
void initd_restart(const char *reason) {
    if (!self.pid || syscall(SYS_getpid) != self.pid)
        return;
    put(self.report, reason);
    for (size_t i = 0; i < self.kept_count; i++)
        fcntl(self.kept[i], F_SETFD, 0);
    unblock_faults(); /* else the next life's would not be caught; all else stays blocked and pending, for it to read */
    char *const resume[] = {(char *)self.program, "resume", NULL}, *const rescue[] = {"rescue", (char *)reason, NULL};
    int again = may_resume();
    char **variables = environment();
    if (again)
        execve(self.program, resume, variables);
    syscall(SYS_execveat, self.rescue, "", rescue, variables, AT_EMPTY_PATH);
}

/* faulthandler has raised the signal again when it had written what it knows, or has failed itself: enough was tried. */
static void on_second_fault(int number) {
    static volatile sig_atomic_t traced; /* to trace a broken stack may be a fault, too */
    void *frames[FRAMES];
    if (!traced++ && syscall(SYS_getpid) == self.pid) {
        put(self.report, "Native stack (most recent call first):");
        backtrace_symbols_fd(frames, backtrace(frames, FRAMES), self.report);
    }
    initd_restart(self.what.text);
    signal(number, SIG_DFL); /* nothing could be executed: for PID 1 of a machine, a panic, which reboots it */
}

static void on_fault(int number, siginfo_t *info, void *context) {
    size_t which = 0;
    int error = errno;
    while (faults[which].number != number)
        which++;
    struct line line = {0};
    add(&line, faults[which].name);
    if (syscall(SYS_getpid) != self.pid) { /* a copy of PID 1 dies of it like any process */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    if (info->si_code <= 0 && info->si_pid != self.pid) { /* nobody's signal is a fault of ours */
        add(&line, " ignored, sent by pid ");
        add_number(&line, (unsigned long)info->si_pid, 10);
        int kmsg = open("/dev/kmsg", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        put(kmsg, line.text);
        close(kmsg);
        errno = error;
        return;
    }
    add(&line, " at instruction ");
    add_number(&line, (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], 16);
    add(&line, ", address ");
    add_number(&line, (unsigned long)info->si_addr, 16);
    add(&line, ", code ");
    add_number(&line, (unsigned)info->si_code, 10);
    self.what = line;
    unblock_faults();
    void (*dump)(int) = self.dump[which].sa_handler; /* puts on_second_fault back, writes Python's traceback, raises again */
    if (dump != on_second_fault)
        dump(number);
    on_second_fault(number);
}

static long next_number(char **text) {
    char *end = *text;
    long number = end ? strtol(end, &end, 10) : -1;
    if (end == *text)
        number = -1;
    *text = end;
    return number;
}

int initd_survive(const char *program, int report, int resuming) {
    static char stack[64 * 1024];
    char *crashes = getenv("INITD_CRASHES"), *kept = getenv("INITD_KEPT"), *rescue = getenv("INITD_RESCUE");
    void *first;
    backtrace(&first, 1); /* it loads a library when it is first called */
    for (size_t i = 0; resuming && i < CRASHES; i++) {
        long when = next_number(&crashes);
        self.crashes[i] = when > 0 ? (unsigned long)when : 0;
    }
    for (long fd; resuming && self.kept_count < KEPT && (fd = next_number(&kept)) >= 0;)
        self.kept[self.kept_count++] = (int)fd; /* until this life has said what it keeps */
    if (resuming)
        self.rescue = (int)next_number(&rescue);
    self.program = program;
    self.report = report;
    self.resuming = resuming;
    self.pid = syscall(SYS_getpid);
    if (sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL) < 0)
        return -1;
    struct sigaction action = {.sa_handler = on_second_fault, .sa_flags = SA_ONSTACK | SA_NODEFER};
    for (size_t i = 0; i < FAULTS; i++)
        if (sigaction(faults[i].number, &action, NULL) < 0)
            return -1;
    return 0;
}

int initd_catch_faults(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    for (size_t i = 0; i < FAULTS; i++)
        if (sigaction(faults[i].number, &action, &self.dump[i]) < 0)
            return -1;
    return 0;
}

int initd_keep(const int *descriptors, size_t count, int rescue) {
    if (count > KEPT) {
        errno = EMFILE;
        return -1;
    }
    self.kept_count = 0; /* never more than what is there, whenever a fault comes */
    memcpy(self.kept, descriptors, count * sizeof *descriptors);
    self.kept_count = count;
    self.rescue = rescue;
    return 0;
}

void initd_resumed(void) {
    self.resuming = 0;
}
