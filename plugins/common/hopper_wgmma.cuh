// wgmma, the asynchronous matrix multiplication of Hopper's tensor cores: a warpgroup of four warps multiplies 64
// rows, in registers or in shared memory, with a matrix in shared memory, and continues while it is computed. Needs
// sm_90a.
#pragma once

#include "common/element.cuh"
#include "common/reduce.cuh"

#include <cstdint>

namespace bert
{

constexpr int kWARPGROUP = 4 * kWARP;

// Orders earlier writes to registers of operands and results before the wgmma instructions that follow.
inline __device__ void wgmmaFence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Ends a group of wgmma instructions.
inline __device__ void wgmmaCommit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most the last kPENDING groups are in flight.
template <int kPENDING>
__device__ void wgmmaWait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPENDING) : "memory");
}
// Makes shared memory that was written by ordinary stores visible to the async proxy (wgmma and TMA), after a
// barrier.
inline __device__ void fenceAsyncProxy()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The compiler does not know that wgmma is asynchronous. This keeps it from moving reads of results, and writes of
// operands, across this line.
template <int kTILES>
__device__ void fenceRegisters(float (&registers)[kTILES][4])
{
#pragma unroll
    for (int n = 0; n < kTILES; ++n)
    {
        asm volatile(""
            : "+f"(registers[n][0]), "+f"(registers[n][1]), "+f"(registers[n][2]), "+f"(registers[n][3]));
    }
}
template <int kTILES>
__device__ void fenceRegisters(uint32_t (&registers)[kTILES][4])
{
#pragma unroll
    for (int n = 0; n < kTILES; ++n)
    {
        asm volatile(""
            : "+r"(registers[n][0]), "+r"(registers[n][1]), "+r"(registers[n][2]), "+r"(registers[n][3]));
    }
}

// Describes a matrix in shared memory with the swizzle of SharedTile: 8 rows take 8 * kROW_BYTES, panels are
// kPANEL_BYTES apart. (PTX ISA, "Matrix descriptor": address, leading and stride offset in units of 16 bytes.)
template <int kROW_BYTES, int kPANEL_BYTES>
__device__ uint64_t matrixDescriptor(uint32_t address)
{
    static_assert(kROW_BYTES == 128 || kROW_BYTES == 64 || kROW_BYTES == 32);
    constexpr uint64_t kSWIZZLE = kROW_BYTES == 128 ? 1 : (kROW_BYTES == 64 ? 2 : 3);
    constexpr uint64_t kSTRIDE = 8 * kROW_BYTES / 16;
    constexpr uint64_t kLEADING = kPANEL_BYTES / 16;
    return kSWIZZLE << 62 | kSTRIDE << 32 | kLEADING << 16 | (address & 0x3FFFFU) >> 4;
}

#define BERT_SUMS_4(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define BERT_SUMS_16(i) BERT_SUMS_4(i), BERT_SUMS_4(i + 1), BERT_SUMS_4(i + 2), BERT_SUMS_4(i + 3)
#define BERT_OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTRANSPOSED)
#define BERT_SHARED_OPERANDS "l"(a), "l"(b), "r"(accumulate), "n"(kTRANSPOSED)

// clang-format off
#define BERT_WGMMA_32(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n32k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}" \
        : BERT_SUMS_16(0) \
        : BERT_OPERANDS)
// clang-format on

// clang-format off
#define BERT_WGMMA_64(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4) \
        : BERT_OPERANDS)
// clang-format on

// clang-format off
#define BERT_WGMMA_128(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, " \
        "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
        "%62, %63" \
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4), BERT_SUMS_16(8), BERT_SUMS_16(12) \
        : BERT_OPERANDS)
// clang-format on

// clang-format off
#define BERT_WGMMA_SHARED_64(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
        "}, %32, %33, p, 1, 1, 0, %35;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4) \
        : BERT_SHARED_OPERANDS)
// clang-format on

// clang-format off
#define BERT_WGMMA_SHARED_128(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
        "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
        "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
        "}, %64, %65, p, 1, 1, 0, %67;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4), BERT_SUMS_16(8), BERT_SUMS_16(12) \
        : BERT_SHARED_OPERANDS)
// clang-format on

