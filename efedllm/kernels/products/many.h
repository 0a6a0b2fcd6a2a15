/* Many tokens: row blocks of WIDE or fewer panels and BLOCK columns are unpacked to int16, multiplied with the group's
 * multiplier, into the first-level cache, and serve all tokens. Needs `tally`, for up to HEIGHT tokens:
 * sums[t][panel][row] = the sum of `pairs` pairs of columns.
 *
 * A sum of products stays below 2^31 while the magnitudes of a row's weights sum to less than 2^31 / Q_MAX. Where the
 * worst weights could exceed that, their magnitudes are summed as they are unpacked, and the columns cut where they must be.
 */
#ifndef EFL_MANY_H
#define EFL_MANY_H

#include "layout.h"
#include "unpack.h"

enum { CUT = 16, MOST_CUTS = BLOCK / CUT, MOST_WEIGHT = INT32_MAX / Q_MAX };

/* Bytes of tiles -> pairs of columns (0, 2), (1, 3) of each four, as int16 [pairs][step], (v - bias) * mult. */
INLINE void widen(const words *t, int tiles, uint16_t bias, const shorts *mult, int16_t *to, int64_t step) {
    for (int k = 0; k < tiles; k++, to += 2 * step) {
        shorts even = (shorts)((lanes)t[k] & 0x00ff) - (int16_t)bias, odd = (shorts)((lanes)t[k] >> 8) - (int16_t)bias;
        if (mult) even *= *mult, odd *= *mult;
        *(shorts *)to = even;
        *(shorts *)(to + step) = odd;
    }
}

/* Bounds of the sums of magnitudes of 16 rows, over CUT columns. */
INLINE words weigh(const int16_t *from, int64_t step) {
    lanes sum = {0};
    /* v ^ (v >> 15) is |v|, or one less; 8 of them stay below 2^16: |v| <= 2^12. */
    for (int k = 0; k < CUT / 2; k++, from += step) {
        const shorts v = *(const shorts *)from;
        sum += (lanes)(v ^ v >> 15);
    }
    return ((words)sum & 0xffff) + ((words)sum >> 16) + CUT;
}

/* Adds `more` to the weights of `wide` panels. Where a row's would be too much, they begin again with `more`: returns 1. */
INLINE int outweighs(words *weights, const words *more, int64_t wide) {
    uint32_t over[ROWS], any = 0;
    words excess = {0};
    for (int64_t r = 0; r < wide; r++) excess |= (words)(weights[r] + more[r] > MOST_WEIGHT);
    memcpy(over, &excess, sizeof over);
    for (int i = 0; i < ROWS; i++) any |= over[i];
    for (int64_t r = 0; r < wide; r++)
        if (any)
            weights[r] = more[r];
        else
            weights[r] += more[r];
    return any != 0;
}

/* Columns [start, start + columns) of panels [p, p + wide) -> int16 [columns / 2][wide][ROWS][2]. Returns the number of
 * cuts, whose ends are counted in columns from `start`. */
static int64_t unpack_block(const matrix *m, const layout *l, int64_t p, int64_t wide, int64_t start, int64_t columns,
                            int16_t *to, int64_t *ends) {
    const int64_t step = wide * ROWS * 2, size = panel_bytes(m);
    if (m->bits == 8) {
        for (int64_t r = 0; r < wide; r++) {
            const uint8_t *from = m->tiles + (p + r) * size + start * ROWS;
            int16_t *at = to + r * ROWS * 2;
            for (int64_t k = 0; k < columns; k += 4, from += TILE, at += 2 * step) {
                const shorts v = *(const shorts *)from;
                *(shorts *)at = v << 8 >> 8;
                *(shorts *)(at + step) = v >> 8;
            }
        }
        ends[0] = columns;
        return 1;
    }
    const int cuts = m->mult != NULL && BLOCK << (m->bits + 6) > MOST_WEIGHT;
    words weights[WIDE] = {{0}}, more[UNIT / CUT][WIDE];
    int64_t count = 0;
    for (int64_t k = 0; k < columns; k += UNIT, to += UNIT / 2 * step) {
        const int64_t g = (start + k) / l->padded;
        for (int64_t r = 0; r < wide; r++) {
            const uint8_t *from = m->tiles + (p + r) * size + (start + k) * ROWS * m->bits / 8;
            int16_t *at = to + r * ROWS * 2;
            uint32_t mult[ROWS] __attribute__((aligned(64)));
            words t[8];
            if (m->mult)
                for (int i = 0; i < ROWS; i++) mult[i] = (uint16_t)m->mult[((p + r) * l->groups + g) * ROWS + i] * 0x10001u;
            switch (m->bits) {
            case 2: unit(from, 2, t); break;
            case 3: unit(from, 3, t); break;
            case 4: unit(from, 4, t); break;
            case 5: unit(from, 5, t); break;
            default: unit(from, 6, t);
            }
            widen(t, 8, (uint16_t)(1 << (m->bits - 1)), m->mult ? (const shorts *)mult : NULL, at, step);
            for (int i = 0; cuts && i < UNIT / CUT; i++) more[i][r] = weigh(at + i * CUT / 2 * step, step);
        }
        for (int i = 0; cuts && i < UNIT / CUT; i++)
            if (outweighs(weights, more[i], wide)) ends[count++] = k + i * CUT;
    }
    ends[count++] = columns;
    return count;
}

