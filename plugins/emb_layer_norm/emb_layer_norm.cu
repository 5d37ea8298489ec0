// Three lookups, two sums and layer normalisation in one kernel: the sum exists only in fp32 registers. Everything
// else is as in layer_norm/layer_norm_fast.cu; read that first.
#include "common/row_in_registers.cuh"
#include "emb_layer_norm/emb_layer_norm_kernels.h"

#include <cmath>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// Where the rows to add begin in their tables. An id outside its table reads the table's first row, which is always
// valid memory, and makes the result NaN.
struct Rows
{
    uint64_t starts[3];
    bool valid;
};

inline __device__ Rows lookUp(EmbLayerNormArguments const& a, int64_t row)
{
    Rows rows{{}, true};
#pragma unroll
    for (int table = 0; table < 3; ++table)
    {
        int32_t const id = a.lookups[table].ids[row];
        bool const valid = id >= 0 && id < a.lookups[table].size;
        rows.starts[table] = valid ? static_cast<uint64_t>(id) * a.hidden : 0;
        rows.valid = rows.valid && valid;
    }
    return rows;
}

// Every element that is normalised with these becomes NaN.
inline __device__ RowStatistics nanUnless(bool valid, RowStatistics statistics)
{
    statistics.inverseDeviation = valid ? statistics.inverseDeviation : NAN;
    return statistics;
}

// kONLY_Y: the kernel without the output in 8 bits, which needs fewer registers.
template <typename T, typename W, bool kONLY_Y, typename Shape>
__global__ void __launch_bounds__(Shape::kBLOCK, kBLOCKS<W, Shape>)
    embLayerNormKernel(EmbLayerNormArguments const a, Quantizer const quantizer)
{
    // exercise 13 begins
    constexpr int kPER = Shape::kPER;
    constexpr int kVECTORS = Shape::kVECTORS;
    waitForPreviousKernel();
    auto const position = Shape::position(static_cast<uint32_t>(a.rows));
    if (position.idle)
    {
        return;
    }
    uint32_t const hidden = a.hidden;
    Rows const rows = lookUp(a, position.row);

    // No streaming hint: other tokens use the same rows of a table again.
    Vector<W, kPER> gammas[kVECTORS];
    Vector<W, kPER> betas[kVECTORS];
    Vector<T, kPER> parts[3][kVECTORS];
    Shape::load(gammas, static_cast<W const*>(a.gamma), hidden);
    Shape::load(betas, static_cast<W const*>(a.beta), hidden);
#pragma unroll
    for (int table = 0; table < 3; ++table)
    {
        Shape::load(parts[table], static_cast<T const*>(a.lookups[table].table) + rows.starts[table], hidden);
    }

    float values[kVECTORS][kPER];
    Shape::forEach(
        [&](int v, int i)
        {
            values[v][i] = toFloat(parts[0][v].values[i]) + toFloat(parts[1][v].values[i])
                           + toFloat(parts[2][v].values[i]);
        });
    RowStatistics const statistics
        = nanUnless(rows.valid, Shape::statistics(values, Width{hidden}, hidden, a.epsilon));
    if (Shape::kSHARES_WARP && !position.exists)
    {
        return;
    }
    auto const normalized = [&](int v, int i)
    {
        return normalize(values[v][i], statistics, toFloat(gammas[v].values[i]), toFloat(betas[v].values[i]));
    };
    uint64_t const start = static_cast<uint64_t>(position.row) * hidden;
    // The streaming hint leaves the cache to the tables.
    if (kONLY_Y || a.y != nullptr)
    {
        Shape::template store<true>(static_cast<T*>(a.y) + start, hidden,
            [&](int v, int i) { return fromFloat<T>(normalized(v, i)); });
    }
    if (!kONLY_Y && a.quantized != nullptr)
    {
        Vector<float, kPER> factors[kVECTORS];
        bool const hasFactors = a.outputFactors != nullptr;
        if (hasFactors)
        {
            Shape::load(factors, a.outputFactors, hidden);
        }
        auto const scaled = [&](int v, int i)
        {
            float const value = normalized(v, i);
            return hasFactors ? value * factors[v].values[i] : value;
        };
        quantizer.dispatch(
            [&](auto const& quantize, auto element)
            {
                Shape::template store<true>(static_cast<decltype(element)*>(a.quantized) + start, hidden,
                    [&](int v, int i) { return quantize(scaled(v, i)); });
            });
    }
    // exercise 13 ends
}

// For rows of any width at any address: one block for each row reads the tables three times, mostly from the cache.
template <typename T, typename W>
__global__ void embLayerNormRereadingKernel(EmbLayerNormArguments const a, Quantizer const quantizer)
{
    auto const* const gamma = static_cast<W const*>(a.gamma);
    auto const* const beta = static_cast<W const*>(a.beta);
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x)
    {
        Rows const rows = lookUp(a, row);
        uint64_t const start = static_cast<uint64_t>(row) * a.hidden;
        normalizeByRereading(
            a.hidden, a.epsilon,
            [&](uint32_t i)
            {
                float sum = 0.0F;
#pragma unroll
                for (int table = 0; table < 3; ++table)
                {
                    sum += toFloat(static_cast<T const*>(a.lookups[table].table)[rows.starts[table] + i]);
                }
                return sum;
            },
            [&](uint32_t i, float value, RowStatistics const& statistics)
            {
                float const normalized = normalize(
                    value, nanUnless(rows.valid, statistics), toFloat(gamma[i]), toFloat(beta[i]));
                if (a.y != nullptr)
                {
                    static_cast<T*>(a.y)[start + i] = fromFloat<T>(normalized);
                }
                if (a.quantized != nullptr)
                {
                    float const scaled
                        = a.outputFactors != nullptr ? normalized * a.outputFactors[i] : normalized;
                    quantizer.dispatch([&](auto const& quantize, auto element)
                        { static_cast<decltype(element)*>(a.quantized)[start + i] = quantize(scaled); });
                }
            });
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W>
cudaError_t launchTyped(EmbLayerNormArguments const& a, cudaStream_t stream)
{
    bool aligned = isAligned16(a.gamma) && isAligned16(a.beta) && isAligned16(a.y) && isAligned16(a.quantized)
                   && isAligned16(a.outputFactors);
    Quantizer const quantizer{a.outputScale, a.quantizedType};
    for (EmbeddingLookup const& lookup : a.lookups)
    {
        aligned = aligned && isAligned16(lookup.table);
    }
    if (!aligned || !fitsRegisters(a.rows, a.hidden, kPER_VECTOR<T>))
    {
        embLayerNormRereadingKernel<T, W><<<rowBlocks(a.rows), kREREAD_BLOCK, 0, stream>>>(a, quantizer);
        return cudaGetLastError();
    }
    return dispatchRowShape<kPER_VECTOR<T>>(a.hidden,
        [&](auto shape)
        {
            using Shape = decltype(shape);
            bool const onlyY = a.quantized == nullptr;
            auto* const kernel = onlyY ? embLayerNormKernel<T, W, true, Shape>
                                       : embLayerNormKernel<T, W, false,
                                             RowShape<Shape::kPER, Shape::kTHREADS, Shape::kVECTORS, false>>;
            return launchRows<Shape>(kernel, a.rows, stream, a, quantizer);
        });
}

} // namespace

cudaError_t launchEmbLayerNorm(EmbLayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess; // a grid of no blocks is an error to CUDA
    }
    return dispatchTypes(arguments.type, arguments.weightType,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
