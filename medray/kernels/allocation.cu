// Which rows are started from: how many neighbours are of another class, and a draw by weight.
#include "device.h"

KERNEL foreign_neighbours(
    int *counts, int64 rows, const int64 *neighbours, uint32 k, const int *own, const int *labels) {
    BEGIN
    EACH(row, rows) {
        int count = 0;
        for (uint32 slot = 0; slot < k; ++slot)
            count += labels[neighbours[row * k + slot]] != own[row];
        counts[row] = count;
    }
    END
}

// A row of the sample's class by alias table: the class has the slots offsets[k] .. offsets[k + 1].
KERNEL choose_rows(
    int64 *chosen, int64 count, uint64 start, uint64 key, uint32 stream, const int *labels,
    const int64 *offsets, const int64 *rows, const uint64 *thresholds, const int64 *aliases) {
    BEGIN
    EACH(i, count) {
        Words words = philox(key, stream, start + i, 0);
        int64 first = offsets[labels[i]];
        uint64 size = offsets[labels[i] + 1] - first;
        int64 slot = first + integer(words.word[0], words.word[1], size);
        chosen[i] = words.word[2] < thresholds[slot] ? rows[slot] : aliases[slot];
    }
    END
}
