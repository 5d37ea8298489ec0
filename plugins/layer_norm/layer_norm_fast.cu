// Layer normalisation, third version: x is read from memory once. What changed against the fused kernel:
//
//   - x is loaded in vectors of 16 bytes, and the row stays in registers: one read and one write.
//   - As few threads share a row as its width allows, usually one warp. Sums over a warp need no barrier.
//   - The loads of gamma and beta are in flight together with those of x; they do not wait for the sums.
//   - Programmatic dependent launch: the kernel is launched while the previous one still runs
//     (common/programmatic_dependent_launch.cuh).
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
    // exercise 10 begins
    waitForPreviousKernel();
    auto const position = Shape::position(rows);
    if (position.idle)
    {
        return;
    }
    uint64_t const start = static_cast<uint64_t>(position.row) * hidden;

    // Before the loads: after them, the compiler would keep gamma and beta in registers from the start, 84 registers
    // instead of 64, which costs occupancy.
    Width const width{hidden};

    Vector<T, Shape::kPER> loaded[Shape::kVECTORS];
    Vector<W, Shape::kPER> gammas[Shape::kVECTORS];
    Vector<W, Shape::kPER> betas[Shape::kVECTORS];
    Shape::template load<kSTREAMING<T>>(loaded, x + start, hidden);
    Shape::load(gammas, gamma, hidden);
    Shape::load(betas, beta, hidden);

    float values[Shape::kVECTORS][Shape::kPER];
    Shape::forEach([&](int v, int i) { values[v][i] = toFloat(loaded[v].values[i]); });
    RowStatistics const statistics = Shape::statistics(values, width, hidden, epsilon);
    if (Shape::kSHARES_WARP && !position.exists)
    {
        return;
    }
    Shape::template store<kSTREAMING<T>>(y + start, hidden,
        [&](int v, int i)
        {
            return fromFloat<T>(normalize(
                values[v][i], statistics, toFloat(gammas[v].values[i]), toFloat(betas[v].values[i])));
        });
    // exercise 10 ends
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

// Whether rows cannot be read in vectors, do not fit into the registers of a block, or exceed the limit of a grid.
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
