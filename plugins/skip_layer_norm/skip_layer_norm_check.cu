// Runs the kernels over shapes and types that reach every branch of their launcher and compares with a reference loop
// in double precision. common/kernel_check.cuh says how to run it under compute-sanitizer. With the argument "few"
// there are fewer runs, which still reach every kernel, for racecheck and initcheck, which are slow.
#include "common/kernel_check.cuh"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>

using namespace bert;

namespace
{

constexpr float kIN_SCALE = 0.05F;
constexpr float kOUT_SCALE = 0.04F; // up to 5 in absolute value

// x or skip: T, or int8 with a scale.
template <typename T>
class Input
{
public:
    Input(size_t size, bool int8)
        : mInt8(int8)
        , mLarge(randomValues<T>(int8 ? 0 : size, 3.0F, 1.0F))
        , mNarrow(int8 ? size : 0)
    {
        auto const values = randomValues<float>(mNarrow.size(), 0.0F, 127.0F);
        std::transform(
            values.begin(), values.end(), mNarrow.begin(), [](float v) { return static_cast<int8_t>(v); });
        mWideDevice = std::make_unique<Tensor<T>>(mLarge);
        mNarrowDevice = std::make_unique<Tensor<int8_t>>(mNarrow);
    }
    double operator[](size_t index) const
    {
        return mInt8 ? static_cast<double>(mNarrow[index]) * kIN_SCALE : toHost(mLarge[index]);
    }
    void const* data() const
    {
        return mInt8 ? static_cast<void const*>(mNarrowDevice->data()) : mWideDevice->data();
    }
    float scale() const
    {
        return mInt8 ? kIN_SCALE : 0.0F;
    }

private:
    bool mInt8;
    std::vector<T> mLarge;
    std::vector<int8_t> mNarrow;
    std::unique_ptr<Tensor<T>> mWideDevice;
    std::unique_ptr<Tensor<int8_t>> mNarrowDevice;
};

struct Variant
{
    char const* name;
    bool xInt8;
    bool skipInt8;
    bool y;
    bool quantized;
    bool bias;
    bool constantWeights;
    ElementType quantizedType{ElementType::kINT8};
    bool factors{false};
};
constexpr Variant kVARIANTS[] = {{"floating", false, false, true, false, true, false},
    {"floating, no bias", false, false, true, false, false, false},
    {"floating, constant weights", false, false, true, false, true, true},
    {"floating, constant weights, no bias", false, false, true, false, false, true},
    {"int8 x, both outputs", true, false, true, true, true, true},
    {"int8 skip", false, true, true, false, false, false},
    {"int8 throughout", true, true, false, true, true, false},
    {"int8 output", false, false, false, true, false, true},
    {"both outputs", false, false, true, true, true, true},
    {"both outputs, E4M3", false, false, true, true, true, true, ElementType::kE4M3},
    {"E4M3 output", false, false, false, true, true, true, ElementType::kE4M3},
    {"int8 x, both outputs, E4M3", true, false, true, true, true, true, ElementType::kE4M3},
    {"both outputs, factors", false, false, true, true, true, true, ElementType::kINT8, true},
    {"both outputs, late weights, factors", false, false, true, true, true, false, ElementType::kE4M3, true},
    {"int8 throughout, factors", true, true, false, true, false, false, ElementType::kINT8, true},
    {"E4M3 output, factors", false, false, false, true, true, true, ElementType::kE4M3, true},
    {"int8 skip, both outputs, factors", false, true, true, true, true, true, ElementType::kINT8, true}};
constexpr size_t kCONSTANT_WEIGHTS = 2;
constexpr size_t kFLOATING = 4; // the first ones, without int8
constexpr size_t kRUNTIME = 5;  // the variant without a specialised kernel
constexpr size_t kBOTH = 8;     // with constant weights, too
constexpr size_t kFACTORS = 12; // the same, with factors

// Whether int8 variants have specialised kernels for this width.
bool isBertWidth(int32_t hidden)
{
    return hidden == 256 || hidden == 384 || hidden == 512 || hidden == 768 || hidden == 1024;
}

template <typename T, typename W>
void runVariant(Outcome& outcome, Variant const& variant, ElementType type, ElementType weightType,
    int64_t rows, int32_t hidden, double tolerance)
{
    size_t const size = static_cast<size_t>(rows) * hidden;
    Input<T> const x{size, variant.xInt8};
    Input<T> const skip{size, variant.skipInt8};
    auto const gamma = randomValues<W>(hidden, 1.0F, 0.5F);
    auto const beta = randomValues<W>(hidden, 0.5F, 0.5F);
    auto const bias = randomValues<W>(hidden, 0.0F, 2.0F);
    auto const factors = randomValues<float>(variant.factors ? hidden : 0, 1.0F, 0.9F);
    Tensor<float> const factorsDevice{factors};
    Tensor<W> const gammaDevice{gamma};
    Tensor<W> const betaDevice{beta};
    Tensor<W> const biasDevice{bias};
    Tensor<T> const yDevice{variant.y ? size : 0};
    Tensor<int8_t> const quantizedDevice{variant.quantized ? size : 0};
    SkipLayerNormArguments const arguments{x.data(), skip.data(), gammaDevice.data(), betaDevice.data(),
        variant.bias ? biasDevice.data() : nullptr, variant.y ? yDevice.data() : nullptr,
        variant.quantized ? quantizedDevice.data() : nullptr, rows, hidden, kEPSILON, x.scale(), skip.scale(),
        kOUT_SCALE, type, weightType, variant.constantWeights, variant.quantizedType,
        variant.factors ? factorsDevice.data() : nullptr};
    check(launchSkipLayerNorm(arguments, nullptr), variant.name);
    check(cudaDeviceSynchronize(), variant.name);
    auto const y = yDevice.values();
    auto const quantized = quantizedDevice.values();
    for (int64_t row : {int64_t{0}, rows / 2, rows - 1})
    {
        size_t const start = static_cast<size_t>(row) * hidden;
        std::vector<double> sum(hidden);
        for (int32_t i = 0; i < hidden; ++i)
        {
            sum[i] = x[start + i] + skip[start + i] + (variant.bias ? toHost(bias[i]) : 0.0F);
        }
        auto expected = normalizedRow(sum, gamma.data(), beta.data());
        if (variant.y)
        {
            outcome.expectAtMost(rowError(&y[start], expected), tolerance, variant.name, rows, hidden, row);
        }
        for (int32_t i = 0; variant.quantized && i < hidden; ++i)
        {
            double const factor = variant.factors ? factors[i] : 1.0;
            double const shift = toHost(beta[i]);
            double const terms = std::abs(expected[i] - shift) + std::abs(toHost(gamma[i])) + std::abs(shift);
            outcome.expectAtMost(halfSteps(quantized[start + i], expected[i] * factor / kOUT_SCALE,
                                     terms * factor / kOUT_SCALE, variant.quantizedType),
                variant.factors ? 1.004 : 1.002, variant.name, rows, hidden, row);
        }
    }
    outcome.countRun();
}

// All variants; with `few`, only those that reach another kernel.
template <typename T, typename W>
void runType(Outcome& outcome, ElementType type, ElementType weightType, double tolerance, bool few)
{
    auto const runShape = [&](int64_t rows, int32_t hidden)
    {
        for (size_t i = 0; i < std::size(kVARIANTS); ++i)
        {
            if (!few || i < kFLOATING || i == kRUNTIME || isBertWidth(hidden))
            {
                runVariant<T, W>(outcome, kVARIANTS[i], type, weightType, rows, hidden, tolerance);
            }
        }
    };
    if (few)
    {
        for (int32_t hidden : kWIDTHS)
        {
            runShape(7, hidden);
        }
    }
    else
    {
        forEachShape(runShape);
    }
    // More rows than one wave: other kernels are chosen.
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0),
        "cudaDeviceGetAttribute");
    for (int32_t hidden : {64, 256, 384, 512, 768, 1536})
    {
        // Too many rows to load constant weights before the wait, for fp32 and for narrow weights, and to load them
        // late. 32 threads have a row, but 8 with a width of 64, and 16 with one of 384 in two bytes.
        int const threads = hidden == 64 ? 8 : hidden == 384 && sizeof(T) == 2 ? 16 : 32;
        int64_t const inWave = int64_t{1024 / threads} * multiprocessors;
        for (int64_t rows : {inWave * 5 / 8, inWave + 3, inWave * 3 / 2 + 3})
        {
            for (size_t variant : {kCONSTANT_WEIGHTS, kBOTH, kFACTORS, kFACTORS + 1})
            {
                runVariant<T, W>(outcome, kVARIANTS[variant], type, weightType, rows, hidden, tolerance);
            }
        }
    }
}

} // namespace

int main(int argumentCount, char** arguments)
{
    Outcome outcome;
    bool const few = argumentCount > 1 && std::string{arguments[1]} == "few";
    runType<float, float>(outcome, ElementType::kFLOAT, ElementType::kFLOAT, 1e-6, few);
    runType<__half, __half>(outcome, ElementType::kHALF, ElementType::kHALF, 6e-4, few);
    runType<__half, float>(outcome, ElementType::kHALF, ElementType::kFLOAT, 6e-4, few);
    runType<__nv_bfloat16, __nv_bfloat16>(outcome, ElementType::kBF16, ElementType::kBF16, 5e-3, few);
    runType<__nv_bfloat16, float>(outcome, ElementType::kBF16, ElementType::kFLOAT, 5e-3, few);
    return outcome.report();
}
