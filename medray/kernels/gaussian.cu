// Rows of a Gaussian of the row's class, noise in registers; what a matrix product made is added.
#include "device.h"

// Standard normals of the samples `members` (or start, start + 1, ... where it is null).
KERNEL noise_rows(
    TYPE *out, int64 rows, uint32 dims, uint64 start, const int64 *members, uint64 key,
    uint32 stream, uint32 first_block) {
    BEGIN
    EACH_ROW(row, rows) {
        uint64 index = start + (members ? members[row] : row);
        EACH_QUAD(quad, dims)
            store4(out + row * dims, quad, dims,
                   normals(philox(key, stream, index, first_block + quad)));
    }
    END
}

// mean + base + scale * noise of the row's class; `scales` null: no noise, `base` null: nothing.
KERNEL class_rows(
    TYPE *out, int64 rows, uint32 dims, uint64 start, const int64 *members, uint64 key,
    uint32 stream, const int *labels, const float *means, const float *scales, const float *base) {
    BEGIN
    EACH_ROW(row, rows) {
        int64 at = members ? members[row] : row, label = labels[at];
        const float *mean = means + label * dims, *scale_row = scales + label * dims;
        TYPE *to = out + at * dims;
        EACH_QUAD(quad, dims) {
            Four sum = load4(mean, quad, dims);
            if (scales) {
                Four noise = normals(philox(key, stream, start + at, quad));
                Four scale = load4(scale_row, quad, dims);
                for (int j = 0; j < 4; ++j) sum.at[j] += scale.at[j] * noise.at[j];
            }
            if (base) {
                Four more = load4(base + row * dims, quad, dims);
                for (int j = 0; j < 4; ++j) sum.at[j] += more.at[j];
            }
            store4(to, quad, dims, sum);
        }
    }
    END
}
