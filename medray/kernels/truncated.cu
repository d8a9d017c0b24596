// Truncated normals by the inverse distribution function, with the row's pixel norm if wanted.
#include "device.h"

// The normal quantile of p, whose complement to 1 is `rest`, to about 1e-6: within 2.9 of the middle
// by Giles's polynomial for the inverse error function (GPU Computing Gems, 2011), which needs no
// branch there; in the tails Wichura's PPND7 (Applied Statistics 37, 1988).
DEVICE float quantile(float p, float rest) {
    float w = -fast_log(4.0f * p * rest);
    if (w < 5.0f) {
        w -= 2.5f;
        float y = 2.81022636e-08f;
        y = y * w + 3.43273939e-07f;
        y = y * w - 3.5233877e-06f;
        y = y * w - 4.39150654e-06f;
        y = y * w + 0.00021858087f;
        y = y * w - 0.00125372503f;
        y = y * w - 0.00417768164f;
        y = y * w + 0.246640727f;
        y = y * w + 1.50140941f;
        return y * (p - rest) * 1.41421356237f;
    }
    float r = sqrtf(-fast_log(fminf(p, rest))), above, below;
    if (r <= 5.0f) {
        r -= 1.6f;
        above = ((0.17023821103f * r + 1.3067284816f) * r + 2.7568153900f) * r + 1.4234372777f;
        below = (0.12021132975f * r + 0.73700164250f) * r + 1.0f;
    } else {
        r -= 5.0f;
        above = ((0.017337203997f * r + 0.42868294337f) * r + 3.0812263860f) * r + 6.6579051150f;
        below = (0.012258202635f * r + 0.24197894225f) * r + 1.0f;
    }
    return p < rest ? -above / below : above / below;
}

// The probability below, above and between the bounds, and the bounds.
struct Cut { float below, above, width, low, high; };

DEVICE Four truncated(Words words, Cut cut) {
    Four four;
    for (int j = 0; j < 4; ++j) {
        float unit = cut.width * 2.3283064365386963e-10f;
        float p = cut.below + unit * ((float)words.word[j] + 0.5f);
        float rest = cut.above + unit * ((float)~words.word[j] + 0.5f);
        float x = quantile(p, rest);
        four.at[j] = fminf(fmaxf(x, cut.low), cut.high);
    }
    return four;
}

KERNEL truncated_rows(
    TYPE *out, int64 rows, uint32 dims, uint64 start, uint64 key, uint32 stream,
    float below, float above, float width, float low, float high) {
    BEGIN
    Cut cut = {below, above, width, low, high};
    EACH_ROW(row, rows)
        EACH_QUAD(quad, dims)
            store4(out + row * dims, quad, dims,
                   truncated(philox(key, stream, start + row, quad), cut));
    END
}

// The same over the root of the row's mean square: one block a row, drawn once to sum, once to write.
KERNEL truncated_norm_rows(
    TYPE *out, uint32 dims, uint64 start, uint64 key, uint32 stream,
    float below, float above, float width, float low, float high) {
    SHARED float parts[256], groups[16];
    BEGIN
    Cut cut = {below, above, width, low, high};
    float sum = 0;
    EACH_QUAD(quad, dims) {
        Four four = truncated(philox(key, stream, start + blockIdx.x, quad), cut);
        for (uint32 j = 0; j < 4; ++j)
            if (4 * quad + j < dims) sum += four.at[j] * four.at[j];
    }
    parts[threadIdx.x] = sum;
    BARRIER
    if (threadIdx.x < 16) {
        float sum = 0;
        for (uint32 j = threadIdx.x; j < blockDim.x; j += 16) sum += parts[j];
        groups[threadIdx.x] = sum;
    }
    BARRIER
    Cut cut = {below, above, width, low, high};
    float sum = 0;
    for (int j = 0; j < 16; ++j) sum += groups[j];
    float scale = 1.0f / sqrtf(sum / dims + 1e-8f);
    EACH_QUAD(quad, dims) {
        Four four = truncated(philox(key, stream, start + blockIdx.x, quad), cut);
        for (int j = 0; j < 4; ++j) four.at[j] *= scale;
        store4(out + (int64)blockIdx.x * dims, quad, dims, four);
    }
    END
}
