/* Sizes and types of matrices and activations in memory, and what every loop does with them. See tiles.c for the layout. */
#ifndef EFL_LAYOUT_H
#define EFL_LAYOUT_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    ROWS = 16,     /* of a panel */
    TILE = 64,     /* bytes */
    UNIT = 32,     /* columns that are unpacked together */
    SEGMENT = 256, /* columns summed in 32 bits: 256 * 32639 * 255 < 2^31 */
    TOKENS = 16,   /* that share one unpacking of the weights where there are few */
    MANY = 256,    /* that share it where there are many */
    BLOCK = 256,   /* columns of a row block in the first-level cache */
    Q_MAX = 32639, /* 127 * 256 + 127: hi and lo byte of an activation both fit int8 */
    AHEAD = 8192,  /* bytes that weights are fetched ahead: the hardware stops at the ends of pages */
};

typedef struct {
    const uint8_t *tiles;
    const int8_t *mult;  /* [panels][groups][16]; NULL: all 1 */
    const float *scale;  /* [rows]; NULL: all 1 */
    int64_t rows, cols, group, bits;
} matrix;

typedef struct {
    int64_t group, groups, padded, last, cols; /* columns of a group, as published and in memory, of the last, of all */
} layout;

/* Activations of one call's tokens as the loops want them. */
typedef struct {
    layout shape;
    int64_t tokens;
    const double *scale;      /* [tokens] */
    const int16_t *q;         /* few: [tokens][cols]; many: [blocks][tokens][columns of a block], columns 1 and 2 of 4 swapped */
    const int8_t *high, *low; /* few, AVX-512: [tokens][cols]: q = 256 high + low */
    const int32_t *sums;      /* few, AVX-512: [strips][tokens][2]: of high and of low, times -2^(bits-1) */
    const float *x;           /* float profile: [tokens][cols] */
} activations;

typedef struct {
    double *exact;
    float *floats;
    int64_t stride;  /* between tokens */
    int add;         /* to what is there, instead of overwriting it */
} target;

/* 64 bytes, as the bit planes of packed integers want them. */
typedef uint32_t words __attribute__((vector_size(TILE), aligned(1), may_alias));
typedef uint8_t bytes __attribute__((vector_size(TILE), aligned(1), may_alias));
typedef int16_t shorts __attribute__((vector_size(TILE), aligned(1), may_alias));
typedef uint16_t lanes __attribute__((vector_size(TILE), aligned(1), may_alias));

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t room(int64_t size) { return up(size, 64); }

INLINE layout layout_of(const matrix *m) {
    int64_t unit = m->bits == 8 ? 4 : UNIT, groups = (m->cols + m->group - 1) / m->group, padded = up(m->group, unit);
    int64_t last = up(m->cols - (groups - 1) * m->group, unit);
    return (layout){m->group, groups, padded, last, (groups - 1) * padded + last};
}

INLINE int64_t panel_bytes(const matrix *m) { return ROWS * layout_of(m).cols * m->bits / 8; }

/* Pieces of at most SEGMENT columns of all groups. */
INLINE int64_t segments_of(const layout *l) {
    return (l->groups - 1) * ((l->padded + SEGMENT - 1) / SEGMENT) + (l->last + SEGMENT - 1) / SEGMENT;
}

/* Weights that are wanted soon. To the second-level cache: the first one can have too few lines on their way to read and
 * multiply at once. */
INLINE void fetch_line(const uint8_t *at) { __builtin_prefetch(at, 0, 2); }

INLINE int32_t load4(const void *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE int64_t load8(const void *p) {
    int64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
