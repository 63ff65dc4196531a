/* The pod sandbox's process: holds the namespaces, reaps what a shared pid namespace leaves it, ends when told to. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void) {
    sigset_t set;
    int number = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL); /* blocked and waited for: a process 1 gets no signal that it has no use for */
    while (number != SIGTERM && number != SIGINT) {
        while (waitpid(-1, NULL, WNOHANG) > 0) /* first: a child inherited over exec may have ended before */
            continue;
        sigwait(&set, &number);
    }
    return 0;
}
