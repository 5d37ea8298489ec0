// Runs the kernels over shapes and types that reach every branch of their launchers and compares with a reference
// loop in double precision. common/kernel_check.cuh says how to run it under compute-sanitizer. With the argument "few"
// there are fewer and smaller runs, for racecheck and initcheck, which are slow.
#include "common/capability.h"
#include "common/kernel_check.cuh"
#include "linear_skip_layer_norm/linear_skip_layer_norm_kernels.h"

#include <cstring>
#include <iterator>
#include <map>
#include <string>

using namespace bert;

namespace
{

template <typename T>
constexpr double kROUNDING = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8; // of a number, relative

// The error of a sum, relative to the root mean square of the sums of its row. The tensor cores add products of E4M3 with
// few bits: linear/linear_check.cu says how that was measured, and that single sums are off by up to four times as much. In
// any type an instruction may lose the last bit of what it adds to: of 14 in E4M3, with 32 products, of 24 with 16 products
// of 16 bits. Sums of int8 are exact.
template <typename T>
constexpr double kSUM_ERROR = std::is_same_v<T, E4m3> ? 1.5e-3 : 1e-6;
template <typename T>
double singleError(int32_t in)
{
    return std::max(4.0 * kSUM_ERROR<T>, std::is_same_v<T, E4m3> ? in / 32 * 0x1p-13
                                         : kNARROW<T>            ? 0.0
                                                                 : in / 16 * 0x1p-23);
}

struct Kernel
{
    char const* name;
    cudaError_t (*launch)(LinearSkipLayerNormArguments const&, cudaStream_t);
    bool rounds; // x W^T to 16 bits
};
std::vector<Kernel> gKernels;

enum class Narrow
{
    kNONE,
    kINT8,
    kE4M3,
};
struct Variant
{
    char const* name;
    bool bias;
    bool wideNorm;
    bool constantWeights;
    Narrow narrow;
    bool factors;
    float offset; // of skip: a mean far from zero
};
constexpr Variant kVARIANTS[] = {{"plain", false, false, true, Narrow::kNONE, false, 0.0F},
    {"bias, fp32 weights", true, true, false, Narrow::kNONE, false, 0.0F},
    {"int8", true, false, true, Narrow::kINT8, false, 0.0F},
    {"int8, factors, late weights", true, true, false, Narrow::kINT8, true, 0.0F},
    {"E4M3", true, true, true, Narrow::kE4M3, false, 0.0F},
    {"E4M3, factors", false, false, true, Narrow::kE4M3, true, 0.0F},
    {"large mean", true, false, true, Narrow::kNONE, false, 500.0F}};

template <typename T, typename Out>
class Problem
{
public:
    Problem(int32_t in, int32_t out, int64_t rows)
        : mIn(in)
        , mOut(out)
        , mRows(rows)
        , mX(randomValues<T>(rows * in, 0.0F, kNARROW<T> ? 30.0F : 1.0F))
        , mWeight(randomValues<T>(static_cast<size_t>(in) * out, 0.0F,
              kNARROW<T> ? 30.0F : 3.0F / std::sqrt(static_cast<float>(in))))
        , mScales(randomValues<float>(out, 1.0F, 0.5F))
        , mBias(randomValues<float>(out, 0.5F, 1.0F))
        , mGamma(randomValues<float>(out, 1.0F, 0.5F))
        , mBeta(randomValues<float>(out, 0.5F, 0.5F))
        , mFactors(randomValues<float>(out, 1.0F, 0.9F))
        , mSkip(randomValues<Out>(rows * out, 0.0F, 2.0F))
    {
        for (float& scale : mScales)
        {
            scale = kNARROW<T> ? scale / (300.0F * std::sqrt(static_cast<float>(in))) : 1.0F;
        }
        for (std::vector<float>* values : {&mBias, &mGamma, &mBeta}) // the same numbers in both types
        {
            for (float& value : *values)
            {
                value = toHost(static_cast<Out>(value));
            }
        }
        for (int64_t row = 0; row < rows; row += 3) // one value far from all others
        {
            mSkip[row * out + row % out] = static_cast<Out>(60.0F);
        }
    }
    void run(Outcome& outcome, bool few)
    {
        Tensor<T> const x{mX};
        Tensor<T> const weight{mWeight};
        Tensor<float> const scales{mScales};
        Tensor<float> const factors{mFactors};
        Tensor<Out> const y{mSkip.size()};
        Tensor<Out> const workspace{mSkip.size()};
        Tensor<int8_t> const narrow{mSkip.size()};
        poison(workspace.data(), mSkip.size());
        for (Variant const& variant : few ? std::vector<Variant>{kVARIANTS[3], kVARIANTS[4]}
                                          : std::vector<Variant>{std::begin(kVARIANTS), std::end(kVARIANTS)})
        {
            std::vector<Out> skipValues = mSkip;
            for (Out& value : skipValues)
            {
                value = static_cast<Out>(toHost(value) + variant.offset);
            }
            Tensor<Out> const skip{skipValues};
            Norms const norms{*this};
            for (Kernel const& kernel : gKernels)
            {
                LinearSkipLayerNormArguments a{};
                a.x = x.data();
                a.weight = weight.data();
                a.bias = variant.bias ? norms.pick(norms.bias, norms.wideBias, variant) : nullptr;
                a.skip = skip.data();
                a.gamma = norms.pick(norms.gamma, norms.wideGamma, variant);
                a.beta = norms.pick(norms.beta, norms.wideBeta, variant);
                a.y = y.data();
                a.quantized = variant.narrow == Narrow::kNONE ? nullptr : narrow.data();
                a.workspace = workspace.data();
                a.rows = mRows;
                a.in = mIn;
                a.out = mOut;
                a.epsilon = kEPSILON;
                a.type = TypeOf<T>::kVALUE;
                a.outputType = TypeOf<Out>::kVALUE;
                a.normType = variant.wideNorm ? ElementType::kFLOAT : TypeOf<Out>::kVALUE;
                a.constantWeights = variant.constantWeights;
                a.weightScales = kNARROW<T> ? scales.data() : nullptr;
                a.xScale = kX_SCALE;
                a.quantizedType = variant.narrow == Narrow::kE4M3 ? ElementType::kE4M3 : ElementType::kINT8;
                a.outputScale = kOUTPUT_SCALE;
                a.outputFactors = variant.factors ? factors.data() : nullptr;
                std::vector<Out> results[2];
                std::vector<int8_t> narrowResults[2];
                for (int i = 0; i < 2; ++i) // over two fillings: where nobody writes, the results differ
                {
                    check(cudaMemset(y.data(), i == 0 ? 0xFF : 0x3C, mSkip.size() * sizeof(Out)), "fill");
                    check(cudaMemset(narrow.data(), i == 0 ? 0xFF : 0x3C, mSkip.size()), "fill");
                    check(kernel.launch(a, nullptr), kernel.name);
                    check(cudaDeviceSynchronize(), kernel.name);
                    results[i] = y.values();
                    narrowResults[i] = narrow.values();
                }
                std::string const what = std::string{kernel.name} + ", " + variant.name + ", type "
                                         + std::to_string(static_cast<int>(TypeOf<T>::kVALUE)) + " to "
                                         + std::to_string(static_cast<int>(TypeOf<Out>::kVALUE)) + ", "
                                         + std::to_string(mIn) + " in";
                bool same
                    = std::memcmp(results[0].data(), results[1].data(), mSkip.size() * sizeof(Out)) == 0;
                same = same
                       && (variant.narrow == Narrow::kNONE
                           || std::memcmp(narrowResults[0].data(), narrowResults[1].data(), mSkip.size())
                                  == 0);
                outcome.expectAtMost(
                    same ? 0.0 : 1.0, 0.0, (what + ": two runs differ").c_str(), mRows, mOut, 0);
                for (int64_t const row : {int64_t{0}, int64_t{31}, int64_t{63}, int64_t{64}, int64_t{127},
                         int64_t{130}, mRows / 2, mRows - 1})
                {
                    if (row < mRows)
                    {
                        compareRow(
                            outcome, what, variant, kernel, row, skipValues, results[0], narrowResults[0]);
                    }
                }
                outcome.countRun();
            }
        }
    }

private:
    static constexpr float kX_SCALE = kNARROW<T> ? 0.75F : 1.0F;
    static constexpr float kOUTPUT_SCALE = 0.04F;

