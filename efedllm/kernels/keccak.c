/* Keccak-256 (the EVM's) of many messages of one length, eight at a time in the lanes of vectors. Little-endian machines. */
#include <stdint.h>
#include <string.h>

/* Instruction sets: 0 the compiler's own, 1 AVX2, 2 AVX-512. Tests build with less than a machine has. */
#ifndef EFL_MOST_LEVEL
#define EFL_MOST_LEVEL 2
#endif

enum { RATE = 136 /* bytes absorbed at once */ };
#define NOINLINE __attribute__((noinline))

static const uint64_t ROUNDS[24] = {
    0x0000000000000001, 0x0000000000008082, 0x800000000000808a, 0x8000000080008000,
    0x000000000000808b, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
    0x000000000000008a, 0x0000000000000088, 0x0000000080008009, 0x000000008000000a,
    0x000000008000808b, 0x800000000000008b, 0x8000000000008089, 0x8000000000008003,
    0x8000000000008002, 0x8000000000000080, 0x000000000000800a, 0x800000008000000a,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
};

typedef uint64_t eight __attribute__((vector_size(64), may_alias));

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, KIND)

#define KIND one
#define lane uint64_t
#define WIDTH 1
#include "permutation.h"
#undef KIND
#undef lane
#undef WIDTH

#define lane eight
#define WIDTH 8
#define KIND eight_plain
#include "permutation.h"
#undef KIND

#if defined(__x86_64__) && EFL_MOST_LEVEL >= 1
#define KIND eight_avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#include "permutation.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#include "permutation.h"
#pragma GCC pop_options
#endif
#undef KIND
#endif

#if defined(__x86_64__) && EFL_MOST_LEVEL >= 2
#define KIND eight_avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl"))), apply_to = function)
#include "permutation.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,prefer-vector-width=512")
#include "permutation.h"
#pragma GCC pop_options
#endif
#undef KIND
#endif

typedef void (*hash_function)(const uint8_t *, int64_t, int64_t, uint8_t *);

static hash_function widest(void) {
#if defined(__x86_64__) && EFL_MOST_LEVEL >= 2
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return hash_eight_avx512;
#endif
#if defined(__x86_64__) && EFL_MOST_LEVEL >= 1
    if (__builtin_cpu_supports("avx2")) return hash_eight_avx2;
#endif
    return hash_eight_plain;
}

/* n messages of `size` bytes, one after the other -> n digests of 32 bytes. */
void efl_keccak(const uint8_t *in, int64_t n, int64_t size, uint8_t *out) {
    const hash_function eight_at_once = widest();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) eight_at_once(in + i * size, size, size, out + 32 * i);
    if (n - i >= 4) {
        /* Eight cost as much as three or four alone: the last ones again with those that are missing. */
        if (n >= 8) {
            eight_at_once(in + (n - 8) * size, size, size, out + 32 * (n - 8));
            return;
        }
    }
    for (; i < n; i++) hash_one(in + i * size, size, size, out + 32 * i);
}

/* The root of a binary tree over n > 0 leaves of 32 bytes, which it overwrites: nodes K(01 | left | right), absent leaves
 * are `pad`, also of 32 bytes and overwritten. The root is left in the first leaf. */
void efl_merkle(uint8_t *leaves, int64_t n, uint8_t *pad) {
    const hash_function eight_at_once = widest();
    uint8_t nodes[8][65];
    for (int i = 0; i < 8; i++) nodes[i][0] = 1;
    for (; n > 1; n = (n + 1) / 2) {
        const int64_t count = (n + 1) / 2;
        for (int64_t first = 0; first < count; first += 8) {
            const int64_t m = count - first < 8 ? count - first : 8;
            for (int64_t i = 0; i < m; i++) {
                const int64_t left = 2 * (first + i);
                memcpy(nodes[i] + 1, leaves + 32 * left, 32);
                memcpy(nodes[i] + 33, left + 1 < n ? leaves + 32 * (left + 1) : pad, 32);
            }
            /* Digests lie before the children that are still to be read. */
            if (m >= 4) {
                uint8_t digests[8 * 32];
                eight_at_once(nodes[0], 65, 65, digests);
                memcpy(leaves + 32 * first, digests, (size_t)m * 32);
            } else
                for (int64_t i = 0; i < m; i++) hash_one(nodes[i], 65, 65, leaves + 32 * (first + i));
        }
        memcpy(nodes[0] + 1, pad, 32);
        memcpy(nodes[0] + 33, pad, 32);
        hash_one(nodes[0], 65, 65, pad);
    }
}
