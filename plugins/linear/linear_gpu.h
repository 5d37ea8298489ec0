// Which GPUs have a kernel for the linear layer in 8 bits.
#pragma once

#include "common/capability.h"

#include <string>

namespace bert
{

// Why there is none on this GPU, in a library with or without the kernels for Hopper; empty if there is one.
inline std::string missingKernelInEightBits(Capability gpu, bool hasHopperKernels, char const* architectures)
{
    if (gpu.major != 9 || gpu.minor != 0)
    {
        return "this GPU has compute capability " + std::to_string(gpu.major) + "."
               + std::to_string(gpu.minor)
               + ", and linear layers in 8 bits have a kernel for 9.0 (Hopper) only; build with fp16 or bf16";
    }
    return hasHopperKernels ? ""
                            : "this library was built for the GPU architectures " + std::string{architectures}
                                  + ", without the kernels for 9.0; build it for this GPU: python "
                                    "plugins/build.py --architectures native";
}

} // namespace bert
