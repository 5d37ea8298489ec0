// What all layer normalisation kernels share: the arithmetic, the choice of C++ types, and the version for rows that
// are read again in each pass.
#pragma once

#include "common/element.cuh"
#include "common/reduce.cuh"

#include <algorithm>

namespace bert
{

// The number of elements in a row, prepared for divisions: a multiplication and one correction step instead of a
// general division, which is slow. The result is exact where the quotient is representable, so the deviations in a
// constant row are exactly 0.
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

// The statistics of a row. The mean is kept as two numbers: a first mean, and the error of that first mean. Around
// 1e4, fp32 numbers are 1e-3 apart: rounding the mean to one of them would shift a row with a deviation of 1e-2 by
// several per cent of the deviation. x - firstMean is exact there, and the correction is small and precise.
//
// Everything is computed in two passes. E[x^2] - mean^2 would lose all digits to cancellation for such rows.
struct RowStatistics
{
    float firstMean;
    float inverseDeviation;
    float offset; // the correction, scaled for the normalised row: -correction * inverseDeviation
};

// `sums` are those of d and d^2 over the row, d = x - firstMean.
inline __device__ RowStatistics makeStatistics(float firstMean, float2 sums, Width width, float epsilon)
{
    float const correction = width.average(sums.x);
    float const variance = fmaxf(width.average(sums.y) - correction * correction, 0.0F);
    float const inverseDeviation = __frsqrt_rn(variance + epsilon);
    return {firstMean, inverseDeviation, -correction * inverseDeviation};
}

inline __device__ float normalize(float x, RowStatistics const& row, float gamma, float beta)
{
    return fmaf(fmaf(x - row.firstMean, row.inverseDeviation, row.offset), gamma, beta);
}

// Calls function(T{}, W{}) with the types of x and of gamma and beta, which are `type` as well or fp32.
template <typename Function>
auto dispatchTypes(ElementType type, ElementType weightType, Function&& function)
{
    return dispatchElement(type,
        [&](auto element)
        {
            using T = decltype(element);
            return weightType == type ? function(T{}, T{}) : function(T{}, float{});
        });
}

// ---------------------------------------------------------------------------------------------------------------
// Rows of any width at any address, which are read again in each pass
// ---------------------------------------------------------------------------------------------------------------

constexpr int kREREAD_BLOCK = 256;

// Blocks of a grid in which every block takes one row, and then the row one grid size further.
inline unsigned int rowBlocks(int64_t rows)
{
    return static_cast<unsigned int>(std::min<int64_t>(rows, INT32_MAX));
}

// Normalises one row with a block of kREREAD_BLOCK threads. read(i) returns an element; write(i, x, statistics)
// receives each element again, with the statistics. The function may be called for another row at once.
template <typename Read, typename Write>
__device__ void normalizeByRereading(uint32_t hidden, float epsilon, Read const& read, Write const& write)
{
    // Two buffers: when one is written for the next row, the barrier of the other has passed since it was last read.
    __shared__ float meanScratch[kREREAD_BLOCK / kWARP];
    __shared__ float2 deviationScratch[kREREAD_BLOCK / kWARP];
    Width const width{hidden};

    float sum = 0.0F;
    for (uint32_t i = threadIdx.x; i < hidden; i += kREREAD_BLOCK)
    {
        sum += read(i);
    }
    float const mean = width.average(groupSum<kREREAD_BLOCK>(sum, meanScratch));

    float2 sums{};
    for (uint32_t i = threadIdx.x; i < hidden; i += kREREAD_BLOCK)
    {
        float const deviation = read(i) - mean;
        sums = sums + make_float2(deviation, deviation * deviation);
    }
    RowStatistics const statistics
        = makeStatistics(mean, groupSum<kREREAD_BLOCK>(sums, deviationScratch), width, epsilon);

    for (uint32_t i = threadIdx.x; i < hidden; i += kREREAD_BLOCK)
    {
        write(i, read(i), statistics);
    }
}

} // namespace bert
