/*
 * As much of MessagePack-RPC (initd/api/protocol.py) as a server of a few calls needs, without memory of its own: frames
 * are read where they lie, answers put together in a fixed buffer.
 */
#ifndef RPC_H
#define RPC_H
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

/* RPC_OTHER: whatever has a known length and no further meaning here. */
enum rpc_kind { RPC_MALFORMED, RPC_OTHER, RPC_UNSIGNED, RPC_SIGNED, RPC_STRING, RPC_BINARY, RPC_ARRAY, RPC_MAP };

struct rpc_value {
    enum rpc_kind kind;
    uint64_t number; /* the integer; the bytes of a string, the elements of an array, the pairs of a map */
    const unsigned char *text;
};

/* Reads one value, of an array or map the head alone: 1, 0 if not all of it is there yet, -1 if it is malformed. */
static int rpc_read(const unsigned char **at, const unsigned char *end, struct rpc_value *value) {
    static const struct {
        unsigned char kind, size; /* of the number that follows, in bytes */
    } table[32] = {
        /* 0xc0 nil, (never used), false, true, bin */
        {RPC_OTHER, 0}, {RPC_MALFORMED, 0}, {RPC_OTHER, 0}, {RPC_OTHER, 0}, {RPC_BINARY, 1}, {RPC_BINARY, 2}, {RPC_BINARY, 4},
        /* 0xc7 ext, float, unsigned, signed */
        {RPC_MALFORMED, 0}, {RPC_MALFORMED, 0}, {RPC_MALFORMED, 0}, {RPC_OTHER, 4}, {RPC_OTHER, 8}, {RPC_UNSIGNED, 1},
        {RPC_UNSIGNED, 2}, {RPC_UNSIGNED, 4}, {RPC_UNSIGNED, 8}, {RPC_SIGNED, 1}, {RPC_SIGNED, 2}, {RPC_SIGNED, 4},
        {RPC_SIGNED, 8},
        /* 0xd4 fixext, str, array, map */
        {RPC_MALFORMED, 0}, {RPC_MALFORMED, 0}, {RPC_MALFORMED, 0}, {RPC_MALFORMED, 0}, {RPC_MALFORMED, 0}, {RPC_STRING, 1},
        {RPC_STRING, 2}, {RPC_STRING, 4}, {RPC_ARRAY, 2}, {RPC_ARRAY, 4}, {RPC_MAP, 2}, {RPC_MAP, 4}};
    size_t left = (size_t)(end - *at), size = 0;
    if (!left)
        return 0;
    unsigned first = **at;
    if (first < 0x80)
        *value = (struct rpc_value){.kind = RPC_UNSIGNED, .number = first};
    else if (first < 0x90)
        *value = (struct rpc_value){.kind = RPC_MAP, .number = first & 0x0f};
    else if (first < 0xa0)
        *value = (struct rpc_value){.kind = RPC_ARRAY, .number = first & 0x0f};
    else if (first < 0xc0)
        *value = (struct rpc_value){.kind = RPC_STRING, .number = first & 0x1f};
    else if (first >= 0xe0)
        *value = (struct rpc_value){.kind = RPC_SIGNED};
    else {
        *value = (struct rpc_value){.kind = table[first - 0xc0].kind};
        size = table[first - 0xc0].size;
    }
    if (value->kind == RPC_MALFORMED)
        return -1;
    if (left < 1 + size)
        return 0;
    for (size_t i = 1; i <= size; i++)
        value->number = value->number << 8 | (*at)[i];
    if (value->kind == RPC_SIGNED && size && !((*at)[1] & 0x80))
        value->kind = RPC_UNSIGNED; /* any integer may be written as a signed one */
    value->text = *at + 1 + size;
    uint64_t payload = value->kind == RPC_STRING || value->kind == RPC_BINARY ? value->number : 0;
    if (left - 1 - size < payload)
        return 0;
    *at += 1 + size + payload;
    return 1;
}

