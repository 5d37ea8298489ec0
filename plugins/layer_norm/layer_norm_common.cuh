// What the three kernels share: the arithmetic of one element, and the choice of C++ types.
#pragma once

#include "common/element.cuh"
#include "layer_norm/layer_norm_kernels.h"

#include <algorithm>
#include <type_traits>

namespace bert
{

// The number of elements in a row, ready to divide by: a product and one correction instead of a general division,
// which is slow. Exact where the quotient is, so the deviations in a constant row are exactly 0.
class Width
{
public:
    explicit __device__ Width(uint32_t hidden)
        : mHidden(static_cast<float>(hidden))
        , mInverse(1.0F / mHidden)
    {
    }
    __device__ float average(float sum) const
    {
        float const quotient = sum * mInverse;
        float const remainder = fmaf(-quotient, mHidden, sum);
        return fmaf(remainder, mInverse, quotient);
    }

private:
    float mHidden;
    float mInverse;
};

// The statistics of a row. The mean is kept as two numbers, a first mean and what that one is off by. With a mean of
// 1e4 fp32 numbers lie 1e-3 apart: rounding the mean to one of them would shift a row with a deviation of 1e-2 by
// several per cent of it. x - firstMean is exact there, and the correction is small and precise.
//
// Everything is computed in two passes, never as E[x^2] - mean^2, which cancels to nothing for such rows.
struct RowStatistics
{
    float firstMean;
    float correction;
    float inverseDeviation;
};

// `sums` are those of d and d^2 over the row, d = x - firstMean.
inline __device__ RowStatistics makeStatistics(float firstMean, float2 sums, Width width, float epsilon)
{
    float const correction = width.average(sums.x);
    float const variance = fmaxf(width.average(sums.y) - correction * correction, 0.0F);
    return {firstMean, correction, __frsqrt_rn(variance + epsilon)};
}

template <typename T, typename W>
__device__ T normalize(float x, RowStatistics const& row, W gamma, W beta)
{
    float const normalized = (x - row.firstMean - row.correction) * row.inverseDeviation;
    return fromFloat<T>(normalized * toFloat(gamma) + toFloat(beta));
}

// Calls function(T{}, W{}) with the types of x and of gamma and beta.
template <typename Function>
cudaError_t dispatchTypes(LayerNormArguments const& arguments, Function&& function)
{
    return dispatchElement(arguments.type,
        [&](auto element)
        {
            using T = decltype(element);
            bool const same = arguments.weightType == arguments.type;
            return same ? function(T{}, T{}) : function(T{}, float{});
        });
}

// Blocks of a grid in which every block takes one row, then the row one grid further on.
inline unsigned int rowBlocks(int64_t rows)
{
    return static_cast<unsigned int>(std::min<int64_t>(rows, INT32_MAX));
}

} // namespace bert
