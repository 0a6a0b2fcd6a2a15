/* AVX2: products of int16 in pairs. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <float.h>
#include <math.h>

#include "products.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define USE_AVX2
#include "unpack.h"

enum { STEP = 2, WIDE = 1, HEIGHT = 4 };

INLINE void sum(const uint8_t *w, int64_t tiles, const int16_t *q, int64_t stride, int32_t (*sums)[ROWS], const int T) {
    __m256i s[2][4];
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j++) s[t][j] = _mm256_setzero_si256();
    for (int64_t k = 0; k < tiles; k++) {
        fetch_line(w + k * TILE + AHEAD);
        for (int j = 0; j < 4; j++) {
            /* Four rows of four columns; madd leaves two sums of a row side by side. */
            const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + k * TILE + 16 * j)));
            for (int t = 0; t < T; t++)
                s[t][j] = _mm256_add_epi32(
                    s[t][j], _mm256_madd_epi16(v, _mm256_set1_epi64x(load8(q + t * stride + 4 * k))));
        }
    }
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j += 2) {
            const __m256i pair = _mm256_hadd_epi32(s[t][j], s[t][j + 1]);
            _mm256_storeu_si256((__m256i *)(sums[t] + 4 * j), _mm256_permute4x64_epi64(pair, 0xd8));
        }
}

INLINE void tally_of(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, const int T) {
    __m256i s[2 * HEIGHT];
#pragma GCC unroll 8
    for (int i = 0; i < 2 * T; i++) s[i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < pairs; k++, w += 2 * ROWS, q += 2) {
        const __m256i v0 = _mm256_load_si256((const __m256i *)w), v1 = _mm256_load_si256((const __m256i *)(w + ROWS));
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const __m256i pair = _mm256_set1_epi32(load4(q + t * stride));
            s[2 * t] = _mm256_add_epi32(s[2 * t], _mm256_madd_epi16(v0, pair));
            s[2 * t + 1] = _mm256_add_epi32(s[2 * t + 1], _mm256_madd_epi16(v1, pair));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * T; i++) _mm256_store_si256((__m256i *)(sums + 8 * i), s[i]);
}

static void tally(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, int64_t wide,
                  int64_t count) {
    (void)wide;
    switch (count) {
    case 1: tally_of(w, q, stride, pairs, sums, 1); break;
    case 2: tally_of(w, q, stride, pairs, sums, 2); break;
    case 3: tally_of(w, q, stride, pairs, sums, 3); break;
    default: tally_of(w, q, stride, pairs, sums, 4);
    }
}

#include "few.h"
#include "many.h"
#include "floats.h"
#include "tokens.h"

const functions efl_avx2 = {few, many, floats, arrange_few, arrange_many, expand, quantize, 24};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
typedef int efl_no_avx2;
#endif
