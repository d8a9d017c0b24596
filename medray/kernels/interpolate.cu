// Rows between two rows of a table: SMOTE and mixup.
#include "device.h"

DEVICE void between(TYPE *out, const TYPE *from, const TYPE *to, float share, uint32 dims) {
    EACH_QUAD(quad, dims) {
        Four a = load4(from, quad, dims), b = load4(to, quad, dims);
        for (int j = 0; j < 4; ++j) a.at[j] += share * (b.at[j] - a.at[j]);
        store4(out, quad, dims, a);
    }
}

// Words 0 and 1 draw the row (unless `bases` says it), 2 its neighbour, 3 the share of the way.
KERNEL smote_rows(
    TYPE *out, int64 rows, uint32 dims, uint64 start, uint64 key, uint32 stream,
    const TYPE *table, uint64 table_rows, const int64 *neighbours, uint32 k, const int64 *bases) {
    BEGIN
    EACH_ROW(row, rows) {
        Words words = philox(key, stream, start + row, 0);
        int64 base = bases ? bases[row] : integer(words.word[0], words.word[1], table_rows);
        int64 other = neighbours[base * k + (uint32)((uint64)words.word[2] * k >> 32)];
        between(out + row * dims, table + base * dims, table + other * dims,
                uniform(words.word[3]), dims);
    }
    END
}

// A draw of Beta(a, a) without rejection (Devroye 1996, from Bailey's t): power is 1 / a.
DEVICE float symmetric_beta(uint32 first, uint32 second, float power) {
    float cosine, sine;
    cos_sin(second, &cosine, &sine);
    float spread = expm1f(minus_log(first) * power) * cosine * cosine;
    float half = 0.5f / sqrtf(1.0f + 1.0f / spread);
    return cosine < 0 ? 0.5f - half : 0.5f + half;
}

// Words 0 to 3 draw the two rows (unless `pairs` has them), 4 and 5 the first one's weight.
KERNEL mixup_rows(
    TYPE *out, int64 rows, uint32 dims, uint64 start, uint64 key, uint32 stream,
    const TYPE *table, uint64 table_rows, float power, uint32 given, int64 *pairs,
    float *weights) {
    BEGIN
    EACH_ROW(row, rows) {
        Words words = philox(key, stream, start + row, 0);
        Words more = philox(key, stream, start + row, 1);
        int64 first = pairs[2 * row], second = pairs[2 * row + 1];
        if (!given) {
            first = integer(words.word[0], words.word[1], table_rows);
            second = integer(words.word[2], words.word[3], table_rows);
        }
        float weight = symmetric_beta(more.word[0], more.word[1], power);
        between(out + row * dims, table + first * dims, table + second * dims, 1.0f - weight, dims);
        if (threadIdx.x == 0) {
            if (!given) {
                pairs[2 * row] = first;
                pairs[2 * row + 1] = second;
            }
            weights[row] = weight;
        }
    }
    END
}
