/* What the processor could do at most: products in registers alone. For benchmarks, which time it. */
#include "products.h"

int64_t efl_peak(int variant, int64_t turns);

#if defined(__x86_64__)
#define BYTES(n) "vpdpbusd %%zmm13, %%zmm12, %%zmm" #n "\n"
#define PAIRS(n) "vpmaddwd %%ymm13, %%ymm12, %%ymm14\n vpaddd %%ymm14, %%ymm" #n ", %%ymm" #n "\n"
#define TWELVE(of) of(0) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10) of(11)
#define USED "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14"
#endif

/* Does `turns` rounds of products of int16 by int8, as fast as the instruction set can; returns how many, 0 where there is
 * no such loop. */
int64_t efl_peak(int variant, int64_t turns) {
    int64_t each = 0;
#if defined(__x86_64__)
    if (variant == VNNI) {
        for (int64_t i = 0; i < turns; i++) __asm__ volatile(TWELVE(BYTES) : : : USED);
        each = 12 * 64 / 2; /* high and low byte */
    } else if (variant == AVX2) {
        for (int64_t i = 0; i < turns; i++) __asm__ volatile(TWELVE(PAIRS) : : : USED);
        each = 12 * 16;
    }
#else
    (void)variant;
#endif
    return each * turns;
}