    struct Norms
    {
        explicit Norms(Problem const& p)
            : bias(narrowed(p.mBias))
            , gamma(narrowed(p.mGamma))
            , beta(narrowed(p.mBeta))
            , wideBias(p.mBias)
            , wideGamma(p.mGamma)
            , wideBeta(p.mBeta)
        {
        }
        static std::vector<Out> narrowed(std::vector<float> const& values)
        {
            std::vector<Out> result(values.size());
            std::transform(
                values.begin(), values.end(), result.begin(), [](float v) { return static_cast<Out>(v); });
            return result;
        }
        static void const* pick(
            Tensor<Out> const& values, Tensor<float> const& wideValues, Variant const& variant)
        {
            return variant.wideNorm ? static_cast<void const*>(wideValues.data()) : values.data();
        }
        Tensor<Out> bias;
        Tensor<Out> gamma;
        Tensor<Out> beta;
        Tensor<float> wideBias;
        Tensor<float> wideGamma;
        Tensor<float> wideBeta;
    };

    std::vector<double> const& product(int64_t row) // slow, so computed once for each row
    {
        std::vector<double>& sums = mProducts[row];
        if (sums.empty())
        {
            sums.resize(mOut);
            std::vector<float> x(mIn);
            for (int32_t k = 0; k < mIn; ++k)
            {
                x[k] = toHost(mX[row * mIn + k]);
            }
            if (mWideWeight.empty())
            {
                mWideWeight.resize(mWeight.size());
                std::transform(
                    mWeight.begin(), mWeight.end(), mWideWeight.begin(), [](T v) { return toHost(v); });
            }
            for (int32_t n = 0; n < mOut; ++n)
            {
                float const* const weights = &mWideWeight[static_cast<size_t>(n) * mIn];
                double sum = 0.0;
                for (int32_t k = 0; k < mIn; ++k)
                {
                    sum += static_cast<double>(x[k]) * weights[k];
                }
                sums[n] = sum * mScales[n] * kX_SCALE;
            }
        }
        return sums;
    }
    void compareRow(Outcome& outcome, std::string const& what, Variant const& variant, Kernel const& kernel,
        int64_t row, std::vector<Out> const& skip, std::vector<Out> const& found,
        std::vector<int8_t> const& foundNarrow)
    {
        std::vector<double> const& products = product(row);
        std::vector<double> sums(mOut);
        double mean = 0.0;
        double square = 0.0; // of products
        for (int32_t n = 0; n < mOut; ++n)
        {
            sums[n] = products[n] + (variant.bias ? mBias[n] : 0.0F) + toHost(skip[row * mOut + n]);
            mean += sums[n] / mOut;
            square += products[n] * products[n] / mOut;
        }
        double variance = 0.0;
        double largest = 0.0;
        for (double const sum : sums)
        {
            variance += (sum - mean) * (sum - mean) / mOut;
            largest = std::max(largest, std::abs(sum));
        }
        double const inverse = 1.0 / std::sqrt(variance + kEPSILON);
        // Of a sum: of the products, of the rounding between two kernels, of additions in fp32.
        double const rms = std::sqrt(square);
        double const rounding = kernel.rounds ? kROUNDING<Out> : 0.0;
        double const sumError = (kSUM_ERROR<T> + rounding) * rms + 0x1p-22 * largest;
        double const single = (singleError<T>(mIn) + rounding) * rms;
        double difference = 0.0;
        double norm = 0.0;
        double most = 0.0; // steps of 8 bits
        for (int32_t n = 0; n < mOut; ++n)
        {
            double const normalized = (sums[n] - mean) * inverse;
            double const expected = normalized * mGamma[n] + mBeta[n];
            difference += std::pow(toHost(found[row * mOut + n]) - expected, 2.0);
            norm += expected * expected;
            if (variant.narrow != Narrow::kNONE)
            {
                double const factor = variant.factors ? mFactors[n] : 1.0;
                // The mean and the deviation of a row are wrong by less than one of its sums.
                double const error = factor * mGamma[n]
                                         * ((single + rounding * std::abs(products[n]) + 0x1p-22 * largest)
                                                 * inverse * (1.0 + std::abs(normalized) * 0.1)
                                             + 2e-6 * std::abs(normalized))
                                     + factor * 1e-6 * std::abs(mBeta[n]);
                int8_t const byte = foundNarrow[row * mOut + n];
                most = std::max(most, variant.narrow == Narrow::kINT8
                                          ? stepsAway(byte, expected * factor, error)
                                          : stepsAway(asE4m3(byte), expected * factor, error));
            }
        }
        double const bound = kROUNDING<Out> + 2.0 * sumError * inverse;
        outcome.expectAtMost(std::sqrt(difference / norm), bound, what.c_str(), mRows, mOut, row);
        outcome.expectAtMost(most, 0.0, (what + ", in 8 bits").c_str(), mRows, mOut, row);
    }
    static E4m3 asE4m3(int8_t byte)
    {
        E4m3 value;
        value.__x = static_cast<__nv_fp8_storage_t>(byte);
        return value;
    }
    // How many steps it is outside what the value becomes, which may be wrong by `error`.
    template <typename Q>
    static double stepsAway(Q found, double expected, double error)
    {
        if (std::isnan(toHost(found)))
        {
            return 1e9;
        }
        int const step = stepOf(found);
        return std::max({0, step - stepOf(quantized((expected + error) / kOUTPUT_SCALE, Q{})),
            stepOf(quantized((expected - error) / kOUTPUT_SCALE, Q{})) - step});
    }

