// The one kernel on Hopper, for each type of x; compiled in files of their own.
#pragma once

#include "linear_skip_layer_norm/linear_skip_layer_norm_kernels.h"

namespace bert
{

// cudaErrorInvalidValue for another width.
cudaError_t launchLinearSkipLayerNormHalf(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearSkipLayerNormBf16(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearSkipLayerNormE4m3(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearSkipLayerNormInt8(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);

} // namespace bert
