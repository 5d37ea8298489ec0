// Elements in memory and in registers: everything is computed in fp32, and cast once, when it is stored.
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace bert
{

inline __device__ float toFloat(float value)
{
    return value;
}
inline __device__ float toFloat(__half value)
{
    return __half2float(value);
}
// bf16 needs no arithmetic of its own and so works on every architecture, 7.5 included.
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
// As TensorRT quantises: halves to the even neighbour, -128 to 127. NaN becomes 0.
template <>
inline __device__ int8_t fromFloat<int8_t>(float value)
{
    return static_cast<int8_t>(max(-128, min(127, __float2int_rn(value))));
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

// Neighbouring elements that are loaded and stored together, 16 bytes at a time: one instruction instead of eight.
template <typename T, int kCOUNT>
struct alignas(sizeof(T) * kCOUNT < 16 ? sizeof(T) * kCOUNT : 16) Vector
{
    T values[kCOUNT];
};

// Loads and stores of what this kernel touches once only: the cache gives such lines up first.
template <typename V>
__device__ V loadOnce(V const* address)
{
    static_assert(sizeof(V) == sizeof(uint4));
    uint4 const bits = __ldcs(reinterpret_cast<uint4 const*>(address));
    return *reinterpret_cast<V const*>(&bits);
}
template <typename V>
__device__ void storeOnce(V* address, V const& vector)
{
    static_assert(sizeof(V) == sizeof(uint4));
    __stcs(reinterpret_cast<uint4*>(address), *reinterpret_cast<uint4 const*>(&vector));
}

// True if 16-byte loads are allowed there.
inline bool isAligned16(void const* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

} // namespace bert
