// The two ways to compute a linear layer with residual sum and layer normalisation as C functions, for
// benchmarks/linear_skip_layer_norm.py, which loads them from a shared library (target linear_skip_layer_norm_functions).
// That of the one kernel exists where the kernels for Hopper do.
#include "linear_skip_layer_norm/linear_skip_layer_norm_kernels.h"

#define BERT_EXPORT extern "C" __attribute__((visibility("default")))

using namespace bert;

// As LinearSkipLayerNormArguments, in fp16 but for 8-bit types of x and weight, whose y exists in 8 bits too.
struct LinearSkipLayerNormCall
{
    void const* x;
    void const* weight;
    void const* bias;
    void const* skip;
    void const* gamma;
    void const* beta;
    void* y;
    void* quantized;
    void* workspace;
    float const* weightScales;
    int64_t rows;
    int32_t in;
    int32_t out;
    int32_t type; // ElementType
    float xScale;
    float outputScale;
};

namespace
{

LinearSkipLayerNormArguments makeArguments(LinearSkipLayerNormCall const& call)
{
    LinearSkipLayerNormArguments a{};
    a.x = call.x;
    a.weight = call.weight;
    a.bias = call.bias;
    a.skip = call.skip;
    a.gamma = call.gamma;
    a.beta = call.beta;
    a.y = call.y;
    a.quantized = call.quantized;
    a.workspace = call.workspace;
    a.rows = call.rows;
    a.in = call.in;
    a.out = call.out;
    a.epsilon = 1e-12F;
    a.type = static_cast<ElementType>(call.type);
    a.outputType = ElementType::kHALF;
    a.normType = ElementType::kHALF;
    a.constantWeights = true;
    a.weightScales = call.weightScales;
    a.xScale = call.xScale;
    a.quantizedType = a.type;
    a.outputScale = call.outputScale;
    return a;
}

} // namespace

// All return a cudaError_t.
BERT_EXPORT int32_t linearSkipLayerNormLaunch(LinearSkipLayerNormCall const* call, void* stream)
{
    return launchLinearSkipLayerNorm(makeArguments(*call), static_cast<cudaStream_t>(stream));
}
BERT_EXPORT int32_t linearSkipLayerNormLaunchTwo(LinearSkipLayerNormCall const* call, void* stream)
{
    return launchLinearThenSkipLayerNorm(makeArguments(*call), static_cast<cudaStream_t>(stream));
}

#if defined(BERT_HOPPER)

BERT_EXPORT int32_t linearSkipLayerNormLaunchOne(LinearSkipLayerNormCall const* call, void* stream)
{
    return launchLinearSkipLayerNormHopper(makeArguments(*call), static_cast<cudaStream_t>(stream));
}
BERT_EXPORT int32_t linearSkipLayerNormTakesOne(LinearSkipLayerNormCall const* call)
{
    return prefersLinearSkipLayerNormHopper(makeArguments(*call)) ? 1 : 0;
}

#endif
