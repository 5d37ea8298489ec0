// Runs the three kernels over shapes that reach every branch of their launchers and compares with a plain loop in
// double precision. Small and without PyTorch, so that compute-sanitizer goes through it in seconds:
//
//     cmake --build plugins/build --target layer_norm_check
//     compute-sanitizer --tool memcheck plugins/build/layer_norm_check        also: racecheck, initcheck, synccheck
//
// Every tensor is an allocation of its own and of its exact size: one byte too far is an error to memcheck.
#include "common/element.cuh"
#include "layer_norm/layer_norm_kernels.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using namespace bert;

namespace
{

constexpr float kEPSILON = 1e-12F;

// ---------------------------------------------------------------------------------------------------------------
// Tensors on host and device
// ---------------------------------------------------------------------------------------------------------------

void check(cudaError_t status, char const* what)
{
    if (status != cudaSuccess)
    {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
        std::exit(1);
    }
}

float toHost(float value)
{
    return value;
}
float toHost(__half value)
{
    return __half2float(value);
}
float toHost(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}
template <typename T>
T fromHost(float value)
{
    return static_cast<T>(value);
}

template <typename T>
class Tensor
{
public:
    explicit Tensor(std::vector<T> const& values)
        : mSize(values.size())
    {
        check(cudaMalloc(&mData, mSize * sizeof(T)), "cudaMalloc");
        check(cudaMemcpy(mData, values.data(), mSize * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    explicit Tensor(size_t size) // holds nothing: initcheck reports whoever reads it before it is written
        : mSize(size)
    {
        check(cudaMalloc(&mData, mSize * sizeof(T)), "cudaMalloc");
    }
    Tensor(Tensor const&) = delete;
    Tensor& operator=(Tensor const&) = delete;
    ~Tensor()
    {
        cudaFree(mData);
    }
    T* data() const
    {
        return mData;
    }
    std::vector<T> values() const
    {
        std::vector<T> values(mSize);
        check(cudaMemcpy(values.data(), mData, mSize * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
        return values;
    }

private:
    T* mData{};
    size_t mSize;
};

template <typename T>
std::vector<T> randomValues(size_t count, float mean, float deviation)
{
    static std::minstd_rand generator{1};
    std::uniform_real_distribution<float> distribution{mean - deviation, mean + deviation};
    std::vector<T> values(count);
    for (T& value : values)
    {
        value = fromHost<T>(distribution(generator));
    }
    return values;
}

// ---------------------------------------------------------------------------------------------------------------
// The plain loop
// ---------------------------------------------------------------------------------------------------------------

// ||found - expected|| / ||expected|| over one row
template <typename T, typename W>
double rowError(T const* x, W const* gamma, W const* beta, T const* y, int32_t hidden)
{
    double mean = 0.0;
    double variance = 0.0;
    for (int32_t i = 0; i < hidden; ++i)
    {
        mean += static_cast<double>(toHost(x[i])) / hidden;
    }
    for (int32_t i = 0; i < hidden; ++i)
    {
        double const deviation = toHost(x[i]) - mean;
        variance += deviation * deviation / hidden;
    }
    double error = 0.0;
    double norm = 0.0;
    for (int32_t i = 0; i < hidden; ++i)
    {
        double const normalized = (toHost(x[i]) - mean) / std::sqrt(variance + kEPSILON);
        double const expected = normalized * toHost(gamma[i]) + toHost(beta[i]);
        error += (toHost(y[i]) - expected) * (toHost(y[i]) - expected);
        norm += expected * expected;
    }
    return std::sqrt(error / norm);
}

// ---------------------------------------------------------------------------------------------------------------
// Cases
// ---------------------------------------------------------------------------------------------------------------

struct Kernel
{
    char const* name;
    cudaError_t (*launch)(LayerNormArguments const&, cudaStream_t);
};
constexpr Kernel kKERNELS[]
    = {{"basic", launchLayerNormBasic}, {"fused", launchLayerNormFused}, {"fast", launchLayerNormFast}};

int gWrong = 0;
int gRuns = 0;

template <typename T, typename W>
void runShape(ElementType type, ElementType weightType, int64_t rows, int32_t hidden, double tolerance)
{
    auto const x = randomValues<T>(static_cast<size_t>(rows) * hidden, 3.0F, 1.0F);
    auto const gamma = randomValues<W>(hidden, 1.0F, 0.5F);
    auto const beta = randomValues<W>(hidden, 0.5F, 0.5F);
    Tensor<T> const xDevice{x};
    Tensor<W> const gammaDevice{gamma};
    Tensor<W> const betaDevice{beta};
    for (Kernel const& kernel : kKERNELS)
    {
        Tensor<T> const yDevice{x.size()};
        Tensor<char> const workspace{layerNormBasicWorkspace(rows)};
        LayerNormArguments const arguments{xDevice.data(), gammaDevice.data(), betaDevice.data(),
            yDevice.data(), reinterpret_cast<float*>(workspace.data()), rows, hidden, kEPSILON, type,
            weightType};
        check(kernel.launch(arguments, nullptr), kernel.name);
        check(cudaDeviceSynchronize(), kernel.name);
        auto const y = yDevice.values();
        for (int64_t row : {int64_t{0}, rows / 2, rows - 1})
        {
            size_t const start = static_cast<size_t>(row) * hidden;
            double const error = rowError(&x[start], gamma.data(), beta.data(), &y[start], hidden);
            if (!(error <= tolerance))
            {
                std::printf("wrong: %s, %lld x %d, type %d, row %lld: error %g\n", kernel.name,
                    static_cast<long long>(rows), hidden, static_cast<int>(type), static_cast<long long>(row),
                    error);
                ++gWrong;
            }
        }
        ++gRuns;
    }
}

template <typename T, typename W>
void runType(ElementType type, ElementType weightType, double tolerance)
{
    // Odd widths, then the narrowest and the widest row of each shape of the fast kernel, and one beyond its reach.
    for (int32_t hidden : {1, 5, 33, 769, 64, 200, 256, 384, 512, 768, 1000, 1024, 1536, 2040, 2048, 4096,
             8192, 16384, 32768, 40000})
    {
        runShape<T, W>(type, weightType, 1, hidden, tolerance);
        runShape<T, W>(type, weightType, 7, hidden, tolerance);
        if (hidden <= 2048)
        {
            runShape<T, W>(
                type, weightType, 1101, hidden, tolerance); // many rows, and not a multiple of anything
        }
    }
}

} // namespace

int main()
{
    runType<float, float>(ElementType::kFLOAT, ElementType::kFLOAT, 1e-6);
    runType<__half, __half>(ElementType::kHALF, ElementType::kHALF, 6e-4);
    runType<__half, float>(ElementType::kHALF, ElementType::kFLOAT, 6e-4);
    runType<__nv_bfloat16, __nv_bfloat16>(ElementType::kBF16, ElementType::kBF16, 5e-3);
    runType<__nv_bfloat16, float>(ElementType::kBF16, ElementType::kFLOAT, 5e-3);
    std::printf("%d runs, %d rows wrong\n", gRuns, gWrong);
    return gWrong == 0 ? 0 : 1;
}
