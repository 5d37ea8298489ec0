// Residual sum, bias and layer normalisation in one kernel: x and skip are read once, y is written once, and the sum
// exists only in fp32 registers. Everything else is as in layer_norm/layer_norm_fast.cu; read that first.
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

// A property of a tensor (it is int8; it exists) that is a compile-time constant, or known only at run time.
enum class StaticBool
{
    kFALSE,
    kTRUE,
    kRUNTIME
};

__device__ constexpr bool valueOf(StaticBool staticValue, bool runtimeValue)
{
    return staticValue == StaticBool::kRUNTIME ? runtimeValue : staticValue == StaticBool::kTRUE;
}

// Which inputs are int8, which outputs exist, and whether that in 8 bits has factors.
template <StaticBool kX_INT8_, StaticBool kSKIP_INT8_, StaticBool kY_, StaticBool kQUANTIZED_,
    StaticBool kFACTORS_ = StaticBool::kFALSE>
struct Tensors
{
    static constexpr StaticBool kX_INT8 = kX_INT8_;
    static constexpr StaticBool kSKIP_INT8 = kSKIP_INT8_;
    static constexpr StaticBool kY = kY_;
    static constexpr StaticBool kQUANTIZED = kQUANTIZED_;
    static constexpr StaticBool kFACTORS = kFACTORS_;
    static constexpr bool kSTATIC = kY != StaticBool::kRUNTIME;
    // Floating inputs and a floating output: the residual path of a network.
    static constexpr bool kFLOATING_PATH
        = kX_INT8 == StaticBool::kFALSE && kSKIP_INT8 == StaticBool::kFALSE && kY == StaticBool::kTRUE;

    static bool match(SkipLayerNormArguments const& a)
    {
        auto const agrees = [](StaticBool staticValue, bool runtimeValue)
        { return (staticValue == StaticBool::kTRUE) == runtimeValue; };
        return agrees(kX_INT8, a.xScale > 0.0F) && agrees(kSKIP_INT8, a.skipScale > 0.0F)
               && agrees(kY, a.y != nullptr) && agrees(kQUANTIZED, a.quantized != nullptr)
               && agrees(kFACTORS, a.outputFactors != nullptr);
    }
};
using Floating = Tensors<StaticBool::kFALSE, StaticBool::kFALSE, StaticBool::kTRUE, StaticBool::kFALSE>;
using Both = Tensors<StaticBool::kFALSE, StaticBool::kFALSE, StaticBool::kTRUE, StaticBool::kTRUE>;
using BothWithFactors = Tensors<StaticBool::kFALSE, StaticBool::kFALSE, StaticBool::kTRUE, StaticBool::kTRUE,
    StaticBool::kTRUE>;
using Int8X = Tensors<StaticBool::kTRUE, StaticBool::kFALSE, StaticBool::kTRUE, StaticBool::kTRUE>;
using Int8Throughout = Tensors<StaticBool::kTRUE, StaticBool::kTRUE, StaticBool::kFALSE, StaticBool::kTRUE>;
using Int8Output = Tensors<StaticBool::kFALSE, StaticBool::kFALSE, StaticBool::kFALSE, StaticBool::kTRUE>;
using AnyTensors = Tensors<StaticBool::kRUNTIME, StaticBool::kRUNTIME, StaticBool::kRUNTIME,
    StaticBool::kRUNTIME, StaticBool::kRUNTIME>;

// One thread's part of a row of x or of skip, with the type that it has in memory: T or int8. Loading and converting
// are separate steps, so that all loads are in flight before the first value is needed.
template <typename T, typename Shape, StaticBool kINT8>
class InputRow
{
public:
    __device__ InputRow(void const* input, uint64_t start, uint32_t hidden, float scale)
        : mScale(scale)
    {
        // No streaming hint, unlike x in LayerNorm: with two input streams it costs time.
        if (isInt8())
        {
            Shape::load(mInt8, static_cast<int8_t const*>(input) + start, hidden);
        }
        else
        {
            Shape::load(mFloating, static_cast<T const*>(input) + start, hidden);
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
            Shape::forEach([&](int v, int i) { values[v][i] += toFloat(mFloating[v].values[i]); });
        }
    }

private:
    __device__ bool isInt8() const
    {
        return valueOf(kINT8, mScale > 0.0F);
    }

