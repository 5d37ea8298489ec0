// What the one kernel on Hopper takes, by type.
#include "common/element.cuh"
#include "linear_skip_layer_norm/linear_skip_layer_norm_hopper.h"

namespace bert
{

bool suitsLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& a)
{
    bool const wide = a.type == ElementType::kHALF || a.type == ElementType::kBF16;
    bool const isWidth = a.out == 768 || a.out == 1024;
    return isWidth && a.in % (wide ? 64 : 128) == 0 && a.rows <= INT32_MAX / 2 && isAligned16(a.x)
           && isAligned16(a.weight) && isAligned16(a.bias) && isAligned16(a.skip) && isAligned16(a.gamma)
           && isAligned16(a.beta) && isAligned16(a.y) && isAligned16(a.quantized)
           && isAligned16(a.weightScales) && isAligned16(a.outputFactors);
}

// The fewest rows from which on one kernel was faster on an H100, as benchmarks/linear_skip_layer_norm.py measured it. With few
// rows nothing hides what follows the last products. With a long k the two kernels have better shapes of tile.
bool prefersLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& a)
{
    bool const wide = a.type == ElementType::kHALF || a.type == ElementType::kBF16;
    if (a.in <= 2 * a.out)
    {
        return a.rows >= (a.out == 768 ? 5000 : 3072);
    }
    if (a.out == 768)
    {
        return a.rows >= (wide ? 16384 : 9000);
    }
    return a.rows >= (wide ? 9000 : 8192);
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
