// Layer normalisation, first version: a literal port of the textbook. One kernel computes the mean, one the variance,
// one normalises. Every kernel reads x from memory again: three launches, 3 reads and 1 write of the tensor. Run it
// with: python plugins/testLayerNormPlugin.py --kernel basic
#include "common/normalize.cuh"
#include "layer_norm/layer_norm_kernels.h"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kBLOCK = 256;

// One block for each row.
template <typename T>
__global__ void layerNormMeanKernel(T const* x, RowStatistics* statistics, int64_t rows, uint32_t hidden)
{
    __shared__ float scratch[kBLOCK / kWARP];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    {
        float sum = 0.0F;
        for (uint32_t i = threadIdx.x; i < hidden; i += kBLOCK)
        {
            sum += toFloat(x[row * hidden + i]);
        }
        sum = groupSum<kBLOCK>(sum, scratch);
        if (threadIdx.x == 0)
        {
            statistics[row].firstMean = Width{hidden}.average(sum);
        }
        __syncthreads(); // scratch is reused for the next row
    }
}

// One block for each row. The mean is known, so the deviations themselves are summed and squared.
template <typename T>
__global__ void layerNormVarianceKernel(
    T const* x, RowStatistics* statistics, int64_t rows, uint32_t hidden, float epsilon)
{
    __shared__ float2 scratch[kBLOCK / kWARP];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    {
        float const mean = statistics[row].firstMean;
        float2 sums{};
        for (uint32_t i = threadIdx.x; i < hidden; i += kBLOCK)
        {
            float const deviation = toFloat(x[row * hidden + i]) - mean;
            sums = sums + make_float2(deviation, deviation * deviation);
        }
        sums = groupSum<kBLOCK>(sums, scratch);
        if (threadIdx.x == 0)
        {
            statistics[row] = makeStatistics(mean, sums, Width{hidden}, epsilon);
        }
        __syncthreads(); // scratch is reused for the next row
    }
}

// One block for each row; threads do not communicate.
template <typename T, typename W>
__global__ void layerNormNormalizeKernel(T const* x, W const* gamma, W const* beta,
    RowStatistics const* statistics, T* y, int64_t rows, uint32_t hidden)
{
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    {
        RowStatistics const ofRow = statistics[row];
        for (uint32_t i = threadIdx.x; i < hidden; i += kBLOCK)
        {
            float const normalized
                = normalize(toFloat(x[row * hidden + i]), ofRow, toFloat(gamma[i]), toFloat(beta[i]));
            y[row * hidden + i] = fromFloat<T>(normalized);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, cudaStream_t stream)
{
    auto const* x = static_cast<T const*>(a.x);
    auto* statistics = reinterpret_cast<RowStatistics*>(a.workspace);
    unsigned int const grid = rowBlocks(a.rows);

    layerNormMeanKernel<<<grid, kBLOCK, 0, stream>>>(x, statistics, a.rows, a.hidden);
    cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess)
    {
        return status;
    }
    layerNormVarianceKernel<<<grid, kBLOCK, 0, stream>>>(x, statistics, a.rows, a.hidden, a.epsilon);
    status = cudaGetLastError();
    if (status != cudaSuccess)
    {
        return status;
    }
    layerNormNormalizeKernel<<<grid, kBLOCK, 0, stream>>>(x, static_cast<W const*>(a.gamma),
        static_cast<W const*>(a.beta), statistics, static_cast<T*>(a.y), a.rows, a.hidden);
    return cudaGetLastError();
}

} // namespace

size_t layerNormBasicWorkspace(int64_t rows)
{
    return static_cast<size_t>(rows) * sizeof(RowStatistics);
}

cudaError_t launchLayerNormBasic(LayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess; // a grid of no blocks is an error to CUDA
    }
    return dispatchTypes(arguments.type, arguments.weightType,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
