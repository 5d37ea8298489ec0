// The linear layer, first rung of the ladder: the formula as it is written. A thread computes one element of y from a
// row of x and a row of W. Every multiply-add needs two loads, and the 32 threads of a warp load from 32 rows of W, far
// apart. The plugin takes this kernel for bf16 on Turing, whose tensor cores do not support it. Next: linear_shared.cu.
#include "common/element.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_kernels.h"

#include <climits>

namespace bert
{

namespace
{

constexpr int kBLOCK = 128;

template <typename T>
__global__ void linearPlainKernel(LinearArguments const a)
{
    uint32_t const columnBlocks = static_cast<uint32_t>(divideUp(a.out, kBLOCK));
    int64_t const row = blockIdx.x / columnBlocks;
    int64_t const column = int64_t{blockIdx.x % columnBlocks} * kBLOCK + threadIdx.x;
    if (column >= a.out)
    {
        return;
    }
    auto const* const x = static_cast<T const*>(a.x) + row * a.in;              // (in)
    auto const* const weight = static_cast<T const*>(a.weight) + column * a.in; // (in)
    auto const* const bias = static_cast<T const*>(a.bias);
    float sum = 0.0F;
    for (int32_t k = 0; k < a.in; ++k)
    {
        sum = fmaf(toFloat(x[k]), toFloat(weight[k]), sum);
    }
    sum += bias != nullptr ? toFloat(bias[column]) : 0.0F;
    static_cast<T*>(a.y)[row * a.out + column] = fromFloat<T>(activate(sum, a.gelu));
}

template <typename T>
cudaError_t launchTyped(LinearArguments const& a, cudaStream_t stream)
{
    int64_t const blocks = a.rows * divideUp(a.out, kBLOCK);
    if (blocks > INT_MAX)
    {
        return cudaErrorInvalidConfiguration;
    }
    linearPlainKernel<T><<<static_cast<unsigned int>(blocks), kBLOCK, 0, stream>>>(a);
    return cudaGetLastError();
}

} // namespace

cudaError_t launchLinearPlain(LinearArguments const& arguments, cudaStream_t stream)
{
    switch (arguments.type)
    {
    case ElementType::kHALF:
        return launchTyped<__half>(arguments, stream);
    case ElementType::kBF16:
        return launchTyped<__nv_bfloat16>(arguments, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

} // namespace bert