    int32_t mIn;
    int32_t mOut;
    int64_t mRows;
    std::vector<T> mX;
    std::vector<T> mWeight;
    std::vector<float> mScales;
    std::vector<float> mBias;
    std::vector<float> mGamma;
    std::vector<float> mBeta;
    std::vector<float> mFactors;
    std::vector<Out> mSkip;
    std::vector<float> mWideWeight;
    std::map<int64_t, std::vector<double>> mProducts;
};

// Launches that follow each other, each of which reads what the one before wrote: as x and as skip.
template <typename T>
void runSequence(Outcome& outcome, Kernel const& kernel, int32_t out, int64_t rows, bool few)
{
    int const repeats = few ? 3 : 12;
    size_t const size = static_cast<size_t>(rows) * out;
    Tensor<T> const start{randomValues<T>(size, 0.0F, 1.0F)};
    Tensor<T> const weight{
        randomValues<T>(static_cast<size_t>(out) * out, 0.0F, 3.0F / std::sqrt(static_cast<float>(out)))};
    Tensor<T> const gamma{randomValues<T>(out, 1.0F, 0.5F)};
    Tensor<T> const beta{randomValues<T>(out, 0.5F, 0.5F)};
    Tensor<T> const workspace{size};
    poison(workspace.data(), size);
    auto const runAll = [&](bool pause)
    {
        Tensor<T> const y{repeats * size};
        poison(y.data(), repeats * size);
        check(cudaDeviceSynchronize(), "poison");
        for (int i = 0; i < repeats; ++i)
        {
            LinearSkipLayerNormArguments a{};
            a.x = i == 0 ? start.data() : y.data() + (i - 1) * size;
            a.weight = weight.data();
            a.skip = i < 2 ? start.data() : y.data() + (i - 2) * size;
            a.gamma = gamma.data();
            a.beta = beta.data();
            a.y = y.data() + i * size;
            a.workspace = workspace.data();
            a.rows = rows;
            a.in = out;
            a.out = out;
            a.epsilon = kEPSILON;
            a.type = TypeOf<T>::kVALUE;
            a.outputType = TypeOf<T>::kVALUE;
            a.normType = TypeOf<T>::kVALUE;
            a.constantWeights = i % 3 != 0;
            check(kernel.launch(a, nullptr), kernel.name);
            check(pause ? cudaDeviceSynchronize() : cudaSuccess, kernel.name);
        }
        check(cudaDeviceSynchronize(), kernel.name);
        return y.values();
    };
    auto const expected = runAll(true);
    auto const found = runAll(false);
    bool const same = std::memcmp(expected.data(), found.data(), found.size() * sizeof(T)) == 0;
    outcome.expectAtMost(same ? 0.0 : 1.0, 0.0,
        (std::string{kernel.name} + ": a sequence of launches differs from single ones").c_str(), rows, out,
        0);
    outcome.countRun();
}

template <typename T, typename Out>
void runType(Outcome& outcome, bool few)
{
    for (int32_t const out : {768, 1024})
    {
        for (int32_t const in : few ? std::vector<int32_t>{768} : std::vector<int32_t>{128, 640, 1024, 3072})
        {
            // A part of a tile, tiles that share rows with the one before, and so many that warpgroups have several.
            for (int64_t const rows :
                few ? std::vector<int64_t>{140} : std::vector<int64_t>{1, 64, 131, 1000, 6001})
            {
                Problem<T, Out>{in, out, rows}.run(outcome, few);
            }
        }
        if (!few)
        {
            Problem<T, Out>{4096, out, 9000}.run(outcome, few);
        }
    }
}

} // namespace

