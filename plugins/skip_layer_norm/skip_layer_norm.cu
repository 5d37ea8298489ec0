// Residual sum, bias and layer normalisation in one kernel: x and skip are read once, y is written once, and the sum
// exists in fp32 registers only. The rest is the fast kernel of layer_norm/.
#include "common/row_in_registers.cuh"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// How rows are given to threads.
enum class Form
{
    kSPREAD, // a vector to a thread, several warps to a row
    kEAGER,  // most often a warp to a row; gamma and beta are fetched together with x and skip
    kDENSE, // likewise with fewer registers, so more rows at a time; gamma and beta are fetched when the sum is known
};

// The share of one thread of a row of x or of skip, as it is in memory: T, or int8 if the scale is greater than 0.
// Loading and converting are two steps, so that everything is under way before the first value is waited for.
template <typename T, typename Shape, bool kINT8>
class InputRow
{
public:
    __device__ InputRow(void const* input, uint64_t start, uint32_t hidden, float scale)
        : mScale(scale)
    {
        if (isInt8())
        {
            Shape::template load<true>(mInt8, static_cast<int8_t const*>(input) + start, hidden);
        }
        else
        {
            // Not marked as touched once, unlike x of a layer norm: with two such streams the mark costs (131072 rows of
            // 768 fp16 elements on an H200: 146 us with it, 140 without).
            Shape::load(mWide, static_cast<T const*>(input) + start, hidden);
        }
    }
    __device__ void addTo(float (&values)[Shape::kVECTORS][Shape::kPER]) const
    {
        if (isInt8())
        {
            Shape::forEach([&](int v, int i) { values[v][i] += toFloat(mInt8[v], i) * mScale; });
        }
        else
        {
            Shape::forEach([&](int v, int i) { values[v][i] += toFloat(mWide[v].values[i]); });
        }
    }

private:
    __device__ bool isInt8() const
    {
        return kINT8 && mScale > 0.0F;
    }

    Vector<T, Shape::kPER> mWide[Shape::kVECTORS];
    Vector<int8_t, Shape::kPER> mInt8[Shape::kVECTORS];
    float mScale;
};

// kINT8: any of x, skip and the outputs is int8. A kernel of its own, so that the other stays small.
//
// kDENSE: in no more than 64 registers. The width is known to the compiler then, which else divides by it: it keeps the
// loads of gamma and beta before that division, and they would not fit.
template <typename T, typename W, bool kINT8, bool kDENSE, typename Shape>
__global__ void __launch_bounds__(Shape::kBLOCK, kDENSE ? kBLOCKS<W, Shape> : 1)
    skipLayerNormKernel(SkipLayerNormArguments const a, Quantizer const quantizer)
{
    constexpr int kPER = Shape::kPER;
    constexpr int kVECTORS = Shape::kVECTORS;
    waitForPreviousKernel();
    auto const place = Shape::place(static_cast<uint32_t>(a.rows));
    if (place.idle)
    {
        return;
    }
    uint32_t const hidden = a.hidden;
    uint64_t const start = static_cast<uint64_t>(place.row) * hidden;

    InputRow<T, Shape, kINT8> const x{a.x, start, hidden, a.xScale};
    InputRow<T, Shape, kINT8> const skip{a.skip, start, hidden, a.skipScale};
    Vector<W, kPER> gammas[kVECTORS];
    Vector<W, kPER> betas[kVECTORS];
    Vector<W, kPER> biases[kVECTORS]{};
    if (a.bias != nullptr)
    {
        Shape::load(biases, static_cast<W const*>(a.bias), hidden);
    }
    Shape::load(gammas, static_cast<W const*>(a.gamma), hidden);
    Shape::load(betas, static_cast<W const*>(a.beta), hidden);

    float values[kVECTORS][kPER];
    Shape::forEach([&](int v, int i) { values[v][i] = toFloat(biases[v], i); });
    x.addTo(values);
    skip.addTo(values);
    Width const width{kDENSE ? Shape::kTHREADS * kVECTORS * kPER : hidden};
    RowStatistics const statistics = Shape::statistics(values, width, hidden, a.epsilon);
    if (Shape::kSHARES_WARP && !place.exists)
    {
        return;
    }
    Shape::forEach(
        [&](int v, int i)
        {
            values[v][i] = normalize(
                values[v][i], statistics, toFloat(gammas[v].values[i]), toFloat(betas[v].values[i]));
        });
    if (!kINT8 || a.y != nullptr)
    {
        Shape::template store<false>(
            static_cast<T*>(a.y) + start, hidden, [&](int v, int i) { return fromFloat<T>(values[v][i]); });
    }
    if (kINT8 && a.quantized != nullptr)
    {
        Shape::template store<false>(
            a.quantized + start, hidden, [&](int v, int i) { return quantizer(values[v][i]); });
    }
}

