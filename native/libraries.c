/* libkmod and libblkid, opened when first used. Their few prototypes are declared here: no -dev package is needed. */
#define _GNU_SOURCE
#include "initd.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define KMOD_PROBE_APPLY_BLACKLIST 0x20000
#define BLKID_SUBLKS_LABEL (1 << 1)
#define BLKID_SUBLKS_UUID (1 << 3)
#define BLKID_SUBLKS_TYPE (1 << 5)
#define BLKID_PARTS_ENTRY_DETAILS (1 << 2)

/* A text buffer whose end is kept; what does not fit is an error, for a list that lost its end would lie. */
struct text {
    char *start;
    size_t size, length;
};

static int append(struct text *text, const char *data, size_t length) {
    if (length > text->size - text->length) {
        errno = ENOBUFS;
        return -1;
    }
    memcpy(text->start + text->length, data, length);
    text->length += length;
    return 0;
}

static int load_symbols(const char *library, const char *const *names, void **functions) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; handle && names[i]; i++)
        if (!(functions[i] = dlsym(handle, names[i])))
            handle = NULL;
    if (!handle) {
        errno = ELIBACC;
        return -1;
    }
    return 0;
}

/* ---- libkmod ---- */

enum kmod_function {
    NEW, UNREF, LOAD_RESOURCES, LOOKUP, ITEM, NEXT, UNREF_LIST, UNREF_MODULE, NAME, STATE, DEPENDENCIES, INSERT, FUNCTIONS
};

static const char *const kmod_names[FUNCTIONS + 1] = {
    [NEW] = "kmod_new",
    [UNREF] = "kmod_unref",
    [LOAD_RESOURCES] = "kmod_load_resources",
    [LOOKUP] = "kmod_module_new_from_lookup",
    [ITEM] = "kmod_module_get_module",
    [NEXT] = "kmod_list_next",
    [UNREF_LIST] = "kmod_module_unref_list",
    [UNREF_MODULE] = "kmod_module_unref",
    [NAME] = "kmod_module_get_name",
    [STATE] = "kmod_module_get_initstate",
    [DEPENDENCIES] = "kmod_module_get_dependencies",
    [INSERT] = "kmod_module_probe_insert_module",
};

_Static_assert(FUNCTIONS <= sizeof((struct initd_kmod *)0)->functions / sizeof(void *), "struct initd_kmod is too small");

typedef void *kmod_new_function(const char *, const char *const *);
typedef int kmod_int_function(void *);
typedef int kmod_lookup_function(void *, const char *, void **);
typedef void *kmod_pointer_function(void *);
typedef void *kmod_next_function(void *, void *);
typedef const char *kmod_name_function(void *);
typedef int kmod_insert_function(void *, unsigned, const char *, void *, const void *, void *);

#define CALL(kmod, type, index) ((type *)(kmod)->functions[index])

/* Reads the module indexes once; one context serves all later look-ups. */
int initd_kmod_open(struct initd_kmod *kmod) {
    if (load_symbols("libkmod.so.2", kmod_names, kmod->functions) < 0)
        return -1;
    kmod->context = CALL(kmod, kmod_new_function, NEW)(NULL, NULL);
    if (!kmod->context) {
        errno = ENOMEM;
        return -1;
    }
    CALL(kmod, kmod_int_function, LOAD_RESOURCES)(kmod->context); /* only a cache: look-ups work without it */
    return 0;
}

static int append_if_absent(struct initd_kmod *kmod, void *module, struct text *names) {
    if (CALL(kmod, kmod_int_function, STATE)(module) >= 0)
        return 0;
    const char *name = CALL(kmod, kmod_name_function, NAME)(module);
    return append(names, name, strlen(name) + 1);
}

/* Loads one module with what it depends on; appends the names of those that were not there before. */
static int insert_module(struct initd_kmod *kmod, void *module, struct text *names) {
    size_t before = names->length;
    void *list = CALL(kmod, kmod_pointer_function, DEPENDENCIES)(module);
    int result = 0;
    for (void *item = list; item && result == 0; item = CALL(kmod, kmod_next_function, NEXT)(list, item)) {
        void *dependency = CALL(kmod, kmod_pointer_function, ITEM)(item);
        result = append_if_absent(kmod, dependency, names);
        CALL(kmod, kmod_pointer_function, UNREF_MODULE)(dependency);
    }
    if (list)
        CALL(kmod, kmod_int_function, UNREF_LIST)(list);
    if (result == 0)
        result = append_if_absent(kmod, module, names);
    if (result < 0)
        return -errno;
    if (names->length == before)
        return 0; /* everything is there already */
    result = CALL(kmod, kmod_insert_function, INSERT)(module, KMOD_PROBE_APPLY_BLACKLIST, NULL, NULL, NULL, NULL);
    if (result != 0)
        names->length = before; /* positive: the module is on a deny list, which is no error */
    return result;
}

