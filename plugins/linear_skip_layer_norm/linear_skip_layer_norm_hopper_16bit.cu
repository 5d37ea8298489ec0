// The kernels of linear_skip_layer_norm_hopper.cuh for fp16 and bf16.
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.cuh"
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.h"

namespace bert
{

cudaError_t launchLinearSkipLayerNormHalf(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    return launchNormWidth<__half, __half>(arguments, stream);
}
cudaError_t launchLinearSkipLayerNormBf16(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream)
{
    return launchNormWidth<__nv_bfloat16, __nv_bfloat16>(arguments, stream);
}

} // namespace bert
