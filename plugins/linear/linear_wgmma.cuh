// The products of Hopper's tensor cores with both operands in shared memory.
#pragma once

#include "qkv_to_context/qkv_to_context_wgmma.cuh"

namespace bert
{

#define BERT_SUMS_4(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define BERT_SUMS_16(i) BERT_SUMS_4(i), BERT_SUMS_4(i + 1), BERT_SUMS_4(i + 2), BERT_SUMS_4(i + 3)

// clang-format off
#define BERT_WGMMA_SHARED_64(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
        "}, %32, %33, p, 1, 1, 0, 1;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4) \
        : "l"(a), "l"(b), "r"(accumulate))
// clang-format on

// clang-format off
#define BERT_WGMMA_SHARED_96(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n96k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
        "}, %48, %49, p, 1, 1, 0, 1;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4), BERT_SUMS_16(8) \
        : "l"(a), "l"(b), "r"(accumulate))
// clang-format on

// clang-format off
#define BERT_WGMMA_SHARED_128(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
        "}, %64, %65, p, 1, 1, 0, 1;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4), BERT_SUMS_16(8), BERT_SUMS_16(12) \
        : "l"(a), "l"(b), "r"(accumulate))
// clang-format on

// clang-format off
#define BERT_WGMMA_SHARED_192(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n192k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
        "}, %96, %97, p, 1, 1, 0, 1;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4), BERT_SUMS_16(8), BERT_SUMS_16(12), BERT_SUMS_16(16), BERT_SUMS_16(20) \
        : "l"(a), "l"(b), "r"(accumulate))
// clang-format on

// clang-format off
#define BERT_WGMMA_SHARED_256(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
        "}, %128, %129, p, 1, 1, 0, 1;\n}" \
        : BERT_SUMS_16(0), BERT_SUMS_16(4), BERT_SUMS_16(8), BERT_SUMS_16(12), BERT_SUMS_16(16), BERT_SUMS_16(20), BERT_SUMS_16(24), BERT_SUMS_16(28) \
        : "l"(a), "l"(b), "r"(accumulate))
// clang-format on

#define BERT_WGMMA_SHARED(TYPE)                                                                              \
    if constexpr (kTILES == 8)                                                                               \
    {                                                                                                        \
        BERT_WGMMA_SHARED_64(TYPE);                                                                          \
    }                                                                                                        \
    else if constexpr (kTILES == 12)                                                                         \
    {                                                                                                        \
        BERT_WGMMA_SHARED_96(TYPE);                                                                          \
    }                                                                                                        \
    else if constexpr (kTILES == 16)                                                                         \
    {                                                                                                        \
        BERT_WGMMA_SHARED_128(TYPE);                                                                         \
    }                                                                                                        \
    else if constexpr (kTILES == 24)                                                                         \
    {                                                                                                        \
        BERT_WGMMA_SHARED_192(TYPE);                                                                         \
    }                                                                                                        \
    else                                                                                                     \
    {                                                                                                        \
        static_assert(kTILES == 32);                                                                         \
        BERT_WGMMA_SHARED_256(TYPE);                                                                         \
    }

// sums (64, 8 * kTILES) = a (64, 16) b (16, 8 * kTILES), added to what they hold if `accumulate`. Rows of a lie one
// after the other in memory, and so do those of b: its k is not what is contiguous.
template <int kTILES>
__device__ void multiplyShared(
    float (&sums)[kTILES][4], uint64_t a, uint64_t b, int accumulate, __half /*type*/)
{
    BERT_WGMMA_SHARED("f16")
}
template <int kTILES>
__device__ void multiplyShared(
    float (&sums)[kTILES][4], uint64_t a, uint64_t b, int accumulate, __nv_bfloat16 /*type*/)
{
    BERT_WGMMA_SHARED("bf16")
}

#undef BERT_WGMMA_SHARED
#undef BERT_WGMMA_SHARED_64
#undef BERT_WGMMA_SHARED_96
#undef BERT_WGMMA_SHARED_128
#undef BERT_WGMMA_SHARED_192
#undef BERT_WGMMA_SHARED_256
#undef BERT_SUMS_16
#undef BERT_SUMS_4

} // namespace bert
