/* Runs the native libraries on numbers from counters and prints a digest of every result, one line each. Compiled for two
 * processors, it must print the same: test_portable.py compares. Every instruction set of the processor prints its lines. */
#include <stdio.h>
#include <stdlib.h>

#include "products.h"

typedef struct {
    matrix base, v, u;
    const float *bias;
} linear;

typedef struct {
    const int16_t *keys, *values;
    const double *key_scales, *value_scales;
    int64_t kv_heads, positions, dim, head_stride, scale_stride;
} cached;

int efl_supported(int variant);
int64_t efl_tile_bytes(const matrix *m);
void efl_tile(const matrix *m, const uint8_t *rows, int64_t stride, uint8_t *tiles);
void efl_rows(const matrix *m, const int64_t *ids, int64_t n, float *out);
int64_t efl_workspace(const linear *maps, int64_t n, int64_t cols, int64_t tokens);
void efl_exact(const linear *maps, int64_t n, const double *x, int64_t cols, int64_t tokens, double *y, int64_t stride,
               char *work, int variant, int threads);
void efl_floats(const linear *maps, int64_t n, const float *x, int64_t cols, int64_t tokens, float *y, int64_t stride,
                char *work, int variant, int threads);
void efl_expand(const matrix *m, int64_t first, int64_t last, float *out, int variant);
void efl_norm(const float *x, int64_t n, int64_t d, const double *weight, const double *bias, double eps, double *y);
void efl_heads(double *y, int64_t n, int64_t heads, int64_t kv_heads, int64_t dim, const double *query_norm,
               const double *key_norm, double eps, const double *cos, const double *sin, int16_t *q, double *scales);
int64_t efl_attend_room(const cached *c);
void efl_attend(const cached *c, const int16_t *q, int64_t q_stride, const double *factors, int64_t factor_stride,
                double scaling, int64_t n, int64_t heads, int64_t window, double *out, char *work);
void efl_gated(const double *y, int64_t n, int64_t width, double *out);
void efl_gelu(const double *x, int64_t n, double *out);
void efl_add(const float *x, const double *y, int64_t n, float *out);
int efl_canonical(const double *x, int64_t n, float *out);
int64_t efl_sample_room(int64_t vocab);
void efl_sample(const float *logits, int64_t n, int64_t vocab, int64_t temperature, int64_t top_k, int64_t top_p,
                const uint64_t *draws, int64_t *out, char *work);
void efl_keccak(const uint8_t *in, int64_t n, int64_t size, uint8_t *out);
void efl_merkle(uint8_t *leaves, int64_t n, uint8_t *pad);

static uint64_t counter;

