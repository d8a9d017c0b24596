// Labels of samples start .. start + count: by alias table, and exactly balanced.
#include "device.h"

// A slot from draw 0 (words 0 and 1), kept where word 2 is below its threshold (Walker 1977).
KERNEL alias_labels(
    int *labels, int64 count, uint64 start, uint64 key, uint32 stream,
    const uint64 *thresholds, const int *aliases, uint32 classes) {
    BEGIN
    EACH(i, count) {
        Words words = philox(key, stream, start + i, 0);
        uint32 slot = integer(words.word[0], words.word[1], classes);
        labels[i] = words.word[2] < thresholds[slot] ? (int)slot : aliases[slot];
    }
    END
}

DEVICE uint64 sort_key(uint64 key, uint32 stream, uint64 run, uint32 item) {
    Words words = philox(key, stream, run, item / 2);
    return (uint64)words.word[item % 2 * 2] << 32 | words.word[item % 2 * 2 + 1];
}

// Each run of `classes` samples is a permutation: item j stands at the rank of its 64-bit draw.
// The threads go over whole runs and write what lies in start .. start + count.
KERNEL balanced_labels(
    int *labels, int64 count, uint64 start, uint64 key, uint32 stream, uint32 classes) {
    BEGIN
    uint64 first = start / classes;
    int64 places = (int64)((start + (count - 1)) / classes + 1 - first) * classes;
    EACH(i, places) {
        uint64 run = first + i / classes;
        uint32 item = (uint32)(i % classes), rank = 0;
        uint64 own = sort_key(key, stream, run, item);
        for (uint32 other = 0; other < classes; ++other) {
            uint64 drawn = sort_key(key, stream, run, other);
            rank += drawn < own || (drawn == own && other < item);
        }
        int64 place = (int64)(run * classes + rank - start);
        if (0 <= place && place < count) labels[place] = (int)item;
    }
    END
}
