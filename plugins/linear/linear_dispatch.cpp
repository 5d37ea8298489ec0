// Chooses one of the two kernels of the linear layer by shape, alignment and GPU.
#include "common/capability.h"
#include "linear/linear_kernels.h"

namespace bert
{

cudaError_t launchLinear(LinearArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess; // a grid of no blocks is an error to CUDA
    }
#if defined(BERT_HOPPER)
    Capability capability;
    cudaError_t const status = currentCapability(capability);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (capability.major == 9 && capability.minor == 0 && suitsHopperKernel(arguments))
    {
        return launchLinearHopper(arguments, stream);
    }
#endif
    return launchLinearTensor(arguments, stream);
}

} // namespace bert
