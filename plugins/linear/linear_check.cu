// Runs the kernels over shapes and types that reach every branch of their launchers and compares with a reference
// loop in double precision. common/kernel_check.cuh says how to run it under compute-sanitizer.
//
// With the argument "few" it runs few small cases, for racecheck and initcheck, which are slow; with "rungs" only the
// kernels of linear_ladder.h, which run in 16 bits, and none of the plugin's others.
#include "common/capability.h"
#include "common/kernel_check.cuh"
#include "linear/linear_ladder.h"

#include <algorithm>
#include <cstring>
#include <cuda_fp8.h>
#include <map>
#include <string>

using namespace bert;

namespace
{

template <typename T>
constexpr double kTOLERANCE = std::is_same_v<T, __half> ? 6e-4 : 5e-3;

bool suitsAny(LinearArguments const& /*arguments*/, Capability /*gpu*/)
{
    return true;
}

using Kernel = LinearRung;
constexpr Kernel kKERNELS[] = {{"linear", launchLinear, suitsAny}, {"tensor", launchLinearTensor, suitsAny}};

std::vector<Kernel> gKernels; // of the plugin, and of the ladder
Capability gGpu;

struct Variant
{
    char const* name;
    bool bias;
    bool gelu;
    bool constantWeight;
};
constexpr Variant kVARIANTS[] = {{"plain", false, false, true}, {"bias", true, false, false},
    {"gelu", false, true, false}, {"bias and gelu", true, true, true}};

struct Width
{
    int32_t in;
    int32_t out;
};

double activate(double value, bool withGelu)
{
    return withGelu ? 0.5 * value * std::erfc(-value / std::sqrt(2.0)) : value;
}

// x for the largest number of rows, the weight and the bias. The sums are about 1, so their GELU is in the range of
// fp16.
template <typename T>
class Problem
{
public:
    Problem(Width width, int64_t mostRows)
        : mWidth(width)
        , mX(randomValues<T>(mostRows * width.in, 0.0F, 1.0F))
        , mWeight(randomValues<T>(static_cast<size_t>(width.in) * width.out, 0.0F,
              3.0F / std::sqrt(static_cast<float>(width.in))))
        , mBias(randomValues<T>(width.out, 0.5F, 1.0F))
        , mWideWeight(mWeight.size())
    {
        std::transform(mWeight.begin(), mWeight.end(), mWideWeight.begin(), [](T v) { return toHost(v); });
    }
    std::vector<T> x(int64_t rows) const
    {
        return {mX.begin(), mX.begin() + rows * mWidth.in};
    }
    std::vector<T> const& weight() const
    {
        return mWeight;
    }
    std::vector<T> const& bias() const
    {
        return mBias;
    }
    std::vector<double> expected(int64_t row, Variant const& variant)
    {
        std::vector<double> y = product(row);
        for (int32_t n = 0; n < mWidth.out; ++n)
        {
            y[n] = activate(y[n] + (variant.bias ? toHost(mBias[n]) : 0.0F), variant.gelu);
        }
        return y;
    }

private:
    std::vector<double> const& product(int64_t row) // slow, so computed once for each row
    {
        std::vector<double>& sums = mProducts[row];
        if (sums.empty())
        {
            sums.resize(mWidth.out);
            std::vector<float> wideX(mWidth.in);
            std::transform(mX.begin() + row * mWidth.in, mX.begin() + (row + 1) * mWidth.in, wideX.begin(),
                [](T v) { return toHost(v); });
            for (int32_t n = 0; n < mWidth.out; ++n)
            {
                float const* const weights = &mWideWeight[static_cast<size_t>(n) * mWidth.in];
                for (int32_t k = 0; k < mWidth.in; ++k)
                {
                    sums[n] += static_cast<double>(wideX[k]) * weights[k];
                }
            }
        }
        return sums;
    }

