/* Products of activations with published integer matrices of 2..6 or 8 bits, exact (int16 activations, 64-bit sums) and
 * in float32. Called through ctypes (native.py), which checks every shape first. No Python, no allocation, no state.
 *
 * A matrix lies in memory as panels of 16 rows, so that the sums of 16 rows fill a vector and one pass over the panel is
 * one stream of memory. A tile is 16 rows x 4 columns, 64 bytes, row by row. 8 bits: the tiles of a panel in order, int8.
 * Fewer bits: units of 8 tiles (32 columns) in bit planes of 64-byte vectors, each value v stored as v + 2^(bits-1):
 *   4, 5, 6 bits: 4 vectors with the low four bits of tile j in the low nibbles of vector j, of tile j + 4 in the high;
 *   2, 3, 6 bits: 2 vectors with two bits of tile j + 2k at bits 2k of vector j (6 bits: the upper two);
 *   3, 5 bits: 1 vector with the top bit of tile k at bit k.
 * The columns of a group of multipliers are padded to whole tiles or units; activations there are zero.
 *
 * Built with -ffp-contract=off: the exact products must not fuse a multiplication with an addition.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

enum {
    ROWS = 16,     /* of a panel */
    TILE = 64,     /* bytes */
    SEGMENT = 256, /* columns summed in 32 bits: 256 * 32639 * 255 < 2^31 */
    TOKENS = 16,   /* that share one unpacking of the weights */
    Q_MAX = 32639, /* 127 * 256 + 127: hi and lo byte of an activation both fit int8 */
    MAX_THREADS = 64,
    AHEAD = 8192,  /* bytes that weights are fetched ahead: the hardware stops at the ends of pages */
};

typedef struct {
    const uint8_t *tiles;
    const int8_t *mult;  /* [panels][groups][16]; NULL: all 1 */
    const float *scale;  /* [rows]; NULL: all 1 */
    int64_t rows, cols, group, bits;
} matrix;

/* y = base x + u (v x) + bias; absent matrices have no rows. */
typedef struct {
    matrix base, v, u;
    const float *bias; /* NULL: none */
} linear;

typedef struct {
    int64_t group, groups, padded, last, cols; /* columns of a group, as published and in memory, of the last, of all */
} layout;

/* Activations of up to TOKENS tokens as the panels want them. */
typedef struct {
    layout shape;
    int64_t tokens;
    const int16_t *source;     /* what they were arranged from */
    const int16_t *q;          /* [tokens][cols] */
    const int8_t *high, *low;  /* [tokens][cols]: q = 256 high + low */
    const int32_t *sums;       /* [segments][tokens]: of q */
    const double *scale;       /* [tokens] */
    const float *x;            /* [tokens][cols], float profile */
} activations;

typedef struct {
    double *exact;
    float *floats;
    int64_t stride;  /* between tokens */
    int add;         /* to what is there, instead of overwriting it */
} target;

typedef void (*panels_function)(const matrix *, const activations *, const target *, int64_t first, int64_t last);

typedef uint32_t words __attribute__((vector_size(TILE), aligned(1), may_alias));
typedef uint8_t bytes __attribute__((vector_size(TILE), aligned(1), may_alias));

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static layout layout_of(const matrix *m) {
    int64_t unit = m->bits == 8 ? 4 : 32, groups = (m->cols + m->group - 1) / m->group, padded = up(m->group, unit);
    int64_t last = up(m->cols - (groups - 1) * m->group, unit);
    return (layout){m->group, groups, padded, last, (groups - 1) * padded + last};
}

static int64_t segments_of(const layout *l) {
    return (l->groups - 1) * ((l->padded + SEGMENT - 1) / SEGMENT) + (l->last + SEGMENT - 1) / SEGMENT;
}

static int64_t panel_bytes(const matrix *m) { return ROWS * layout_of(m).cols * m->bits / 8; }

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

/* 8 tiles of bytes v + 2^(bits-1) -> the bit planes of one unit: the inverse of `unpack`. */
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

