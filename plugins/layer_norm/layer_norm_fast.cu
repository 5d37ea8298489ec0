// Layer normalisation, third version: memory is touched once. What changed against the fused kernel:
//
//   - x is read in vectors of 16 bytes, and the row stays in registers: one read and one write, no second look.
//   - A row belongs to as few threads as its width allows, most often to one warp. Sums over a warp need no barrier.
//   - gamma and beta are fetched together with x, not after the sums have been waited for.
//   - It is launched while the kernel before it still runs (common/early_launch.cuh).
//
// Run it with: python plugins/testLayerNormPlugin.py --kernel fast
#include "common/row_in_registers.cuh"
#include "layer_norm/layer_norm_kernels.h"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

template <typename T, typename W, typename Shape>
__global__ void __launch_bounds__(Shape::kBLOCK, 1) layerNormFastKernel(
    T const* x, W const* gamma, W const* beta, T* y, uint32_t rows, uint32_t hidden, float epsilon)
{
    waitForPreviousKernel();
    auto const place = Shape::place(rows);
    if (place.idle)
    {
        return;
    }
    uint64_t const start = static_cast<uint64_t>(place.row) * hidden;

    // Before the loads: behind them, the compiler keeps gamma and beta in registers from the start, 84 registers instead
    // of 64, and 131072 rows of 768 fp16 elements take 104 us instead of 96 on an H200.
    Width const width{hidden};

    Vector<T, Shape::kPER> loaded[Shape::kVECTORS];
    Vector<W, Shape::kPER> gammas[Shape::kVECTORS];
    Vector<W, Shape::kPER> betas[Shape::kVECTORS];
    Shape::template load<kONCE<T>>(loaded, x + start, hidden);
    Shape::load(gammas, gamma, hidden);
    Shape::load(betas, beta, hidden);

    float values[Shape::kVECTORS][Shape::kPER];
    Shape::forEach([&](int v, int i) { values[v][i] = toFloat(loaded[v].values[i]); });
    RowStatistics const statistics = Shape::statistics(values, width, hidden, epsilon);
    if (Shape::kSHARES_WARP && !place.exists)
    {
        return;
    }
    Shape::template store<kONCE<T>>(y + start, hidden,
        [&](int v, int i)
        {
            return fromFloat<T>(normalize(
                values[v][i], statistics, toFloat(gammas[v].values[i]), toFloat(betas[v].values[i])));
        });
}

// ---------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, cudaStream_t stream)
{
    return dispatchRowShape<kPER_VECTOR<T>>(a.hidden,
        [&](auto shape)
        {
            using Shape = decltype(shape);
            return launchRows<Shape>(layerNormFastKernel<T, W, Shape>, a.rows, stream, a.x, a.gamma, a.beta,
                a.y, a.rows, a.hidden, a.epsilon);
        });
}

// Rows that cannot be read in vectors, do not fit into the registers of a block, or are more than a grid can have.
bool needsFused(LayerNormArguments const& a)
{
    int32_t const perVector = a.type == ElementType::kFLOAT ? kPER_VECTOR<float> : kPER_VECTOR<__half>;
    bool const aligned = isAligned16(a.x) && isAligned16(a.gamma) && isAligned16(a.beta) && isAligned16(a.y);
    return !aligned || !fitsRegisters(a.rows, a.hidden, perVector);
}

} // namespace

cudaError_t launchLayerNormFast(LayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess;
    }
    if (needsFused(arguments))
    {
        return launchLayerNormFused(arguments, stream);
    }
    return dispatchTypes(arguments.type, arguments.weightType,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