    Width mWidth;
    std::vector<T> mX;
    std::vector<T> mWeight;
    std::vector<T> mBias;
    std::vector<float> mWideWeight;
    std::map<int64_t, std::vector<double>> mProducts;
};

// One launch. `offset` moves x and y by that many elements, so that they are not aligned to 16 bytes.
template <typename T>
std::vector<T> run(Problem<T> const& problem, Width width, int64_t rows, Kernel const& kernel,
    Variant const& variant, size_t offset) // nothing if the kernel does not take it
{
    std::vector<T> x(offset);
    auto const values = problem.x(rows);
    x.insert(x.end(), values.begin(), values.end());
    Tensor<T> const xDevice{x};
    Tensor<T> const weight{problem.weight()};
    Tensor<T> const bias{problem.bias()};
    size_t const size = static_cast<size_t>(rows) * width.out;
    Tensor<T> const y{size + offset};
    poison(y.data(), size + offset);
    LinearArguments const arguments{xDevice.data() + offset, weight.data(),
        variant.bias ? bias.data() : nullptr, y.data() + offset, rows, width.in, width.out, variant.gelu,
        TypeOf<T>::kVALUE, variant.constantWeight};
    if (!kernel.suits(arguments, gGpu))
    {
        return {};
    }
    check(kernel.launch(arguments, nullptr), kernel.name);
    check(cudaDeviceSynchronize(), kernel.name);
    auto found = y.values();
    found.erase(found.begin(), found.begin() + static_cast<ptrdiff_t>(offset));
    return found;
}

template <typename T>
void runWidth(Outcome& outcome, Width width, std::vector<int64_t> const& manyRows, size_t offset = 0)
{
    Problem<T> problem{width, manyRows.back()};
    for (int64_t const rows : manyRows)
    {
        for (Variant const& variant : kVARIANTS)
        {
            for (Kernel const& kernel : gKernels)
            {
                auto const found = run(problem, width, rows, kernel, variant, offset);
                if (found.empty())
                {
                    continue;
                }
                std::string const what = std::string{kernel.name} + ", " + variant.name + ", "
                                         + std::to_string(width.in) + " in"
                                         + (offset == 0 ? "" : ", not aligned");
                for (int64_t const row : {int64_t{0}, int64_t{5}, int64_t{58}, int64_t{100}, int64_t{126},
                         int64_t{400}, int64_t{777}, rows - 1})
                {
                    if (row < rows)
                    {
                        double const error
                            = rowError(&found[row * width.out], problem.expected(row, variant));
                        outcome.expectAtMost(error, kTOLERANCE<T>, what.c_str(), rows, width.out, row);
                    }
                }
                auto const isNan = [](T value) { return std::isnan(toHost(value)); };
                auto const unwritten = std::find_if(found.begin(), found.end(), isNan);
                outcome.expectAtMost(unwritten == found.end() ? 0.0 : 1.0, 0.0,
                    (what + ": an element that nobody wrote").c_str(), rows, width.out,
                    (unwritten - found.begin()) / width.out);
                outcome.countRun();
            }
        }
    }
}

// Two layers in a chain, for one x and then another, without synchronisation: every launch reads the result of the
// previous one and overwrites the input of the one before that. The results must equal those with a synchronisation
// after each launch.
template <typename T>
void runSequence(Outcome& outcome, Width width, int64_t rows)
{
    constexpr int kREPEATS = 10;
    Problem<T> const first{width, 2 * rows};
    Problem<T> const second{{width.out, width.in}, 1};
    auto const bothX = first.x(2 * rows);
    size_t const size = static_cast<size_t>(rows) * width.in;
    Tensor<T> const x{bothX};
    Tensor<T> const firstWeight{first.weight()};
    Tensor<T> const secondWeight{second.weight()};
    Tensor<T> const firstBias{first.bias()};
    Tensor<T> const between{static_cast<size_t>(rows) * width.out};
    for (Kernel const& kernel : gKernels)
    {
        if (!kernel.suits({x.data(), firstWeight.data(), firstBias.data(), between.data(), rows, width.in,
                              width.out, true, TypeOf<T>::kVALUE},
                gGpu))
        {
            continue;
        }
        auto const runAll = [&](bool pause)
        {
            Tensor<T> const y{kREPEATS * size};
            poison(between.data(), static_cast<size_t>(rows) * width.out);
            poison(y.data(), kREPEATS * size);
            check(cudaDeviceSynchronize(), kernel.name);
            for (int i = 0; i < kREPEATS; ++i)
            {
                check(kernel.launch(
                          {x.data() + i % 2 * size, firstWeight.data(), firstBias.data(), between.data(),
                              rows, width.in, width.out, true, TypeOf<T>::kVALUE, true},
                          nullptr),
                    kernel.name);
                check(pause ? cudaDeviceSynchronize() : cudaSuccess, kernel.name);
                check(kernel.launch({between.data(), secondWeight.data(), nullptr, y.data() + i * size, rows,
                                        width.out, width.in, false, TypeOf<T>::kVALUE},
                          nullptr),
                    kernel.name);
                check(pause ? cudaDeviceSynchronize() : cudaSuccess, kernel.name);
            }
            check(cudaDeviceSynchronize(), kernel.name);
            return y.values();
        };
        auto const expected = runAll(true);
        auto const found = runAll(false);
        bool const same = std::memcmp(expected.data(), found.data(), found.size() * sizeof(T)) == 0;
        outcome.expectAtMost(same ? 0.0 : 1.0, 0.0,
            (std::string{kernel.name} + ": a sequence of launches differs from single ones").c_str(), rows,
            width.out, 0);
        outcome.countRun();
    }
}

// GELU of every finite fp16 number and of numbers over the whole range of bf16: x times the unit matrix.
template <typename T>
void runGelu(Outcome& outcome)
{
    constexpr int32_t kWIDTH = 64;
    constexpr int64_t kROWS = 65536 / kWIDTH;
    std::vector<T> x(65536);
    std::vector<T> unit(kWIDTH * kWIDTH);
    for (uint32_t bits = 0; bits < x.size(); ++bits)
    {
        auto const narrow = static_cast<uint16_t>(bits);
        std::memcpy(static_cast<void*>(&x[bits]), &narrow, sizeof(narrow));
        x[bits] = std::isfinite(toHost(x[bits])) ? x[bits] : fromHost<T>(0.0F);
    }
    for (int32_t i = 0; i < kWIDTH; ++i)
    {
        unit[i * kWIDTH + i] = fromHost<T>(1.0F);
    }
    Tensor<T> const xDevice{x};
    Tensor<T> const weight{unit};
    for (Kernel const& kernel : gKernels)
    {
        Tensor<T> const y{x.size()};
        poison(y.data(), x.size());
        LinearArguments const arguments{
            xDevice.data(), weight.data(), nullptr, y.data(), kROWS, kWIDTH, kWIDTH, true, TypeOf<T>::kVALUE};
        if (!kernel.suits(arguments, gGpu))
        {
            continue;
        }
        check(kernel.launch(arguments, nullptr), kernel.name);
        check(cudaDeviceSynchronize(), kernel.name);
        auto const found = y.values();
        for (size_t i = 0; i < x.size(); ++i)
        {
            // Half a unit in the last place and a little more; the smallest fp16 is 6e-8.
            double const half = std::is_same_v<T, __half> ? 1.0 / 2048 : 1.0 / 256;
            double const expected = activate(toHost(x[i]), true);
            double const error = std::abs(toHost(found[i]) - expected);
            outcome.expectAtMost(error, 1.02 * half * std::abs(expected) + 3.1e-8,
                (std::string{kernel.name} + ": GELU of " + std::to_string(toHost(x[i]))).c_str(), kROWS,
                kWIDTH, static_cast<int64_t>(i) / kWIDTH);
        }
        outcome.countRun();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// In 8 bits, and every shape of tile on Hopper
// ---------------------------------------------------------------------------------------------------------------

// The tensor cores sum products of E4M3 with few bits: the error of a sum, relative to the root mean square of the sums
// of its row. Measured with in = 4096: 1.1e-3, and four times that for single elements.
template <typename T>
constexpr double kSUM_ERROR = std::is_same_v<T, E4m3> ? 1.5e-3 : 0.0;
constexpr double kSINGLE = 4.0;
// GELU for y in 8 bits has fewer terms (linear_gelu.cuh).
constexpr double kGELU_ERROR = 8.5e-4;

// x, W, scales and bias. One column of x has large numbers, one channel of W is zero, one row of x is.
template <typename T>
class ShapeProblem
{
public:
    ShapeProblem(Width width, int64_t rows)
        : mWidth(width)
        , mRows(rows)
        , mX(randomValues<T>(rows * width.in, 0.0F, kNARROW<T> ? 30.0F : 1.0F))
        , mWeight(randomValues<T>(static_cast<size_t>(width.in) * width.out, 0.0F, kNARROW<T> ? 30.0F : 0.1F))
        , mScales(randomValues<float>(width.out, 1.0F, 0.5F))
        , mBias(randomValues<float>(width.out, 0.5F, 1.0F))
        , mFactors(randomValues<float>(width.out, 1.0F, 0.9F))
    {
        for (int64_t row = 0; row < rows; ++row)
        {
            mX[row * width.in + width.in / 3] = static_cast<T>(kNARROW<T> ? 127.0F : 8.0F);
        }
        std::fill(
            mX.begin() + rows / 2 * width.in, mX.begin() + (rows / 2 + 1) * width.in, static_cast<T>(0.0F));
        std::fill(mWeight.begin() + static_cast<ptrdiff_t>(width.out) / 2 * width.in,
            mWeight.begin() + static_cast<ptrdiff_t>(width.out / 2 + 1) * width.in, static_cast<T>(0.0F));
        for (int32_t n = 0; n < width.out; ++n)
        {
            mScales[n] = kNARROW<T> ? mScales[n] / (300.0F * std::sqrt(static_cast<float>(width.in))) : 1.0F;
            mBias[n] = kNARROW<T> ? mBias[n] : toHost(static_cast<T>(mBias[n]));
        }
        mNarrowBias.resize(width.out);
        std::transform(
            mBias.begin(), mBias.end(), mNarrowBias.begin(), [](float v) { return static_cast<T>(v); });
    }
    // Sums with scale and bias, of one row.
    std::vector<double> sums(int64_t row) const
    {
        std::vector<double> y(mWidth.out);
        for (int32_t n = 0; n < mWidth.out; ++n)
        {
            double sum = 0.0;
            for (int32_t k = 0; k < mWidth.in; ++k)
            {
                sum += static_cast<double>(toHost(mX[row * mWidth.in + k]))
                       * toHost(mWeight[static_cast<size_t>(n) * mWidth.in + k]);
            }
            y[n] = sum * mScales[n] * kX_SCALE + mBias[n];
        }
        return y;
    }
    static constexpr float kX_SCALE = kNARROW<T> ? 0.75F : 1.0F;

    Width mWidth;
    int64_t mRows;
    std::vector<T> mX;
    std::vector<T> mWeight;
    std::vector<float> mScales;
    std::vector<float> mBias;
    std::vector<float> mFactors; // of y in 8 bits
    std::vector<T> mNarrowBias;
};

// The tensors of a ShapeProblem on the device. `offset` moves x by that many elements, so that it is not aligned.
template <typename T>
class ShapeTensors
{
public:
    explicit ShapeTensors(ShapeProblem<T> const& problem, size_t offset = 0)
        : mOffset(offset)
        , mX(shifted(problem.mX, offset))
        , mWeight(problem.mWeight)
        , mScales(problem.mScales)
        , mBias(problem.mBias)
        , mFactors(problem.mFactors)
        , mNarrowBias(problem.mNarrowBias)
    {
    }
    LinearArguments arguments(ShapeProblem<T> const& problem, void* y, bool gelu, ElementType outputType,
        float outputScale, bool constantWeight, bool withFactors = false) const
    {
        LinearArguments a{};
        a.x = mX.data() + mOffset;
        a.weight = mWeight.data();
        a.bias = kNARROW<T> ? static_cast<void const*>(mBias.data()) : mNarrowBias.data();
        a.y = y;
        a.rows = problem.mRows;
        a.in = problem.mWidth.in;
        a.out = problem.mWidth.out;
        a.gelu = gelu;
        a.type = TypeOf<T>::kVALUE;
        a.constantWeight = constantWeight;
        a.weightScales = kNARROW<T> ? mScales.data() : nullptr;
        a.xScale = ShapeProblem<T>::kX_SCALE;
        a.outputType = outputType;
        a.outputScale = outputScale;
        a.outputFactors = withFactors ? mFactors.data() : nullptr;
        return a;
    }

private:
    static std::vector<T> shifted(std::vector<T> values, size_t offset)
    {
        values.insert(values.begin(), offset, static_cast<T>(0.0F));
        return values;
    }

    size_t mOffset;
    Tensor<T> mX;
    Tensor<T> mWeight;
    Tensor<float> mScales;
    Tensor<float> mBias;
    Tensor<float> mFactors;
    Tensor<T> mNarrowBias;
};

// How wrong a row is: 16 bits, the relative error; 8 bits, the most steps that an element is away from what its value
// becomes, which the errors of sums and GELU may move a little.
template <typename T, typename Out>
double shapeError(Out const* found, std::vector<double> const& sums, bool gelu, double scale,
    std::vector<float> const& factors)
{
    double square = 0.0;
    for (double const sum : sums)
    {
        square += sum * sum / static_cast<double>(sums.size());
    }
    double const sumError = kSUM_ERROR<T> * std::sqrt(square);
    if constexpr (!kNARROW<Out>)
    {
        double difference = 0.0;
        double norm = 0.0;
        for (size_t n = 0; n < sums.size(); ++n)
        {
            double const expected = activate(sums[n], gelu);
            difference += std::pow(toHost(found[n]) - expected, 2.0);
            norm += expected * expected;
        }
        return std::max(0.0, std::sqrt(difference / norm) - kSUM_ERROR<T>) / kTOLERANCE<Out>;
    }
    else
    {
        double most = 0.0;
        for (size_t n = 0; n < sums.size(); ++n)
        {
            double const factor = factors.empty() ? 1.0 : factors[n];
            double const unscaled = activate(sums[n], gelu);
            double const expected = unscaled * factor;
            double const error
                = factor * (kSINGLE * sumError + (gelu ? kGELU_ERROR : 1e-6 * std::abs(unscaled)));
            int const step = stepOf(found[n]);
            bool const isNan = std::isnan(toHost(found[n]));
            most = std::max({most, isNan ? 1e9 : 0.0,
                static_cast<double>(step - stepOf(quantized((expected + error) / scale, Out{}))),
                static_cast<double>(stepOf(quantized((expected - error) / scale, Out{})) - step)});
        }
        return most;
    }
}

// Both kernels and, on Hopper, all shapes of tile with all numbers of splits. Each runs twice, over two different
// fillings of y: where nobody writes, the results differ. `offset` moves x and y by that many elements.
template <typename T, typename Out>
class ShapeRuns
{
public:
    ShapeRuns(Outcome& outcome, Width width, int64_t rows, size_t offset)
        : mOutcome(outcome)
        , mProblem(width, rows)
        , mTensors(mProblem, offset)
        , mOffset(offset)
        , mWithFactors(kNARROW<Out> && rows % 2 != 0)
        , mFactors(mWithFactors ? mProblem.mFactors : std::vector<float>{})
        , mY(static_cast<size_t>(rows) * width.out + offset)
    {
        for (int64_t const row :
            {int64_t{0}, int64_t{32}, int64_t{63}, int64_t{100}, int64_t{128}, rows / 2, rows - 1})
        {
            if (row < rows && mSums.count(row) == 0)
            {
                mSums[row] = mProblem.sums(row);
            }
        }
    }
    // launch(arguments) returns a cudaError_t; cudaErrorInvalidValue if there is nothing to run.
    template <typename Launch>
    void run(std::string const& name, bool constantWeight, Launch const& launch)
    {
        for (bool const gelu : {false, true})
        {
            std::vector<Out> results[2];
            for (int i = 0; i < 2; ++i)
            {
                check(cudaMemset(mY.data(), i == 0 ? 0xFF : 0x3C, (size() + mOffset) * sizeof(Out)),
                    "cudaMemset");
                cudaError_t const status = launch(mTensors.arguments(mProblem, mY.data() + mOffset, gelu,
                    TypeOf<Out>::kVALUE, kOUTPUT_SCALE, constantWeight, mWithFactors));
                if (status == cudaErrorInvalidValue)
                {
                    return;
                }
                check(status, "launch");
                check(cudaDeviceSynchronize(), "kernel");
                results[i] = mY.values();
                results[i].erase(results[i].begin(), results[i].begin() + static_cast<ptrdiff_t>(mOffset));
            }
            compare(results, name + (gelu ? ", GELU" : ""), gelu);
        }
    }
    bool suitsHopper() const
    {
        return suitsHopperKernel(
            mTensors.arguments(mProblem, mY.data() + mOffset, false, TypeOf<Out>::kVALUE, 1.0F, true));
    }

private:
    static constexpr float kOUTPUT_SCALE = std::is_same_v<Out, E4m3> ? 0.01F : 0.05F;

    size_t size() const
    {
        return static_cast<size_t>(mProblem.mRows) * mProblem.mWidth.out;
    }
    void compare(std::vector<Out> const (&results)[2], std::string const& name, bool gelu)
    {
        Width const width = mProblem.mWidth;
        std::string const what = name + ", type " + std::to_string(static_cast<int>(TypeOf<T>::kVALUE))
                                 + " to " + std::to_string(static_cast<int>(TypeOf<Out>::kVALUE)) + ", "
                                 + std::to_string(width.in) + " in" + (mWithFactors ? ", factors" : "")
                                 + (mOffset == 0 ? "" : ", not aligned");
        bool const same = std::memcmp(results[0].data(), results[1].data(), size() * sizeof(Out)) == 0;
        mOutcome.expectAtMost(
            same ? 0.0 : 1.0, 0.0, (what + ": two runs differ").c_str(), mProblem.mRows, width.out, 0);
        for (auto const& [row, values] : mSums)
        {
            mOutcome.expectAtMost(
                shapeError<T, Out>(&results[0][row * width.out], values, gelu, kOUTPUT_SCALE, mFactors), 1.0,
                what.c_str(), mProblem.mRows, width.out, row);
        }
        mOutcome.countRun();
    }

    Outcome& mOutcome;
    ShapeProblem<T> mProblem;
    ShapeTensors<T> mTensors;
    size_t mOffset;
    bool mWithFactors;
    std::vector<float> mFactors;
    Tensor<Out> mY;
    std::map<int64_t, std::vector<double>> mSums;
};

template <typename T, typename Out>
void runShapes(Outcome& outcome, Width width, int64_t rows, bool onHopper, size_t offset = 0)
{
    ShapeRuns<T, Out> runs{outcome, width, rows, offset};
    for (Kernel const& kernel : gKernels)
    {
        for (bool const constantWeight : {false, true})
        {
            runs.run(kernel.name, constantWeight, [&](LinearArguments const& a)
                { return kernel.suits(a, gGpu) ? kernel.launch(a, nullptr) : cudaErrorInvalidValue; });
        }
    }
#if defined(BERT_HOPPER)
    int32_t const shapes = onHopper && runs.suitsHopper() ? countLinearHopperShapes(TypeOf<T>::kVALUE) : 0;
    for (int32_t shape = 0; shape < shapes; ++shape)
    {
        for (int32_t splits = 1; splits <= 6; ++splits)
        {
            // cudaErrorInvalidValue: the shape cannot be for this k, or so many splits
            runs.run(std::string{"shape "} + nameLinearHopperShape(TypeOf<T>::kVALUE, shape) + ", splits "
                         + std::to_string(splits),
                (splits + shape) % 2 == 0, [&](LinearArguments const& a)
                { return launchLinearHopper(a, LinearChoice{shape, splits}, nullptr); });
        }
    }
#endif
}

// Halves, and what is too large: x times the unit matrix, for every x that is a number.
template <typename T>
void runRounding(Outcome& outcome, Kernel const& kernel)
{
    constexpr int32_t kWIDTH = 128;
    std::vector<T> x(2 * kWIDTH);
    std::vector<T> unit(kWIDTH * kWIDTH, static_cast<T>(0.0F));
    for (int bits = 0; bits < 2 * kWIDTH; ++bits)
    {
        auto const narrow = static_cast<uint8_t>(bits);
        std::memcpy(static_cast<void*>(&x[bits]), &narrow, 1);
        x[bits] = std::isnan(toHost(x[bits])) ? static_cast<T>(1.0F) : x[bits];
    }
    for (int32_t i = 0; i < kWIDTH; ++i)
    {
        unit[i * kWIDTH + i] = static_cast<T>(1.0F);
    }
    Tensor<T> const xDevice{x};
    Tensor<T> const weight{unit};
    for (float const scale : {0.5F, 0.75F, 1.0F, 2.0F, 1024.0F})
    {
        Tensor<float> const scales{std::vector<float>(kWIDTH, scale)};
        Tensor<T> const y{x.size()};
        poison(y.data(), x.size());
        LinearArguments a{};
        a.x = xDevice.data();
        a.weight = weight.data();
        a.y = y.data();
        a.rows = 2;
        a.in = kWIDTH;
        a.out = kWIDTH;
        a.type = TypeOf<T>::kVALUE;
        a.weightScales = scales.data();
        a.outputType = TypeOf<T>::kVALUE;
        check(kernel.launch(a, nullptr), kernel.name);
        check(cudaDeviceSynchronize(), kernel.name);
        auto const found = y.values();
        for (size_t i = 0; i < x.size(); ++i)
        {
            int const expected = stepOf(quantized(static_cast<double>(toHost(x[i])) * scale, T{}));
            outcome.expectAtMost(std::abs(stepOf(found[i]) - expected), 0.0,
                (std::string{kernel.name} + ": rounding of " + std::to_string(toHost(x[i])) + " times "
                    + std::to_string(scale))
                    .c_str(),
                2, kWIDTH, static_cast<int64_t>(i) / kWIDTH);
        }
        outcome.countRun();
    }
}

// As runSequence, with what is between in 8 bits.
template <typename T>
void runNarrowSequence(Outcome& outcome, Kernel const& kernel, Width width, int64_t rows)
{
    constexpr int kREPEATS = 10;
    ShapeProblem<T> const first{width, rows};
    ShapeProblem<T> const second{{width.out, width.in}, rows};
    ShapeTensors<T> const firstTensors{first};
    ShapeTensors<T> const secondTensors{second};
    size_t const size = static_cast<size_t>(rows) * width.in;
    Tensor<T> const between{static_cast<size_t>(rows) * width.out};
    auto const runAll = [&](bool pause)
    {
        Tensor<__half> const y{kREPEATS * size};
        poison(between.data(), static_cast<size_t>(rows) * width.out);
        poison(y.data(), kREPEATS * size);
        check(cudaDeviceSynchronize(), "poison");
        for (int i = 0; i < kREPEATS; ++i)
        {
            check(kernel.launch(firstTensors.arguments(
                                    first, between.data(), i % 2 == 0, TypeOf<T>::kVALUE, 0.05F, true),
                      nullptr),
                kernel.name);
            check(pause ? cudaDeviceSynchronize() : cudaSuccess, kernel.name);
            LinearArguments a = secondTensors.arguments(
                second, y.data() + i * size, false, ElementType::kHALF, 1.0F, i % 3 == 0);
            a.x = between.data();
            check(kernel.launch(a, nullptr), kernel.name);
            check(pause ? cudaDeviceSynchronize() : cudaSuccess, kernel.name);
        }
        check(cudaDeviceSynchronize(), kernel.name);
        return y.values();
    };
    auto const expected = runAll(true);
    auto const found = runAll(false);
    bool const same = std::memcmp(expected.data(), found.data(), found.size() * sizeof(__half)) == 0;
    outcome.expectAtMost(same ? 0.0 : 1.0, 0.0,
        (std::string{kernel.name} + ": a sequence of launches in 8 bits differs from single ones").c_str(),
        rows, width.out, 0);
    outcome.countRun();
}

// Rows of one, one more than 32 and 128, not a multiple of anything, and so many that blocks take several tiles; k that
// is no multiple of a panel, and k of more and of fewer stages than there are.
template <typename T, typename Out>
void runAllShapes(Outcome& outcome, bool few, bool onHopper)
{
    if (few)
    {
        runShapes<T, Out>(outcome, {128, 272}, 131, onHopper);
        return;
    }
    for (Width const width :
        {Width{128, 144}, Width{208, 1040}, Width{1152, 320}, Width{3072, 272}, Width{16, 16}})
    {
        for (int64_t const rows : {int64_t{1}, int64_t{33}, int64_t{129}, int64_t{1000}})
        {
            runShapes<T, Out>(outcome, width, rows, onHopper);
        }
    }
    runShapes<T, Out>(outcome, {208, 1040}, 8200, onHopper);
    runShapes<T, Out>(outcome, {1024, 768}, 12345, onHopper);
}

// Rows of no multiple of 16 bytes, of y of 8 columns, and addresses that are not aligned.
template <typename T, typename Out>
void runOddShapes(Outcome& outcome, bool few, bool onHopper)
{
    std::vector<Width> const widths = few ? std::vector<Width>{{33, 5}, {48, 24}}
                                          : std::vector<Width>{{1, 1}, {33, 5}, {65, 63}, {100, 8}, {8, 100},
                                                {769, 1023}, {312, 2305}, {48, 24}, {320, 1208}, {1208, 320}};
    for (Width const width : widths)
    {
        for (int64_t const rows : few ? std::vector<int64_t>{131} : std::vector<int64_t>{1, 7, 64, 131, 1000})
        {
            runShapes<T, Out>(outcome, width, rows, onHopper);
        }
    }
    runShapes<T, Out>(outcome, {64, 64}, 131, onHopper, 1);
}

template <typename T>
void runNarrowType(Outcome& outcome, bool few, bool onHopper)
{
    runAllShapes<T, __half>(outcome, few, onHopper);
    runAllShapes<T, __nv_bfloat16>(outcome, few, onHopper);
    runAllShapes<T, T>(outcome, few, onHopper);
    runOddShapes<T, __half>(outcome, few, onHopper);
    runOddShapes<T, __nv_bfloat16>(outcome, few, onHopper);
    runOddShapes<T, T>(outcome, few, onHopper);
    for (Kernel const& kernel : kKERNELS)
    {
        runRounding<T>(outcome, kernel);
        runNarrowSequence<T>(outcome, kernel, few ? Width{128, 256} : Width{768, 3072}, few ? 33 : 1000);
        runNarrowSequence<T>(outcome, kernel, few ? Width{33, 5} : Width{312, 1201}, few ? 7 : 1000);
        if (!few)
        {
            runNarrowSequence<T>(outcome, kernel, {1024, 4096}, 1);
            runNarrowSequence<T>(outcome, kernel, {1024, 4096}, 4096);
        }
    }
}

template <typename T>
void runType(Outcome& outcome, bool few)
{
    // One row; a partial tile; an exact tile; a few rows more; many tiles.
    std::vector<int64_t> const rows
        = few ? std::vector<int64_t>{1, 131} : std::vector<int64_t>{1, 7, 16, 64, 127, 128, 131, 1000};
    // Rows of a multiple of 16 bytes: full and partial chunks and tiles, fewer chunks than stages, and BERT's shapes.
    std::vector<Width> const aligned
        = few ? std::vector<Width>{{64, 72}, {320, 200}, {72, 64}}
              : std::vector<Width>{{8, 8}, {8, 64}, {64, 8}, {64, 64}, {72, 72}, {320, 1200}, {312, 1200},
                    {1152, 312}, {768, 768}, {768, 2304}, {768, 3072}, {2304, 768}, {3072, 768}, {3072, 72}};
    std::vector<Width> const odd
        = few ? std::vector<Width>{{33, 5}, {72, 33}}
              : std::vector<Width>{{1, 1}, {33, 5}, {65, 63}, {100, 8}, {8, 100}, {769, 1023}, {312, 2305}};
    for (auto const& widths : {aligned, odd})
    {
        for (Width const width : widths)
        {
            runWidth<T>(outcome, width, rows);
        }
    }
    runWidth<T>(outcome, {64, 64}, {1, 131}, 1);
    runSequence<T>(outcome, few ? Width{64, 128} : Width{768, 3072}, 128);
    runSequence<T>(outcome, few ? Width{33, 5} : Width{312, 1201}, few ? 7 : 1000);
    if (!few)
    {
        runSequence<T>(outcome, {768, 2304}, 1);
        runSequence<T>(outcome, {768, 2304}, 1000);
        runSequence<T>(outcome, {768, 3072}, 4096);
        runGelu<T>(outcome);
    }
}

} // namespace

int main(int argumentCount, char** arguments)
{
    auto const isGiven = [&](char const* word)
    {
        return std::find(arguments + 1, arguments + argumentCount, std::string{word})
               != arguments + argumentCount;
    };
    bool const few = isGiven("few");
    bool const onlyRungs = isGiven("rungs");
    Outcome outcome;
    check(currentCapability(gGpu), "compute capability");
    if (!onlyRungs)
    {
        gKernels.assign(std::begin(kKERNELS), std::end(kKERNELS));
    }
    gKernels.insert(gKernels.end(), std::begin(kLINEAR_RUNGS), std::end(kLINEAR_RUNGS));
    runType<__half>(outcome, few);
    runType<__nv_bfloat16>(outcome, few);
    bool const onHopper = gGpu.major == 9 && gGpu.minor == 0;
    if (onHopper)
    {
        runAllShapes<__half, __half>(outcome, few, !onlyRungs);
        runAllShapes<__nv_bfloat16, __nv_bfloat16>(outcome, few, !onlyRungs);
    }
    if (onlyRungs)
    {
        return outcome.report();
    }
    runNarrowType<int8_t>(outcome, few, onHopper);
    int architecture = 0;
    check(findLinearTensorArchitecture(architecture), "architecture");
    if (architecture >= kE4M3_ARCHITECTURE)
    {
        runNarrowType<E4m3>(outcome, few, onHopper);
    }
    return outcome.report();
}
