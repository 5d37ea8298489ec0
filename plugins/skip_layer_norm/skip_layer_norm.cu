// Residual sum, bias and layer normalisation in one kernel: x and skip are read once, y is written once, and the sum
// exists in fp32 registers only. The rest is the fast kernel of layer_norm/.
#include "common/capability.h"
#include "common/row_in_registers.cuh"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// Whether a tensor is int8, or is there: known to the compiler, or told when the kernel runs.
enum class Is
{
    kNO,
    kYES,
    kTOLD
};

__device__ constexpr bool isSo(Is known, bool told)
{
    return known == Is::kTOLD ? told : known == Is::kYES;
}

// Which tensors are int8, and which outputs there are.
template <Is kX_INT8_, Is kSKIP_INT8_, Is kY_, Is kQUANTIZED_>
struct Tensors
{
    static constexpr Is kX_INT8 = kX_INT8_;
    static constexpr Is kSKIP_INT8 = kSKIP_INT8_;
    static constexpr Is kY = kY_;
    static constexpr Is kQUANTIZED = kQUANTIZED_;
    static constexpr bool kKNOWN = kY != Is::kTOLD;

    static bool areThoseOf(SkipLayerNormArguments const& a)
    {
        auto const agrees = [](Is known, bool told) { return (known == Is::kYES) == told; };
        return agrees(kX_INT8, a.xScale > 0.0F) && agrees(kSKIP_INT8, a.skipScale > 0.0F)
               && agrees(kY, a.y != nullptr) && agrees(kQUANTIZED, a.quantized != nullptr);
    }
};
using Floating = Tensors<Is::kNO, Is::kNO, Is::kYES, Is::kNO>;
using Int8X = Tensors<Is::kYES, Is::kNO, Is::kYES, Is::kYES>;
using Int8Throughout = Tensors<Is::kYES, Is::kYES, Is::kNO, Is::kYES>;
using Int8Output = Tensors<Is::kNO, Is::kNO, Is::kNO, Is::kYES>;
using AnyTensors = Tensors<Is::kTOLD, Is::kTOLD, Is::kTOLD, Is::kTOLD>;