/* Sums of a piece of the columns, the first of them or a further one, to totals [panel of a token][lower 16 bits, rest]. */
INLINE void collect(const int32_t *sums, int64_t panels, int32_t *totals, const int first) {
    for (int64_t p = 0; p < panels; p++, sums += ROWS, totals += 2 * ROWS)
        for (int i = 0; i < ROWS; i++) {
            totals[i] = (first ? 0 : totals[i]) + (sums[i] & 0xffff);
            totals[ROWS + i] = (first ? 0 : totals[ROWS + i]) + (sums[i] >> 16);
        }
}

/* y (+)= (total * token scale) * row scale, for `count` tokens from number t on and `rows` rows from number `row` on.
 * `totals` of a panel: as they were collected, or where they are of one piece, the sums themselves. */
INLINE void finish(const activations *a, const target *to, const int32_t *totals, const float *scale, int64_t t,
                   int64_t count, int64_t row, int64_t rows, const int one) {
    for (int64_t end = t + count; t < end; t++) {
        double *y = to->exact + t * to->stride + row;
        for (int64_t r = 0; r < rows; r += ROWS, totals += one ? ROWS : 2 * ROWS) {
            double value[ROWS];
            for (int i = 0; i < ROWS; i++) {
                /* An integer below 2^53. */
                const double sum = one ? (double)totals[i] : (double)totals[ROWS + i] * 65536.0 + (double)totals[i];
                value[i] = sum * a->scale[t] * (double)scale[r + i];
            }
            if (rows - r < ROWS)
                for (int64_t i = 0; i < rows - r; i++) y[r + i] = to->add ? y[r + i] + value[i] : value[i];
            else if (to->add)
                for (int i = 0; i < ROWS; i++) y[r + i] += value[i];
            else
                memcpy(y + r, value, sizeof value);
        }
    }
}

/* The outputs of `count` tokens are written soon, each in another page. */
INLINE void fetch_outputs(const target *to, int64_t t, int64_t count, int64_t row, int64_t rows) {
    for (int64_t end = t + count; t < end; t++) {
        const double *y = to->exact + t * to->stride + row;
        for (int64_t r = 0; r < rows; r += TILE / sizeof *y) __builtin_prefetch(y + r, 1);
    }
}

/* Parts [part, end) of `parts` of the weights of a block, towards the second-level cache. */
INLINE void fetch(const matrix *m, int64_t size, int64_t p, int64_t wide, int64_t start, int64_t columns, int64_t part,
                  int64_t end, int64_t parts) {
    const int64_t lines = columns * ROWS * m->bits / 8 / TILE, from = lines * part / parts, to = lines * end / parts;
    const uint8_t *at = m->tiles + p * size + start * ROWS * m->bits / 8;
    for (int64_t r = 0; r < wide; r++, at += size)
        for (int64_t i = from; i < to; i++) fetch_line(at + i * TILE);
}

