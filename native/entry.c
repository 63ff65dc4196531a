/*
 * /sbin/init: CPython embedded, running initd.__main__.main() with this program's arguments.
 *
 * Isolated: neither the environment nor a site module nor the current directory changes what is imported, and nothing is
 * written. See "Python Initialization Configuration" in Python's C API manual.
 */
#define _GNU_SOURCE
#include <Python.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#define STRINGIFY(x) #x
#define TEXT(x) STRINGIFY(x)
#define VERSION TEXT(PY_MAJOR_VERSION) "." TEXT(PY_MINOR_VERSION)
#define REBOOT_DELAY 10 /* seconds to read the message */

/* Not run_module: that imports runpy and importlib.util first, a third of the interpreter's own start. */
#define COMMAND L"from initd.__main__ import main\nraise SystemExit(main())\n"
#define LIBRARY L"/usr/lib/python" VERSION

static const wchar_t *const search_paths[] = {L"/usr/lib/initd/python", LIBRARY, LIBRARY "/lib-dynload"};

/*
 * PID 1 must not end, for that is a kernel panic without a reason. If it was to be another life (native/survive.c), be
 * rescue; else say the status, leave time to read it, reboot. Python itself calls exit(3) for a SystemExit, so this is
 * bound to exit and not to main's end.
 */
static void last_words(int status, void *unused) {
    char line[160];
    (void)unused;
    if (getpid() != 1)
        return;
    const char *program = getenv("INITD_RESCUE");
    char *const rescue[] = {"rescue", "PID 1 could not begin another life", NULL};
    if (program && *program)
        execveat(atoi(program), "", rescue, environ, AT_EMPTY_PATH);
    snprintf(line, sizeof line, "\r\ninitd: PID 1 ended with status %d; reboot in %d s\r\n", status, REBOOT_DELAY);
    int console = open("/dev/console", O_WRONLY | O_NOCTTY);
    if (console < 0 || write(console, line, strlen(line)) < 0)
        fputs(line, stderr);
    struct timespec rest = {.tv_sec = REBOOT_DELAY};
    while (nanosleep(&rest, &rest) < 0)
        continue;
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

/* When this program was executed, in seconds since boot, for initd.node: the interpreter's own start is part of a boot. */
static void record_exec_time(void) {
    struct timespec now;
    char text[32];
    clock_gettime(CLOCK_BOOTTIME, &now);
    snprintf(text, sizeof text, "%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
    setenv("INITD_EXEC_AT", text, 1); /* the kernel hands words of its command line on as variables: overwrite */
}

static PyStatus configure(PyConfig *config, int argc, char **argv) {
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* there is no locale: file names and arguments are bytes that are mostly UTF-8 */
    PyStatus status = Py_PreInitialize(&before);
    PyConfig_InitIsolatedConfig(config);
    config->site_import = 0;
    config->write_bytecode = 0;
    config->pathconfig_warnings = 0;
    config->install_signal_handlers = 0; /* PID 1 reads signals from a descriptor */
    config->parse_argv = 0;
    config->module_search_paths_set = 1;
    for (size_t i = 0; !PyStatus_Exception(status) && i < sizeof search_paths / sizeof search_paths[0]; i++)
        status = PyWideStringList_Append(&config->module_search_paths, search_paths[i]);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesArgv(config, argc, argv);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetString(config, &config->executable, L"/sbin/init");
    if (!PyStatus_Exception(status))
        status = PyConfig_SetString(config, &config->home, L"/usr");
    if (!PyStatus_Exception(status)) /* where frozen modules say that they come from */
        status = PyConfig_SetString(config, &config->stdlib_dir, LIBRARY);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetString(config, &config->run_command, COMMAND);
    return status;
}

int main(int argc, char **argv) {
    PyConfig config;
    record_exec_time();
    on_exit(last_words, NULL);
    PyStatus status = configure(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status); /* prints what is wrong */
    return Py_RunMain();
}
