// One launcher as a C function, for the grading of the exercise (common/kernel_functions.cuh):
//
//     -DBERT_LAUNCHER=launchLayerNormFused     the launcher
//     -DBERT_WITHOUT_FUSED                     there is no launchLayerNormFused, to which the fast launcher falls back
#include "common/element.cuh"
#include "common/kernel_functions.cuh"
#include "layer_norm/layer_norm_kernels.h"

using namespace bert;

#ifdef BERT_WITHOUT_FUSED
cudaError_t bert::launchLayerNormFused(LayerNormArguments const&, cudaStream_t)
{
    return cudaErrorNotSupported;
}
#endif

// Returns a cudaError_t.
BERT_EXPORT int32_t launchKernel(LayerNormArguments const* arguments, void* stream)
{
    return BERT_LAUNCHER(*arguments, static_cast<cudaStream_t>(stream));
}

namespace
{

template <typename T>
cudaError_t runSmall(ElementType type, int64_t rows, int32_t hidden)
{
    Tensor<T> const x{std::vector<T>(rows * hidden, static_cast<T>(1.0F))};
    Tensor<T> const gamma{std::vector<T>(hidden, static_cast<T>(1.0F))};
    Tensor<T> const y{static_cast<size_t>(rows * hidden)};
    Tensor<float> const workspace{static_cast<size_t>(rows * 3)};
    LayerNormArguments const arguments{
        x.data(), gamma.data(), gamma.data(), y.data(), workspace.data(), rows, hidden, 1e-12F, type, type};
    return finished(BERT_LAUNCHER(arguments, nullptr));
}

} // namespace

// Runs the kernel once on tensors that are allocations of their own, for compute-sanitizer. Returns a cudaError_t.
BERT_EXPORT int32_t runOnSmallTensors(int32_t type, int64_t rows, int32_t hidden)
{
    auto const number = static_cast<ElementType>(type);
    return dispatchElement(
        number, [&](auto element) { return runSmall<decltype(element)>(number, rows, hidden); });
}