    Vector<T, Shape::kPER> mFloating[Shape::kVECTORS];
    Vector<int8_t, Shape::kPER> mInt8[Shape::kVECTORS];
    float mScale;
};

// When gamma, beta and bias are loaded.
enum class WeightLoad
{
    // Before the wait for the previous kernel; the weights must be constants. All three are in registers then, so
    // fewer rows are in flight.
    kBEFORE_WAIT,
    // With few registers, so that more rows are in flight: the bias with x and skip, gamma and beta when the sum is
    // known. The width is a compile-time constant then. Otherwise there is a division by the width, and the compiler
    // keeps the loads before it, where they would not fit into the registers.
    kLATE,
    // Together with x and skip.
    kWITH_INPUTS
};

// The occupancy in threads per multiprocessor that the compiler is asked for. fp32 weights take more registers, and
// would spill to memory with more threads.
template <typename W, WeightLoad kLOAD>
constexpr int kMIN_THREADS = (kLOAD == WeightLoad::kBEFORE_WAIT ? 768 : 1024) - (sizeof(W) < 4 ? 0 : 256);

// Whether a row fits into those registers. Sums over several warps need some themselves.
template <typename W, typename Shape>
constexpr bool kFITS
    = Shape::kEXACT && Shape::kVECTORS <= 3 && (Shape::kTHREADS <= kWARP || Shape::kPER * sizeof(W) <= 16);

// The shape for kBEFORE_WAIT: a thread loads fp32 weights in vectors of 16 bytes, so that the lanes of a warp read
// 512 contiguous bytes. The other tensors use the same distribution over threads.
template <typename W, typename Shape>
using BeforeWaitShape = std::conditional_t<Shape::kPER * sizeof(W) <= 16, Shape,
    RowShape<Shape::kPER / 2, Shape::kTHREADS, 2 * Shape::kVECTORS, Shape::kEXACT>>;

template <typename W, WeightLoad kLOAD, typename Shape>
constexpr int kMIN_BLOCKS
    = kLOAD == WeightLoad::kBEFORE_WAIT || (kLOAD == WeightLoad::kLATE && kFITS<W, Shape>)
          ? kMIN_THREADS<W, kLOAD> / Shape::kBLOCK
          : 1;

