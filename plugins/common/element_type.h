// The element types of the plugins' tensors, for kernels, which do not include TensorRT.
#pragma once

#include <cstdint>

namespace bert
{

enum class ElementType : int32_t
{
    kFLOAT,
    kHALF,
    kBF16,
    kINT8,
    kE4M3, // fp8 with 4 bits of exponent and 3 of mantissa, largest value 448
};

// The range of scales of int8 and fp8 tensors. Outside it, intermediate results would leave the range of fp32.
constexpr float kSMALLEST_SCALE = 1e-30F;
constexpr float kLARGEST_SCALE = 1e30F;

} // namespace bert
