// The launcher as a C function, for the grading of the exercise (common/kernel_functions.cuh).
#include "common/element.cuh"
#include "common/kernel_functions.cuh"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

using namespace bert;

// Returns a cudaError_t.
BERT_EXPORT int32_t launchKernel(SkipLayerNormArguments const* arguments, void* stream)
{
    return launchSkipLayerNorm(*arguments, static_cast<cudaStream_t>(stream));
}

namespace
{

template <typename T>
cudaError_t runSmall(ElementType type, int64_t rows, int32_t hidden)
{
    size_t const size = static_cast<size_t>(rows * hidden);
    Tensor<T> const x{std::vector<T>(size, static_cast<T>(1.0F))};
    Tensor<T> const weight{std::vector<T>(hidden, static_cast<T>(1.0F))};
    Tensor<T> const y{size};
    Tensor<int8_t> const quantized{size};
    SkipLayerNormArguments arguments{x.data(), x.data(), weight.data(), weight.data(), weight.data(),
        y.data(), quantized.data(), rows, hidden, 1e-12F, 0.0F, 0.0F, 1.0F, type, type};
    return finished(launchSkipLayerNorm(arguments, nullptr));
}

} // namespace

// Runs the kernel once on tensors that are allocations of their own, for compute-sanitizer. Returns a cudaError_t.
BERT_EXPORT int32_t runOnSmallTensors(int32_t type, int64_t rows, int32_t hidden)
{
    auto const number = static_cast<ElementType>(type);
    return dispatchElement(
        number, [&](auto element) { return runSmall<decltype(element)>(number, rows, hidden); });
}
