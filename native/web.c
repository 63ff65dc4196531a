/*
 * An HTTP server and client for pods.
 *
 *   web serve PORT [ROOT]       GET /                        this pod's hostname
 *                               GET /file/PATH               a file below ROOT (default /www)
 *                               GET /fetch/HOST/PORT/PATH    what `web get` would print, asked for from inside the pod
 *   web get HOST PORT PATH      prints the body; HOST is an IPv4 or IPv6 address
 */
#define _GNU_SOURCE
#include "http.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define ANSWER_SIZE (4 << 20)

static const char *root = "/www";

static int connect_to(const char *host, int port) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    bool is_v4 = inet_pton(AF_INET, host, &v4.sin_addr) == 1;
    struct timeval timeout = {.tv_sec = HTTP_TIMEOUT};
    errno = EINVAL;
    if (!is_v4 && inet_pton(AF_INET6, host, &v6.sin6_addr) != 1)
        return -1;
    int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout); /* bounds connect(2) too */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    struct sockaddr *address = is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    if (fd >= 0 && connect(fd, address, is_v4 ? sizeof v4 : sizeof v6) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* The body of the answer, NULL with errno set if there is none. The caller may leave it to the end of the process. */
static char *get(const char *host, int port, const char *path, size_t *length) {
    char request[4400];
    char *answer = malloc(ANSWER_SIZE + 1);
    int fd = answer ? connect_to(host, port) : -1;
    if (fd < 0)
        return NULL;
    int size = snprintf(request, sizeof request, "GET /%.4000s HTTP/1.1\r\nHost: %.256s\r\nConnection: close\r\n\r\n",
                        path + (*path == '/'), host);
    size_t used = 0;
    ssize_t received = http_send(fd, request, (size_t)size) ? 1 : -1;
    while (received > 0 && used < ANSWER_SIZE && (received = recv(fd, answer + used, ANSWER_SIZE - used, 0)) > 0)
        used += (size_t)received;
    close(fd);
    if (received < 0)
        return NULL;
    answer[used] = 0;
    char *body = strstr(answer, "\r\n\r\n");
    if (!body || strncmp(answer, "HTTP/1.", 7) || strncmp(answer + 8, " 200", 4)) {
        errno = EBADMSG;
        return NULL;
    }
    *length = used - (size_t)(body + 4 - answer);
    return body + 4;
}

static void serve_file(int fd, const char *path) {
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK, .resolve = RESOLVE_IN_ROOT};
    int directory = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int file = (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
    struct stat status;
    char *body = malloc(ANSWER_SIZE);
    if (file < 0 || fstat(file, &status) < 0 || !S_ISREG(status.st_mode) || !body)
        return http_fail(fd, "404 Not Found", file < 0 ? strerror(errno) : "not a regular file");
    ssize_t length = read(file, body, ANSWER_SIZE);
    if (length < 0)
        return http_fail(fd, "500 Internal Server Error", strerror(errno));
    http_respond(fd, "200 OK", "application/octet-stream", body, (size_t)length);
}

static void fetch(int fd, char *host) {
    char *port = strchr(host, '/'), *path = port ? strchr(port + 1, '/') : NULL;
    size_t length;
    if (!path)
        return http_fail(fd, "400 Bad Request", "expected: /fetch/HOST/PORT/PATH");
    *port = 0;
    char *body = get(host, atoi(port + 1), path, &length);
    if (!body)
        return http_fail(fd, "502 Bad Gateway", strerror(errno));
    http_respond(fd, "200 OK", "application/octet-stream", body, length);
}

static void handle(int fd, const struct http_request *request) {
    char text[4096 + 1];
    if (!strcmp(request->path, "/")) {
        gethostname(text, sizeof text - 2);
        strcat(text, "\n");
        http_respond(fd, "200 OK", "text/plain", text, strlen(text));
    } else if (!strncmp(request->path, "/file/", 6))
        serve_file(fd, request->path + 6);
    else if (!strncmp(request->path, "/fetch/", 7))
        fetch(fd, strcpy(text, request->path + 7));
    else
        http_fail(fd, "404 Not Found", "expected: /, /file/PATH or /fetch/HOST/PORT/PATH");
}

int main(int argc, char **argv) {
    if ((argc == 3 || argc == 4) && !strcmp(argv[1], "serve")) {
        root = argc == 4 ? argv[3] : root;
        return http_serve(atoi(argv[2]), handle);
    }
    if (argc == 5 && !strcmp(argv[1], "get")) {
        size_t length;
        char *body = get(argv[2], atoi(argv[3]), argv[4], &length);
        if (body)
            return fwrite(body, 1, length, stdout) == length && fflush(stdout) == 0 ? 0 : 1;
        fprintf(stderr, "get http://%s:%s%s: %s\n", argv[2], argv[3], argv[4], strerror(errno));
        return 1;
    }
    fprintf(stderr, "usage: web serve PORT [ROOT] | web get HOST PORT PATH\n");
    return 2;
}
