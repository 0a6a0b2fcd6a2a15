/* Plain C. */
#include <float.h>
#include <math.h>

#include "products.h"
#include "unpack.h"

enum { STEP = 1 };

static inline void sum(const uint8_t *w, int64_t tiles, const int16_t *q, int64_t stride, int32_t (*sums)[ROWS],
                       const int T) {
    (void)stride, (void)T;
    memset(sums, 0, sizeof *sums);
    for (int64_t k = 0; k < tiles; k++, q += 4)
        for (int r = 0; r < ROWS; r++) {
            const int8_t *v = (const int8_t *)w + k * TILE + 4 * r;
            sums[0][r] += v[0] * q[0] + v[1] * q[1] + v[2] * q[2] + v[3] * q[3];
        }
}

#include "few.h"
#include "floats.h"
#include "tokens.h"

const functions efl_plain = {few, NULL, floats, arrange_few, NULL, expand, quantize, INT64_MAX};