template <typename T>
__device__ float inputValue(void const* input, uint64_t index, float scale)
{
    return scale > 0.0F ? toFloat(static_cast<int8_t const*>(input)[index]) * scale
                        : toFloat(static_cast<T const*>(input)[index]);
}

// For rows of any width at any address: one block for each, which reads x and skip three times, mostly from the cache.
template <typename T, typename W>
__global__ void skipLayerNormRereadingKernel(SkipLayerNormArguments const a, Quantizer const quantizer)
{
    auto const* const gamma = static_cast<W const*>(a.gamma);
    auto const* const beta = static_cast<W const*>(a.beta);
    auto const* const bias = static_cast<W const*>(a.bias);
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x)
    {
        uint64_t const start = static_cast<uint64_t>(row) * a.hidden;
        normalizeByRereading(
            a.hidden, a.epsilon,
            [&](uint32_t i)
            {
                return inputValue<T>(a.x, start + i, a.xScale) + (bias == nullptr ? 0.0F : toFloat(bias[i]))
                       + inputValue<T>(a.skip, start + i, a.skipScale);
            },
            [&](uint32_t i, float value, RowStatistics const& statistics)
            {
                float const normalized = normalize(value, statistics, toFloat(gamma[i]), toFloat(beta[i]));
                if (a.y != nullptr)
                {
                    static_cast<T*>(a.y)[start + i] = fromFloat<T>(normalized);
                }
                if (a.quantized != nullptr)
                {
                    a.quantized[start + i] = quantizer(normalized);
                }
            });
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

// The one place of this choice. A row of 768 fp16 elements takes 82 registers of each thread in kEAGER and 64 in kDENSE: a
// multiprocessor has 20 rows under way, or 32, which makes one wave of 4096 rows on an H200 instead of two. int8 is more
// arithmetic than memory: few rows are better shared by several schedulers.
Form chooseForm(int64_t rows, bool int8)
{
    constexpr int64_t kSPREAD_BELOW = 8; // rows for each multiprocessor
    constexpr int64_t kDENSE_FROM = 12;
    int64_t const perMultiprocessor = rowsPerMultiprocessor(rows);
    if (int8)
    {
        return perMultiprocessor < kSPREAD_BELOW ? Form::kSPREAD : Form::kEAGER;
    }
    return perMultiprocessor < kDENSE_FROM ? Form::kEAGER : Form::kDENSE;
}

template <typename T, typename W, bool kINT8>
cudaError_t launchInRegisters(SkipLayerNormArguments const& a, cudaStream_t stream)
{
    Form const form = chooseForm(a.rows, kINT8);
    auto const launch = [&](auto shape)
    {
        using Shape = decltype(shape);
        if constexpr (!kINT8 && (kBLOCKS<W, Shape>) > 1)
        {
            if (form == Form::kDENSE)
            {
                return launchRows<Shape>(skipLayerNormKernel<T, W, kINT8, true, Shape>, a.rows, stream, a,
                    Quantizer{a.outputScale});
            }
        }
        return launchRows<Shape>(
            skipLayerNormKernel<T, W, kINT8, false, Shape>, a.rows, stream, a, Quantizer{a.outputScale});
    };
    return form == Form::kSPREAD ? dispatchSpreadRowShape<kPER_VECTOR<T>, !kINT8>(a.hidden, launch)
                                 : dispatchRowShape<kPER_VECTOR<T>, !kINT8>(a.hidden, launch);
}

template <typename T, typename W>
cudaError_t launchTyped(SkipLayerNormArguments const& a, cudaStream_t stream)
{
    bool aligned = true;
    for (void const* tensor : {a.x, a.skip, a.gamma, a.beta, a.bias, static_cast<void const*>(a.y),
             static_cast<void const*>(a.quantized)})
    {
        aligned = aligned && isAligned16(tensor);
    }
    if (!aligned || !fitsRegisters(a.rows, a.hidden, kPER_VECTOR<T>))
    {
        skipLayerNormRereadingKernel<T, W>
            <<<rowBlocks(a.rows), kREREAD_BLOCK, 0, stream>>>(a, Quantizer{a.outputScale});
        return cudaGetLastError();
    }
    bool const int8 = a.xScale > 0.0F || a.skipScale > 0.0F || a.quantized != nullptr;
    return int8 ? launchInRegisters<T, W, true>(a, stream) : launchInRegisters<T, W, false>(a, stream);
}

} // namespace

cudaError_t launchSkipLayerNorm(SkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess; // a grid of no blocks is an error to CUDA
    }
    return dispatchTypes(arguments.type, arguments.weightType,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