/* Passes over one whole value, by counting: however deep it is nested, it costs no stack. */
static int rpc_skip(const unsigned char **at, const unsigned char *end) {
    struct rpc_value value;
    for (uint64_t values = 1; values; values--) { /* each head adds less than 2^33: no frame overflows it */
        int got = rpc_read(at, end, &value);
        if (got <= 0)
            return got;
        values += value.kind == RPC_ARRAY ? value.number : value.kind == RPC_MAP ? 2 * value.number : 0;
    }
    return 1;
}

struct rpc_request {
    bool wanted; /* whether it is a request at all: nobody answers a notification */
    uint32_t msgid;
    struct rpc_value method;
};

static inline bool rpc_is(const struct rpc_request *request, const char *method) {
    return request->method.number == strlen(method) && !memcmp(request->method.text, method, strlen(method));
}

/* The length of the first frame, 0 if not all of it is there yet, -1 if it is malformed. */
static ssize_t rpc_frame(const unsigned char *data, size_t used, struct rpc_request *request) {
    const unsigned char *at = data, *end = data + used;
    struct rpc_value frame, type, msgid = {0}, params;
    int whole = rpc_skip(&at, end);
    if (whole <= 0)
        return whole;
    ssize_t length = at - data;
    end = at;
    at = data;
    if (rpc_read(&at, end, &frame) <= 0 || frame.kind != RPC_ARRAY)
        return -1;
    if (rpc_read(&at, end, &type) <= 0 || type.kind != RPC_UNSIGNED)
        return -1;
    request->wanted = type.number == 0 && frame.number == 4;
    if (!request->wanted && !(type.number == 2 && frame.number == 3))
        return -1;
    if (request->wanted && (rpc_read(&at, end, &msgid) <= 0 || msgid.kind != RPC_UNSIGNED || msgid.number > UINT32_MAX))
        return -1;
    request->msgid = (uint32_t)msgid.number;
    if (rpc_read(&at, end, &request->method) <= 0 || request->method.kind != RPC_STRING)
        return -1;
    return rpc_read(&at, end, &params) > 0 && params.kind == RPC_ARRAY ? length : -1;
}

struct rpc_answer {
    size_t used;
    unsigned char data[2048];
};

/* What does not fit is left out, and its reader will find the answer malformed: no caller comes near the limit. */
static void rpc_put(struct rpc_answer *answer, const void *bytes, size_t size) {
    if (size > sizeof answer->data - answer->used)
        return;
    memcpy(answer->data + answer->used, bytes, size);
    answer->used += size;
}

static void rpc_put_number(struct rpc_answer *answer, unsigned char head, uint64_t number, int size) {
    rpc_put(answer, &head, 1);
    while (size--)
        rpc_put(answer, &(unsigned char){(unsigned char)(number >> 8 * size)}, 1);
}

/* Adds values, one for each letter: array and map take an int, how much follows; string, float, unsigned; nil; b is false. */
static void rpc_pack(struct rpc_answer *answer, const char *letters, ...) {
    va_list values;
    va_start(values, letters);
    for (; *letters; letters++) {
        double number = *letters == 'f' ? va_arg(values, double) : 0;
        const char *text = *letters == 's' ? va_arg(values, const char *) : "";
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        switch (*letters) {
        case 'a':
            rpc_put_number(answer, (unsigned char)(0x90 + va_arg(values, int)), 0, 0);
            break;
        case 'm':
            rpc_put_number(answer, (unsigned char)(0x80 + va_arg(values, int)), 0, 0);
            break;
        case 'u':
            rpc_put_number(answer, 0xce, va_arg(values, unsigned), 4);
            break;
        case 'f':
            rpc_put_number(answer, 0xcb, bits, sizeof bits);
            break;
        case 's':
            rpc_put_number(answer, 0xda, strlen(text), 2);
            rpc_put(answer, text, strlen(text));
            break;
        default: /* n and b */
            rpc_put_number(answer, *letters == 'b' ? 0xc2 : 0xc0, 0, 0);
        }
    }
    va_end(values);
}
#endif