// The share of one thread of a row of x or of skip, as it is in memory: T or int8. Loading and converting are two steps,
// so that everything is under way before the first value is waited for.
template <typename T, typename Shape, Is kINT8>
class InputRow
{
public:
    __device__ InputRow(void const* input, uint64_t start, uint32_t hidden, float scale)
        : mScale(scale)
    {
        // Not marked as touched once, unlike x of a layer norm: with two such streams the mark costs (131072 rows of 768
        // fp16 elements on an H200: 146 us with it, 140 without).
        if (isInt8())
        {
            Shape::load(mInt8, static_cast<int8_t const*>(input) + start, hidden);
        }
        else
        {
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
        return isSo(kINT8, mScale > 0.0F);
    }

    Vector<T, Shape::kPER> mWide[Shape::kVECTORS];
    Vector<int8_t, Shape::kPER> mInt8[Shape::kVECTORS];
    float mScale;
};

// When gamma, beta and bias are fetched.
enum class Fetch
{
    // Before the kernels before are done, so the weights must be constants. All three lie in registers then, and fewer
    // rows are under way.
    kEARLY,
    // With few registers, so that more rows are under way: gamma and beta when the sum is known, the bias with x and skip.
    // The width is known to the compiler then, which else divides by it: it keeps the loads before that division, and they
    // would not fit.
    kLATE,
    // Together with x and skip.
    kWITH_ROWS
};

// Threads on a multiprocessor at a time that the compiler leaves registers for. With fp32 weights fewer fit without values
// going to memory (H200, int8 throughout, 32768 rows of 768: 36.3 us with 768 threads, 38.1 without a number).
template <typename W, Fetch kFETCH>
constexpr int kLEAST_THREADS = (kFETCH == Fetch::kEARLY ? 768 : 1024) - (sizeof(W) < 4 ? 0 : 256);

// Rows that fit those registers. Sums over several warps take some themselves.
template <typename W, typename Shape>
constexpr bool kFITS
    = Shape::kEXACT && Shape::kVECTORS <= 3 && (Shape::kTHREADS <= kWARP || Shape::kPER * sizeof(W) <= 16);

// Early, fp32 weights lie side by side in vectors of 16 bytes as they do in memory: lanes of a warp read a run of 512
// bytes. (H200, a product and a norm of 1024 rows of 768 fp16 elements: 6.00 us, with two such vectors side by side in a
// thread 6.36, late 6.78, with the rows 7.74.) The other tensors follow.
template <typename W, typename Shape>
using EarlyShape = std::conditional_t<Shape::kPER * sizeof(W) <= 16, Shape,
    RowShape<Shape::kPER / 2, Shape::kTHREADS, 2 * Shape::kVECTORS, Shape::kEXACT>>;

template <typename W, Fetch kFETCH, typename Shape>
constexpr int kLEAST_BLOCKS = kFETCH == Fetch::kEARLY || (kFETCH == Fetch::kLATE && kFITS<W, Shape>)
                                  ? kLEAST_THREADS<W, kFETCH> / Shape::kBLOCK
                                  : 1;

// Except where weights come with the rows, the next kernel is let in once the loads are under way (H200, 768 fp16
// elements, late, 128 rows: 1.66 us instead of 1.82, 4096 rows: 5.42 instead of 5.44).
template <typename T, typename W, typename Tensors, Fetch kFETCH, typename Shape>
__global__ void __launch_bounds__(Shape::kBLOCK, kLEAST_BLOCKS<W, kFETCH, Shape>)
    skipLayerNormKernel(SkipLayerNormArguments const a, Quantizer const quantizer)
{
    constexpr int kPER = Shape::kPER;
    constexpr int kVECTORS = Shape::kVECTORS;
    constexpr bool kEARLY = kFETCH == Fetch::kEARLY;
    auto const place = Shape::place(static_cast<uint32_t>(a.rows));
    if (place.idle)
    {
        return;
    }
    uint32_t const hidden = a.hidden;
    uint64_t const start = static_cast<uint64_t>(place.row) * hidden;

    Vector<W, kPER> gammas[kVECTORS];
    Vector<W, kPER> betas[kVECTORS];
    Vector<W, kPER> biases[kVECTORS]{};
    auto const loadBias = [&]
    {
        if (a.bias != nullptr)
        {
            Shape::load(biases, static_cast<W const*>(a.bias), hidden);
        }
    };
    auto const loadGammaAndBeta = [&]
    {
        Shape::load(gammas, static_cast<W const*>(a.gamma), hidden);
        Shape::load(betas, static_cast<W const*>(a.beta), hidden);
    };
    if constexpr (kEARLY)
    {
        loadBias();
        loadGammaAndBeta();
    }
    waitForPreviousKernel();
    InputRow<T, Shape, Tensors::kX_INT8> const x{a.x, start, hidden, a.xScale};
    InputRow<T, Shape, Tensors::kSKIP_INT8> const skip{a.skip, start, hidden, a.skipScale};
    if constexpr (!kEARLY)
    {
        loadBias();
    }
    if constexpr (kFETCH != Fetch::kWITH_ROWS)
    {
        letNextKernelIn();
    }
    if constexpr (!kEARLY)
    {
        loadGammaAndBeta();
    }

    float values[kVECTORS][kPER];
    Shape::forEach([&](int v, int i) { values[v][i] = toFloat(biases[v], i); });
    x.addTo(values);
    skip.addTo(values);
    Width const width{kFETCH != Fetch::kWITH_ROWS ? Shape::kTHREADS * kVECTORS * kPER : hidden};
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
    if (isSo(Tensors::kY, a.y != nullptr))
    {
        Shape::template store<false>(
            static_cast<T*>(a.y) + start, hidden, [&](int v, int i) { return fromFloat<T>(values[v][i]); });
    }
    if (isSo(Tensors::kQUANTIZED, a.quantized != nullptr))
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

// How many rows are under way at the same time. Weights that are no constants are fetched late up to one such wave, else
// with the rows: of 768 fp16 elements a multiprocessor has 32 rows under way, or 20. H200, us, late and with the rows: 128
// rows 1.66 and 1.80, 4096 rows 5.42 and 5.64, 8192 rows 10.7 and 9.55, 131072 rows 138.8 and 137.6. Constant weights are
// fetched early up to two waves: a product and a norm of 4096 rows take 13.4 us then, with fp32 weights, late 14.7.
template <typename W, Fetch kFETCH, typename Shape>
int64_t countRowsOfWave(int multiprocessors)
{
    return int64_t{kLEAST_BLOCKS<W, kFETCH, Shape> * Shape::kROWS} * multiprocessors;
}

// Widths that int8 kernels are compiled for with the tensors known: those of BERT. With all widths the library would be
// larger, and for the others AnyTensors do.
template <typename Shape>
constexpr bool isOfBert()
{
    constexpr int kHIDDEN = Shape::kTHREADS * Shape::kVECTORS * Shape::kPER;
    return Shape::kEXACT && Shape::kBLOCK == kSMALL_BLOCK && kHIDDEN >= 256 && kHIDDEN <= 1024;
}

template <typename T, typename W, typename Tensors>
cudaError_t launchInRegisters(SkipLayerNormArguments const& a, cudaStream_t stream)
{
    std::integral_constant<Fetch, Fetch::kEARLY> const early{};
    std::integral_constant<Fetch, Fetch::kLATE> const late{};
    std::integral_constant<Fetch, Fetch::kWITH_ROWS> const withRows{};
    auto const start = [&](auto tensors, auto fetch, auto shape)
    {
        using Shape = decltype(shape);
        constexpr Fetch kFETCH = decltype(fetch)::value;
        auto* const kernel = skipLayerNormKernel<T, W, decltype(tensors), kFETCH, Shape>;
        if constexpr (kFETCH != Fetch::kWITH_ROWS && std::is_same_v<Tensors, Floating>)
        {
            // As the products around it; with few rows. With more the L1 cache is wanted for the loads that are under way
            // (131072 rows: 156 us with this preference, 138 without).
            cudaError_t const status = preferSharedMemory(kernel);
            if (status != cudaSuccess)
            {
                return status;
            }
        }
        return launchRows<Shape>(kernel, a.rows, stream, a, Quantizer{a.outputScale});
    };
    auto const launch = [&](auto shape)
    {
        using Shape = decltype(shape);
        if constexpr (std::is_same_v<Tensors, Floating>)
        {
            if constexpr (kFITS<W, Shape>)
            {
                int multiprocessors = 0;
                cudaError_t const status = countMultiprocessors(multiprocessors);
                if (status != cudaSuccess)
                {
                    return status;
                }
                using Early = EarlyShape<W, Shape>;
                if (a.constantWeights
                    && a.rows <= 2 * countRowsOfWave<W, Fetch::kEARLY, Early>(multiprocessors))
                {
                    return start(Tensors{}, early, Early{});
                }
                if (a.rows <= countRowsOfWave<W, Fetch::kLATE, Shape>(multiprocessors))
                {
                    return start(Tensors{}, late, shape);
                }
            }
            return start(Tensors{}, withRows, shape);
        }
        else if constexpr (Tensors::kKNOWN && isOfBert<Shape>())
        {
            return start(Tensors{}, late, shape);
        }
        else
        {
            return start(
                AnyTensors{}, withRows, RowShape<Shape::kPER, Shape::kTHREADS, Shape::kVECTORS, false>{});
        }
    };
    return dispatchRowShape<kPER_VECTOR<T>, Tensors::kKNOWN>(a.hidden, launch);
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
    // What is told when the kernel runs costs (H200, 131072 rows of 768: int8 throughout 204 us instead of 136, int8 x with
    // both outputs 177 instead of 145), so the compiler knows the forms in use. Those with int8 fetch weights
    // late with any number of rows.
    if (Floating::areThoseOf(a))
    {
        return launchInRegisters<T, W, Floating>(a, stream);
    }
    if (Int8X::areThoseOf(a))
    {
        return launchInRegisters<T, W, Int8X>(a, stream);
    }
    if (Int8Output::areThoseOf(a))
    {
        return launchInRegisters<T, W, Int8Output>(a, stream);
    }
    using Narrow = std::conditional_t<sizeof(T) == 2, T, __half>; // nothing is of T: vectors of 8 elements do
    if (Int8Throughout::areThoseOf(a) && fitsRegisters(a.rows, a.hidden, kPER_VECTOR<Narrow>))
    {
        return launchInRegisters<Narrow, W, Int8Throughout>(a, stream);
    }
    return launchInRegisters<T, W, AnyTensors>(a, stream);
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
