// Sums over the threads of a warp and of a block. Every thread receives the result.
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

inline __device__ float exchange(float value, int distance)
{
    return __shfl_xor_sync(kALL_LANES, value, distance);
}
inline __device__ float2 exchange(float2 value, int distance)
{
    return make_float2(exchange(value.x, distance), exchange(value.y, distance));
}

// Sum over groups of kLANES neighbouring lanes. All 32 lanes of the warp must take part.
template <int kLANES = kWARP, typename Value>
__device__ Value warpSum(Value value)
{
#pragma unroll
    for (int distance = kLANES / 2; distance > 0; distance /= 2)
    {
        value = value + exchange(value, distance);
    }
    return value;
}

// Sum over the block, whose size is a multiple of 32. `scratch` is shared memory with one Value for each warp; it may
// be written again after the block's next barrier.
template <typename Value>
__device__ Value blockSum(Value value, Value* scratch)
{
    value = warpSum(value);
    int const warps = blockDim.x / kWARP;
    if (threadIdx.x % kWARP == 0)
    {
        scratch[threadIdx.x / kWARP] = value;
    }
    __syncthreads();
    // Every warp adds up the same numbers in the same order, which saves the barrier of handing the result around.
    int const lane = threadIdx.x % kWARP;
    return warpSum(lane < warps ? scratch[lane] : Value{});
}

} // namespace bert
