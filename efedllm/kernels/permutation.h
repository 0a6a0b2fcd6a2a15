/* Keccak-f[1600] of `lane`, included once for each kind of lane with NAME set. */

#define TURN(x, by) ((x) << (by) | (x) >> (64 - (by)))

static NOINLINE void NAME(permute)(lane *s) {
    lane b[25], c[5], d[5];
    for (int round = 0; round < 24; round++) {
        for (int x = 0; x < 5; x++) c[x] = s[x] ^ s[x + 5] ^ s[x + 10] ^ s[x + 15] ^ s[x + 20];
        for (int x = 0; x < 5; x++) d[x] = c[(x + 4) % 5] ^ TURN(c[(x + 1) % 5], 1);
        b[0] = s[0] ^ d[0];
        b[1] = TURN(s[6] ^ d[1], 44);
        b[2] = TURN(s[12] ^ d[2], 43);
        b[3] = TURN(s[18] ^ d[3], 21);
        b[4] = TURN(s[24] ^ d[4], 14);
        b[5] = TURN(s[3] ^ d[3], 28);
        b[6] = TURN(s[9] ^ d[4], 20);
        b[7] = TURN(s[10] ^ d[0], 3);
        b[8] = TURN(s[16] ^ d[1], 45);
        b[9] = TURN(s[22] ^ d[2], 61);
        b[10] = TURN(s[1] ^ d[1], 1);
        b[11] = TURN(s[7] ^ d[2], 6);
        b[12] = TURN(s[13] ^ d[3], 25);
        b[13] = TURN(s[19] ^ d[4], 8);
        b[14] = TURN(s[20] ^ d[0], 18);
        b[15] = TURN(s[4] ^ d[4], 27);
        b[16] = TURN(s[5] ^ d[0], 36);
        b[17] = TURN(s[11] ^ d[1], 10);
        b[18] = TURN(s[17] ^ d[2], 15);
        b[19] = TURN(s[23] ^ d[3], 56);
        b[20] = TURN(s[2] ^ d[2], 62);
        b[21] = TURN(s[8] ^ d[3], 55);
        b[22] = TURN(s[14] ^ d[4], 39);
        b[23] = TURN(s[15] ^ d[0], 41);
        b[24] = TURN(s[21] ^ d[1], 2);
        for (int y = 0; y < 25; y += 5)
            for (int x = 0; x < 5; x++) s[y + x] = b[y + x] ^ (~b[y + (x + 1) % 5] & b[y + (x + 2) % 5]);
        s[0] ^= ROUNDS[round];
    }
}

/* Keccak-256 of WIDTH messages of `size` bytes each, `stride` apart -> 32 bytes each. */
static void NAME(hash)(const uint8_t *in, int64_t stride, int64_t size, uint8_t *out) {
    lane s[25];
    memset(s, 0, sizeof s);
    for (int64_t at = 0;; at += RATE) {
        const int64_t left = size - at;
        uint64_t words[WIDTH][RATE / 8];
        for (int i = 0; i < WIDTH; i++) {
            if (left >= RATE) {
                memcpy(words[i], in + i * stride + at, RATE);
                continue;
            }
            uint8_t last[RATE] = {0};
            memcpy(last, in + i * stride + at, (size_t)left);
            last[left] ^= 0x01;
            last[RATE - 1] ^= 0x80;
            memcpy(words[i], last, RATE);
        }
        for (int w = 0; w < RATE / 8; w++)
            for (int i = 0; i < WIDTH; i++) ((uint64_t *)(s + w))[i] ^= words[i][w];
        NAME(permute)(s);
        if (left < RATE) break;
    }
    for (int i = 0; i < WIDTH; i++)
        for (int w = 0; w < 4; w++) memcpy(out + 32 * i + 8 * w, (const uint64_t *)(s + w) + i, 8);
}

#undef TURN
