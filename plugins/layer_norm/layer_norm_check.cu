// Runs the three kernels over shapes that reach every branch of their launchers and compares with a reference loop in
// double precision. common/kernel_check.cuh says how to run it under compute-sanitizer.
#include "common/kernel_check.cuh"
#include "layer_norm/layer_norm_kernels.h"

using namespace bert;

namespace
{

struct Kernel
{
    char const* name;
    cudaError_t (*launch)(LayerNormArguments const&, cudaStream_t);
};
constexpr Kernel kKERNELS[]
    = {{"basic", launchLayerNormBasic}, {"fused", launchLayerNormFused}, {"fast", launchLayerNormFast}};

template <typename T, typename W>
void runShape(Outcome& outcome, ElementType type, ElementType weightType, int64_t rows, int32_t hidden,
    double tolerance)
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
            std::vector<double> ofRow(hidden);
            for (int32_t i = 0; i < hidden; ++i)
            {
                ofRow[i] = toHost(x[start + i]);
            }
            auto const expected = normalizedRow(ofRow, gamma.data(), beta.data());
            outcome.expectAtMost(rowError(&y[start], expected), tolerance, kernel.name, rows, hidden, row);
        }
        outcome.countRun();
    }
}

template <typename T, typename W>
void runType(Outcome& outcome, ElementType type, ElementType weightType, double tolerance)
{
    forEachShape([&](int64_t rows, int32_t hidden)
        { runShape<T, W>(outcome, type, weightType, rows, hidden, tolerance); });
}

} // namespace

int main()
{
    Outcome outcome;
    runType<float, float>(outcome, ElementType::kFLOAT, ElementType::kFLOAT, 1e-6);
    runType<__half, __half>(outcome, ElementType::kHALF, ElementType::kHALF, 6e-4);
    runType<__half, float>(outcome, ElementType::kHALF, ElementType::kFLOAT, 6e-4);
    runType<__nv_bfloat16, __nv_bfloat16>(outcome, ElementType::kBF16, ElementType::kBF16, 5e-3);
    runType<__nv_bfloat16, float>(outcome, ElementType::kBF16, ElementType::kFLOAT, 5e-3);
    return outcome.report();
}
