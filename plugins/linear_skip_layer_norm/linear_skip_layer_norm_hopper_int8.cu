// The kernels of linear_skip_layer_norm_hopper.cuh for int8.
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.cuh"
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.h"

namespace bert
{

cudaError_t launchLinearSkipLayerNormInt8(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    return arguments.outputType == ElementType::kHALF
               ? launchNormWidth<int8_t, __half>(arguments, stream)
               : launchNormWidth<int8_t, __nv_bfloat16>(arguments, stream);
}

} // namespace bert
