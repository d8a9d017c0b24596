// How many of each row's neighbours are of another class than the row.
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
