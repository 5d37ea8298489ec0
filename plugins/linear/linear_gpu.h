// Which GPUs have a kernel for the linear layer in 8 bits.
#pragma once

#include "common/capability.h"
#include "linear/linear_kernels.h"

#include <string>

namespace bert
{

// Why there is none for `type` (int8 or E4M3) on this GPU, in a library built for `architectures` of whose code the GPU
// runs that for `architecture` (findLinearTensorArchitecture); empty if there is one.
inline std::string missingKernelInEightBits(
    ElementType type, Capability gpu, int architecture, char const* architectures)
{
    bool const isE4m3 = type == ElementType::kE4M3;
    int const needed = isE4m3 ? kE4M3_ARCHITECTURE : kINT8_ARCHITECTURE;
    std::string const name = isE4m3 ? "fp8" : "int8";
    std::string const capability = std::to_string(gpu.major) + "." + std::to_string(gpu.minor);
    if (gpu.major * 10 + gpu.minor < needed)
    {
        return "this GPU has compute capability " + capability + ", and linear layers in " + name
               + " have a kernel from " + (isE4m3 ? "8.9 (Ada)" : "7.5 (Turing)") + " on; build with "
               + (isE4m3 ? "int8, fp16 or bf16" : "fp16");
    }
    return architecture >= needed
               ? ""
               : "this library was built for the GPU architectures " + std::string{architectures}
                     + ", and so has no kernel in " + name + " for this GPU of compute capability "
                     + capability + "; build it for this GPU: python plugins/build.py --architectures native";
}

} // namespace bert
