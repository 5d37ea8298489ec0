// The ladder to the kernels of the linear layer: kernels to read and to measure, fp16 and bf16. Each changes few things
// against the one before (docs/kernels/linear.md). All but the first, which the plugin takes for bf16 on Turing, are
// linked into the check program and the functions for benchmarks only.
#pragma once

#include "common/capability.h"
#include "linear/linear_kernels.h"

namespace bert
{

// Tiles in shared memory, without and with tensor cores (mma.sync, bf16 from Ampere on); any shape and alignment.
cudaError_t launchLinearShared(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearTiles(LinearArguments const& arguments, cudaStream_t stream);

// TMA and wgmma, for arguments that suitsHopperKernel accepts, on Hopper: one pipeline stage; four; those filled by a
// producer warp; and products of two steps in flight; and persistent blocks.
cudaError_t launchLinearWgmmaOneStage(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearWgmmaStages(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearWgmmaSpecialised(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearWgmmaInFlight(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearWgmmaPersistent(LinearArguments const& arguments, cudaStream_t stream);

struct LinearRung
{
    char const* name;
    cudaError_t (*launch)(LinearArguments const&, cudaStream_t);
    bool (*suits)(LinearArguments const&, Capability);
};

inline bool isSixteenBits(ElementType type)
{
    return type == ElementType::kHALF || type == ElementType::kBF16;
}
inline bool suitsPlainRung(LinearArguments const& a, Capability /*gpu*/)
{
    return isSixteenBits(a.type);
}
inline bool suitsTilesRung(LinearArguments const& a, Capability gpu)
{
    return isSixteenBits(a.type) && (a.type == ElementType::kHALF || gpu.major >= 8);
}

#if defined(BERT_HOPPER)
inline bool suitsWgmmaRung(LinearArguments const& a, Capability gpu)
{
    return isSixteenBits(a.type) && gpu.major == 9 && gpu.minor == 0 && suitsHopperKernel(a);
}
#endif

constexpr LinearRung kLINEAR_RUNGS[] = {
    {"plain", launchLinearPlain, suitsPlainRung},
    {"shared", launchLinearShared, suitsPlainRung},
    {"tiles", launchLinearTiles, suitsTilesRung},
#if defined(BERT_HOPPER)
    {"wgmma, one stage", launchLinearWgmmaOneStage, suitsWgmmaRung},
    {"wgmma, four stages", launchLinearWgmmaStages, suitsWgmmaRung},
    {"wgmma, producer warp", launchLinearWgmmaSpecialised, suitsWgmmaRung},
    {"wgmma, products in flight", launchLinearWgmmaInFlight, suitsWgmmaRung},
    {"wgmma, persistent", launchLinearWgmmaPersistent, suitsWgmmaRung},
#endif
};

} // namespace bert
