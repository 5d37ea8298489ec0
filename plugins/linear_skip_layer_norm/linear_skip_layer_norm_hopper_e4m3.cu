// The kernels of linear_skip_layer_norm_hopper.cuh for E4M3.
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.cuh"
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.h"

namespace bert
{

cudaError_t launchLinearSkipLayerNormE4m3(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    return arguments.outputType == ElementType::kHALF
               ? launchNormWidth<E4m3, __half>(arguments, stream)
               : launchNormWidth<E4m3, __nv_bfloat16>(arguments, stream);
}

} // namespace bert