// Except with kWITH_INPUTS, the kernel triggers the next one once its own loads are in flight.
template <typename T, typename W, typename Tensors, WeightLoad kLOAD, typename Shape>
__global__ void __launch_bounds__(Shape::kBLOCK, kMIN_BLOCKS<W, kLOAD, Shape>)
    skipLayerNormKernel(SkipLayerNormArguments const a, Quantizer const quantizer)
{
    constexpr int kPER = Shape::kPER;
    constexpr int kVECTORS = Shape::kVECTORS;
    constexpr bool kBEFORE_WAIT = kLOAD == WeightLoad::kBEFORE_WAIT;
    auto const position = Shape::position(static_cast<uint32_t>(a.rows));
    if (position.idle)
    {
        return;
    }
    uint32_t const hidden = a.hidden;
    uint64_t const start = static_cast<uint64_t>(position.row) * hidden;

    Vector<W, kPER> gammas[kVECTORS];
    Vector<W, kPER> betas[kVECTORS];
    Vector<W, kPER> biases[kVECTORS]{};
    Vector<float, kPER> factors[kVECTORS];
    bool const hasFactors = valueOf(Tensors::kFACTORS, a.outputFactors != nullptr);
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
    if constexpr (kBEFORE_WAIT)
    {
        loadBias();
        loadGammaAndBeta();
    }
    waitForPreviousKernel();
    InputRow<T, Shape, Tensors::kX_INT8> const x{a.x, start, hidden, a.xScale};
    InputRow<T, Shape, Tensors::kSKIP_INT8> const skip{a.skip, start, hidden, a.skipScale};
    if constexpr (!kBEFORE_WAIT)
    {
        loadBias();
    }
    if constexpr (kLOAD != WeightLoad::kWITH_INPUTS)
    {
        triggerDependentLaunch();
    }
    if constexpr (!kBEFORE_WAIT)
    {
        loadGammaAndBeta();
    }

    float values[kVECTORS][kPER];
    // exercise 14 begins
    Shape::forEach([&](int v, int i) { values[v][i] = toFloat(biases[v], i); });
    x.addTo(values);
    skip.addTo(values);
    // exercise 14 ends
    if (kBEFORE_WAIT && hasFactors) // arrive while the sums are added up, in the registers of x and skip
    {
        Shape::load(factors, a.outputFactors, hidden);
    }
    Width const width{kLOAD != WeightLoad::kWITH_INPUTS ? Shape::kTHREADS * kVECTORS * kPER : hidden};
    RowStatistics const statistics = Shape::statistics(values, width, hidden, a.epsilon);
    if (Shape::kSHARES_WARP && !position.exists)
    {
        return;
    }
    Shape::forEach(
        [&](int v, int i)
        {
            values[v][i] = normalize(
                values[v][i], statistics, toFloat(gammas[v].values[i]), toFloat(betas[v].values[i]));
        });
    if (valueOf(Tensors::kY, a.y != nullptr))
    {
        Shape::template store<false>(
            static_cast<T*>(a.y) + start, hidden, [&](int v, int i) { return fromFloat<T>(values[v][i]); });
    }
    if (valueOf(Tensors::kQUANTIZED, a.quantized != nullptr))
    {
        if (!kBEFORE_WAIT && hasFactors) // in the registers of gamma and beta
        {
            Shape::load(factors, a.outputFactors, hidden);
        }
        if (hasFactors)
        {
            Shape::forEach([&](int v, int i) { values[v][i] *= factors[v].values[i]; });
        }
        quantizer.dispatch(
            [&](auto const& quantize, auto element)
            {
                Shape::template store<false>(static_cast<decltype(element)*>(a.quantized) + start, hidden,
                    [&](int v, int i) { return quantize(values[v][i]); });
            });
    }
}

template <typename T>
__device__ float inputValue(void const* input, uint64_t index, float scale)
{
    return scale > 0.0F ? toFloat(static_cast<int8_t const*>(input)[index]) * scale
                        : toFloat(static_cast<T const*>(input)[index]);
}

// For rows of any width at any address: one block for each row reads x and skip three times, mostly from the cache.
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

// The number of rows in flight on the whole GPU: one wave. Weights that are not constant are loaded late up to one
// wave, where occupancy counts, and with the inputs beyond. Constant weights are loaded before the wait up to two
// waves. The limits come from measurements (docs/kernels/embedding_and_skip_layer_norm.md).
template <typename W, WeightLoad kLOAD, typename Shape>
int64_t rowsPerWave(int multiprocessors)
{
    return int64_t{kMIN_BLOCKS<W, kLOAD, Shape> * Shape::kROWS} * multiprocessors;
}

// Widths for which kernels with int8 tensors are specialised at compile time: those of BERT. Specialisations of all
// widths would make the library larger; other widths use AnyTensors.
template <typename Shape>
constexpr bool isBertWidth()
{
    constexpr int kHIDDEN = Shape::kTHREADS * Shape::kVECTORS * Shape::kPER;
    return Shape::kEXACT && Shape::kBLOCK == kSMALL_BLOCK && kHIDDEN >= 256 && kHIDDEN <= 1024;
}