int initd_kmod_load(struct initd_kmod *kmod, const char *alias, char *names, size_t size) {
    struct text text = {.start = names, .size = size};
    void *list = NULL;
    int first_error = CALL(kmod, kmod_lookup_function, LOOKUP)(kmod->context, alias, &list);
    for (void *item = list; item; item = CALL(kmod, kmod_next_function, NEXT)(list, item)) {
        void *module = CALL(kmod, kmod_pointer_function, ITEM)(item);
        int result = insert_module(kmod, module, &text);
        if (result < 0 && first_error == 0)
            first_error = result; /* the alias may name several drivers: the others still get their turn */
        CALL(kmod, kmod_pointer_function, UNREF_MODULE)(module);
    }
    if (list)
        CALL(kmod, kmod_int_function, UNREF_LIST)(list);
    if (first_error < 0 && text.length == 0) {
        errno = -first_error;
        return -1;
    }
    return (int)text.length;
}

/* ---- libblkid ---- */

enum blkid_function { OPEN, FREE, SUPERBLOCKS, SUPERBLOCKS_FLAGS, PARTITIONS, PARTITIONS_FLAGS, PROBE, COUNT, VALUE, BLKID_FUNCTIONS };

static const char *const blkid_names[BLKID_FUNCTIONS + 1] = {
    [OPEN] = "blkid_new_probe_from_filename",
    [FREE] = "blkid_free_probe",
    [SUPERBLOCKS] = "blkid_probe_enable_superblocks",
    [SUPERBLOCKS_FLAGS] = "blkid_probe_set_superblocks_flags",
    [PARTITIONS] = "blkid_probe_enable_partitions",
    [PARTITIONS_FLAGS] = "blkid_probe_set_partitions_flags",
    [PROBE] = "blkid_do_safeprobe",
    [COUNT] = "blkid_probe_numof_values",
    [VALUE] = "blkid_probe_get_value",
};

typedef void *blkid_open_function(const char *);
typedef void blkid_free_function(void *);
typedef int blkid_flag_function(void *, int);
typedef int blkid_int_function(void *);
typedef int blkid_value_function(void *, int, const char **, const char **, size_t *);

static int collect_values(void *const *functions, void *probe, struct text *values) {
    int count = ((blkid_int_function *)functions[COUNT])(probe);
    for (int i = 0; i < count; i++) {
        const char *name, *data;
        size_t length;
        if (((blkid_value_function *)functions[VALUE])(probe, i, &name, &data, &length) < 0)
            continue;
        length = strnlen(data, length); /* the length counts a final NUL for some values and not for others */
        if (append(values, name, strlen(name)) < 0 || append(values, "=", 1) < 0 || append(values, data, length) < 0 ||
            append(values, "", 1) < 0)
            return -1;
    }
    return 0;
}

int initd_blkid_probe(const char *path, char *values, size_t size) {
    void *functions[BLKID_FUNCTIONS];
    struct text text = {.start = values, .size = size};
    if (load_symbols("libblkid.so.1", blkid_names, functions) < 0)
        return -1;
    errno = 0;
    void *probe = ((blkid_open_function *)functions[OPEN])(path);
    if (!probe) {
        if (errno == 0)
            errno = ENOMEM;
        return -1;
    }
    ((blkid_flag_function *)functions[SUPERBLOCKS])(probe, 1);
    ((blkid_flag_function *)functions[SUPERBLOCKS_FLAGS])(probe, BLKID_SUBLKS_LABEL | BLKID_SUBLKS_UUID | BLKID_SUBLKS_TYPE);
    ((blkid_flag_function *)functions[PARTITIONS])(probe, 1);
    ((blkid_flag_function *)functions[PARTITIONS_FLAGS])(probe, BLKID_PARTS_ENTRY_DETAILS);
    errno = 0;
    int result = ((blkid_int_function *)functions[PROBE])(probe);
    if (result == 0)
        result = collect_values(functions, probe, &text);
    else if (result == 1)
        result = 0; /* nothing that libblkid knows */
    else if (result == -2)
        errno = ENOTUNIQ; /* signatures of several file systems: to guess could cost somebody's data */
    else if (errno == 0)
        errno = EIO;
    int error = errno;
    ((blkid_free_function *)functions[FREE])(probe);
    errno = error;
    return result < 0 ? -1 : (int)text.length;
}
