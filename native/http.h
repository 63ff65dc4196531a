/* As much of an HTTP/1.1 server as the pod programs need: GET, one request a connection, a process for each. */
#ifndef HTTP_H
#define HTTP_H
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define HTTP_TIMEOUT 10 /* seconds that a peer may stay silent */

struct http_request {
    char path[4096];  /* decoded */
    char query[4096]; /* as it came */
};

/* Decodes %XX; stops at the first of `ends`; returns false if the text does not fit or holds a NUL. */
static bool http_decode(const char *text, const char *ends, char *value, size_t size) {
    size_t length = 0;
    for (size_t end = strcspn(text, ends), i = 0; i < end; i++) {
        char byte = text[i], hex[3] = {0};
        if (byte == '%' && i + 2 < end && isxdigit((unsigned char)text[i + 1]) && isxdigit((unsigned char)text[i + 2])) {
            memcpy(hex, text + i + 1, 2);
            byte = (char)strtol(hex, NULL, 16);
            i += 2;
        }
        if (byte == 0 || length + 1 >= size)
            return false;
        value[length++] = byte;
    }
    value[length] = 0;
    return true;
}

/* The parameter of that name in the query, decoded. */
static inline bool http_parameter(const struct http_request *request, const char *name, char *value, size_t size) {
    size_t length = strlen(name);
    for (const char *part = request->query; *part; part += strcspn(part, "&"), part += *part == '&')
        if (!strncmp(part, name, length) && part[length] == '=')
            return http_decode(part + length + 1, "&", value, size);
    return false;
}

static bool http_send(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        data += sent;
        length -= (size_t)sent;
    }
    return true;
}

static inline void http_respond(int fd, const char *status, const char *type, const char *body, size_t length) {
    char head[256];
    int size = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
                        status, type, length);
    if (http_send(fd, head, (size_t)size))
        http_send(fd, body, length);
}

static inline void http_fail(int fd, const char *status, const char *reason) {
    char body[256];
    int size = snprintf(body, sizeof body, "%.250s\n", reason);
    http_respond(fd, status, "text/plain", body, (size_t)size);
}

static bool http_receive(int fd, struct http_request *request) {
    char text[8192];
    size_t length = 0;
    while (length < sizeof text - 1) {
        ssize_t received = recv(fd, text + length, sizeof text - 1 - length, 0);
        if (received <= 0)
            return false;
        length += (size_t)received;
        text[length] = 0;
        if (strstr(text, "\r\n\r\n"))
            break;
    }
    char *target = text + 4, *end = target + strcspn(target, " \r\n"), *query = memchr(target, '?', (size_t)(end - target));
    if (strncmp(text, "GET ", 4) || !strstr(text, "\r\n\r\n") || *end != ' ')
        return false;
    *end = 0;
    snprintf(request->query, sizeof request->query, "%s", query ? query + 1 : "");
    return http_decode(target, "?", request->path, sizeof request->path);
}

static void http_stop(int number) {
    (void)number;
    _exit(0);
}

/* Serves until SIGTERM. Returns only if it cannot listen. */
static inline int http_serve(int port, void (*handle)(int, const struct http_request *)) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct timeval timeout = {.tv_sec = HTTP_TIMEOUT};
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    signal(SIGTERM, http_stop); /* process 1 of a pod has no default action for it */
    signal(SIGINT, http_stop);
    signal(SIGCHLD, SIG_IGN); /* no zombies */
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 128) < 0) {
        fprintf(stderr, "listen on port %d: %s\n", port, strerror(errno));
        return 1;
    }
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) { /* out of descriptors or memory: give those that have some time to return them */
            usleep(10000);
            continue;
        }
        if (fork() == 0) {
            struct http_request request;
            close(listener);
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
            if (http_receive(fd, &request))
                handle(fd, &request);
            else
                http_fail(fd, "400 Bad Request", "expected: GET PATH HTTP/1.1");
            shutdown(fd, SHUT_WR);
            _exit(0);
        }
        close(fd);
    }
}

#endif
