// What the one kernel on Hopper takes, by type.
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.h"

namespace bert
{

namespace
{

bool isAligned(void const* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

} // namespace

bool suitsLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& a)
{
    bool const wide = a.type == ElementType::kHALF || a.type == ElementType::kBF16;
    bool const isWidth = a.out == 768 || a.out == 1024;
    return isWidth && a.in % (wide ? 64 : 128) == 0 && a.rows <= INT32_MAX / 2 && isAligned(a.x)
           && isAligned(a.weight) && isAligned(a.bias) && isAligned(a.skip) && isAligned(a.gamma)
           && isAligned(a.beta) && isAligned(a.y) && isAligned(a.quantized) && isAligned(a.weightScales)
           && isAligned(a.outputFactors);
}

// benchmarks/linear_skip_layer_norm.py measures both ways; docs/kernels/linear_skip_layer_norm.md has its table. With few rows
// what follows the products is not hidden behind others. With a long k two kernels multiply faster than they norm.
bool prefersLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& a)
{
    bool const wide = a.type == ElementType::kHALF || a.type == ElementType::kBF16;
    bool const isLong = a.in > 2 * a.out;
    if (isLong)
    {
        return !wide && a.out == 1024 && a.rows >= 8192;
    }
    return a.rows >= (wide ? 8192 : 6144);
}

cudaError_t launchLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& a, cudaStream_t stream)
{
    switch (a.type)
    {
    case ElementType::kHALF:
        return launchLinearSkipLayerNormHalf(a, stream);
    case ElementType::kBF16:
        return launchLinearSkipLayerNormBf16(a, stream);
    case ElementType::kE4M3:
        return launchLinearSkipLayerNormE4m3(a, stream);
    default:
        return launchLinearSkipLayerNormInt8(a, stream);
    }
}

} // namespace bert