/* Published rows (int8, or packed as models/packing.py says) of `stride` bytes -> tiles. */
void efl_tile(const matrix *m, const uint8_t *rows, int64_t stride, uint8_t *tiles) {
    const layout l = layout_of(m);
    const int64_t size = panel_bytes(m);
    uint8_t unit[8 * TILE] __attribute__((aligned(64)));
    for (int64_t start = 0; start < m->rows; start += ROWS, tiles += size) {
        const int64_t count = m->rows - start < ROWS ? m->rows - start : ROWS;
        if (m->bits == 8) {
            memset(tiles, 0, (size_t)size);
            for (int64_t r = 0; r < count; r++)
                for (int64_t c = 0; c < m->cols; c += 4)
                    memcpy(tiles + c * ROWS + r * 4, rows + (start + r) * stride + c, (size_t)(m->cols - c < 4 ? m->cols - c : 4));
            continue;
        }
        for (int64_t at = 0; at < l.cols; at += 32) {
            const int64_t g = at / l.padded, column = g * l.group + at % l.padded;
            const int64_t end = (g + 1) * l.group < m->cols ? (g + 1) * l.group : m->cols;
            const int64_t real = end - column < 32 ? end - column : 32;
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

static int32_t load4(const void *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static int64_t load8(const void *p) {
    int64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static int64_t room(int64_t size) { return up(size, 64); }

/* ---- one copy of the inner loops per instruction set ---- */

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, VARIANT)

#define VARIANT plain
#include "panels.h"
#undef VARIANT

#if defined(__x86_64__)
#define VARIANT avx2
#define USE_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "panels.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "panels.h"
#pragma GCC pop_options
#endif
#undef USE_AVX2
#undef VARIANT

#define VARIANT vnni
#define USE_VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#include "panels.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")
#include "panels.h"
#pragma GCC pop_options
#endif
#undef USE_VNNI
#undef VARIANT
#endif

#if defined(__ARM_NEON) && defined(__aarch64__)
#define VARIANT neon
#define USE_NEON
#include "panels.h"
#undef USE_NEON
#undef VARIANT
#endif

enum { PLAIN, AVX2, VNNI, NEON };

typedef struct {
    panels_function exact, floats;
    void (*expand)(const matrix *, int64_t, int64_t, float *);
    void (*quantize)(const double *, int64_t, int16_t *, double *);
    void (*arrange)(const matrix *, const int16_t *, activations *, char *);
} functions;

#define FUNCTIONS(v) {exact_##v, floats_##v, expand_##v, quantize_##v, arrange_##v}

static functions functions_of(int variant) {
    static const functions plain = FUNCTIONS(plain);
#if defined(__x86_64__)
    static const functions avx2 = FUNCTIONS(avx2), vnni = FUNCTIONS(vnni);
    return variant == VNNI ? vnni : variant == AVX2 ? avx2 : plain;
#elif defined(__ARM_NEON) && defined(__aarch64__)
    static const functions neon = FUNCTIONS(neon);
    return variant == NEON ? neon : plain;
#else
    (void)variant;
    return plain;
#endif
}

int efl_supported(int variant) {
    if (variant == PLAIN) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (variant == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (variant == VNNI)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#elif defined(__ARM_NEON) && defined(__aarch64__)
    if (variant == NEON) return 1;
#endif
    return 0;
}

/* ---- rows shared out to threads: every row is computed by one of them, in the same way ---- */

typedef struct {
    panels_function run;
    const matrix *m;
    const activations *a;
    const target *t;
    int64_t first, last;
} share;

static void *work_share(void *argument) {
    share *s = argument;
    s->run(s->m, s->a, s->t, s->first, s->last);
    return NULL;
}

static void run_panels(panels_function run, const matrix *m, const activations *a, const target *t, int threads) {
    int64_t panels = up(m->rows, ROWS) / ROWS;
#if !defined(_WIN32)
    /* Below about 2 MB the weights are read before a thread has started. */
    if (threads > 1 && panels * panel_bytes(m) * a->tokens >= 2 << 20) {
        share shares[MAX_THREADS];
        pthread_t ids[MAX_THREADS];
        int started[MAX_THREADS] = {0};
        if (threads > MAX_THREADS) threads = MAX_THREADS;
        for (int i = threads - 1; i >= 0; i--) {
            shares[i] = (share){run, m, a, t, panels * i / threads, panels * (i + 1) / threads};
            started[i] = i > 0 && pthread_create(&ids[i], NULL, work_share, &shares[i]) == 0;
            if (!started[i]) work_share(&shares[i]);
        }
        for (int i = 1; i < threads; i++)
            if (started[i]) pthread_join(ids[i], NULL);
        return;
    }
#endif
    (void)threads;
    run(m, a, t, 0, panels);
}

/* ---- whole linear maps ---- */

/* Bytes for the activations of `m` in its layout. */
static int64_t arranged_room(const matrix *m) {
    layout l = layout_of(m);
    return room(TOKENS * l.cols * 4) + room(TOKENS * segments_of(&l) * 4);
}

/* Bytes of workspace for `n` maps of one input of `cols` numbers. */
int64_t efl_workspace(const linear *maps, int64_t n, int64_t cols) {
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        const matrix *all[3] = {&maps[i].base, &maps[i].v, &maps[i].u};
        int64_t arranged = 0, rank = maps[i].v.rows;
        for (int k = 0; k < 3; k++)
            if (all[k]->rows && arranged_room(all[k]) > arranged) arranged = arranged_room(all[k]);
        int64_t need = arranged + room(TOKENS * rank * 8) + room(TOKENS * rank * 2);
        if (need > most) most = need;
    }
    return most + room(TOKENS * cols * 2) + 2 * room(TOKENS * 8) + 64;
}

typedef struct {
    const functions *f;
    int threads;
    char *arranged; /* workspace */
} context;

/* y (+)= m q, where q int16 [tokens][m->cols] */
static void multiply(const context *c, const matrix *m, activations *a, const int16_t *q, const double *scale, target to) {
    const layout l = layout_of(m);
    if (a->source != q || a->shape.group != l.group || a->shape.padded != l.padded || a->shape.cols != l.cols) {
        a->source = q;
        a->scale = scale;
        c->f->arrange(m, q, a, c->arranged);
    }
    run_panels(c->f->exact, m, a, &to, c->threads);
}

/*
 * Exact: x float64 [tokens][cols] -> y float64 [tokens][stride], the outputs of the maps side by side. Every input of a
 * matrix is rounded to int16 per token; y_r = (sum * token scale) * row scale, base + factors + bias, each rounded by itself.
 */
void efl_exact(const linear *maps, int64_t n, const double *x, int64_t cols, int64_t tokens, double *y, int64_t stride,
               char *work, int variant, int threads) {
    const functions f = functions_of(variant);
    work = (char *)up((int64_t)work, 64);
    int16_t *q = (int16_t *)work;
    double *scale = (double *)(work + room(TOKENS * cols * 2)), *inner = scale + room(TOKENS * 8) / 8;
    char *rest = (char *)inner + room(TOKENS * 8);
    for (int64_t first = 0; first < tokens; first += TOKENS, x += TOKENS * cols, y += TOKENS * stride) {
        const int64_t count = tokens - first < TOKENS ? tokens - first : TOKENS;
        activations a = {.tokens = count};
        for (int64_t t = 0; t < count; t++) f.quantize(x + t * cols, cols, q + t * cols, scale + t);
        double *out = y;
        for (int64_t i = 0; i < n; i++) {
            const linear *m = maps + i;
            const int64_t rank = m->v.rows, rows = m->base.rows ? m->base.rows : m->u.rows;
            double *h = (double *)rest;
            int16_t *hq = (int16_t *)(rest + room(TOKENS * rank * 8));
            const context c = {&f, threads, (char *)hq + room(TOKENS * rank * 2)};
            /* What is arranged lies behind this map's own inner numbers: the next map's may be elsewhere. */
            a.source = NULL;
            if (m->base.rows) multiply(&c, &m->base, &a, q, scale, (target){out, NULL, stride, 0});
            if (rank) {
                /* A v shared with the map before has left its result there. */
                if (i == 0 || m->v.tiles != m[-1].v.tiles) {
                    multiply(&c, &m->v, &a, q, scale, (target){h, NULL, rank, 0});
                    for (int64_t t = 0; t < count; t++) f.quantize(h + t * rank, rank, hq + t * rank, inner + t);
                }
                multiply(&c, &m->u, &a, hq, inner, (target){out, NULL, stride, m->base.rows > 0});
            }
            if (m->bias)
                for (int64_t t = 0; t < count; t++)
                    for (int64_t r = 0; r < rows; r++) out[t * stride + r] += (double)m->bias[r];
            out += rows;
        }
    }
}

/* The integers themselves: q int16 [tokens][cols], |q| <= Q_MAX -> exact sums, float64 [tokens][rows]. */
void efl_times(const linear *map, const int16_t *q, int64_t tokens, double *y, char *work, int variant, int threads) {
    const functions f = functions_of(variant);
    const matrix *m = &map->base;
    matrix bare = *m;
    bare.scale = NULL;
    double ones[TOKENS];
    for (int t = 0; t < TOKENS; t++) ones[t] = 1;
    const context c = {&f, threads, (char *)up((int64_t)work, 64)};
    for (int64_t first = 0; first < tokens; first += TOKENS) {
        activations a = {.tokens = tokens - first < TOKENS ? tokens - first : TOKENS};
        multiply(&c, &bare, &a, q + first * m->cols, ones, (target){y + first * m->rows, NULL, m->rows, 0});
    }
}

/* Float32 [tokens][cols] in the layout of `m`; no copy where that is the layout they have. */
static void multiply_floats(const context *c, const matrix *m, const float *x, int64_t tokens, target to) {
    const layout l = layout_of(m);
    activations a = {.shape = l, .tokens = tokens, .x = x};
    if (l.cols != m->cols) {
        float *space = (float *)c->arranged;
        memset(space, 0, (size_t)(tokens * l.cols) * sizeof *space);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t g = 0; g < l.groups; g++) {
                const int64_t from = g * l.group, left = m->cols - from < l.group ? m->cols - from : l.group;
                memcpy(space + t * l.cols + g * l.padded, x + t * m->cols + from, (size_t)left * sizeof *space);
            }
        a.x = space;
    }
    run_panels(c->f->floats, m, &a, &to, c->threads);
}

/* As efl_exact in float32, without any rounding of activations. */
void efl_floats(const linear *maps, int64_t n, const float *x, int64_t cols, int64_t tokens, float *y, int64_t stride,
                char *work, int variant, int threads) {
    const functions f = functions_of(variant);
    work = (char *)up((int64_t)work, 64);
    for (int64_t first = 0; first < tokens; first += TOKENS, x += TOKENS * cols, y += TOKENS * stride) {
        const int64_t count = tokens - first < TOKENS ? tokens - first : TOKENS;
        float *out = y;
        for (int64_t i = 0; i < n; i++) {
            const linear *m = maps + i;
            const int64_t rank = m->v.rows, rows = m->base.rows ? m->base.rows : m->u.rows;
            float *h = (float *)work;
            const context c = {&f, threads, work + room(TOKENS * rank * 8)};
            if (m->base.rows) multiply_floats(&c, &m->base, x, count, (target){NULL, out, stride, 0});
            if (rank) {
                if (i == 0 || m->v.tiles != m[-1].v.tiles)
                    multiply_floats(&c, &m->v, x, count, (target){NULL, h, rank, 0});
                multiply_floats(&c, &m->u, h, count, (target){NULL, out, stride, m->base.rows > 0});
            }
            if (m->bias)
                for (int64_t t = 0; t < count; t++)
                    for (int64_t r = 0; r < rows; r++) out[t * stride + r] += m->bias[r];
            out += rows;
        }
    }
}

/* Rows [16 * first, 16 * last) of a matrix as float32 [rows][cols]; rows beyond the matrix are left out. */
void efl_expand(const matrix *m, int64_t first, int64_t last, float *out, int variant) {
    functions_of(variant).expand(m, first, last, out);
}
