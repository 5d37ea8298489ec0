// Clusters: blocks that run at the same time and reach each other's shared memory. From Hopper on. PTX ISA:
// barrier.cluster, mapa, "Distributed shared memory" in the CUDA programming guide.
#pragma once

#include <cstdint>

namespace bert
{

// The place of this block in its cluster, and how many there are.
inline __device__ uint32_t clusterRank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
inline __device__ uint32_t clusterSize()
{
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// The number of this block's cluster in the grid, and how many there are. A kernel launched without clusters has
// clusters of one block.
inline __device__ uint32_t clusterNumber()
{
    uint32_t number;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(number));
    return number;
}
inline __device__ uint32_t clusterCount()
{
    uint32_t count;
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
    return count;
}

// All threads of all blocks of the cluster come here, warps as a whole; what they wrote before can be read after.
inline __device__ void synchronizeCluster()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// The same place in the shared memory of another block of the cluster, and what is there.
inline __device__ uint32_t addressInBlock(uint32_t address, uint32_t rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
inline __device__ float4 loadFromCluster(uint32_t address)
{
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "r"(address)
        : "memory");
    return v;
}

} // namespace bert