// sums (64, 8 * kTILES) = a (64, 16) b (16, 8 * kTILES), added to the previous sums if `accumulate`. A transposed b
// has its rows of k contiguous in memory, otherwise its columns.
template <int kTRANSPOSED, int kTILES>
__device__ void multiplyAsync(
    float (&sums)[kTILES][4], uint32_t const (&a)[4], uint64_t b, int accumulate, __half /*type*/)
{
    static_assert(kTILES == 4 || kTILES == 8 || kTILES == 16);
    if constexpr (kTILES == 4)
    {
        BERT_WGMMA_32("f16");
    }
    else if constexpr (kTILES == 8)
    {
        BERT_WGMMA_64("f16");
    }
    else
    {
        BERT_WGMMA_128("f16");
    }
}
template <int kTRANSPOSED, int kTILES>
__device__ void multiplyAsync(
    float (&sums)[kTILES][4], uint32_t const (&a)[4], uint64_t b, int accumulate, __nv_bfloat16 /*type*/)
{
    static_assert(kTILES == 4 || kTILES == 8 || kTILES == 16);
    if constexpr (kTILES == 4)
    {
        BERT_WGMMA_32("bf16");
    }
    else if constexpr (kTILES == 8)
    {
        BERT_WGMMA_64("bf16");
    }
    else
    {
        BERT_WGMMA_128("bf16");
    }
}

#define BERT_INT8_OPERANDS "l"(a), "l"(b), "r"(accumulate)
#define BERT_INT_SUMS_4(i) "+r"(sums[i][0]), "+r"(sums[i][1]), "+r"(sums[i][2]), "+r"(sums[i][3])
#define BERT_INT_SUMS_16(i)                                                                                  \
    BERT_INT_SUMS_4(i), BERT_INT_SUMS_4(i + 1), BERT_INT_SUMS_4(i + 2), BERT_INT_SUMS_4(i + 3)

// clang-format off
#define BERT_WGMMA_INT8_SHARED_64() \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
        "}, %32, %33, p;\n}" \
        : BERT_INT_SUMS_16(0), BERT_INT_SUMS_16(4) \
        : BERT_INT8_OPERANDS)
// clang-format on

// clang-format off
#define BERT_WGMMA_INT8_SHARED_128() \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
        "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
        "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
        "}, %64, %65, p;\n}" \
        : BERT_INT_SUMS_16(0), BERT_INT_SUMS_16(4), BERT_INT_SUMS_16(8), BERT_INT_SUMS_16(12) \
        : BERT_INT8_OPERANDS)
// clang-format on

// The same with both operands in shared memory; rows of a are contiguous.
template <int kTRANSPOSED, int kTILES>
__device__ void multiplyAsync(
    float (&sums)[kTILES][4], uint64_t a, uint64_t b, int accumulate, __half /*type*/)
{
    static_assert(kTILES == 8 || kTILES == 16);
    if constexpr (kTILES == 8)
    {
        BERT_WGMMA_SHARED_64("f16");
    }
    else
    {
        BERT_WGMMA_SHARED_128("f16");
    }
}
template <int kTRANSPOSED, int kTILES>
__device__ void multiplyAsync(
    float (&sums)[kTILES][4], uint64_t a, uint64_t b, int accumulate, __nv_bfloat16 /*type*/)
{
    static_assert(kTILES == 8 || kTILES == 16);
    if constexpr (kTILES == 8)
    {
        BERT_WGMMA_SHARED_64("bf16");
    }
    else
    {
        BERT_WGMMA_SHARED_128("bf16");
    }
}

// int8, 32 elements of k at a time, with int32 sums. The layout of b is fixed: its columns are contiguous.
template <int kTILES>
__device__ void multiplyAsync(uint32_t (&sums)[kTILES][4], uint64_t a, uint64_t b, int accumulate)
{
    static_assert(kTILES == 8 || kTILES == 16);
    if constexpr (kTILES == 8)
    {
        BERT_WGMMA_INT8_SHARED_64();
    }
    else
    {
        BERT_WGMMA_INT8_SHARED_128();
    }
}

#undef BERT_WGMMA_32
#undef BERT_WGMMA_64
#undef BERT_WGMMA_128
#undef BERT_WGMMA_SHARED_64
#undef BERT_WGMMA_SHARED_128
#undef BERT_OPERANDS
#undef BERT_WGMMA_INT8_SHARED_64
#undef BERT_WGMMA_INT8_SHARED_128
#undef BERT_INT_SUMS_16
#undef BERT_INT_SUMS_4
#undef BERT_SHARED_OPERANDS
#undef BERT_INT8_OPERANDS
#undef BERT_SUMS_16
#undef BERT_SUMS_4

} // namespace bert
