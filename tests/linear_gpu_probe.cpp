// Prints what is said of GPUs that have no kernel for the linear layer in 8 bits.
#include "linear/linear_gpu.h"

#include <array>
#include <cstdio>

namespace
{

// `architecture`: of the code that the GPU runs.
void tell(char const* name, bert::ElementType type, bert::Capability gpu, int architecture)
{
    std::string const reason = bert::missingKernelInEightBits(type, gpu, architecture, "80");
    std::printf("%s, %d.%d, code for %d:%s%s\n", name, gpu.major, gpu.minor, architecture,
        reason.empty() ? "" : " ", reason.c_str());
}

} // namespace

int main()
{
    for (auto [major, minor, architecture] : {std::array{7, 0, 0}, {7, 5, 75}, {8, 0, 80}, {8, 6, 86},
             {8, 9, 80}, {8, 9, 89}, {9, 0, 80}, {9, 0, 90}, {10, 0, 100}, {12, 0, 90}, {12, 0, 0}})
    {
        tell("int8", bert::ElementType::kINT8, {major, minor}, architecture);
        tell("fp8", bert::ElementType::kE4M3, {major, minor}, architecture);
    }
    return 0;
}