/* splitmix64 */
static uint64_t draw(void) {
    uint64_t z = (counter += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void *memory(int64_t size) {
    void *p = aligned_alloc(64, (size_t)up(size, 64) + 64);
    if (!p) abort();
    memset(p, 0, (size_t)up(size, 64) + 64);
    return p;
}

/* Of any magnitude from 2^-20 to 2^12, now and then 0. */
static double number(void) {
    const uint64_t z = draw();
    const double x = (double)((int64_t)(z >> 20) - ((int64_t)1 << 43)) * 0x1p-43;
    return z % 16 == 0 ? 0 : x * (double)(1u << z % 13) * (z % 3 == 0 ? 0x1p-20 : 1);
}

static double *numbers(int64_t n) {
    double *x = memory(n * 8);
    for (int64_t i = 0; i < n; i++) x[i] = number();
    return x;
}

static float *floats_of(int64_t n) {
    float *x = memory(n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = (float)number();
    return x;
}

static void say(const char *what, int64_t a, int64_t b, const void *data, int64_t size) {
    uint64_t digest = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < size; i++) digest = (digest ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    printf("%s %lld %lld %016llx\n", what, (long long)a, (long long)b, (unsigned long long)digest);
}

static matrix random_matrix(int64_t rows, int64_t cols, int64_t bits, int64_t group) {
    matrix m = {.rows = rows, .cols = cols, .group = bits == 8 ? cols : group, .bits = bits};
    const int64_t groups = (cols + m.group - 1) / m.group, stride = (cols * bits + 7) / 8, panels = (rows + 15) / 16;
    uint8_t *published = memory(rows * stride + 1), *tiles;
    for (int64_t i = 0; i < rows * stride; i++) published[i] = (uint8_t)draw();
    if (bits != 8) {
        int8_t *mult = memory(panels * groups * ROWS);
        for (int64_t p = 0; p < panels; p++)
            for (int64_t g = 0; g < groups; g++)
                for (int64_t r = 0; r < ROWS && p * ROWS + r < rows; r++) mult[(p * groups + g) * ROWS + r] = (int8_t)draw();
        m.mult = mult;
    }
    float *scale = memory(rows * 4);
    for (int64_t r = 0; r < rows; r++) scale[r] = (float)(draw() % 1000 + 1) * 0x1p-10f;
    m.scale = scale;
    m.tiles = tiles = memory(efl_tile_bytes(&m));
    efl_tile(&m, published, stride, tiles);
    return m;
}

static void products(void) {
    static const int64_t shapes[][3] = {{40, 300, 64}, {96, 704, 64}, {17, 100, 33}, {130, 32, 32}, {64, 600, 500}};
    static const int64_t counts[] = {1, 3, 4, 26};
    for (int64_t s = 0; s < 5; s++)
        for (int64_t bits = 2; bits <= 8; bits += 1 + (bits == 6)) {
            const int64_t rows = shapes[s][0], cols = shapes[s][1], total = 2 * rows + 21;
            float *bias = floats_of(rows);
            linear maps[3] = {{.bias = bias}};
            maps[0].base = random_matrix(rows, cols, bits, shapes[s][2]);
            maps[0].v = maps[1].v = random_matrix(24, cols, 8, cols);
            maps[0].u = random_matrix(rows, 24, 8, 24);
            maps[1].u = random_matrix(21, 24, 8, 24);
            maps[2].base = random_matrix(rows, cols, 8, cols);
            int64_t ids[3] = {0, rows / 2, rows - 1};
            float *looked = memory(3 * cols * 4);
            efl_rows(&maps[0].base, ids, 3, looked);
            say("rows", bits, s, looked, 3 * cols * 4);
            for (int64_t i = 0; i < 4; i++) {
                const int64_t n = counts[i];
                const uint64_t here = counter;
                for (int variant = 0; variant < 4; variant++) {
                    if (!efl_supported(variant)) continue;
                    counter = here;
                    double *x = numbers(n * cols), *y = memory(n * total * 8);
                    x[0] = 1e300, x[1] = -0.0;
                    char *work = memory(efl_workspace(maps, 3, cols, n));
                    efl_exact(maps, 3, x, cols, n, y, total, work, variant, 1);
                    say("exact", bits * 100 + s, n, y, n * total * 8);
                    float *whole = memory(up(rows, 16) * cols * 4), *narrow = memory(n * cols * 4), *z = memory(n * total * 4);
                    efl_expand(&maps[0].base, 0, up(rows, 16) / 16, whole, variant);
                    say("expand", bits * 100 + s, n, whole, rows * cols * 4);
                    /* Sums of fractions differ between processors: near the product of the expanded rows is enough. */
                    for (int64_t k = 0; k < n * cols; k++) narrow[k] = (float)(int64_t)(x[k] * 64) * (float)(k != 0);
                    const linear alone = {.base = maps[0].base};
                    efl_floats(&alone, 1, narrow, cols, n, z, rows, work, variant, 1);
                    double off = 0, size = 0;
                    for (int64_t t = 0; t < n; t++)
                        for (int64_t r = 0; r < rows; r++) {
                            double sum = 0, most = 0;
                            for (int64_t k = 0; k < cols; k++) {
                                const double product = (double)whole[r * cols + k] * (double)narrow[t * cols + k];
                                sum += product, most += product < 0 ? -product : product;
                            }
                            const double miss = (double)z[t * rows + r] - sum;
                            off += miss < 0 ? -miss : miss, size += most;
                        }
                    printf("floats %lld %lld %s\n", (long long)(bits * 100 + s), (long long)n, off <= 2e-6 * size ? "near" : "far");
                    free(x), free(y), free(work), free(whole), free(narrow), free(z);
                }
            }
        }
}

static void attention(int64_t heads, int64_t kv_heads, int64_t dim, int64_t positions, int64_t n, int64_t window, int norms) {
    const int64_t all = heads + 2 * kv_heads;
    double *y = numbers(positions * all * dim), *scales = memory(positions * all * 8), *norm = numbers(dim);
    double *turns = memory(2 * positions * dim / 2 * 8), *key_scales = memory(kv_heads * positions * 8);
    double *value_scales = memory(kv_heads * positions * 8), *out = memory(n * heads * dim * 8);
    int16_t *q = memory(positions * all * dim * 2), *keys = memory(kv_heads * positions * dim * 2);
    int16_t *values = memory(kv_heads * positions * dim * 2);
    for (int64_t i = 0; i < positions * dim; i++) turns[i] = (double)((int64_t)(draw() >> 33) - (1 << 30)) * 0x1p-30;
    efl_heads(y, positions, heads, kv_heads, dim, norms ? norm : NULL, norms ? norm : NULL, 1e-6, turns,
              turns + positions * dim / 2, q, scales);
    say("heads", heads, dim, q, positions * all * dim * 2);
    say("scales", heads, dim, scales, positions * all * 8);
    for (int64_t p = 0; p < positions; p++)
        for (int64_t h = 0; h < kv_heads; h++) {
            memcpy(keys + (h * positions + p) * dim, q + (p * all + heads + h) * dim, (size_t)dim * 2);
            memcpy(values + (h * positions + p) * dim, q + (p * all + heads + kv_heads + h) * dim, (size_t)dim * 2);
            key_scales[h * positions + p] = scales[p * all + heads + h];
            value_scales[h * positions + p] = scales[p * all + heads + kv_heads + h];
        }
    const cached c = {keys, values, key_scales, value_scales, kv_heads, positions, dim, positions * dim, positions};
    const int64_t from = positions - n;
    efl_attend(&c, q + from * all * dim, all * dim, scales + from * all, all, 0.25, n, heads, window, out,
               memory(efl_attend_room(&c) + 64));
    say("attend", positions * 1000 + n, window, out, n * heads * dim * 8);
}

static void steps(void) {
    static const int64_t widths[] = {1, 7, 8, 33, 64, 256, 704};
    for (int64_t i = 0; i < 7; i++) {
        const int64_t d = widths[i], n = 3;
        float *x = floats_of(n * d), *sum = memory(n * d * 4);
        double *y = memory(2 * n * d * 8), *both = numbers(2 * n * d), *weight = numbers(d), *bias = numbers(d);
        efl_norm(x, n, d, weight, NULL, 1e-6, y);
        say("norm", d, 0, y, n * d * 8);
        efl_norm(x, n, d, weight, bias, 1e-5, y);
        say("norm", d, 1, y, n * d * 8);
        efl_gated(both, n, d, y);
        say("gated", d, 0, y, n * d * 8);
        efl_gelu(both, 2 * n * d, y);
        say("gelu", d, 0, y, 2 * n * d * 8);
        efl_add(x, both, n * d, sum);
        say("add", d, 0, sum, n * d * 4);
        const int finite = efl_canonical(both, n * d, sum);
        say("canonical", d, finite, sum, n * d * 4);
    }
    attention(4, 2, 32, 40, 1, 0, 0);
    attention(6, 1, 80, 50, 9, 0, 1);
    attention(2, 2, 6, 70, 33, 16, 0);
    attention(8, 4, 64, 130, 128, 0, 1);
    enum { VOCAB = 1000, N = 8 };
    float *logits = floats_of(N * VOCAB);
    uint64_t draws[N];
    int64_t tokens[N];
    for (int i = 0; i < N; i++) draws[i] = draw();
    for (int64_t top_k = 0; top_k <= 50; top_k += 25)
        for (int64_t top_p = 300000; top_p <= 1000000; top_p += 350000) {
            efl_sample(logits, N, VOCAB, 8000, top_k, top_p, draws, tokens, memory(efl_sample_room(VOCAB)));
            say("sample", top_k, top_p, tokens, sizeof tokens);
        }
}

static void hashes(void) {
    static const int64_t sizes[] = {1, 32, 65, 135, 136, 137, 500};
    for (int64_t i = 0; i < 7; i++) {
        uint8_t *in = memory(19 * sizes[i]), *out = memory(19 * 32), pad[32] = {1};
        for (int64_t k = 0; k < 19 * sizes[i]; k++) in[k] = (uint8_t)draw();
        efl_keccak(in, 19, sizes[i], out);
        say("keccak", sizes[i], 0, out, 19 * 32);
        efl_merkle(out, 19, pad);
        say("merkle", sizes[i], 0, out, 32);
    }
}

int main(void) {
    products();
    steps();
    hashes();
    return 0;
}
