/* Published matrices -> tiles, and rows of them. Runs once per matrix, and per token of an embedding.
 *
 * A matrix lies in memory as panels of 16 rows, so that the sums of 16 rows fill a vector and one pass over the panel is
 * one stream of memory. A tile is 16 rows x 4 columns, 64 bytes, row by row. 8 bits: the tiles of a panel in order, int8.
 * Fewer bits: units of 8 tiles (32 columns) in bit planes of 64-byte vectors, each value v stored as v + 2^(bits-1):
 *   4, 5, 6 bits: 4 vectors with the low four bits of tile j in the low nibbles of vector j, of tile j + 4 in the high;
 *   2, 3, 6 bits: 2 vectors with two bits of tile j + 2k at bits 2k of vector j (6 bits: the upper two);
 *   3, 5 bits: 1 vector with the top bit of tile k at bit k.
 * The columns of a group of multipliers are padded to whole tiles or units; activations there are zero.
 */
#include "products.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

/* One value of a panel; column in padded coordinates. */
static int get(const uint8_t *panel, int64_t bits, int row, int64_t column) {
    int64_t tile = column / 4, byte = row * 4 + column % 4;
    if (bits == 8) return (int8_t)panel[tile * TILE + byte];
    const uint8_t *unit = panel + tile / 8 * (8 * bits) * 8 + byte;
    unsigned v = 0, t = tile % 8, at = 0;
    if (bits >= 4) {
        v = unit[t % 4 * TILE] >> (t / 4 * 4) & 15;
        unit += 4 * TILE;
        at = 4;
    }
    if (bits == 2 || bits == 3 || bits == 6) {
        v |= (unsigned)(unit[t % 2 * TILE] >> (t / 2 * 2) & 3) << at;
        unit += 2 * TILE;
        at += 2;
    }
    if (bits == 3 || bits == 5) v |= (unsigned)(unit[0] >> t & 1) << at;
    return (int)v - (1 << (bits - 1));
}

int64_t efl_tile_bytes(const matrix *m) { return up(m->rows, ROWS) / ROWS * panel_bytes(m); }

/* 8 tiles of bytes v + 2^(bits-1) -> the bit planes of one unit: the inverse of `unit` in unpack.h. */
static void pack_unit(const words *t, int64_t bits, words *to) {
    int at = 0;
    if (bits >= 4) {
        for (int j = 0; j < 4; j++) *to++ = (t[j] & 0x0f0f0f0fu) | (t[j + 4] & 0x0f0f0f0fu) << 4;
        at = 4;
    }
    if (bits == 2 || bits == 3 || bits == 6) {
        for (int j = 0; j < 2; j++, to++) {
            *to = t[j] >> at & 0x03030303u;
            for (int k = 1; k < 4; k++) *to |= (t[j + 2 * k] >> at & 0x03030303u) << 2 * k;
        }
        at += 2;
    }
    if (bits == 3 || bits == 5) {
        *to = t[0] >> at & 0x01010101u;
        for (int k = 1; k < 8; k++) *to |= (t[k] >> at & 0x01010101u) << k;
    }
}

/* Integer number `index` of a row packed from the least significant bit on, as stored: v + 2^(bits-1). */
static uint8_t stored(const uint8_t *row, int64_t bits, int64_t index) {
    const int64_t bit = index * bits;
    unsigned word = row[bit / 8];
    if (bit % 8 + bits > 8) word |= (unsigned)row[bit / 8 + 1] << 8;
    return (uint8_t)(word >> bit % 8 & ((1u << bits) - 1));
}

/* A stream through pages of 4 kB waits at each for its address; where the system has pages of 2 MB to give, ask for them. */
static void ask_for_large_pages(const uint8_t *from, int64_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const int64_t page = 2 << 20, start = up((int64_t)from, page), end = ((int64_t)from + size) / page * page;
    if (end > start) (void)madvise((void *)start, (size_t)(end - start), MADV_HUGEPAGE);
#else
    (void)from, (void)size;
#endif
}

/* Published rows (int8, or packed as models/packing.py says) of `stride` bytes -> tiles. */
void efl_tile(const matrix *m, const uint8_t *rows, int64_t stride, uint8_t *tiles) {
    const layout l = layout_of(m);
    const int64_t size = panel_bytes(m);
    ask_for_large_pages(tiles, efl_tile_bytes(m));
    uint8_t unit[8 * TILE] __attribute__((aligned(64)));
    for (int64_t start = 0; start < m->rows; start += ROWS, tiles += size) {
        const int64_t count = least(m->rows - start, ROWS);
        if (m->bits == 8) {
            memset(tiles, 0, (size_t)size);
            for (int64_t r = 0; r < count; r++)
                for (int64_t c = 0; c < m->cols; c += 4)
                    memcpy(tiles + c * ROWS + r * 4, rows + (start + r) * stride + c, (size_t)least(m->cols - c, 4));
            continue;
        }
        for (int64_t at = 0; at < l.cols; at += UNIT) {
            const int64_t g = at / l.padded, column = g * l.group + at % l.padded;
            const int64_t real = least(least((g + 1) * l.group, m->cols) - column, UNIT);
            memset(unit, 1 << (m->bits - 1), sizeof unit);
            for (int64_t r = 0; r < count; r++)
                for (int64_t k = 0; k < real; k++)
                    unit[k / 4 * TILE + r * 4 + k % 4] = stored(rows + (start + r) * stride, m->bits, column + k);
            pack_unit((const words *)unit, m->bits, (words *)(tiles + at * ROWS * m->bits / 8));
        }
    }
}

/* Rows ids[0..n) as float32 [n][cols]: (value * multiplier) * scale. */
void efl_rows(const matrix *m, const int64_t *ids, int64_t n, float *out) {
    layout l = layout_of(m);
    for (int64_t i = 0; i < n; i++) {
        int64_t panel = ids[i] / ROWS, r = ids[i] % ROWS;
        for (int64_t c = 0; c < m->cols; c++) {
            int64_t g = c / m->group;
            float value = (float)get(m->tiles + panel * panel_bytes(m), m->bits, (int)r, g * l.padded + c % m->group);
            if (m->mult) value *= (float)m->mult[(panel * l.groups + g) * ROWS + r];
            out[i * m->cols + c] = m->scale ? value * m->scale[ids[i]] : value;
        }
    }
}
