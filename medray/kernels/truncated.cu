// Truncated normals by the inverse distribution function, with the row's pixel norm if wanted.
#include "device.h"

// The normal quantile of p in (0, 1/2], Wichura's PPND7 (Applied Statistics 37, 1988), about 1e-6.
DEVICE float lower_quantile(float p) {
    float q = p - 0.5f;
    if (q >= -0.425f) {
        float r = 0.180625f - q * q;
        float above = ((59.109374720f * r + 159.29113202f) * r + 50.434271938f) * r + 3.3871327179f;
        float below = ((67.187563600f * r + 78.757757664f) * r + 17.895169469f) * r + 1.0f;
        return q * above / below;
    }
    float r = sqrtf(-logf(p)), above, below;
    if (r <= 5.0f) {
        r -= 1.6f;
        above = ((0.17023821103f * r + 1.3067284816f) * r + 2.7568153900f) * r + 1.4234372777f;
        below = (0.12021132975f * r + 0.73700164250f) * r + 1.0f;
    } else {
        r -= 5.0f;
        above = ((0.017337203997f * r + 0.42868294337f) * r + 3.0812263860f) * r + 6.6579051150f;
        below = (0.012258202635f * r + 0.24197894225f) * r + 1.0f;
    }
    return -above / below;
}

// The probability below, above and between the bounds, and the bounds.
struct Cut { float below, above, width, low, high; };

DEVICE Four truncated(Words words, Cut cut) {
    Four four;
    for (int j = 0; j < 4; ++j) {
        float unit = cut.width * 2.3283064365386963e-10f;
        float p = cut.below + unit * ((float)words.word[j] + 0.5f);
        float rest = cut.above + unit * ((float)~words.word[j] + 0.5f);
        float x = p <= 0.5f ? lower_quantile(p) : -lower_quantile(rest);
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
