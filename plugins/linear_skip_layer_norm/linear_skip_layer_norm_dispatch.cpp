// Chooses how a linear layer with residual sum and layer normalisation is computed.
#include "common/capability.h"
#include "linear/linear_kernels.h"
#include "linear_skip_layer_norm/linear_skip_layer_norm_kernels.h"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

namespace bert
{

cudaError_t launchLinearSkipLayerNorm(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess; // a grid of no blocks is an error to CUDA
    }
#if defined(BERT_HOPPER)
    Capability capability;
    cudaError_t status = currentCapability(capability);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (capability.major == 9 && capability.minor == 0 && suitsLinearSkipLayerNormHopper(arguments)
        && prefersLinearSkipLayerNormHopper(arguments))
    {
        status = launchLinearSkipLayerNormHopper(arguments, stream);
        if (status != cudaErrorLaunchOutOfResources)
        {
            return status; // otherwise its clusters find no room, as can be on a part of a GPU
        }
    }
#endif
    return launchLinearThenSkipLayerNorm(arguments, stream);
}

// The kernels write the workspace, y and `quantized` only after the wait for the kernels before them, which may still
// read a workspace of an earlier layer in the same memory.
cudaError_t launchLinearThenSkipLayerNorm(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    LinearArguments linear{};
    linear.x = arguments.x;
    linear.weight = arguments.weight;
    linear.y = arguments.workspace;
    linear.rows = arguments.rows;
    linear.in = arguments.in;
    linear.out = arguments.out;
    linear.type = arguments.type;
    linear.constantWeight = arguments.constantWeights;
    linear.weightScales = arguments.weightScales;
    linear.xScale = arguments.xScale;
    linear.outputType = arguments.outputType;
    cudaError_t const status = launchLinear(linear, stream);
    if (status != cudaSuccess)
    {
        return status;
    }

    SkipLayerNormArguments norm{};
    norm.x = arguments.workspace;
    norm.skip = arguments.skip;
    norm.gamma = arguments.gamma;
    norm.beta = arguments.beta;
    norm.bias = arguments.bias;
    norm.y = arguments.y;
    norm.quantized = arguments.quantized;
    norm.rows = arguments.rows;
    norm.hidden = arguments.out;
    norm.epsilon = arguments.epsilon;
    norm.outputScale = arguments.outputScale;
    norm.type = arguments.outputType;
    norm.weightType = arguments.normType;
    norm.constantWeights = arguments.constantWeights;
    norm.quantizedType = arguments.quantizedType;
    norm.outputFactors = arguments.outputFactors;
    return launchSkipLayerNorm(norm, stream);
}

} // namespace bert
