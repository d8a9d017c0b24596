// Around the product of neighbours.py: the smallest bounds of a tile, exact distances of the few.
#include "device.h"

#ifndef KEEP
#define KEEP 21
#endif
// What bounds are made of: float, or double where a float cannot tell.
#ifndef NUMBER
#define NUMBER float
#endif
#define THREADS 32
#define NONE 0xffffffffu

// Puts a candidate in its place of a sorted list; what was there comes first among equals.
DEVICE void insert(NUMBER *bounds, uint32 *ids, NUMBER bound, uint32 id) {
    int place = KEEP - 1;
    for (; place > 0 && bounds[place - 1] > bound; --place) {
        bounds[place] = bounds[place - 1];
        ids[place] = ids[place - 1];
    }
    bounds[place] = bound;
    ids[place] = id;
}

// Merges a tile of products q.r, (queries, columns), into the KEEP smallest of
// |r|^2 - 2 q.r - slack |r| a query. One block a query: each thread keeps the smallest of its
// columns, then the rank of each among all says where it goes. `itself` is -1 where nothing is left out.
KERNEL keep_smallest(
    const NUMBER *tile, uint32 columns, const NUMBER *squares, const NUMBER *lengths,
    const NUMBER *slack, const int64 *itself, uint32 first, NUMBER *bounds, uint32 *ids) {
    SHARED NUMBER all_bounds[THREADS * KEEP];
    SHARED uint32 all_ids[THREADS * KEEP];
    BEGIN
    int64 query = blockIdx.x;
    NUMBER best[KEEP];
    uint32 best_ids[KEEP];
    for (int c = 0; c < KEEP; ++c) {
        best[c] = INFINITE;
        best_ids[c] = NONE;
    }
    for (int c = threadIdx.x; c < KEEP; c += THREADS)
        if (bounds[query * KEEP + c] < best[KEEP - 1])
            insert(best, best_ids, bounds[query * KEEP + c], ids[query * KEEP + c]);
    for (uint32 m = threadIdx.x; m < columns; m += THREADS) {
        NUMBER bound = squares[m] - 2 * tile[query * columns + m] - slack[query] * lengths[m];
        if (bound < best[KEEP - 1] && (int64)first + m != itself[query])
            insert(best, best_ids, bound, first + m);
    }
    for (int c = 0; c < KEEP; ++c) {
        all_bounds[threadIdx.x * KEEP + c] = best[c];
        all_ids[threadIdx.x * KEEP + c] = best_ids[c];
    }
    BARRIER
    for (int own = threadIdx.x * KEEP; own < (int)(threadIdx.x + 1) * KEEP; ++own) {
        NUMBER bound = all_bounds[own];
        uint32 id = all_ids[own];
        int rank = 0;
        for (int list = 0; list < THREADS; ++list)
            for (int other = list * KEEP; other < (list + 1) * KEEP; ++other) {
                if (all_bounds[other] > bound) break;
                bool before = all_bounds[other] < bound || all_ids[other] < id ||
                              (all_ids[other] == id && other < own);
                rank += before;
            }
        if (rank < KEEP) {
            bounds[(int64)blockIdx.x * KEEP + rank] = bound;
            ids[(int64)blockIdx.x * KEEP + rank] = id;
        }
    }
    END
}

// Squared distances of the KEEP candidates from the differences, the k nearest in order. One block
// of 128 threads a query; a few threads share a candidate.
KERNEL rerank(
    const float *queries, const float *rows, uint32 dims, const uint32 *ids, uint32 k,
    float *squares, int64 *indices) {
    SHARED float parts[128], totals[KEEP];
    BEGIN
    uint32 sharing = 128 / KEEP, candidate = threadIdx.x / sharing;
    float sum = 0;
    if (candidate < KEEP && ids[(int64)blockIdx.x * KEEP + candidate] != NONE) {
        const float *query = queries + (int64)blockIdx.x * dims;
        const float *row = rows + (int64)ids[(int64)blockIdx.x * KEEP + candidate] * dims;
        for (uint32 d = threadIdx.x % sharing; d < dims; d += sharing) {
            float difference = query[d] - row[d];
            sum += difference * difference;
        }
    }
    parts[threadIdx.x] = sum;
    BARRIER
    uint32 sharing = 128 / KEEP;
    if (threadIdx.x < KEEP) {
        float sum = 0;
        for (uint32 j = 0; j < sharing; ++j) sum += parts[threadIdx.x * sharing + j];
        bool none = ids[(int64)blockIdx.x * KEEP + threadIdx.x] == NONE;
        totals[threadIdx.x] = none ? INFINITE : sum;
    }
    BARRIER
    if (threadIdx.x < KEEP) {
        const uint32 *found = ids + (int64)blockIdx.x * KEEP;
        float own = totals[threadIdx.x];
        uint32 rank = 0;
        for (uint32 other = 0; other < KEEP; ++other)
            rank += totals[other] < own ||
                    (totals[other] == own && (found[other] < found[threadIdx.x] ||
                     (found[other] == found[threadIdx.x] && other < threadIdx.x)));
        if (rank < k) {
            squares[(int64)blockIdx.x * k + rank] = own;
            indices[(int64)blockIdx.x * k + rank] = found[threadIdx.x];
        }
    }
    END
}
