// One launcher as a C function, for the grading of the exercise (bert_trt/exercise/kernel_tasks.py), which compiles this
// file together with the file of one kernel:
//
//     -DBERT_LAUNCHER=launchLayerNormFused     the launcher
//     -DBERT_WITHOUT_FUSED                     there is no launchLayerNormFused, to which the fast launcher falls back
#include "common/device_tensor.cuh"
#include "common/element.cuh"
#include "layer_norm/layer_norm_kernels.h"

#define BERT_EXPORT extern "C" __attribute__((visibility("default")))

using namespace bert;

#ifdef BERT_WITHOUT_FUSED
cudaError_t bert::launchLayerNormFused(LayerNormArguments const&, cudaStream_t)
{
    return cudaErrorNotSupported;
}
#endif

// Returns a cudaError_t.
BERT_EXPORT int32_t launchLayerNorm(LayerNormArguments const* arguments, void* stream)
{
    return BERT_LAUNCHER(*arguments, static_cast<cudaStream_t>(stream));
}

BERT_EXPORT char const* cudaErrorText(int32_t status)
{
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}

namespace
{

template <typename T>
int32_t runSmall(ElementType type, int64_t rows, int32_t hidden)
{
    Tensor<T> const x{std::vector<T>(rows * hidden, static_cast<T>(1.0F))};
    Tensor<T> const gamma{std::vector<T>(hidden, static_cast<T>(1.0F))};
    Tensor<T> const y{static_cast<size_t>(rows * hidden)};
    Tensor<float> const workspace{static_cast<size_t>(rows * 3)};
    LayerNormArguments const arguments{
        x.data(), gamma.data(), gamma.data(), y.data(), workspace.data(), rows, hidden, 1e-12F, type, type};
    cudaError_t const status = BERT_LAUNCHER(arguments, nullptr);
    return status == cudaSuccess ? cudaDeviceSynchronize() : status;
}

} // namespace

// Runs the kernel once on tensors that are allocations of their own, for compute-sanitizer. Returns a cudaError_t.
BERT_EXPORT int32_t runOnSmallTensors(int32_t type, int64_t rows, int32_t hidden)
{
    return static_cast<ElementType>(type) == ElementType::kFLOAT
               ? runSmall<float>(ElementType::kFLOAT, rows, hidden)
               : runSmall<__half>(ElementType::kHALF, rows, hidden);
}
