// What the kernels share: names of the two worlds (NVRTC and the CPU's header), Philox, normals.
//
// A kernel's body is phases: BEGIN, statements, BARRIER, statements, END. A phase's variables end
// with it; only SHARED arrays, declared before BEGIN, live on. BARRIER stands at the top level of
// a body, never inside a loop or a branch.
#pragma once

#ifdef __CUDACC_RTC__
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;
#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define BEGIN {
#define BARRIER } __syncthreads(); {
#define END }
DEVICE float as_float(uint32 bits) { return __uint_as_float(bits); }
DEVICE uint32 as_bits(float value) { return __float_as_uint(value); }
// Relative error 2^-22, near 1 absolute: for arguments of which no more is asked.
DEVICE float fast_log(float value) { return __logf(value); }
struct Half { unsigned short bits; };
DEVICE float load(const Half *from) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(from->bits));
    return value;
}
DEVICE Half to_half(float value) {
    Half half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
    return half;
}
#else
#include "cpu.h"
#endif

#define INFINITE as_float(0x7f800000u)

// The type of features that come in and go out.
#ifndef TYPE
#define TYPE float
#endif

// Rows of whole quads: said when it is compiled (WHOLE), the ragged end costs nothing.
#ifdef WHOLE
#define ALL_QUADS_WHOLE(dims) true
#else
#define ALL_QUADS_WHOLE(dims) ((dims) % 4 == 0)
#endif

// Every element of a long row of numbers; every row of a table, and four columns of it at a time.
#define EACH(i, count) \
    for (int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x; i < (count); \
         i += (int64)gridDim.x * blockDim.x)
#define EACH_ROW(row, rows) \
    for (int64 row = (int64)blockIdx.x * blockDim.y + threadIdx.y; row < (rows); \
         row += (int64)gridDim.x * blockDim.y)
#define EACH_QUAD(quad, dims) \
    for (uint32 quad = threadIdx.x; quad < ((dims) + 3) / 4; quad += blockDim.x)

struct Bfloat16 { unsigned short bits; };
struct Words { uint32 word[4]; };
struct Four { float at[4]; };

