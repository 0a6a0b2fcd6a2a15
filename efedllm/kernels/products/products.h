/* The instruction sets, and one table of functions for each. */
#ifndef EFL_PRODUCTS_H
#define EFL_PRODUCTS_H

#include "layout.h"

enum { PLAIN, AVX2, VNNI, NEON }; /* instruction sets, as in native.py */

/* Panels [first, last) of a matrix times all activations. */
typedef void (*panels_function)(const matrix *, const activations *, const target *, int64_t first, int64_t last);
/* int16 [tokens][matrix->cols] -> the activations' fields, in the space given. */
typedef void (*arrange_function)(const matrix *, const int16_t *, activations *, char *);

typedef struct {
    panels_function few, many, floats; /* few and many: (integer sum * token scale) * row scale; many: may be NULL */
    arrange_function arrange_few, arrange_many;
    void (*expand)(const matrix *, int64_t first, int64_t last, float *); /* panels as float32 [rows][cols] */
    void (*quantize)(const double *, int64_t, int16_t *, double *);
    int64_t from; /* tokens from which `many` is faster */
} functions;

extern const functions efl_plain;
#if defined(__x86_64__)
extern const functions efl_avx2, efl_vnni;
#elif defined(__ARM_NEON) && defined(__aarch64__)
extern const functions efl_neon;
#endif

#endif
