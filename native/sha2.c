/*
 * SHA-2 (FIPS 180-4) behind the names that CPython's _sha2 module calls.
 *
 * Debian's libpython3.13.a leaves out the objects that hold them (python/cpython#131298), so without this file the
 * interpreter cannot be linked, or would lack hashlib.sha256 and the `random` module. Contexts of the 32-bit kind keep their
 * words in 64-bit variables; K and the initial values of SHA-256 are the upper halves of SHA-512's, those of SHA-224 the
 * lower halves of SHA-384's.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct sha2 {
    uint64_t state[8], length; /* length in bytes */
    unsigned used;
    uint8_t block[128];
};

static const uint64_t K[80] = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538, 0x59f111f1b605d019,
    0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3,
    0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65, 0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
    0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b, 0xa2bfe8a14cf10364, 0xa81a664bbc423001,
    0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb,
    0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c, 0xd186b8c721c0c207,
    0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a,
    0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};
static const uint64_t first_primes[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
    0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};
static const uint64_t next_primes[8] = {
    0xcbbb9d5dc1059ed8, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939, 0x67332667ffc00b31, 0x8eb44a8768581511,
    0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa4,
};

static uint64_t load(const uint8_t *bytes, int size) {
    uint64_t word = 0;
    for (int i = 0; i < size; i++)
        word = word << 8 | bytes[i];
    return word;
}

static void store(uint8_t *bytes, uint64_t word, int size) {
    for (int i = 0; i < size; i++)
        bytes[i] = (uint8_t)(word >> 8 * (size - 1 - i));
}

/* One compression function for words of 32 and of 64 bits. */
#define COMPRESS(name, word, bits, rounds, shift, A1, A2, A3, E1, E2, E3, S1, S2, S3, T1, T2, T3)                             \
    static void name(uint64_t *state, const uint8_t *block) {                                                                 \
        word w[rounds], s[8];                                                                                                 \
        for (int i = 0; i < 16; i++)                                                                                          \
            w[i] = (word)load(block + i * (bits / 8), bits / 8);                                                              \
        for (int i = 16; i < rounds; i++) {                                                                                   \
            word x = w[i - 15], y = w[i - 2];                                                                                 \
            w[i] = w[i - 16] + w[i - 7] + (ROTATE(x, S1, bits) ^ ROTATE(x, S2, bits) ^ x >> S3) +                             \
                   (ROTATE(y, T1, bits) ^ ROTATE(y, T2, bits) ^ y >> T3);                                                     \
        }                                                                                                                     \
        for (int i = 0; i < 8; i++)                                                                                           \
            s[i] = (word)state[i];                                                                                            \
        for (int i = 0; i < rounds; i++) {                                                                                    \
            word a = s[0], e = s[4];                                                                                          \
            word first = s[7] + (ROTATE(e, E1, bits) ^ ROTATE(e, E2, bits) ^ ROTATE(e, E3, bits)) +                           \
                         ((e & s[5]) ^ (~e & s[6])) + (word)(K[i] >> shift) + w[i];                                           \
            word second = (ROTATE(a, A1, bits) ^ ROTATE(a, A2, bits) ^ ROTATE(a, A3, bits)) +                                 \
                          ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));                                                          \
            memmove(s + 1, s, 7 * sizeof *s);                                                                                 \
            s[4] += first;                                                                                                    \
            s[0] = first + second;                                                                                            \
        }                                                                                                                     \
        for (int i = 0; i < 8; i++)                                                                                           \
            state[i] = (word)(state[i] + s[i]);                                                                               \
    }
#define ROTATE(x, n, bits) ((x) >> (n) | (x) << ((bits) - (n)))
COMPRESS(compress_256, uint32_t, 32, 64, 32, 2, 13, 22, 6, 11, 25, 7, 18, 3, 17, 19, 10)
COMPRESS(compress_512, uint64_t, 64, 80, 0, 28, 34, 39, 14, 18, 41, 1, 8, 7, 19, 61, 6)

static void compress(struct sha2 *sha, unsigned size) {
    (size == 64 ? compress_256 : compress_512)(sha->state, sha->block);
    sha->used = 0;
}

static void update(struct sha2 *sha, const uint8_t *data, uint32_t length, unsigned size) {
    sha->length += length;
    while (length) {
        unsigned part = length < size - sha->used ? length : size - sha->used;
        memcpy(sha->block + sha->used, data, part);
        sha->used += part;
        data += part;
        length -= part;
        if (sha->used == size)
            compress(sha, size);
    }
}

/* Works on a copy, for the caller may go on updating. */
static void digest(const struct sha2 *sha, uint8_t *output, unsigned size) {
    struct sha2 copy = *sha;
    copy.block[copy.used++] = 0x80;
    memset(copy.block + copy.used, 0, size - copy.used);
    if (copy.used > size - size / 8) { /* no room for the length */
        compress(&copy, size);
        memset(copy.block, 0, size);
    }
    store(copy.block + size - 8, copy.length << 3, 8);
    if (size == 128)
        store(copy.block + size - 16, copy.length >> 61, 8);
    compress(&copy, size);
    for (int i = 0; i < 8; i++)
        store(output + i * (int)size / 16, copy.state[i], (int)size / 16);
}

static struct sha2 *start(const uint64_t *values, int shift, uint64_t mask) {
    struct sha2 *sha = calloc(1, sizeof *sha);
    for (int i = 0; sha && i < 8; i++)
        sha->state[i] = values[i] >> shift & mask;
    return sha;
}

#define NAME(name) python_hashlib_Hacl_Hash_SHA2_##name
#define FAMILY(bits, size)                                                                                                    \
    struct sha2 *NAME(copy_##bits)(const struct sha2 *);                                                                      \
    uint8_t NAME(update_##bits)(struct sha2 *, const uint8_t *, uint32_t);                                                    \
    void NAME(digest_##bits)(const struct sha2 *, uint8_t *);                                                                 \
    void NAME(free_##bits)(struct sha2 *);                                                                                    \
    struct sha2 *NAME(copy_##bits)(const struct sha2 *sha) {                                                                  \
        struct sha2 *copy = malloc(sizeof *copy);                                                                             \
        if (copy)                                                                                                             \
            *copy = *sha;                                                                                                     \
        return copy;                                                                                                          \
    }                                                                                                                         \
    uint8_t NAME(update_##bits)(struct sha2 *sha, const uint8_t *data, uint32_t length) {                                     \
        update(sha, data, length, size);                                                                                      \
        return 0;                                                                                                             \
    }                                                                                                                         \
    void NAME(digest_##bits)(const struct sha2 *sha, uint8_t *output) { digest(sha, output, size); }                          \
    void NAME(free_##bits)(struct sha2 *sha) { free(sha); }
#define MALLOC(bits, values, shift, mask)                                                                                     \
    struct sha2 *NAME(malloc_##bits)(void);                                                                                   \
    struct sha2 *NAME(malloc_##bits)(void) { return start(values, shift, mask); }

FAMILY(256, 64)
FAMILY(512, 128)
MALLOC(224, next_primes, 0, UINT32_MAX)
MALLOC(256, first_primes, 32, UINT32_MAX)
MALLOC(384, next_primes, 0, UINT64_MAX)
MALLOC(512, first_primes, 0, UINT64_MAX)
