// The GPU's names for a C++ compiler, so that tests run the kernels' bodies on the CPU.
//
// A kernel runs block after block; a phase is a loop over the block's threads, and BARRIER ends one
// loop and begins the next. Compiled with -DNO_BARRIER the phases run into one another instead:
// the control that shows that a test depends on the barrier.
#pragma once

#include <cmath>
#include <cstring>

typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

struct Index3 { uint32 x, y, z; };
extern "C" {
Index3 gridDim, blockDim, blockIdx, threadIdx;
}

#define KERNEL extern "C" void
#define DEVICE static inline
#define SHARED static
#define EACH_THREAD \
    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y) \
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
#define BEGIN \
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) { EACH_THREAD {
#ifdef NO_BARRIER
#define BARRIER } {
#define END } } }
#undef BEGIN
#define BEGIN for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) { EACH_THREAD { {
#else
#define BARRIER } EACH_THREAD {
#define END } }
#endif

DEVICE float as_float(uint32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE uint32 as_bits(float value) {
    uint32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

DEVICE float fast_log(float value) { return logf(value); }

struct Half { unsigned short bits; };
DEVICE float load(const Half *from) {
    uint32 bits = from->bits, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent ? ldexpf(1024.0f + fraction, (int)exponent - 25) : ldexpf(fraction, -24);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}
// Rounded to even: a whole number of the last place, of 2^-24 at least.
DEVICE Half to_half(float value) {
    int exponent;
    float size = fabsf(value);
    frexpf(size, &exponent);
    exponent = exponent < -13 ? -13 : exponent;
    int units = (int)rintf(ldexpf(size, 11 - exponent));
    uint32 bits = (uint32)((exponent + 13) * 1024 + units);
    if (!(size < 65520.0f)) bits = size != size ? 0x7e00 : 0x7c00;
    return {(unsigned short)(bits | (std::signbit(value) ? 0x8000 : 0))};
}
