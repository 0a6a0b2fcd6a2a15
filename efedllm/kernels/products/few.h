/* Few tokens: one pass over the weights as they lie in memory. Needs `sum`, for STEP or fewer tokens:
 * sums[t][row] = sum over the tiles of value * activation.
 */
#ifndef EFL_FEW_H
#define EFL_FEW_H

#include "layout.h"
#include "unpack.h"

/* Rows of panels [first, last) for all tokens of `a`: (integer sum * token scale) * row scale. */
static void few(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    const layout l = a->shape;
    const int64_t size = panel_bytes(m);
    uint8_t buffer[ROWS * SEGMENT] __attribute__((aligned(64)));
    int64_t totals[TOKENS][ROWS] __attribute__((aligned(64)));
    int32_t sums[STEP][ROWS] __attribute__((aligned(64)));
    for (int64_t p = first; p < last; p++)
        for (int64_t from = 0; from < a->tokens; from += TOKENS) {
            const int64_t n = least(a->tokens - from, TOKENS);
            const uint8_t *panel = m->tiles + p * size;
            memset(totals, 0, (size_t)n * sizeof totals[0]);
            for (int64_t g = 0; g < l.groups; g++) {
                const int64_t wide = g + 1 < l.groups ? l.padded : l.last;
                int32_t mult[ROWS];
                for (int r = 0; r < ROWS; r++) mult[r] = m->mult ? m->mult[(p * l.groups + g) * ROWS + r] : 1;
                for (int64_t start = 0; start < wide; start += SEGMENT) {
                    const int64_t columns = least(wide - start, SEGMENT), at = g * l.padded + start;
                    const uint8_t *w = panel + at * ROWS * m->bits / 8;
                    if (m->bits != 8) {
                        unpack(w, m->bits, columns / UNIT, buffer);
                        w = buffer;
                    }
                    for (int64_t t = 0; t < n; t += STEP) {
                        const int64_t count = least(n - t, STEP);
                        const int16_t *q = a->q + (from + t) * l.cols + at;
                        if (count == 1)
                            sum(w, columns / 4, q, l.cols, sums, 1);
                        else
                            sum(w, columns / 4, q, l.cols, sums, STEP);
                        for (int64_t i = 0; i < count; i++)
                            for (int r = 0; r < ROWS; r++) totals[t + i][r] += (int64_t)mult[r] * (int64_t)sums[i][r];
                    }
                }
            }
            const int64_t rows = least(m->rows - p * ROWS, ROWS);
            for (int64_t t = 0; t < n; t++) {
                double *y = to->exact + (from + t) * to->stride + p * ROWS;
                for (int64_t r = 0; r < rows; r++) {
                    double value = (double)totals[t][r] * a->scale[from + t];
                    if (m->scale) value *= (double)m->scale[p * ROWS + r];
                    y[r] = to->add ? y[r] + value : value;
                }
            }
        }
}

/* The integers of every group, filled up with zeros. */
static void arrange_few(const matrix *m, const int16_t *q, activations *a, char *space) {
    const layout l = layout_of(m);
    int16_t *to = (int16_t *)space;
    a->shape = l, a->q = to;
    for (int64_t t = 0; t < a->tokens; t++, q += m->cols)
        for (int64_t g = 0; g < l.groups; g++) {
            const int64_t wide = g + 1 < l.groups ? l.padded : l.last, real = least(m->cols - g * l.group, l.group);
            memcpy(to, q + g * l.group, (size_t)real * sizeof *to);
            memset(to + real, 0, (size_t)(wide - real) * sizeof *to);
            to += wide;
        }
}

#endif
