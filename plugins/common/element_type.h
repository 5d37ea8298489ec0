// The element types of the plugins' tensors. Kernels use these and know nothing of TensorRT.
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
};

} // namespace bert