/* Rows of panels [first, last) for all tokens of `a`: (integer sum * token scale) * row scale. */
static void many(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    const layout l = a->shape;
    const int64_t n = a->tokens, size = panel_bytes(m);
    int16_t block[WIDE * ROWS * BLOCK] __attribute__((aligned(64)));
    int32_t sums[HEIGHT * WIDE * ROWS] __attribute__((aligned(64)));
    int32_t totals[MANY * WIDE * 2 * ROWS] __attribute__((aligned(64))); /* [tokens][panels][lower 16 bits, rest][rows] */
    float scale[WIDE * ROWS];
    int64_t ends[MOST_CUTS + 1];
    for (int64_t p = first, wide; p < last; p += wide) {
        wide = last - p >= WIDE ? WIDE : last - p >= 2 && WIDE >= 2 ? 2 : 1;
        const int64_t each = wide * 2 * ROWS, rows = least(m->rows - p * ROWS, wide * ROWS);
        for (int64_t r = 0; r < wide * ROWS; r++) scale[r] = m->scale && r < rows ? m->scale[p * ROWS + r] : 1;
        for (int64_t start = 0; start < l.cols; start += BLOCK) {
            const int64_t columns = least(l.cols - start, BLOCK);
            const int64_t cuts = unpack_block(m, &l, p, wide, start, columns, block, ends);
            const int64_t more = start + BLOCK < l.cols, row = more ? p : p + wide, column = more ? start + BLOCK : 0;
            const int16_t *q = a->q + start * n;
            const int one = l.cols <= BLOCK && cuts == 1;
            for (int64_t t = 0, count; t < n; t += count) {
                count = n - t > HEIGHT && n - t < 2 * HEIGHT ? (n - t + 1) / 2 : least(n - t, HEIGHT);
                /* The next block comes while this one is multiplied. */
                if (row < last)
                    fetch(m, size, row, least(last - row, wide), column, least(l.cols - column, BLOCK), t, t + count, n);
                if (start + BLOCK >= l.cols) fetch_outputs(to, t, count, p * ROWS, rows);
                for (int64_t i = 0, from = 0; i < cuts; from = ends[i++]) {
                    tally(block + from * wide * ROWS, q + t * columns + from, columns, (ends[i] - from) / 2, sums, wide, count);
                    if (one)
                        finish(a, to, sums, scale, t, count, p * ROWS, rows, 1);
                    else if (start == 0 && i == 0)
                        collect(sums, count * wide, totals + t * each, 1);
                    else
                        collect(sums, count * wide, totals + t * each, 0);
                }
                if (!one && start + BLOCK >= l.cols) finish(a, to, totals + t * each, scale, t, count, p * ROWS, rows, 0);
            }
        }
    }
}

/* [blocks][tokens][columns of the block], the second and third of four columns swapped, groups filled up with zeros. */
static void arrange_many(const matrix *m, const int16_t *q, activations *a, char *space) {
    const layout l = layout_of(m);
    const int64_t n = a->tokens;
    int16_t *to = (int16_t *)space;
    a->shape = l, a->q = to;
    for (int64_t start = 0; start < l.cols; start += BLOCK) {
        const int64_t columns = least(l.cols - start, BLOCK);
        for (int64_t t = 0; t < n; t++, to += columns) {
            uint64_t line[BLOCK / 4];
            const int16_t *row = q + t * m->cols;
            if (l.group >= m->cols || l.group == l.padded) {
                const int64_t real = least(m->cols - start, columns);
                memcpy(line, row + start, (size_t)real * sizeof *row);
                memset((int16_t *)line + real, 0, (size_t)(columns - real) * sizeof *row);
            } else
                for (int64_t k = 0; k < columns; k += UNIT) {
                    const int64_t g = (start + k) / l.padded, column = g * l.group + (start + k) % l.padded;
                    const int64_t left = least((g + 1) * l.group, m->cols) - column, real = left < 0 ? 0 : least(left, UNIT);
                    memcpy((int16_t *)line + k, row + column, (size_t)real * sizeof *row);
                    memset((int16_t *)line + k + real, 0, (size_t)(UNIT - real) * sizeof *row);
                }
            for (int64_t k = 0; k < columns / 4; k++) {
                const uint64_t v = line[k];
                line[k] = (v & 0xffff00000000ffffu) | (v & 0xffff0000u) << 16 | (v >> 16 & 0xffff0000u);
            }
            memcpy(to, line, (size_t)columns * sizeof *to);
        }
    }
}

#endif