DEVICE float load(const float *from) { return *from; }
DEVICE float load(const Bfloat16 *from) { return as_float((uint32)from->bits << 16); }
DEVICE void store(float *to, float value) { *to = value; }
DEVICE void store(Half *to, float value) { *to = to_half(value); }
// Rounded to even; nothing here is NaN.
DEVICE void store(Bfloat16 *to, float value) {
    uint32 bits = as_bits(value);
    to->bits = (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

struct alignas(16) Quad32 { float at[4]; };
struct alignas(8) Quad16 { unsigned short at[4]; };

DEVICE Four load4(const float *row, uint32 quad, uint32 dims) {
    Four four = {{0, 0, 0, 0}};
    if (ALL_QUADS_WHOLE(dims)) {
        Quad32 whole = ((const Quad32 *)row)[quad];
        for (int j = 0; j < 4; ++j) four.at[j] = whole.at[j];
    } else {
        for (int j = 0; j < 4; ++j)
            if (4 * quad + j < dims) four.at[j] = row[4 * quad + j];
    }
    return four;
}

template <typename Narrow>
DEVICE Four load4(const Narrow *row, uint32 quad, uint32 dims) {
    Four four = {{0, 0, 0, 0}};
    if (ALL_QUADS_WHOLE(dims)) {
        Quad16 whole = ((const Quad16 *)row)[quad];
        for (int j = 0; j < 4; ++j) {
            Narrow one;
            one.bits = whole.at[j];
            four.at[j] = load(&one);
        }
    } else {
        for (int j = 0; j < 4; ++j)
            if (4 * quad + j < dims) four.at[j] = load(row + 4 * quad + j);
    }
    return four;
}

DEVICE void store4(float *row, uint32 quad, uint32 dims, Four four) {
    if (ALL_QUADS_WHOLE(dims)) {
        Quad32 whole;
        for (int j = 0; j < 4; ++j) whole.at[j] = four.at[j];
        ((Quad32 *)row)[quad] = whole;
    } else {
        for (int j = 0; j < 4; ++j)
            if (4 * quad + j < dims) row[4 * quad + j] = four.at[j];
    }
}

template <typename Narrow>
DEVICE void store4(Narrow *row, uint32 quad, uint32 dims, Four four) {
    if (ALL_QUADS_WHOLE(dims)) {
        Quad16 whole;
        for (int j = 0; j < 4; ++j) {
            Narrow one;
            store(&one, four.at[j]);
            whole.at[j] = one.bits;
        }
        ((Quad16 *)row)[quad] = whole;
    } else {
        for (int j = 0; j < 4; ++j)
            if (4 * quad + j < dims) store(row + 4 * quad + j, four.at[j]);
    }
}

// Philox4x32-10 at the address (key = seed, stream, index, block of four draws): rng.py's words.
DEVICE Words philox(uint64 key, uint32 stream, uint64 index, uint32 block) {
    uint32 c0 = block, c1 = stream, c2 = (uint32)index, c3 = (uint32)(index >> 32);
    uint32 k0 = (uint32)key, k1 = (uint32)(key >> 32);
    for (int round = 0; round < 10; ++round) {
        uint64 p0 = (uint64)0xD2511F53u * c0, p1 = (uint64)0xCD9E8D57u * c2;
        c0 = (uint32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32)p1;
        c2 = (uint32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// rng.integers in [0, span): the upper half of 64 random bits times the span.
DEVICE uint32 integer(uint32 high, uint32 low, uint64 span) {
    return (uint32)((high * span + (low * span >> 32)) >> 32);
}

// rng.uniforms in [0, 1): the upper 24 bits.
DEVICE float uniform(uint32 word) { return (float)(word >> 8) * 5.9604644775390625e-8f; }

// -log((word + 1) / 2^32), relative error below 3e-7 over all words: near 1 the argument comes from
// the word's complement, elsewhere it is m 2^e with m in [2/3, 4/3); a minimax polynomial does log m.
DEVICE float minus_log(uint32 word) {
    bool near = word >= 0xaaaaaaabu;
    uint32 bits = as_bits((float)(word + 1u));
    int e = (int)(bits - 0x3f2aaaabu) >> 23;
    float m = as_float(bits - ((uint32)e << 23));
    float f = near ? -(float)~word * 2.3283064365386963e-10f : m - 1.0f;
    float k = near ? 0.0f : (float)(e - 32);
    float p = 0.14187538623809814f;
    p = p * f - 0.1555522233247757f;
    p = p * f + 0.13957449793815613f;
    p = p * f - 0.1637904942035675f;
    p = p * f + 0.20014029741287231f;
    p = p * f - 0.2501034438610077f;
    p = p * f + 0.3333313465118408f;
    p = p * f - 0.4999988377094269f;
    return -(k * 0.693147182464599609375f + (f + f * f * p));
}

// Cosine and sine of a whole turn times word / 2^32: the quarter from the word, a polynomial inside.
DEVICE void cos_sin(uint32 word, float *cosine, float *sine) {
    uint32 quarter = (word + 0x20000000u) >> 30;
    float x = (float)(int)(word - (quarter << 30)) * 1.462918079607e-9f;
    float x2 = x * x;
    float s = x + x * x2 * ((-0.00019612714822869748f * x2 + 0.008332965895533562f) * x2 - 0.1666666716337204f);
    float c = 1.0f - 0.5f * x2 + x2 * x2 * ((2.4505186956957914e-05f * x2 - 0.0013888097601011395f) * x2 + 0.0416666679084301f);
    float even = quarter & 1u ? s : c, odd = quarter & 1u ? c : s;
    // A sign is the top bit: bit 1 of the quarter (and of the next one, for the cosine) goes there.
    *cosine = as_float(as_bits(even) ^ (((quarter + 1u) & 2u) << 30));
    *sine = as_float(as_bits(odd) ^ ((quarter & 2u) << 30));
}

// Four standard normals of four words (Box and Muller 1958), as rng.normals to 1e-6 relative.
DEVICE Four normals(Words words) {
    Four four;
    for (int pair = 0; pair < 4; pair += 2) {
        float radius = sqrtf(2.0f * minus_log(words.word[pair]));
        cos_sin(words.word[pair + 1], &four.at[pair], &four.at[pair + 1]);
        four.at[pair] *= radius;
        four.at[pair + 1] *= radius;
    }
    return four;
}
