// Rows of one class as float64, less a row of it: what the product of a covariance is made of.
#include "device.h"

KERNEL shifted_rows(
    double *out, int64 rows, uint32 dims, const TYPE *features, const int64 *members,
    const double *shift) {
    BEGIN
    EACH_ROW(row, rows)
        for (uint32 d = threadIdx.x; d < dims; d += blockDim.x)
            out[row * dims + d] = (double)load(features + members[row] * dims + d) - shift[d];
    END
}
