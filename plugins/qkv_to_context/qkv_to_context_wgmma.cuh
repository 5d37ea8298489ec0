// The two products of attention with Hopper's tensor cores, and how warpgroups share registers. Needs code for sm_90a.
#pragma once

#include "common/hopper_products.cuh"
#include "qkv_to_context/qkv_to_context_fragments.cuh"

#include <cstdint>

namespace bert
{

constexpr int kQUERIES = 64; // of a warpgroup

// ---------------------------------------------------------------------------------------------------------------
// The two products of attention
// ---------------------------------------------------------------------------------------------------------------

// scores (64, kKEYS) = queries (64, kSIZE) keys^T
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyKeys(
    float (&scores)[kKEYS / 8][4], uint32_t const (&queries)[kSIZE / 16][4], uint32_t keys)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    constexpr int kOF_PANEL = Tile::kPANEL_COLUMNS / 16;
    beginProducts();
#pragma unroll
    for (int k = 0; k < kSIZE / 16; ++k)
    {
        uint32_t const address = keys + k / kOF_PANEL * Tile::kPANEL_BYTES + k % kOF_PANEL * 32;
        uint64_t const matrix = describeMatrix<Tile::kROW_BYTES, 16>(address);
        multiplyAsync<0>(scores, queries[k], matrix, k == 0 ? 0 : 1, T{});
    }
    endProducts();
}

// The same with queries in shared memory.
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyKeys(float (&scores)[kKEYS / 8][4], uint32_t queries, uint32_t keys)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    static_assert(kSIZE == Tile::kPANEL_COLUMNS, "one panel");
    beginProducts();
#pragma unroll
    for (int k = 0; k < kSIZE / 16; ++k)
    {
        multiplyAsync<0>(scores, describeMatrix<Tile::kROW_BYTES, 16>(queries + k * 32),
            describeMatrix<Tile::kROW_BYTES, 16>(keys + k * 32), k == 0 ? 0 : 1, T{});
    }
    endProducts();
}

// sums (64, kSIZE) = weights (64, kKEYS) values, added to what they hold if kADD
template <typename T, int kKEYS, int kSIZE, bool kADD = true>
__device__ void multiplyValues(
    float (&sums)[kSIZE / 8][4], uint32_t const (&weights)[kKEYS / 16][4], uint32_t values)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    beginProducts();
#pragma unroll
    for (int k = 0; k < kKEYS / 16; ++k)
    {
        uint64_t const matrix
            = describeMatrix<Tile::kROW_BYTES, Tile::kPANEL_BYTES>(values + k * 16 * Tile::kROW_BYTES);
        multiplyAsync<1>(sums, weights[k], matrix, kADD || k > 0 ? 1 : 0, T{});
    }
    endProducts();
}

// ---------------------------------------------------------------------------------------------------------------
// Registers
// ---------------------------------------------------------------------------------------------------------------

// Of a thread, where one warpgroup of a block fetches and kGROUPS compute: a multiprocessor has 512 for each of its 128
// lanes. What the fetching ones give back, the computing ones get.
template <int kGROUPS, int kBLOCKS, int kOF_FETCHING>
struct Registers
{
    static constexpr int kLAUNCHED = 512 / ((kGROUPS + 1) * kBLOCKS) / 8 * 8;
    static constexpr int kMOST = 240;
    static constexpr int kFETCHING = kOF_FETCHING;
    static constexpr int kLEFT = (kLAUNCHED * (kGROUPS + 1) - kFETCHING) / kGROUPS / 8 * 8;
    static constexpr int kCOMPUTING = kLEFT < kMOST ? kLEFT : kMOST;
};

} // namespace bert
