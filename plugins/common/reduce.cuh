// Sums over the threads of a warp and of a block. Every thread receives the result. layer_norm/layer_norm_fused.cu
// explains the same reduction step by step.
#pragma once

#include <cuda_runtime.h>

namespace bert
{

constexpr int kWARP = 32;
constexpr unsigned int kALL_LANES = 0xffffffffU;

inline __device__ float2 operator+(float2 a, float2 b)
{
    return make_float2(a.x + b.x, a.y + b.y);
}

inline __device__ float shuffleXor(float value, int distance)
{
    return __shfl_xor_sync(kALL_LANES, value, distance);
}
inline __device__ float2 shuffleXor(float2 value, int distance)
{
    return make_float2(shuffleXor(value.x, distance), shuffleXor(value.y, distance));
}

// Sum over groups of kLANES neighbouring lanes. All 32 lanes of the warp must take part.
template <int kLANES, typename Value>
__device__ Value warpSum(Value value)
{
#pragma unroll
    for (int distance = kLANES / 2; distance > 0; distance /= 2)
    {
        value = value + shuffleXor(value, distance);
    }
    return value;
}

// Sum over groups of kTHREADS neighbouring threads: up to a warp, or several whole warps. With several warps every
// thread of the block must take part, and `scratch` is shared memory of the group with one Value for each of its
// warps; it may be written again after the next barrier of the block.
template <int kTHREADS, typename Value>
__device__ Value groupSum(Value value, Value* scratch)
{
    value = warpSum<(kTHREADS < kWARP ? kTHREADS : kWARP)>(value);
    if constexpr (kTHREADS > kWARP)
    {
        static_assert(kTHREADS % kWARP == 0, "groups consist of whole warps");
        if (threadIdx.x % kWARP == 0)
        {
            scratch[threadIdx.x % kTHREADS / kWARP] = value;
        }
        __syncthreads();
        // Every thread adds up the same numbers in the same order, which saves broadcasting the result.
        value = scratch[0];
#pragma unroll
        for (int warp = 1; warp < kTHREADS / kWARP; ++warp)
        {
            value = value + scratch[warp];
        }
    }
    return value;
}

} // namespace bert
