/* Products of activations with published integer matrices of 2..6 or 8 bits, exact (int16 activations, 64-bit sums) and
 * in float32. Called through ctypes (native.py), which checks every shape first. No Python, no allocation, no state.
 *
 * This file chooses the instruction set, shares out rows to threads and puts whole linear maps together; the loops are in
 * plain.c, avx2.c, vnni.c and neon.c, which include few.h, many.h, floats.h and tokens.h; layout.h has their types, tiles.c
 * writes the layout in memory, peak.c measures the highest speed of the instructions.
 *
 * Built with -ffp-contract=off: the exact products must not fuse a multiplication with an addition.
 */
#include "products.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

enum { MAX_THREADS = 64 };

/* y = base x + u (v x) + bias; absent matrices have no rows. */
typedef struct {
    matrix base, v, u;
    const float *bias; /* NULL: none */
} linear;

static const functions *functions_of(int variant) {
#if defined(__x86_64__)
    return variant == VNNI ? &efl_vnni : variant == AVX2 ? &efl_avx2 : &efl_plain;
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return variant == NEON ? &efl_neon : &efl_plain;
#else
    (void)variant;
    return &efl_plain;
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

/* Tokens that are computed together, of `left`: pieces of equal size. */
static int64_t portion(int64_t left) {
    const int64_t pieces = (left + MANY - 1) / MANY;
    return (left + pieces - 1) / pieces;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Bytes for `tokens` activations in the layout of `m`, for any of the loops. */
static int64_t arranged_room(const matrix *m, int64_t tokens) {
    layout l = layout_of(m);
    const int64_t integers = 2 * room(tokens * l.cols + 64) + room(tokens * segments_of(&l) * 8);
    return larger(integers, room(least(tokens, TOKENS) * l.cols * 4));
}

/* Bytes for the inputs, in any layout of theirs; for the inner numbers of factors; and for those, arranged. */
typedef struct {
    int64_t input, inner, arranged_inner;
} rooms;

static rooms rooms_of(const linear *maps, int64_t n, int64_t tokens) {
    rooms most = {0};
    for (int64_t i = 0; i < n; i++) {
        const linear *m = maps + i;
        if (m->base.rows) most.input = larger(most.input, arranged_room(&m->base, tokens));
        if (!m->v.rows) continue;
        most.input = larger(most.input, arranged_room(&m->v, tokens));
        most.inner = larger(most.inner, room(tokens * m->v.rows * 8) + room(tokens * m->v.rows * 2));
        most.arranged_inner = larger(most.arranged_inner, arranged_room(&m->u, tokens));
    }
    return most;
}

/* Bytes of workspace for calls of up to `tokens` tokens with `n` maps of one input of `cols` numbers. */
int64_t efl_workspace(const linear *maps, int64_t n, int64_t cols, int64_t tokens) {
    tokens = least(tokens, MANY);
    const rooms r = rooms_of(maps, n, tokens);
    return room(tokens * cols * 2) + 2 * room(tokens * 8) + r.input + r.inner + r.arranged_inner + 64;
}

/* Integers that several matrices multiply, and how they were last arranged. */
typedef struct {
    const int16_t *q; /* [tokens][columns of the matrices] */
    activations a;
    char *space;
    arrange_function arranged;
    int64_t kind; /* of the matrix: its bits, negative where it has multipliers */
} integers;

/* y (+)= m q */
static void multiply(const functions *f, int threads, const matrix *m, integers *x, target to) {
    const layout l = layout_of(m), *had = &x->a.shape;
    const int enough = f->many && x->a.tokens >= f->from && (m->bits != 8 || !m->mult);
    const arrange_function arrange = enough ? f->arrange_many : f->arrange_few;
    const int64_t kind = m->mult ? -m->bits : m->bits;
    if (x->arranged != arrange || x->kind != kind || had->group != l.group || had->padded != l.padded ||
        had->cols != l.cols) {
        arrange(m, x->q, &x->a, x->space);
        x->arranged = arrange, x->kind = kind;
    }
    run_panels(enough ? f->many : f->few, m, &x->a, &to, threads);
}

/*
 * Exact: x float64 [tokens][cols] -> y float64 [tokens][stride], the outputs of the maps side by side. Every input of a
 * matrix is rounded to int16 per token; y_r = (sum * token scale) * row scale, base + factors + bias, each rounded by itself.
 */
void efl_exact(const linear *maps, int64_t n, const double *x, int64_t cols, int64_t tokens, double *y, int64_t stride,
               char *work, int variant, int threads) {
    const functions *f = functions_of(variant);
    const int64_t most = portion(tokens);
    const rooms r = rooms_of(maps, n, most);
    work = (char *)up((int64_t)work, 64);
    int16_t *q = (int16_t *)work;
    double *scale = (double *)(work + room(most * cols * 2)), *inner = scale + room(most * 8) / 8;
    char *arranged = (char *)inner + room(most * 8), *rest = arranged + r.input, *last = rest + r.inner;
    for (int64_t first = 0; first < tokens; first += most, x += most * cols, y += most * stride) {
        const int64_t count = least(tokens - first, most);
        integers in = {q, {.tokens = count, .scale = scale}, arranged, NULL, 0};
        for (int64_t t = 0; t < count; t++) f->quantize(x + t * cols, cols, q + t * cols, scale + t);
        double *out = y;
        for (int64_t i = 0; i < n; i++) {
            const linear *m = maps + i;
            const int64_t rank = m->v.rows, rows = m->base.rows ? m->base.rows : m->u.rows;
            double *h = (double *)rest;
            int16_t *hq = (int16_t *)(rest + room(most * rank * 8));
            if (m->base.rows) multiply(f, threads, &m->base, &in, (target){out, NULL, stride, 0});
            if (rank) {
                /* A v shared with the map before has left its result there. */
                if (i == 0 || m->v.tiles != m[-1].v.tiles) {
                    multiply(f, threads, &m->v, &in, (target){h, NULL, rank, 0});
                    for (int64_t t = 0; t < count; t++) f->quantize(h + t * rank, rank, hq + t * rank, inner + t);
                }
                integers low = {hq, {.tokens = count, .scale = inner}, last, NULL, 0};
                multiply(f, threads, &m->u, &low, (target){out, NULL, stride, m->base.rows > 0});
            }
            if (m->bias)
                for (int64_t t = 0; t < count; t++)
                    for (int64_t k = 0; k < rows; k++) out[t * stride + k] += (double)m->bias[k];
            out += rows;
        }
    }
}

/* The integers themselves: q int16 [tokens][cols], |q| <= Q_MAX -> exact sums, float64 [tokens][rows]. */
void efl_times(const linear *map, const int16_t *q, int64_t tokens, double *y, char *work, int variant, int threads) {
    matrix bare = map->base;
    bare.scale = NULL;
    double ones[MANY];
    for (int t = 0; t < MANY; t++) ones[t] = 1;
    const int64_t most = portion(tokens);
    for (int64_t first = 0; first < tokens; first += most) {
        integers in = {q + first * bare.cols, {.tokens = least(tokens - first, most), .scale = ones},
                       (char *)up((int64_t)work, 64), NULL, 0};
        multiply(functions_of(variant), threads, &bare, &in, (target){y + first * bare.rows, NULL, bare.rows, 0});
    }
}

/* Float32 [tokens][cols] in the layout of `m`; no copy where that is the layout they have. */
static void multiply_floats(const functions *f, int threads, const matrix *m, const float *x, int64_t tokens, char *space,
                            target to) {
    const layout l = layout_of(m);
    activations a = {.shape = l, .tokens = tokens, .x = x};
    if (l.cols != m->cols) {
        float *padded = (float *)space;
        memset(padded, 0, (size_t)(tokens * l.cols) * sizeof *padded);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t g = 0; g < l.groups; g++) {
                const int64_t from = g * l.group, left = least(m->cols - from, l.group);
                memcpy(padded + t * l.cols + g * l.padded, x + t * m->cols + from, (size_t)left * sizeof *padded);
            }
        a.x = padded;
    }
    run_panels(f->floats, m, &a, &to, threads);
}

/* As efl_exact in float32, without any rounding of activations. */
void efl_floats(const linear *maps, int64_t n, const float *x, int64_t cols, int64_t tokens, float *y, int64_t stride,
                char *work, int variant, int threads) {
    const functions *f = functions_of(variant);
    work = (char *)up((int64_t)work, 64);
    for (int64_t first = 0; first < tokens; first += TOKENS, x += TOKENS * cols, y += TOKENS * stride) {
        const int64_t count = least(tokens - first, TOKENS);
        float *out = y;
        for (int64_t i = 0; i < n; i++) {
            const linear *m = maps + i;
            const int64_t rank = m->v.rows, rows = m->base.rows ? m->base.rows : m->u.rows;
            float *h = (float *)work;
            char *space = work + room(count * rank * 8);
            if (m->base.rows) multiply_floats(f, threads, &m->base, x, count, space, (target){NULL, out, stride, 0});
            if (rank) {
                if (i == 0 || m->v.tiles != m[-1].v.tiles)
                    multiply_floats(f, threads, &m->v, x, count, space, (target){NULL, h, rank, 0});
                multiply_floats(f, threads, &m->u, h, count, space, (target){NULL, out, stride, m->base.rows > 0});
            }
            if (m->bias)
                for (int64_t t = 0; t < count; t++)
                    for (int64_t k = 0; k < rows; k++) out[t * stride + k] += m->bias[k];
            out += rows;
        }
    }
}

/* Rows [16 * first, 16 * last) of a matrix as float32 [rows][cols]; rows beyond the matrix are left out. */
void efl_expand(const matrix *m, int64_t first, int64_t last, float *out, int variant) {
    functions_of(variant)->expand(m, first, last, out);
}
