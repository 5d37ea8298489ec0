// Layer normalisation, second version: the three kernels in one. The statistics stay in registers, and there is one
// launch instead of three. x is still read three times, but by the same block shortly after one another, so that all
// but the first read come from the cache. Run it with: python plugins/testLayerNormPlugin.py --kernel fused
#include "common/normalize.cuh"
#include "layer_norm/layer_norm_kernels.h"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// One block for each row, as before. The loops are those of the three kernels; the workspace is gone.
template <typename T, typename W>
__global__ void layerNormFusedKernel(
    T const* x, W const* gamma, W const* beta, T* y, int64_t rows, uint32_t hidden, float epsilon)
{
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    {
        T const* const xRow = x + row * hidden;
        T* const yRow = y + row * hidden;
        normalizeByRereading(
            hidden, epsilon, [&](uint32_t i) { return toFloat(xRow[i]); },
            [&](uint32_t i, float value, RowStatistics const& ofRow)
            { yRow[i] = fromFloat<T>(normalize(value, ofRow, toFloat(gamma[i]), toFloat(beta[i]))); });
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, cudaStream_t stream)
{
    layerNormFusedKernel<<<rowBlocks(a.rows), kREREAD_BLOCK, 0, stream>>>(static_cast<T const*>(a.x),
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
    return dispatchTypes(arguments.type, arguments.weightType,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