template <typename T, typename W, typename Tensors>
cudaError_t launchInRegisters(SkipLayerNormArguments const& a, cudaStream_t stream)
{
    std::integral_constant<WeightLoad, WeightLoad::kBEFORE_WAIT> const beforeWait{};
    std::integral_constant<WeightLoad, WeightLoad::kLATE> const late{};
    std::integral_constant<WeightLoad, WeightLoad::kWITH_INPUTS> const withInputs{};
    auto const start = [&](auto tensors, auto load, auto shape)
    {
        using Shape = decltype(shape);
        constexpr WeightLoad kLOAD = decltype(load)::value;
        auto* const kernel = skipLayerNormKernel<T, W, decltype(tensors), kLOAD, Shape>;
        if constexpr (kLOAD != WeightLoad::kWITH_INPUTS && Tensors::kFLOATING_PATH)
        {
            // The same split as the matmuls around it, for few rows only. With many rows the L1 cache is needed for
            // the loads in flight.
            cudaError_t const status = preferSharedMemory(kernel);
            if (status != cudaSuccess)
            {
                return status;
            }
        }
        return launchRows<Shape>(kernel, a.rows, stream, a, Quantizer{a.outputScale, a.quantizedType});
    };
    auto const launch = [&](auto shape)
    {
        using Shape = decltype(shape);
        constexpr bool kFLOATING
            = Tensors::kFLOATING_PATH && (Tensors::kQUANTIZED == StaticBool::kFALSE || isBertWidth<Shape>());
        if constexpr (kFLOATING && kFITS<W, Shape>)
        {
            int multiprocessors = 0;
            cudaError_t const status = countMultiprocessors(multiprocessors);
            if (status != cudaSuccess)
            {
                return status;
            }
            using BeforeWait = BeforeWaitShape<W, Shape>;
            if (a.constantWeights
                && a.rows <= 2 * rowsPerWave<W, WeightLoad::kBEFORE_WAIT, BeforeWait>(multiprocessors))
            {
                return start(Tensors{}, beforeWait, BeforeWait{});
            }
            if (a.rows <= rowsPerWave<W, WeightLoad::kLATE, Shape>(multiprocessors))
            {
                return start(Tensors{}, late, shape);
            }
        }
        if constexpr (kFLOATING)
        {
            return start(Tensors{}, withInputs, shape);
        }
        else if constexpr (Tensors::kSTATIC && isBertWidth<Shape>())
        {
            return start(Tensors{}, late, shape);
        }
        else
        {
            return start(
                AnyTensors{}, withInputs, RowShape<Shape::kPER, Shape::kTHREADS, Shape::kVECTORS, false>{});
        }
    };
    return dispatchRowShape<kPER_VECTOR<T>, Tensors::kSTATIC>(a.hidden, launch);
}

template <typename T, typename W>
cudaError_t launchTyped(SkipLayerNormArguments const& a, cudaStream_t stream)
{
    bool aligned = true;
    for (void const* tensor : {a.x, a.skip, a.gamma, a.beta, a.bias, static_cast<void const*>(a.y),
             static_cast<void const*>(a.quantized), static_cast<void const*>(a.outputFactors)})
    {
        aligned = aligned && isAligned16(tensor);
    }
    if (!aligned || !fitsRegisters(a.rows, a.hidden, kPER_VECTOR<T>))
    {
        skipLayerNormRereadingKernel<T, W>
            <<<rowBlocks(a.rows), kREREAD_BLOCK, 0, stream>>>(a, Quantizer{a.outputScale, a.quantizedType});
        return cudaGetLastError();
    }
    // Deciding at run time which tensors are int8 costs branches and registers, so the combinations in use are
    // template specialisations. Those with int8 inputs, or without a floating output, load weights late for any number
    // of rows.
    if (Floating::match(a))
    {
        return launchInRegisters<T, W, Floating>(a, stream);
    }
    if (Both::match(a))
    {
        return launchInRegisters<T, W, Both>(a, stream);
    }
    if (BothWithFactors::match(a))
    {
        return launchInRegisters<T, W, BothWithFactors>(a, stream);
    }
    if (Int8X::match(a))
    {
        return launchInRegisters<T, W, Int8X>(a, stream);
    }
    if (Int8Output::match(a))
    {
        return launchInRegisters<T, W, Int8Output>(a, stream);
    }
    using Narrow
        = std::conditional_t<sizeof(T) == 2, T, __half>; // no tensor is of T: vectors of 8 elements fit int8
    if (Int8Throughout::match(a) && fitsRegisters(a.rows, a.hidden, kPER_VECTOR<Narrow>))
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
