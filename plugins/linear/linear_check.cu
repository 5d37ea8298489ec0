// Runs the kernels over shapes and types that reach every branch of their launchers and compares with a reference
// loop in double precision. common/kernel_check.cuh says how to run it under compute-sanitizer.
//
// With the argument "few" it runs few small cases, for racecheck and initcheck, which are slow.
#include "common/kernel_check.cuh"
#include "linear/linear_kernels.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

using namespace bert;

namespace
{

template <typename T>
struct TypeOf;
template <>
struct TypeOf<__half>
{
    static constexpr ElementType kVALUE = ElementType::kHALF;
    static constexpr double kTOLERANCE = 6e-4;
};
template <>
struct TypeOf<__nv_bfloat16>
{
    static constexpr ElementType kVALUE = ElementType::kBF16;
    static constexpr double kTOLERANCE = 5e-3;
};

struct Kernel
{
    char const* name;
    cudaError_t (*launch)(LinearArguments const&, cudaStream_t);
};
constexpr Kernel kKERNELS[] = {{"linear", launchLinear}, {"tensor", launchLinearTensor}};

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
    Variant const& variant, size_t offset)
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
    check(kernel.launch({xDevice.data() + offset, weight.data(), variant.bias ? bias.data() : nullptr,
                            y.data() + offset, rows, width.in, width.out, variant.gelu, TypeOf<T>::kVALUE,
                            variant.constantWeight},
              nullptr),
        kernel.name);
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
            for (Kernel const& kernel : kKERNELS)
            {
                auto const found = run(problem, width, rows, kernel, variant, offset);
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
                        outcome.expectAtMost(
                            error, TypeOf<T>::kTOLERANCE, what.c_str(), rows, width.out, row);
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
    for (Kernel const& kernel : kKERNELS)
    {
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
    for (Kernel const& kernel : kKERNELS)
    {
        Tensor<T> const y{x.size()};
        poison(y.data(), x.size());
        check(kernel.launch({xDevice.data(), weight.data(), nullptr, y.data(), kROWS, kWIDTH, kWIDTH, true,
                                TypeOf<T>::kVALUE},
                  nullptr),
            kernel.name);
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
    // Every tile shape that linear_hopper.cu chooses from, on 132 multiprocessors.
    runWidth<T>(outcome, {64, 136}, {5000});         // 64 x 64
    runWidth<T>(outcome, {192, 712}, {2100});        // 64 x 96
    runWidth<T>(outcome, {704, 712}, {1700});        // 128 x 96
    runWidth<T>(outcome, {320, 2056}, {1000});       // 128 x 144
    runWidth<T>(outcome, {192, 2312}, {1100, 4000}); // 128 x 192, each warpgroup its rows or its tiles
    runWidth<T>(outcome, {1600, 72}, {131});         // 64 x 64, k in five parts
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
    bool const few = argumentCount > 1 && std::string{arguments[1]} == "few";
    Outcome outcome;
    runType<__half>(outcome, few);
    runType<__nv_bfloat16>(outcome, few);
    return outcome.report();
}
