// Elements in memory and in registers. Kernels compute in fp32 and round once, when they store.
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <type_traits>

namespace bert
{

using E4m3 = __nv_fp8_e4m3; // ElementType::kE4M3

inline __device__ float toFloat(float value)
{
    return value;
}
inline __device__ float toFloat(__half value)
{
    return __half2float(value);
}
// The conversion needs no bf16 arithmetic, so it works on every architecture, including 7.5.
inline __device__ float toFloat(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}
inline __device__ float toFloat(int8_t value)
{
    return static_cast<float>(value);
}

template <typename T>
__device__ T fromFloat(float value);

template <>
inline __device__ float fromFloat<float>(float value)
{
    return value;
}
template <>
inline __device__ __half fromFloat<__half>(float value)
{
    return __float2half_rn(value);
}
template <>
inline __device__ __nv_bfloat16 fromFloat<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}
// TensorRT's quantisation: round half to even, saturate to [-128, 127]. NaN becomes 0.
template <>
inline __device__ int8_t fromFloat<int8_t>(float value)
{
    return static_cast<int8_t>(max(-128, min(127, __float2int_rn(value))));
}

// Round half to even, saturate to [-448, 448]. NaN stays NaN. Two instructions from 8.9 on, many before.
template <>
inline __device__ E4m3 fromFloat<E4m3>(float value)
{
    E4m3 result;
    result.__x = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    return result;
}

// Calls function(T{}) with the C++ type of `type`.
template <typename Function>
auto dispatchElement(ElementType type, Function&& function)
{
    switch (type)
    {
    case ElementType::kHALF:
        return function(__half{});
    case ElementType::kBF16:
        return function(__nv_bfloat16{});
    default:
        return function(float{});
    }
}

// Neighbouring elements that are loaded and stored together, 16 bytes with one instruction.
template <typename T, int kCOUNT>
struct alignas(sizeof(T) * kCOUNT < 16 ? sizeof(T) * kCOUNT : 16) Vector
{
    T values[kCOUNT];
};

// Element i of a vector that is loaded in a branch. For fp16 the pair is converted and the compiler drops the other
// half: without this, after such a branch, it moves the second element of each pair before it converts it, which
// costs SkipLayerNorm 7 % more instructions.
template <typename T, int kCOUNT>
__device__ float toFloat(Vector<T, kCOUNT> const& vector, int i)
{
    return toFloat(vector.values[i]);
}
template <int kCOUNT>
__device__ float toFloat(Vector<__half, kCOUNT> const& vector, int i)
{
    float2 const pair = __half22float2(reinterpret_cast<__half2 const*>(&vector)[i / 2]);
    return i % 2 == 0 ? pair.x : pair.y;
}

// The type that one instruction loads or stores for a vector of that size.
template <size_t kSIZE>
using Bits = std::conditional_t<kSIZE == 4, uint32_t, std::conditional_t<kSIZE == 8, uint2, uint4>>;

// Streaming loads and stores (.cs), for data that the kernel touches only once: the cache evicts such lines first.
template <typename V>
__device__ V loadStreaming(V const* address)
{
    static_assert(sizeof(V) == sizeof(Bits<sizeof(V)>));
    auto const bits = __ldcs(reinterpret_cast<Bits<sizeof(V)> const*>(address));
    return *reinterpret_cast<V const*>(&bits);
}
template <typename V>
__device__ void storeStreaming(V* address, V const& vector)
{
    static_assert(sizeof(V) == sizeof(Bits<sizeof(V)>));
    __stcs(reinterpret_cast<Bits<sizeof(V)>*>(address), *reinterpret_cast<Bits<sizeof(V)> const*>(&vector));
}

// Whether 16-byte loads from the address are allowed.
inline bool isAligned16(void const* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// ---------------------------------------------------------------------------------------------------------------
// int8: real value = int8 * scale
// ---------------------------------------------------------------------------------------------------------------

// Instructions that convert between integers and floats have a quarter of the throughput of an addition; a kernel
// that should be limited by memory would be limited by them. In a float between 2^23 and 2^24 the last bit has the
// value 1, so adding or subtracting such a number converts as well.

// Element i of a vector, without the scale.
template <int kCOUNT>
__device__ float toFloat(Vector<int8_t, kCOUNT> const& vector, int i)
{
    constexpr uint32_t kTWO_TO_23 = 0x4B000000;
    uint32_t const four
        = reinterpret_cast<uint32_t const*>(&vector)[i / 4] ^ 0x80808080; // each + 128: from 0 to 255
    uint32_t const bits = __byte_perm(four, kTWO_TO_23, 0x7540 + i % 4);  // 2^23 + (value + 128)
    return __uint_as_float(bits) - (8388608.0F + 128.0F);
}

// A quotient that becomes an E4M3 when it is stored. RowShape::store converts two at a time, with one instruction.
struct PendingE4m3
{
    float value;

    __device__ operator E4m3() const
    {
        return fromFloat<E4m3>(value);
    }
};

// Quantises to int8 or E4M3 as TensorRT defines it: value / scale, rounded half to even and saturated. NaN becomes -128
// in int8, and stays NaN in E4M3.
class Quantizer
{
public:
    // A scale from kSMALLEST_SCALE to kLARGEST_SCALE; or any number, if the quantizer is not used.
    Quantizer(float scale, ElementType type)
        : mE4m3(type == ElementType::kE4M3)
        , mScale(scale)
        , mInverse(1.0F / scale)
        , mLowest((mE4m3 ? -448.0F : -128.0F) * scale)
        , mHighest((mE4m3 ? 448.0F : 127.0F) * scale)
    {
    }
    // Calls function(quantize, Out{}), where Out is int8_t or E4m3, and quantize(value) returns what converts to it. All
    // threads take the same branch.
    template <typename Function>
    __device__ void dispatch(Function&& function) const
    {
        if (mE4m3)
        {
            function([this](float value)
                { return PendingE4m3{quotient(minimumOrNan(maximumOrNan(value, mLowest), mHighest))}; },
                E4m3{});
        }
        else
        {
            constexpr float kTO_LAST_BITS = 1.5F * 8388608.0F; // rounds, half to even
            function(
                [this](float value)
                {
                    float const bounded = fminf(fmaxf(value, mLowest), mHighest);
                    return static_cast<int8_t>(__float_as_uint(quotient(bounded) + kTO_LAST_BITS));
                },
                int8_t{});
        }
    }

private:
    // Unlike fmaxf and fminf, these return NaN if one operand is NaN.
    static __device__ float maximumOrNan(float a, float b)
    {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        float result;
        asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
        return result;
#else
        return a == a ? fmaxf(a, b) : a;
#endif
    }
    static __device__ float minimumOrNan(float a, float b)
    {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        float result;
        asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
        return result;
#else
        return a == a ? fminf(a, b) : a;
#endif
    }

    // A multiplication and one correction step, which make it equal to a division.
    __device__ float quotient(float bounded) const
    {
        float const product = bounded * mInverse;
        return fmaf(fmaf(-product, mScale, bounded), mInverse, product);
    }

    bool mE4m3;
    float mScale;
    float mInverse;
    float mLowest;
    float mHighest;
};

} // namespace bert
