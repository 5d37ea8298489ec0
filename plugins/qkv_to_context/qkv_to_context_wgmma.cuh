// The two matmuls of attention with wgmma, what the end of a packed sequence takes, and how producer and consumer
// warpgroups divide registers. Needs sm_90a.
#pragma once

#include "common/hopper_tma.cuh"
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
// Ends of packed sequences
// ---------------------------------------------------------------------------------------------------------------

// Fills rows `first` to kROWS - 1 of a tile of values with zeros, by kTHREADS threads; then they need a barrier. TMA has
// loaded other tokens there, which are multiplied with weights of 0, and 0 times NaN is NaN.
template <int kROWS, int kSIZE, int kTHREADS>
__device__ void clearRows(uint32_t tile, int32_t first)
{
    using Tile = SharedTile<kROWS, kSIZE>;
    constexpr int kPIECES = kROWS * Tile::kPIECES; // of a panel
    static_assert(kPIECES % kTHREADS == 0, "all threads take part in every step");
#pragma unroll
    for (int panel = 0; panel < kSIZE / Tile::kPANEL_COLUMNS; ++panel)
    {
#pragma unroll(4)
        for (int step = 0; step < kPIECES; step += kTHREADS)
        {
            int const piece = step + static_cast<int>(threadIdx.x) % kTHREADS;
            if (piece >= first * Tile::kPIECES)
            {
                storePiece(tile + panel * Tile::kPANEL_BYTES + piece * 16, uint4{});
            }
        }
    }
    fenceAsyncProxy();
}

// Stores the warp's 16 rows of the context, of which `rows` exist, through the warp's own shared memory, which lane 0
// knows to be free (waitForStores). A TMA copy writes them while the warp continues. If fewer than 16 rows exist, the
// lanes write them in pieces of 16 bytes.
template <typename T, int kSIZE>
__device__ void storeRows(AttentionProblem const& p, CUtensorMap const& map, uint32_t memory,
    int64_t firstToken, int32_t rows, uint32_t head, float const (&sums)[kSIZE / 8][4],
    float const (&factors)[2])
{
    using Rows = SharedTile<16, kSIZE>;
    constexpr int kPIECES = kSIZE / 8; // of a row
    int const lane = static_cast<int>(threadIdx.x % kWARP);
    stageContext<T, kSIZE>(memory, sums, factors);
    fenceAsyncProxy();
    __syncwarp();
    if (rows < 16)
    {
#pragma unroll(1)
        for (int i = lane; i < rows * kPIECES; i += kWARP)
        {
            T* const row = contextRow<T, kSIZE>(p, firstToken + i / kPIECES, head);
            reinterpret_cast<uint4*>(row)[i % kPIECES]
                = loadPiece(memory + Rows::offset(i / kPIECES, i % kPIECES));
        }
    }
    else if (lane == 0)
    {
#pragma unroll
        for (int panel = 0; panel < kSIZE / Rows::kPANEL_COLUMNS; ++panel)
        {
            storeBox(map, static_cast<int32_t>(head) * kSIZE + panel * Rows::kPANEL_COLUMNS,
                static_cast<int32_t>(firstToken), memory + panel * Rows::kPANEL_BYTES);
        }
    }
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
