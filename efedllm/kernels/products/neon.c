/* NEON, as every 64-bit ARM has it: products of int16, four at a time. */
#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#include <float.h>
#include <math.h>

#include "products.h"

#define USE_NEON
#include "unpack.h"

enum { STEP = 1, WIDE = 1, HEIGHT = 3 };

static inline void sum(const uint8_t *w, int64_t tiles, const int16_t *q, int64_t stride, int32_t (*sums)[ROWS],
                       const int T) {
    int32x4_t s[ROWS];
    (void)stride, (void)T;
    for (int r = 0; r < ROWS; r++) s[r] = vdupq_n_s32(0);
    for (int64_t k = 0; k < tiles; k++) {
        const int16x4_t four = vld1_s16(q + 4 * k);
        for (int r = 0; r < ROWS; r += 2) {
            const int16x8_t v = vmovl_s8(vld1_s8((const int8_t *)w + k * TILE + 4 * r));
            s[r] = vmlal_s16(s[r], vget_low_s16(v), four);
            s[r + 1] = vmlal_s16(s[r + 1], vget_high_s16(v), four);
        }
    }
    for (int r = 0; r < ROWS; r++) sums[0][r] = vaddvq_s32(s[r]);
}

/* Vector i of 8 has rows 2i and 2i + 1, two columns each. */
INLINE void tally_of(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, const int T) {
    int32x4_t s[HEIGHT][8];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < 8; i++) s[t][i] = vdupq_n_s32(0);
    for (int64_t k = 0; k < pairs; k++, w += 2 * ROWS, q += 2)
        for (int i = 0; i < 8; i += 2) {
            const int16x8_t v = vld1q_s16(w + 4 * i);
            for (int t = 0; t < T; t++) {
                const int16x4_t pair = vreinterpret_s16_s32(vdup_n_s32(load4(q + t * stride)));
                s[t][i] = vmlal_s16(s[t][i], vget_low_s16(v), pair);
                s[t][i + 1] = vmlal_s16(s[t][i + 1], vget_high_s16(v), pair);
            }
        }
    for (int t = 0; t < T; t++)
        for (int i = 0; i < 8; i += 2) vst1q_s32(sums + t * ROWS + 2 * i, vpaddq_s32(s[t][i], s[t][i + 1]));
}

static void tally(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, int64_t wide,
                  int64_t count) {
    (void)wide;
    switch (count) {
    case 1: tally_of(w, q, stride, pairs, sums, 1); break;
    case 2: tally_of(w, q, stride, pairs, sums, 2); break;
    default: tally_of(w, q, stride, pairs, sums, 3);
    }
}

#include "few.h"
#include "many.h"
#include "floats.h"
#include "tokens.h"

const functions efl_neon = {few, many, floats, arrange_few, arrange_many, expand, quantize, 4};
#else
typedef int efl_no_neon;
#endif
