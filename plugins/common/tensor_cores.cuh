// What kernels with mma.sync share: tiles in shared memory, copies to them, and the instructions that read and
// multiply them. Operands and results have the register layout of mma.sync: a warp has 16 rows of a result, and in
// each group of 8 columns a thread holds columns 2t and 2t + 1 of rows g and g + 8: values [0], [1] and [2], [3], with
// g = lane / 4 and t = lane % 4.
#pragma once

#include "common/element.cuh"

#include <cstdint>
#include <type_traits>

namespace bert
{

inline __device__ uint32_t sharedAddress(void const* pointer)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---------------------------------------------------------------------------------------------------------------
// Tiles in shared memory
// ---------------------------------------------------------------------------------------------------------------

// kROWS rows of kSIZE two-byte elements, in panels of at most 64 columns. The pieces of 16 bytes in a row of a panel
// are permuted (swizzled), so that 8 rows of one column lie in 8 different groups of banks. Hopper's tensor cores and
// TMA read this order: it is their 128-byte swizzle, with 32 columns their 64-byte and with 16 columns their 32-byte
// swizzle. int8 elements count in pairs: rows of kSIZE of them are a tile of kSIZE / 2.
template <int kROWS, int kSIZE>
struct SharedTile
{
    static constexpr int kPANEL_COLUMNS = kSIZE < 64 ? kSIZE : 64;
    static constexpr int kROW_BYTES = kPANEL_COLUMNS * 2;
    static constexpr int kPANEL_BYTES = kROWS * kROW_BYTES;
    static constexpr int kBYTES = kROWS * kSIZE * 2;
    static constexpr int kPIECES = kPANEL_COLUMNS / 8; // of a row of a panel

    static __device__ uint32_t offset(uint32_t row, uint32_t piece)
    {
        uint32_t const panel = piece / kPIECES;
        uint32_t const permuted = (piece ^ row / (8 / kPIECES)) % kPIECES;
        return panel * kPANEL_BYTES + row * kROW_BYTES + permuted * 16;
    }
};

// Stores and loads of 16 bytes in shared memory, and of 4.
inline __device__ void storePiece(uint32_t target, uint4 const& piece)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(piece.x), "r"(piece.y),
        "r"(piece.z), "r"(piece.w)
        : "memory");
}
inline __device__ uint4 loadPiece(uint32_t source)
{
    uint4 piece;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
        : "r"(source)
        : "memory");
    return piece;
}
inline __device__ void storeWord(uint32_t target, uint32_t word)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(target), "r"(word) : "memory");
}
inline __device__ uint32_t loadWord(uint32_t source)
{
    uint32_t word;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(source) : "memory");
    return word;
}
// Copies 16 bytes from global to shared memory, or writes zeros if not `exists`. Asynchronous (cp.async) from 8.0 on.
inline __device__ void copyPiece(uint32_t target, void const* source, bool exists)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(exists ? 16 : 0)
        : "memory");
#else
    storePiece(target, exists ? *static_cast<uint4 const*>(source) : uint4{});
#endif
}
inline __device__ void commitCopyGroup()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the last kPENDING groups of this thread's copies are in flight.
template <int kPENDING>
__device__ void waitForCopyGroups()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPENDING) : "memory");
#endif
}

// Loads four 8 x 8 matrices from shared memory; lane i passes the address of row i % 8 of matrix i / 8.
inline __device__ void loadMatrices(uint32_t (&matrices)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
        : "r"(address)
        : "memory");
}
inline __device__ void loadMatricesTransposed(uint32_t (&matrices)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
        : "r"(address)
        : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// Products and results
// ---------------------------------------------------------------------------------------------------------------

// The type of sums of products of T.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;

// Whether `multiply` exists for T on the architecture that this code is compiled for.
template <typename T>
__host__ __device__ constexpr bool tensorCoresMultiply()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return std::is_same_v<T, __half> || std::is_same_v<T, int8_t>;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    return !std::is_same_v<T, E4m3>;
#else
    return true;
#endif
}

// sums (16, 8) += a (16, 32 bytes of k) b (as many of k, 8): 16 elements of fp16 and bf16, 32 of int8 and E4M3. Where
// the bytes of the operands lie in registers is the same for all types.
inline __device__ void multiply(
    float (&sums)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, __half /*type*/)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
inline __device__ void multiply(
    float (&sums)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16 /*type*/)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

inline __device__ void multiply(
    int32_t (&sums)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int8_t /*type*/)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#pragma unroll
    for (int half = 0; half < 2; ++half) // 8 rows
    {
#pragma unroll
        for (int k = 0; k < 2; ++k)
        {
            asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                : "+r"(sums[2 * half]), "+r"(sums[2 * half + 1])
                : "r"(a[2 * k + half]), "r"(k == 0 ? b0 : b1));
        }
    }
#endif
}
inline __device__ void multiply(
    float (&sums)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, E4m3 /*type*/)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

inline __device__ void packPair(uint32_t& word, float low, float high, __half /*type*/)
{
    __half2 const pair = __floats2half2_rn(low, high);
    word = *reinterpret_cast<uint32_t const*>(&pair);
}
inline __device__ void packPair(uint32_t& word, float low, float high, __nv_bfloat16 /*type*/)
{
    __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
    word = *reinterpret_cast<uint32_t const*>(&pair);
}
// Rounded half to even and saturated; NaN becomes 0. The upper half of the word is `upper`.
inline __device__ void packPair(uint32_t& word, float low, float high, int8_t /*type*/, uint32_t upper = 0)
{
    asm("{\n.reg .s32 a, b;\ncvt.rni.s32.f32 a, %1;\ncvt.rni.s32.f32 b, %2;\n"
        "cvt.pack.sat.s8.s32.b32 %0, b, a, %3;\n}"
        : "=r"(word)
        : "f"(low), "f"(high), "r"(upper));
}
inline __device__ void packPair(uint32_t& word, float low, float high, E4m3 /*type*/, uint32_t upper = 0)
{
    word = __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3) | upper << 16;
}

// The transpose of an 8 x 8 matrix of 16-bit elements that a warp has in the layout of sums.
inline __device__ uint32_t transposeMatrix(uint32_t matrix)
{
    uint32_t transpose;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transpose) : "r"(matrix));
    return transpose;
}
// Stores four 8 x 8 matrices to shared memory.
inline __device__ void storeMatrices(uint32_t address, uint32_t const (&matrices)[4])
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
        : "memory");
#endif
}
// The same for their transposes.
inline __device__ void storeTransposedMatrices(uint32_t address, uint32_t const (&matrices)[4])
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
        : "memory");
#endif
}

} // namespace bert
