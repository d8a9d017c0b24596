// What stands around a convolution, on pixels as rows of channels (channels last), each in one pass.
#include "device.h"

#define LEAK 0.2f
#define EPSILON 1e-8f

DEVICE Four leaky_of(const TYPE *row, const TYPE *bias, uint32 quad, uint32 dims) {
    Four four = load4(row, quad, dims), more = load4(bias, quad, dims);
    for (int j = 0; j < 4; ++j) {
        float value = four.at[j] + more.at[j];
        four.at[j] = value > 0.0f ? value : LEAK * value;
    }
    return four;
}

// leaky_relu(y + bias), in place.
KERNEL bias_leaky(TYPE *y, int64 rows, uint32 dims, const TYPE *bias) {
    BEGIN
    EACH_ROW(row, rows)
        EACH_QUAD(quad, dims)
            store4(y + row * dims, quad, dims, leaky_of(y + row * dims, bias, quad, dims));
    END
}

// The same over the root of the row's mean square, whose reciprocal goes to `scales`; in place. A
// row of threads for each row: the block has as many as its blocks share out.
KERNEL bias_leaky_norm(TYPE *y, int64 rows, uint32 dims, const TYPE *bias, float *scales) {
    SHARED float parts[256];
    BEGIN
    int64 row = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    float sum = 0;
    if (row < rows)
        EACH_QUAD(quad, dims) {
            Four four = leaky_of(y + row * dims, bias, quad, dims);
            for (int j = 0; j < 4; ++j) sum += four.at[j] * four.at[j];
        }
    parts[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    BARRIER
    int64 row = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row < rows) {
        float sum = 0;
        for (uint32 i = 0; i < blockDim.x; ++i) sum += parts[threadIdx.y * blockDim.x + i];
        float scale = 1.0f / sqrtf(sum / (float)dims + EPSILON);
        EACH_QUAD(quad, dims) {
            Four four = leaky_of(y + row * dims, bias, quad, dims);
            for (int j = 0; j < 4; ++j) four.at[j] *= scale;
            store4(y + row * dims, quad, dims, four);
        }
        if (threadIdx.x == 0) scales[row] = scale;
    }
    END
}

// Its gradient by y + bias, of the gradient g and what it gave: with s the scale,
// s (g - y mean(g y)), times the slope by the sign of y.
KERNEL leaky_norm_gradient(
    TYPE *out, int64 rows, uint32 dims, const TYPE *g, const TYPE *y, const float *scales) {
    SHARED float parts[256];
    BEGIN
    int64 row = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    float sum = 0;
    if (row < rows)
        EACH_QUAD(quad, dims) {
            Four a = load4(g + row * dims, quad, dims), b = load4(y + row * dims, quad, dims);
            for (int j = 0; j < 4; ++j) sum += a.at[j] * b.at[j];
        }
    parts[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    BARRIER
    int64 row = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row < rows) {
        float share = 0;
        for (uint32 i = 0; i < blockDim.x; ++i) share += parts[threadIdx.y * blockDim.x + i];
        share /= (float)dims;
        float scale = scales[row];
        EACH_QUAD(quad, dims) {
            Four a = load4(g + row * dims, quad, dims), b = load4(y + row * dims, quad, dims);
            for (int j = 0; j < 4; ++j) {
                float by = (a.at[j] - b.at[j] * share) * scale;
                a.at[j] = b.at[j] > 0.0f ? by : LEAK * by;
            }
            store4(out + row * dims, quad, dims, a);
        }
    }
    END
}

// Where the 2 x 2 pixels of a pixel begin, in lines of 2^log_width pixels of the smaller image.
DEVICE int64 corner(int64 row, uint32 log_width) {
    int64 line = row >> log_width;
    return (4 * line << log_width) + 2 * (row - (line << log_width));
}

// The mean of 2 x 2 pixels.
KERNEL halve_pixels(TYPE *out, int64 rows, uint32 dims, const TYPE *in, uint32 log_width) {
    BEGIN
    EACH_ROW(row, rows) {
        const TYPE *above = in + corner(row, log_width) * dims;
        const TYPE *below = above + ((int64)2 << log_width) * dims;
        EACH_QUAD(quad, dims) {
            Four sum = load4(above, quad, dims), b = load4(above + dims, quad, dims);
            Four c = load4(below, quad, dims), d = load4(below + dims, quad, dims);
            for (int j = 0; j < 4; ++j)
                sum.at[j] = 0.25f * (sum.at[j] + b.at[j] + c.at[j] + d.at[j]);
            store4(out + row * dims, quad, dims, sum);
        }
    }
    END
}

// A quarter of a pixel to each of its 2 x 2; rows are those of the smaller image.
KERNEL spread_pixels(TYPE *out, int64 rows, uint32 dims, const TYPE *in, uint32 log_width) {
    BEGIN
    EACH_ROW(row, rows) {
        TYPE *above = out + corner(row, log_width) * dims;
        TYPE *below = above + ((int64)2 << log_width) * dims;
        EACH_QUAD(quad, dims) {
            Four four = load4(in + row * dims, quad, dims);
            for (int j = 0; j < 4; ++j) four.at[j] *= 0.25f;
            store4(above, quad, dims, four);
            store4(above + dims, quad, dims, four);
            store4(below, quad, dims, four);
            store4(below + dims, quad, dims, four);
        }
    }
    END
}
