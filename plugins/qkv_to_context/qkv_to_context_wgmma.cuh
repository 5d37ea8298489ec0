// The two matmuls of attention with wgmma, and how producer and consumer warpgroups divide registers. Needs sm_90a.
#pragma once

#include "common/hopper_wgmma.cuh"
#include "qkv_to_context/qkv_to_context_fragments.cuh"

#include <cstdint>

namespace bert
{

constexpr int kQUERIES = 64; // that a warpgroup computes

// ---------------------------------------------------------------------------------------------------------------
// The two matmuls of attention
// ---------------------------------------------------------------------------------------------------------------

// scores (64, kKEYS) = queries (64, kSIZE) keys^T
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyKeys(
    float (&scores)[kKEYS / 8][4], uint32_t const (&queries)[kSIZE / 16][4], uint32_t keys)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    constexpr int kOF_PANEL = Tile::kPANEL_COLUMNS / 16;
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kSIZE / 16; ++k)
    {
        uint32_t const address = keys + k / kOF_PANEL * Tile::kPANEL_BYTES + k % kOF_PANEL * 32;
        uint64_t const matrix = matrixDescriptor<Tile::kROW_BYTES, 16>(address);
        multiplyAsync<0>(scores, queries[k], matrix, k == 0 ? 0 : 1, T{});
    }
    wgmmaCommit();
}

// The same with queries in shared memory.
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyKeys(float (&scores)[kKEYS / 8][4], uint32_t queries, uint32_t keys)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    static_assert(kSIZE == Tile::kPANEL_COLUMNS, "one panel");
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kSIZE / 16; ++k)
    {
        multiplyAsync<0>(scores, matrixDescriptor<Tile::kROW_BYTES, 16>(queries + k * 32),
            matrixDescriptor<Tile::kROW_BYTES, 16>(keys + k * 32), k == 0 ? 0 : 1, T{});
    }
    wgmmaCommit();
}

// sums (64, kSIZE) = weights (64, kKEYS) values, added to the previous sums if kADD
template <typename T, int kKEYS, int kSIZE, bool kADD = true>
__device__ void multiplyValues(
    float (&sums)[kSIZE / 8][4], uint32_t const (&weights)[kKEYS / 16][4], uint32_t values)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kKEYS / 16; ++k)
    {
        uint64_t const matrix
            = matrixDescriptor<Tile::kROW_BYTES, Tile::kPANEL_BYTES>(values + k * 16 * Tile::kROW_BYTES);
        multiplyAsync<1>(sums, weights[k], matrix, kADD || k > 0 ? 1 : 0, T{});
    }
    wgmmaCommit();
}

// ---------------------------------------------------------------------------------------------------------------
// Registers
// ---------------------------------------------------------------------------------------------------------------

// Registers per thread for a block of one producer warpgroup and kGROUPS consumer warpgroups (setmaxnreg). A
// multiprocessor has 512 registers for each of its 128 lanes. The consumers get the registers that the producer gives
// up.
template <int kGROUPS, int kBLOCKS, int kOF_PRODUCER>
struct RegisterBudget
{
    static constexpr int kLAUNCHED = 512 / ((kGROUPS + 1) * kBLOCKS) / 8 * 8;
    static constexpr int kMOST = 240;
    static constexpr int kPRODUCER = kOF_PRODUCER;
    static constexpr int kLEFT = (kLAUNCHED * (kGROUPS + 1) - kPRODUCER) / kGROUPS / 8 * 8;
    static constexpr int kCONSUMER = kLEFT < kMOST ? kLEFT : kMOST;
};

} // namespace bert