int main(int argumentCount, char** arguments)
{
    bool const few = argumentCount > 1 && std::string{arguments[1]} == "few";
    Outcome outcome;
    Capability gpu;
    check(currentCapability(gpu), "compute capability");
#if defined(BERT_HOPPER)
    if (gpu.major == 9 && gpu.minor == 0)
    {
        gKernels.push_back({"one kernel", launchLinearSkipLayerNormHopper, false});
    }
#endif
    gKernels.push_back({"two kernels", launchLinearThenSkipLayerNorm, true});
    runType<__half, __half>(outcome, few);
    runType<__nv_bfloat16, __nv_bfloat16>(outcome, few);
    runType<int8_t, __half>(outcome, few);
    runType<int8_t, __nv_bfloat16>(outcome, few);
    runType<E4m3, __half>(outcome, few);
    runType<E4m3, __nv_bfloat16>(outcome, few);
    for (Kernel const& kernel : gKernels)
    {
        for (int32_t const out : {768, 1024})
        {
            for (int64_t const rows :
                few ? std::vector<int64_t>{140} : std::vector<int64_t>{1, 200, 5000, 20000})
            {
                runSequence<__half>(outcome, kernel, out, rows, few);
                runSequence<__nv_bfloat16>(outcome, kernel, out, rows, few);
            }
        }
    }
    return outcome.report();
}
