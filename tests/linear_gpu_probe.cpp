// Prints what is said of GPUs that have no kernel for the linear layer in 8 bits.
#include "linear/linear_gpu.h"

#include <cstdio>

namespace
{

void tell(bert::Capability gpu, bool hasHopperKernels)
{
    std::string const reason = bert::missingKernelInEightBits(gpu, hasHopperKernels, "80");
    std::printf("%d.%d:%s%s\n", gpu.major, gpu.minor, reason.empty() ? "" : " ", reason.c_str());
}

} // namespace

int main()
{
    tell({8, 9}, true);
    tell({10, 0}, true);
    tell({9, 0}, true);
    tell({9, 0}, false);
    return 0;
}
