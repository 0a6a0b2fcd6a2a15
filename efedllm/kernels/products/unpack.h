/* Bit planes of packed integers -> bytes. See tiles.c for the layout. */
#ifndef EFL_UNPACK_H
#define EFL_UNPACK_H

#include "layout.h"

INLINE void plane4(const words *p, words *t) {
    for (int j = 0; j < 4; j++) {
        t[j] = p[j] & 0x0f0f0f0fu;
        t[j + 4] = p[j] >> 4 & 0x0f0f0f0fu;
    }
}

INLINE void plane2(const words *p, words *t, int shift) {
    for (int j = 0; j < 2; j++)
        for (int k = 0; k < 4; k++) t[j + 2 * k] |= (p[j] >> 2 * k & 0x03030303u) << shift;
}

INLINE void plane1(const words *p, words *t, int shift) {
    for (int k = 0; k < 8; k++) t[k] |= (p[0] >> k & 0x01010101u) << shift;
}

/* The 8 tiles of a unit, every value v as the byte v + 2^(bits-1). */
INLINE void unit(const uint8_t *from, int64_t bits, words *t) {
    const words *p = (const words *)from;
    for (int k = 0; k < 8; k++) t[k] = (words){0};
    switch (bits) {
    case 2: plane2(p, t, 0); break;
    case 3: plane2(p, t, 0), plane1(p + 2, t, 2); break;
    case 4: plane4(p, t); break;
    case 5: plane4(p, t), plane1(p + 4, t, 4); break;
    default: plane4(p, t), plane2(p + 4, t, 4);
    }
}

/* Units of 8 tiles as int8. */
static inline void unpack(const uint8_t *from, int64_t bits, int64_t units, uint8_t *to) {
    for (int64_t i = 0; i < units; i++, from += 8 * 8 * bits, to += 8 * TILE) {
        words t[8];
        for (int64_t k = 0; k < bits; k++) fetch_line(from + k * TILE + AHEAD);
        unit(from, bits, t);
        for (int k = 0; k < 8; k++) ((bytes *)to)[k] = (bytes)t[k] - (uint8_t)(1 << (bits - 1));
    }
}

#endif
