// Layer normalisation, second version: the three kernels in one. The statistics stay in registers, and there is one
// launch instead of three. x is still read three times, but by the same block shortly after one another, so that all
// but the first read come from the cache. Run it with: python plugins/testLayerNormPlugin.py --kernel fused
#include "common/reduce.cuh"
#include "layer_norm/layer_norm_common.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kBLOCK = 256;

// One block for each row, as before. The loops are those of the three kernels; the workspace is gone.
template <typename T, typename W>
__global__ void layerNormFusedKernel(
    T const* x, W const* gamma, W const* beta, T* y, int64_t rows, uint32_t hidden, float epsilon)
{
    // Two buffers in turn: when one is written again, a barrier has passed since it was last read.
    __shared__ float meanScratch[kBLOCK / kWARP];
    __shared__ float2 deviationScratch[kBLOCK / kWARP];
    Width const width{hidden};
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    {
        T const* const xRow = x + row * hidden;
        T* const yRow = y + row * hidden;

        float sum = 0.0F;
        for (uint32_t i = threadIdx.x; i < hidden; i += kBLOCK)
        {
            sum += toFloat(xRow[i]);
        }
        float const mean = width.average(groupSum<kBLOCK>(sum, meanScratch));

        float2 sums{};
        for (uint32_t i = threadIdx.x; i < hidden; i += kBLOCK)
        {
            float const deviation = toFloat(xRow[i]) - mean;
            sums = sums + make_float2(deviation, deviation * deviation);
        }
        RowStatistics const ofRow
            = makeStatistics(mean, groupSum<kBLOCK>(sums, deviationScratch), width, epsilon);

        for (uint32_t i = threadIdx.x; i < hidden; i += kBLOCK)
        {
            yRow[i] = normalize<T>(toFloat(xRow[i]), ofRow, gamma[i], beta[i]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, cudaStream_t stream)
{
    layerNormFusedKernel<<<rowBlocks(a.rows), kBLOCK, 0, stream>>>(static_cast<T const*>(a.x),
        static_cast<W const*>(a.gamma), static_cast<W const*>(a.beta), static_cast<T*>(a.y), a.rows, a.hidden,
        a.epsilon);
    return cudaGetLastError();
}

} // namespace

cudaError_t launchLayerNormFused(LayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess;
    }
    return dispatchTypes(arguments,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
